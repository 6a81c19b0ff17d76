"""Ranges of the values that an expression can have, and what the operators of the restricted Python do to them."""

from __future__ import annotations

import ast
import operator as python
from collections.abc import Callable
from dataclasses import dataclass

MAX_SHIFT = 63


class Refused(Exception):
    """An operation that the subset lacks; the message says what and what to write instead."""


@dataclass(frozen=True, slots=True)
class Range:
    """All integers from lo to hi, both included."""

    lo: int
    hi: int

    def within(self, other: Range) -> bool:
        """Whether the other range holds every value of this one."""
        return other.lo <= self.lo and self.hi <= other.hi

    @property
    def constant(self) -> bool:
        """Whether there is only one value."""
        return self.lo == self.hi

    def __str__(self) -> str:
        named = [name for name, width in WIDTHS.items() if width == self]
        if named:
            return named[0]
        return str(self.lo) if self.constant else f"{self.lo}..{self.hi}"


BOOL = Range(0, 1)
I64 = Range(-(1 << 63), (1 << 63) - 1)
WIDTHS = {f"u{bits}": Range(0, (1 << bits) - 1) for bits in (1, 8, 16, 32, 64)}
U64 = WIDTHS["u64"]

_FOLD: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: python.add,
    ast.Sub: python.sub,
    ast.Mult: python.mul,
    ast.LShift: python.lshift,
    ast.RShift: python.rshift,
    ast.BitAnd: python.and_,
    ast.BitOr: python.or_,
    ast.BitXor: python.xor,
    ast.FloorDiv: python.floordiv,
    ast.Mod: python.mod,
}


def union(left: Range, right: Range) -> Range:
    """Either of two values."""
    return Range(min(left.lo, right.lo), max(left.hi, right.hi))


def comparable(left: Range, right: Range) -> bool:
    """Whether one 64-bit comparison, signed or unsigned, compares the exact values."""
    both = union(left, right)
    return both.within(U64) or both.within(I64)


def unary(operator: ast.unaryop, value: Range) -> Range:
    """`-x`, `~x` and `+x`."""
    if isinstance(operator, ast.USub):
        return Range(-value.hi, -value.lo)
    if isinstance(operator, ast.Invert):
        return Range(~value.hi, ~value.lo)
    raise Refused("unary + does nothing; leave it out")


def binary(operator: ast.operator, left: Range, right: Range) -> Range:
    """`left operator right`. Raises Refused where a fixed-width machine would not compute what Python does."""
    kind = type(operator)
    if kind not in _FOLD:
        raise Refused(f"{kind.__name__} is no operator of the subset; there are + - * << >> & | ^ // %")
    if kind in (ast.LShift, ast.RShift):
        _check_shift(left, right, right_shift=kind is ast.RShift)
    if kind in (ast.FloorDiv, ast.Mod) and (right.lo < 1 or not left.within(U64)):
        raise Refused(f"division of {left} by {right}; the divisor is at least 1 and the dividend is no less than 0")
    if left.constant and right.constant:
        value = _FOLD[kind](left.lo, right.lo)
        return Range(value, value)
    if kind is ast.BitAnd:
        return _bit_and(left, right)
    if kind in (ast.BitOr, ast.BitXor):
        return _bit_or(left, right)
    if kind is ast.Mod:
        return Range(0, min(left.hi, right.hi - 1))
    corners = [_FOLD[kind](a, b) for a in (left.lo, left.hi) for b in (right.lo, right.hi)]
    return Range(min(corners), max(corners))


def _check_shift(left: Range, count: Range, *, right_shift: bool) -> None:
    largest = 127 if left.constant and count.constant else MAX_SHIFT
    if not count.within(Range(0, largest)):
        raise Refused(f"the shift count may be {count}; it must be 0..{MAX_SHIFT}, e.g. by `& 31`")
    if right_shift and not left.within(U64):
        raise Refused(f"{left} is shifted right; what is shifted must be no less than 0 and fit in 64 bits")


def _bit_and(left: Range, right: Range) -> Range:
    if left.lo >= 0 and right.lo >= 0:
        return Range(0, min(left.hi, right.hi))
    if left.lo >= 0:
        return Range(0, left.hi)
    if right.lo >= 0:
        return Range(0, right.hi)
    return _signed(left, right)


def _bit_or(left: Range, right: Range) -> Range:
    if left.lo >= 0 and right.lo >= 0:
        return Range(0, (1 << max(left.hi.bit_length(), right.hi.bit_length())) - 1)
    return _signed(left, right)


def _signed(left: Range, right: Range) -> Range:
    bits = max(end.bit_length() for end in (left.lo, left.hi, right.lo, right.hi))
    return Range(-(1 << bits), (1 << bits) - 1)
