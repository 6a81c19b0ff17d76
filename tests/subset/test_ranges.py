"""The checker's ranges hold every value that Python computes."""

from __future__ import annotations

import ast
import operator as python
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from iretrace.subset.ranges import Range, Refused, binary, comparable, unary, union

OPERATORS: list[tuple[ast.operator, Callable[[int, int], int]]] = [
    (ast.Add(), python.add),
    (ast.Sub(), python.sub),
    (ast.Mult(), python.mul),
    (ast.LShift(), python.lshift),
    (ast.RShift(), python.rshift),
    (ast.BitAnd(), python.and_),
    (ast.BitOr(), python.or_),
    (ast.BitXor(), python.xor),
    (ast.FloorDiv(), python.floordiv),
    (ast.Mod(), python.mod),
]

SMALL = st.integers(-40, 40)
RANGES = st.tuples(SMALL, SMALL).map(lambda ends: Range(min(ends), max(ends)))


@given(st.sampled_from(OPERATORS), RANGES, RANGES, st.data())
def test_a_result_lies_in_the_range_of_the_operation(
    operation: tuple[ast.operator, Callable[[int, int], int]], left: Range, right: Range, data: st.DataObject
) -> None:
    operator, compute = operation
    a = data.draw(st.integers(left.lo, left.hi))
    b = data.draw(st.integers(right.lo, right.hi))
    try:
        result = binary(operator, left, right)
    except Refused:
        return
    assert result.lo <= compute(a, b) <= result.hi


@given(RANGES, st.data())
def test_a_negated_or_inverted_value_lies_in_its_range(values: Range, data: st.DataObject) -> None:
    a = data.draw(st.integers(values.lo, values.hi))
    assert unary(ast.USub(), values).lo <= -a <= unary(ast.USub(), values).hi
    assert unary(ast.Invert(), values).lo <= ~a <= unary(ast.Invert(), values).hi


def test_a_union_holds_both() -> None:
    assert union(Range(1, 2), Range(5, 9)) == Range(1, 9)


def test_a_negative_value_and_a_u64_are_not_comparable() -> None:
    assert not comparable(Range(-1, 3), Range(0, (1 << 64) - 1))


def test_widths_are_shown_by_name() -> None:
    assert [str(Range(0, 255)), str(Range(3, 3)), str(Range(1, 3))] == ["u8", "3", "1..3"]
