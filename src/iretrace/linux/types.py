"""C types as x86-64 GCC has them: integers and their conversions, pointers, functions, structs.

Types resolve lazily: what a pointer points to and what a function takes is looked up only when somebody asks, so that
one struct does not pull in the whole kernel. resolve.py makes types of what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from iretrace.linux.ctree import Pos
from iretrace.linux.notes import Later, Notes
from iretrace.linux.unmodelled import Unmodelled


@dataclass(frozen=True, slots=True)
class Void:
    """void."""


@dataclass(frozen=True, slots=True, eq=False)
class Int:
    """An integer type; there is one object of each, so compare with `is`. rank as in the usual conversions."""

    name: str
    bits: int
    signed: bool
    rank: int

    @property
    def low(self) -> int:
        """The smallest value."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The largest value."""
        return (1 << (self.bits - self.signed)) - 1

    def wrap(self, value: int) -> int:
        """The value as this type holds it (for _Bool: the low 8 bits; conversion to _Bool is a comparison)."""
        value &= (1 << self.bits) - 1
        return value - (1 << self.bits) if self.signed and value >> (self.bits - 1) else value


VOID = Void()
BOOL = Int("_Bool", 8, False, 0)
CHAR = Int("char", 8, True, 1)
SCHAR = Int("signed char", 8, True, 1)
UCHAR = Int("unsigned char", 8, False, 1)
SHORT = Int("short", 16, True, 2)
USHORT = Int("unsigned short", 16, False, 2)
INT = Int("int", 32, True, 3)
UINT = Int("unsigned int", 32, False, 3)
LONG = Int("long", 64, True, 4)
ULONG = Int("unsigned long", 64, False, 4)
LLONG = Int("long long", 64, True, 5)
ULLONG = Int("unsigned long long", 64, False, 5)
INT128 = Int("__int128", 128, True, 6)
UINT128 = Int("unsigned __int128", 128, False, 6)

UNSIGNED = {CHAR: UCHAR, SCHAR: UCHAR, SHORT: USHORT, INT: UINT, LONG: ULONG, LLONG: ULLONG, INT128: UINT128}

_BASIC = {
    ("char",): CHAR, ("char", "signed"): SCHAR, ("char", "unsigned"): UCHAR,
    ("short",): SHORT, ("short", "unsigned"): USHORT,
    (): INT, ("unsigned",): UINT, ("signed",): INT,
    ("long",): LONG, ("long", "unsigned"): ULONG,
    ("long", "long"): LLONG, ("long", "long", "unsigned"): ULLONG,
    ("__int128",): INT128, ("__int128", "unsigned"): UINT128,
    ("_Bool",): BOOL,
}  # fmt: skip


class Ptr:
    """A pointer; `to` is resolved when first asked for."""

    __slots__ = ("_to",)

    def __init__(self, to: Type | Later[Type]) -> None:
        self._to = to

    @property
    def to(self) -> Type:
        """What it points to."""
        return self._to() if isinstance(self._to, Later) else self._to


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """An array; count is None for `[]`."""

    of: Type
    count: int | None


class Func:
    """A function type, resolved when first asked for."""

    __slots__ = ("_parts", "variadic")

    def __init__(self, parts: Later[tuple[Type, tuple[Type, ...]]], variadic: bool) -> None:
        self._parts = parts
        self.variadic = variadic

    @property
    def returns(self) -> Type:
        """The return type."""
        return self._parts()[0]

    @property
    def params(self) -> tuple[Type, ...]:
        """The parameter types, arrays and functions decayed to pointers."""
        return self._parts()[1]


class Member(NamedTuple):
    """A member: offset in bits from the struct's start, and the width if it is a bit-field (else None)."""

    name: str
    type: Type
    bit: int
    width: int | None


class Body(NamedTuple):
    """A laid out struct or union: size and alignment in bytes; `members` also holds those of anonymous members."""

    size: int
    align: int
    fields: tuple[Member, ...]
    members: Mapping[str, Member]


