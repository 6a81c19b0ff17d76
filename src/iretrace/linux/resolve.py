"""From types as written to types with sizes: the layout rules of the x86-64 System V ABI and of GCC's attributes.

Finding definitions and evaluating constants is left to a subclass (layout.Layout), because both need expressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from iretrace.linux import ctree
from iretrace.linux.ctree import CType
from iretrace.linux.notes import Later, Notes
from iretrace.linux.types import (
    INT,
    LONG,
    UINT,
    ULONG,
    VOID,
    Array,
    Body,
    Func,
    Int,
    Member,
    Ptr,
    Struct,
    Type,
    Void,
    basic,
    decay,
    round_up,
)
from iretrace.linux.unmodelled import Unmodelled

MOST_ELEMENTS = 1 << 32
"""No array of the kernel has as many elements."""


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

    def __init__(self, opaque: Mapping[str, int] | None = None, notes: Notes | None = None) -> None:
        self.opaque = dict(opaque or {})
        self.notes = notes or Notes()
        self._structs: dict[tuple[str, str, str], Struct] = {}
        self._anonymous: dict[int, tuple[object, Struct]] = {}
        self._typedefs: dict[tuple[str, str], Later[Type]] = {}
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
                    return Ptr(self.notes.later(lambda: self.resolve(written.to, path)))
                return Ptr(self.resolve(written.to, path, scope))  # now, while the scope is what it is
            case ctree.ArrayType():
                count = None if written.size is None else (scope or self).constant(written.size, path)
                if count is not None and not 0 <= count < MOST_ELEMENTS:
                    raise Unmodelled(f"an array of {count} elements")
                return Array(self.resolve(written.of, path, scope), count)
            case ctree.StructType():
                return self.struct(written, path, scope)
            case ctree.EnumType():
                return self.enum(written, path)
            case ctree.FunctionType():
                return Func(self.notes.later(lambda: self._function(written, path)), written.variadic)
            case ctree.TypeofType():
                of = written.of
                if isinstance(of, CType):
                    return self.resolve(of, path, scope)
                return (scope or self).type_of(of, path)

    def _typedef(self, name: str, path: str) -> Type:
        found = self._typedefs.get((name, path))
        if found is None:
            found = self._typedefs[name, path] = self.notes.later(lambda: self._resolve_typedef(name, path))
        return found()

    def _resolve_typedef(self, name: str, path: str) -> Type:
        written = self.find_typedef(name, path)
        if written is not None:
            return self.resolve(written, path)
        if name == "__builtin_va_list":
            return Array(ULONG, 3)
        raise Unmodelled(f"type `{name}` is not defined anywhere in the tree")

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
                made = Struct(written.kind, "", lambda s: self._lay_out(s, written, path, scope), self.notes)
                kept = self._anonymous[id(written)] = (written, made)  # keeps `written` alive, so the id stays its own
                if scope is not None:
                    _ = made.body  # now, while the scope is what it is
            return kept[1]
        key = (written.kind, written.tag, path)
        found = self._structs.get(key)
        if found is None:
            definition = written if written.fields is not None else None
            lay_out = partial(self._find_and_lay_out, definition=definition, path=path)
            found = Struct(written.kind, written.tag, lay_out, self.notes)
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
            with self.notes.of(("enum", id(definition))):
                kept = self._evaluate(definition, path)
        self.notes.note(("enum", id(definition)))
        return kept[1], kept[2]

    def _evaluate(
        self, definition: ctree.EnumType, path: str
    ) -> tuple[ctree.EnumType, Int, dict[str, tuple[Int, int]]]:
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
        return kept

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
