"""Building expressions: constants fold, conversions vanish where a range shows that they change nothing."""

from __future__ import annotations

from collections.abc import Callable

from iretrace.linux.ir import Binary, Compare, Const, Convert, Expr, Negate
from iretrace.linux.types import BOOL, INT, LONG, ULONG, Int
from iretrace.linux.unmodelled import Unmodelled


def divide(a: int, b: int) -> int:
    """C's division: towards zero."""
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


def remainder(a: int, b: int) -> int:
    """C's remainder: the sign of the dividend."""
    rest = abs(a) % abs(b)
    return -rest if a < 0 else rest


_EXACT: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": divide,
    "%": remainder,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "<<": lambda a, b: a << b,
    ">>": lambda a, b: a >> b,
}

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}

_INVERSE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


def binary(op: str, left: Expr, right: Expr, kind: Int) -> Expr:
    """left op right, both already of type `kind` (the count of a shift: of any type)."""
    if op in ("<<", ">>"):
        right = _shift_count(right, kind)
    if isinstance(right, Const):
        if isinstance(left, Const):
            if op in "/%" and right.value == 0:
                raise Unmodelled("division by a constant 0")
            return Const(kind.wrap(_EXACT[op](left.value, right.value)), kind, left.given or right.given)
        if right.value == 0 and op in ("+", "-", "|", "^", "<<", ">>"):
            return left
    return Binary(op, left, right, kind)


def _shift_count(count: Expr, kind: Int) -> Expr:
    """The count as the processor takes it: modulo the width of the register."""
    most = (1 << (kind.bits - 1).bit_length()) - 1
    if isinstance(count, Const):
        return Const(count.value & most, INT, count.given)
    if 0 <= count.low and count.high <= most:
        return count
    return Binary("&", count, Const(most), count.type)


def negate(of: Expr, invert: bool, kind: Int) -> Expr:
    """-of, or ~of."""
    if isinstance(of, Const):
        return Const(kind.wrap(~of.value if invert else -of.value), kind, of.given)
    return Negate(of, invert, kind)


def compare(op: str, left: Expr, right: Expr) -> Expr:
    """A comparison, both sides of one type."""
    if isinstance(left, Const) and isinstance(right, Const):
        return Const(int(_COMPARE[op](left.value, right.value)), INT, left.given or right.given)
    return Compare(op, left, right)


def truth(of: Expr) -> Expr:
    """of != 0."""
    if isinstance(of, Compare):
        return of
    return compare("!=", of, Const(0))


def untruth(of: Expr) -> Expr:
    """of == 0."""
    if isinstance(of, Compare):
        return Compare(_INVERSE[of.op], of.left, of.right)
    return compare("==", of, Const(0))


def convert(of: Expr, kind: Int) -> Expr:
    """`of` converted to an integer type."""
    if kind is BOOL:
        return of if 0 <= of.low and of.high <= 1 else truth(of)
    if isinstance(of, Const):
        return Const(kind.wrap(of.value), kind, of.given)
    if kind.low <= of.low and of.high <= kind.high:
        return of
    if isinstance(of, Convert) and of.type.bits >= kind.bits:
        of = of.of
    return Convert(of, kind)


def add(base: Expr, offset: Expr) -> Expr:
    """Address arithmetic in bytes; constants gather at the end: (p + 8) + 16 is p + 24."""
    if isinstance(offset, Const) and not offset.given:
        base, before = split(base)
        total = before + offset.value
        if isinstance(base, Const):
            return Const(ULONG.wrap(base.value + total), ULONG, base.given)
        if total == 0:
            return base
        return Binary("+", base, Const(total, ULONG), ULONG)
    return Binary("+", base, offset, ULONG)


def split(address: Expr) -> tuple[Expr, int]:
    """An address as base and constant distance in bytes."""
    if isinstance(address, Binary) and address.op == "+" and address.type is ULONG:
        right = address.right
        if isinstance(right, Const) and not right.given:
            return address.left, LONG.wrap(right.value)
    return address, 0