class Struct:
    """A struct or union, laid out when first needed. opaque: of known size only, without members."""

    __slots__ = ("_body", "_busy", "_lay_out", "kind", "opaque", "tag")

    def __init__(self, kind: str, tag: str, lay_out: Callable[[Struct], Body], notes: Notes) -> None:
        self.kind = kind
        self.tag = tag
        self.opaque = False
        self._lay_out = lay_out
        self._body = notes.later(self._make)
        self._busy = False

    @property
    def body(self) -> Body:
        """The layout. Raises Unmodelled when there is no definition."""
        return self._body()

    def _make(self) -> Body:
        if self._busy:
            raise Unmodelled(f"{self} contains itself")
        self._busy = True
        try:
            return self._lay_out(self)
        finally:
            self._busy = False

    def __str__(self) -> str:
        return f"{self.kind} {self.tag}" if self.tag else f"anonymous {self.kind}"


Type = Void | Int | Ptr | Array | Func | Struct


def describe(kind: Type) -> str:
    """A type in C-like words, for messages."""
    match kind:
        case Void():
            return "void"
        case Int():
            return kind.name
        case Ptr():
            return f"{describe(kind.to)} *"
        case Array():
            return f"{describe(kind.of)} [{'' if kind.count is None else kind.count}]"
        case Func():
            return "a function"
        case Struct():
            return str(kind)


def same_type(a: Type, b: Type) -> bool:
    """Whether two types are compatible (GCC's __builtin_types_compatible_p, qualifiers ignored)."""
    if a is b:
        return True
    match a, b:
        case Ptr(), Ptr():
            return same_type(a.to, b.to)
        case Array(), Array():
            return same_type(a.of, b.of) and (a.count == b.count or a.count is None or b.count is None)
        case Struct(), Struct():
            return bool(a.tag) and (a.kind, a.tag) == (b.kind, b.tag)
        case Func(), Func():
            return (
                same_type(a.returns, b.returns)
                and len(a.params) == len(b.params)
                and all(same_type(x, y) for x, y in zip(a.params, b.params, strict=True))
            )
    return False


def promote(kind: Int) -> Int:
    """The integer promotions."""
    return INT if kind.bits < INT.bits else kind


def common(a: Int, b: Int) -> Int:
    """The usual arithmetic conversions."""
    a, b = promote(a), promote(b)
    if a is b:
        return a
    if a.bits != b.bits:
        return a if a.bits > b.bits else b
    if a.signed == b.signed:
        return a if a.rank > b.rank else b
    unsigned, signed = (b, a) if a.signed else (a, b)
    return unsigned if unsigned.rank >= signed.rank else UNSIGNED[signed]


_BIT_FIELDS: dict[tuple[Int, int], Int] = {}


def bit_field_type(kind: Int, width: int) -> Int:
    """The type of the value of a bit-field. GCC gives one wider than int a type of just its width."""
    if width < INT.bits:
        return INT
    if width == kind.bits:
        return kind
    return _BIT_FIELDS.setdefault((kind, width), Int(f"{kind.name}:{width}", width, kind.signed, kind.rank))


def basic(words: str, pos: Pos | None = None) -> Type:
    """The type of specifier words in any order, e.g. "unsigned long"."""
    parts = words.split()
    if parts == ["void"]:
        return VOID
    if "__int128_t" in parts or "__uint128_t" in parts:
        return INT128 if "__int128_t" in parts else UINT128
    rest = sorted(p for p in parts if p != "int" and not (p == "signed" and "char" not in parts))
    found = _BASIC.get(tuple(rest))
    if found is None:
        raise Unmodelled(f"type `{words}` (floating point and the like are not modelled)", pos)
    return found


def round_up(value: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-value // to) * to


def decay(kind: Type) -> Type:
    """Arrays and functions as values are pointers."""
    match kind:
        case Array():
            return Ptr(kind.of)
        case Func():
            return Ptr(kind)
    return kind
