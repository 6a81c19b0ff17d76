"""C types as x86-64 GCC has them: integers, pointers, and structs laid out by the System V ABI and GCC's rules.

Types resolve lazily: what a pointer points to and what a function takes is looked up only when somebody asks, so that
one struct does not pull in the whole kernel. Finding definitions and evaluating constants is left to a subclass
(layout.Layout), because both need expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from iretrace.linux import ctree
from iretrace.linux.ctree import CType, Pos
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

    def __init__(self, to: Type | Callable[[], Type]) -> None:
        self._to = to

    @property
    def to(self) -> Type:
        """What it points to."""
        if callable(self._to):
            self._to = self._to()
        return self._to


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """An array; count is None for `[]`."""

    of: Type
    count: int | None


class Func:
    """A function type, resolved when first asked for."""

    __slots__ = ("_parts", "_resolve", "variadic")

    def __init__(self, resolve: Callable[[], tuple[Type, tuple[Type, ...]]], variadic: bool) -> None:
        self._resolve = resolve
        self._parts: tuple[Type, tuple[Type, ...]] | None = None
        self.variadic = variadic

    @property
    def returns(self) -> Type:
        """The return type."""
        return self._get()[0]

    @property
    def params(self) -> tuple[Type, ...]:
        """The parameter types, arrays and functions decayed to pointers."""
        return self._get()[1]

    def _get(self) -> tuple[Type, tuple[Type, ...]]:
        if self._parts is None:
            self._parts = self._resolve()
        return self._parts


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

    __slots__ = ("_body", "_lay_out", "kind", "opaque", "tag")

    def __init__(self, kind: str, tag: str, lay_out: Callable[[Struct], Body]) -> None:
        self.kind = kind
        self.tag = tag
        self.opaque = False
        self._lay_out = lay_out
        self._body: Body | None = None

    @property
    def body(self) -> Body:
        """The layout. Raises Unmodelled when there is no definition."""
        if self._body is None:
            self._body = self._lay_out(self)
        return self._body

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


class Scope(Protocol):
    """Evaluates the expressions inside types: the file scope (Types itself), or that of a function being lowered."""

    def constant(self, expr: ctree.Expr, path: str) -> int:
        """The value of an integer constant expression. Raises Unmodelled if it is none."""
        ...

    def type_of(self, expr: ctree.Expr, path: str) -> Type:
        """The type of an expression, arrays not decayed."""
        ...


class Types:
    """Resolves types as written. A subclass finds definitions and evaluates expressions.

    path arguments are the file of use, needed because some names mean different things in different files.
    """

    def __init__(self, opaque: Mapping[str, int] | None = None) -> None:
        self.opaque = dict(opaque or {})
        self._structs: dict[tuple[str, str, str], Struct] = {}
        self._anonymous: dict[int, tuple[object, Struct]] = {}
        self._typedefs: dict[tuple[str, str], Type] = {}
        self._enums: dict[int, tuple[ctree.EnumType, Int, dict[str, tuple[Int, int]]]] = {}

    # What a subclass provides.

    def constant(self, expr: ctree.Expr, path: str) -> int:
        """The value of an integer constant expression. Raises Unmodelled if it is none."""
        raise NotImplementedError

    def type_of(self, expr: ctree.Expr, path: str) -> Type:
        """The type of an expression outside functions."""
        raise NotImplementedError

    def find_struct(self, kind: str, tag: str, path: str) -> ctree.StructType | None:
        """The definition of a tagged struct or union."""
        raise NotImplementedError

    def find_typedef(self, name: str, path: str) -> CType | None:
        """What a typedef stands for."""
        raise NotImplementedError

    def find_enum(self, tag: str, path: str) -> ctree.EnumType | None:
        """The definition of a tagged enum."""
        raise NotImplementedError

    # Resolving.

    def resolve(self, written: CType, path: str, scope: Scope | None = None) -> Type:
        """The type that was written; scope: where its expressions are evaluated. Unmodelled for unknown names."""
        match written:
            case ctree.TypeName():
                return self._typedef(written.name, path)
            case ctree.Basic():
                return basic(written.name)
            case ctree.PointerType():
                if scope is None:
                    return Ptr(lambda: self.resolve(written.to, path))
                return Ptr(self.resolve(written.to, path, scope))  # now, while the scope is what it is
            case ctree.ArrayType():
                count = None if written.size is None else (scope or self).constant(written.size, path)
                return Array(self.resolve(written.of, path, scope), count)
            case ctree.StructType():
                return self.struct(written, path, scope)
            case ctree.EnumType():
                return self.enum(written, path)
            case ctree.FunctionType():
                return Func(lambda: self._function(written, path), written.variadic)
            case ctree.TypeofType():
                of = written.of
                if isinstance(of, CType):
                    return self.resolve(of, path, scope)
                return (scope or self).type_of(of, path)

    def _typedef(self, name: str, path: str) -> Type:
        found = self._typedefs.get((name, path))
        if found is None:
            written = self.find_typedef(name, path)
            if written is None:
                if name == "__builtin_va_list":
                    return Array(ULONG, 3)
                raise Unmodelled(f"type `{name}` is not defined anywhere in the tree")
            found = self.resolve(written, path)
            self._typedefs[name, path] = found
        return found

    def _function(self, written: ctree.FunctionType, path: str) -> tuple[Type, tuple[Type, ...]]:
        params = tuple(decay(self.resolve(p.type, path)) for p in written.params)
        if params == (VOID,):
            params = ()
        return self.resolve(written.returns, path), params

    def struct(self, written: ctree.StructType, path: str, scope: Scope | None = None) -> Struct:
        """The struct or union; tagged ones are one object per tag and file of use."""
        if not written.tag:
            kept = self._anonymous.get(id(written))
            if kept is None:
                made = Struct(written.kind, "", lambda s: self._lay_out(s, written, path, scope))
                kept = self._anonymous[id(written)] = (written, made)  # keeps `written` alive, so the id stays its own
                if scope is not None:
                    _ = made.body  # now, while the scope is what it is
            return kept[1]
        key = (written.kind, written.tag, path)
        found = self._structs.get(key)
        if found is None:
            definition = written if written.fields is not None else None
            found = Struct(written.kind, written.tag, lambda s: self._find_and_lay_out(s, definition, path))
            self._structs[key] = found
        return found

    def _find_and_lay_out(self, struct: Struct, definition: ctree.StructType | None, path: str) -> Body:
        if definition is None:
            definition = self.find_struct(struct.kind, struct.tag, path)
        if definition is not None and definition.fields is not None:
            return self._lay_out(struct, definition, definition.path or path, None)
        size = self.opaque.get(str(struct))
        if size is None:
            row = f'[[opaque_struct]]\nname = "{struct}"\nsize = 8\nwhy = "..."'
            raise Unmodelled(f"{struct} has no definition in the tree", None, row)
        struct.opaque = True
        return Body(size, min(8, size & -size or 1), (), {})

    def enum(self, written: ctree.EnumType, path: str) -> Int:
        """The integer type that GCC gives an enum."""
        definition = written
        if written.items is None:
            found = self.find_enum(written.tag, path)
            if found is None:
                return UINT  # an enum nobody defines can only be passed along
            definition = found
        return self._enum(definition, path)[0]

    def enumerators(self, definition: ctree.EnumType, path: str) -> dict[str, tuple[Int, int]]:
        """Types and values of an enum's constants."""
        return self._enum(definition, path)[1]

    def _enum(self, definition: ctree.EnumType, path: str) -> tuple[Int, dict[str, tuple[Int, int]]]:
        kept = self._enums.get(id(definition))
        if kept is None:
            known: dict[str, tuple[Int, int]] = {}
            # Visible while it is evaluated: later constants refer to earlier ones.
            self._enums[id(definition)] = kept = (definition, INT, known)
            value = -1
            for name, expr in definition.items or ():
                value = value + 1 if expr is None else self.constant(expr, path)
                known[name] = (_enumerator_type(value, INT), value)
            own = _enum_type([value for _, value in known.values()])
            for name, (_, value) in known.items():
                known[name] = (_enumerator_type(value, own), value)
            self._enums[id(definition)] = kept = (definition, own, known)
        return kept[1], kept[2]

    # Layout.

    def size_of(self, kind: Type) -> int:
        """Size in bytes; of void and functions 1, as GCC has it."""
        match kind:
            case Int():
                return (1 << (kind.bits - 1).bit_length()) // 8  # of the type of a wide bit-field, that of its word
            case Ptr():
                return 8
            case Array():
                return (kind.count or 0) * self.size_of(kind.of)
            case Struct():
                return kind.body.size
            case Void() | Func():
                return 1

    def align_of(self, kind: Type) -> int:
        """Alignment in bytes."""
        match kind:
            case Int():
                return kind.bits // 8
            case Ptr():
                return 8
            case Array():
                return self.align_of(kind.of)
            case Struct():
                return kind.body.align
            case Void() | Func():
                return 1

    def _lay_out(self, struct: Struct, written: ctree.StructType, path: str, scope: Scope | None) -> Body:
        placing = _Placing(union=written.kind == "union", packed=written.packed)
        for field in written.fields or ():
            try:
                self._place(placing, field, path, scope)
            except Unmodelled as error:
                if error.where is None:
                    raise Unmodelled(f"{error.what} (member {field.name} of {struct})", field.pos, error.row) from None
                raise
        align = placing.align
        if written.align is not None:
            align = max(align, self.constant(written.align, path))
        return Body(round_up(-(-placing.end // 8), align), align, tuple(placing.fields), placing.members)

    def _place(self, placing: _Placing, field: ctree.Field, path: str, scope: Scope | None) -> None:
        kind = self.resolve(field.type, path, scope)
        aligned = 0 if field.align is None else self.constant(field.align, path)
        if field.bits is None:
            packed = placing.packed or field.packed
            align = max(1 if packed else self.align_of(kind), aligned)
            placing.member(field.name, kind, self.size_of(kind), align)
        elif isinstance(kind, Int):
            width = (scope or self).constant(field.bits, path)
            if not 0 <= width <= kind.bits:
                raise Unmodelled(f"a bit-field of {width} bits", field.pos)
            placing.bit_field(field, kind, width, aligned)
        else:
            raise Unmodelled("bit-field of a type that is no integer", field.pos)


class _Placing:
    """The state of laying out one struct or union: `end` in bits, `align` in bytes."""

    def __init__(self, union: bool, packed: bool) -> None:
        self.union = union
        self.packed = packed
        self.end = 0
        self.align = 1
        self.fields: list[Member] = []
        self.members: dict[str, Member] = {}

    def member(self, name: str, kind: Type, size: int, align: int) -> None:
        """Place an ordinary member."""
        bit = 0 if self.union else round_up(self.end, 8 * align)
        self.end = max(self.end, bit + 8 * size)
        self.align = max(self.align, align)
        self._add(Member(name, kind, bit, None))
        if not name and isinstance(kind, Struct):
            for inner in kind.body.members.values():
                self.members[inner.name] = inner._replace(bit=bit + inner.bit)

    def bit_field(self, field: ctree.Field, kind: Int, width: int, aligned: int) -> None:
        """Place a bit-field: it may not straddle a unit of its declared type, unless packed (GCC, x86-64)."""
        packed = self.packed or field.packed
        bit = 0 if self.union else self.end
        if aligned:
            bit = round_up(bit, 8 * aligned)
        if width == 0:
            self.end = max(self.end, round_up(bit, kind.bits))
            return
        if not packed and bit // kind.bits != (bit + width - 1) // kind.bits:
            bit = round_up(bit, kind.bits)
        self.end = max(self.end, bit + width)
        if field.name:  # unnamed ones do not align the struct
            self.align = max(self.align, 1 if packed else kind.bits // 8, aligned)
            self._add(Member(field.name, kind, bit, width))

    def _add(self, member: Member) -> None:
        self.fields.append(member)
        if member.name:
            self.members[member.name] = member


def decay(kind: Type) -> Type:
    """Arrays and functions as values are pointers."""
    match kind:
        case Array():
            return Ptr(kind.of)
        case Func():
            return Ptr(kind)
    return kind


def _enum_type(values: list[int]) -> Int:
    low, high = min(values, default=0), max(values, default=0)
    for kind in (UINT, INT, ULONG, LONG):
        if kind.low <= low and high <= kind.high:
            return kind
    raise Unmodelled("enum constants that fit no 64-bit type")


def _enumerator_type(value: int, own: Int) -> Int:
    if INT.low <= value <= INT.high:
        return INT
    if own is not INT:
        return own
    return _enum_type([value])
