"""Lowering of places (lvalues): names, members, elements, what pointers point to; loads and stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from iretrace.linux import ctree, fold
from iretrace.linux.builder import Builder, Dead, Variable, is_scalar, local_of, word_type
from iretrace.linux.ctree import Pos
from iretrace.linux.ir import Const, Copy, Expr, Frame, Load, Local, Set, Store, Touch
from iretrace.linux.types import (
    BOOL,
    CHAR,
    ULONG,
    VOID,
    Array,
    Func,
    Int,
    Ptr,
    Struct,
    Type,
    Void,
    bit_field_type,
    describe,
)
from iretrace.linux.unmodelled import Unmodelled

T = TypeVar("T")


class Place(NamedTuple):
    """An lvalue: a local of the function, or memory `bit` bits after `base`.

    width: of a bit-field, else None. align: what is known of base, in bytes; assumed: no more than hoped for.
    shared: other CPUs access it.
    """

    type: Type
    local: int | None
    base: Expr
    bit: int = 0
    width: int | None = None
    align: int = 8
    assumed: bool = False
    shared: bool = False


class Val(NamedTuple):
    """A value and its C type; of a struct, its address. place: what it is the address of, where that is known."""

    type: Type
    ir: Expr
    place: Place | None = None


NOTHING = Const(0)


class Places(Builder):
    """Lvalues. Values of expressions are left to subclasses."""

    scopes: list[dict[str, Variable]]
    unevaluated: int = 0

    def rvalue(self, expr: ctree.Expr) -> Val:
        """The value of an expression."""
        raise NotImplementedError

    def offset(self, pointer: Val, count: Val) -> Val:
        """pointer + count."""
        raise NotImplementedError

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn what cannot be lowered into an operation that raises when it is reached."""
        try:
            yield
        except Dead:
            pass
        except Unmodelled as error:
            if self.unevaluated:
                raise
            if error.where is not None:
                self.pos = error.where
            self.fail(error.what, error.row)

    def compound_literal(self, expr: ctree.CompoundLiteral) -> Place:
        """`(type){ ... }`."""
        raise NotImplementedError

    # Types of expressions. The scope in which types are resolved is the function's.

    def resolve(self, written: ctree.CType) -> Type:
        """The type as written here."""
        return self.types.resolve(written, self.path, self)

    def constant(self, expr: ctree.Expr, path: str) -> int:
        """The value of an integer constant expression."""
        if isinstance(expr, ctree.Num):
            return expr.value
        value = self.dry(lambda: self.rvalue(expr))
        if isinstance(value.ir, Const) and not value.ir.given:
            return value.ir.value
        raise Unmodelled("not a constant expression", expr.pos)

    def type_of(self, expr: ctree.Expr, path: str) -> Type:
        """The type of an expression that is not evaluated, arrays not decayed."""
        if isinstance(expr, ctree.Name | ctree.Member | ctree.Index | ctree.Str | ctree.CompoundLiteral) or (
            isinstance(expr, ctree.Unary) and expr.op == "*"
        ):
            return self.dry(lambda: self.place(expr)).type
        return self.dry(lambda: self.rvalue(expr)).type

    def dry(self, lower: Callable[[], T]) -> T:
        """Lower something and forget what was made."""
        raise NotImplementedError

    # Places.

    def place(self, expr: ctree.Expr) -> Place:
        """An lvalue (or a function, or a struct value, which has an address too)."""
        match expr:
            case ctree.Name():
                return self.name_place(expr)
            case ctree.Member():
                return self.member(expr)
            case ctree.Index():
                return self.index(expr)
            case ctree.Unary(op="*"):
                return self.pointee(self.rvalue(expr.of), expr.pos)
            case ctree.Str():
                kind = Array(CHAR, len(expr.text) + 1)
                return Place(kind, None, Const(self.names.string(expr.text), ULONG), align=1)
            case ctree.CompoundLiteral():
                return self.compound_literal(expr)
        value = self.rvalue(expr)
        if isinstance(value.type, Struct):
            return Place(value.type, None, value.ir, align=value.type.body.align)
        raise Unmodelled("this expression has no address", expr.pos)

    def lookup(self, name: str, pos: Pos) -> Variable:
        """What a name stands for."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        if name in ("__func__", "__FUNCTION__", "__PRETTY_FUNCTION__"):
            return Variable(Array(CHAR, len(self.function) + 1), address=self.names.string(self.function))
        return self.names.identifier(name, pos, self.unevaluated > 0)

    def name_place(self, expr: ctree.Name) -> Place:
        """A variable or function."""
        variable = self.lookup(expr.name, expr.pos)
        if variable.local is not None:
            return Place(variable.type, variable.local, NOTHING)
        if variable.offset is not None:
            return Place(variable.type, None, Frame(variable.offset), align=16)
        if variable.address is not None:
            return Place(variable.type, None, Const(variable.address, ULONG, variable.given), align=16)
        raise Unmodelled(f"`{expr.name}` is a constant here and has no address", expr.pos)

    def pointee(self, pointer: Val, pos: Pos) -> Place:
        """What a pointer points to."""
        kind = pointer.type
        if isinstance(kind, Func):
            return Place(kind, None, pointer.ir)
        if not isinstance(kind, Ptr):
            raise Unmodelled(f"`*` of a value of type {describe(kind)}", pos)
        to = kind.to
        known = pointer.place
        if known is not None and known.width is None and known.local is None:
            return known._replace(type=to)
        base, distance = fold.split(pointer.ir)
        align = 1 if isinstance(to, Void | Func) else self.types.align_of(to)
        if isinstance(to, Struct) and align < 8 and to.body.size >= 16:
            return Place(to, None, base, 8 * distance, align=8, assumed=True)  # packed structs mostly lie well
        if isinstance(base, Const | Frame):
            align = 16 if isinstance(base, Frame) or base.value % 16 == 0 else base.value & -base.value
        elif distance and not isinstance(to, Struct):
            align = min(align, distance & -distance)
        return Place(to, None, base, 8 * distance, align=align, shared=self.guesses and not isinstance(base, Frame))

    def member(self, expr: ctree.Member) -> Place:
        """`of.name`, `of->name`."""
        outer = self.pointee(self.rvalue(expr.of), expr.pos) if expr.arrow else self.place(expr.of)
        return self.select(outer, expr.name, expr.pos)

    def select(self, outer: Place, name: str, pos: Pos) -> Place:
        """A member of a struct or union."""
        struct = outer.type
        if not isinstance(struct, Struct):
            raise Unmodelled(f"member {name} of a value of type {describe(struct)}", pos)
        found = struct.body.members.get(name)
        if found is None:
            raise Unmodelled(f"{struct} has no member {name}" + (" (its content is not known)" * struct.opaque), pos)
        shared = outer.shared or f"{struct.tag}.{name}" in self.names.rules.shared
        return outer._replace(type=found.type, bit=outer.bit + found.bit, width=found.width, shared=shared)

    def index(self, expr: ctree.Index) -> Place:
        """`of[index]`."""
        array, number = expr.of, expr.index
        of = self.rvalue(array)
        mark = self.mark()
        at = self.rvalue(number)
        of = of._replace(ir=self.keep(of.ir, mark))
        if isinstance(of.type, Int):
            of, at = at, of
        if not isinstance(of.type, Ptr):
            raise Unmodelled(f"index into a value of type {describe(of.type)}", expr.pos)
        size = self.types.size_of(of.type.to)
        whole = of.place
        if whole is not None and whole.local is None and isinstance(at.ir, Const) and not at.ir.given:
            return whole._replace(type=of.type.to, bit=whole.bit + 8 * size * at.ir.value)
        place = self.pointee(self.offset(of, at), expr.pos)
        if whole is not None and whole.shared:
            place = place._replace(shared=True)
        return place

    def address(self, place: Place, pos: Pos) -> Val:
        """&place."""
        if place.local is not None or place.width is not None:
            raise Unmodelled("the address of a bit-field or register variable", pos)
        ir = fold.add(place.base, Const(place.bit // 8))
        return Val(Ptr(place.type), ir, place)

    def load(self, place: Place, pos: Pos) -> Val:
        """The value of a place: arrays and functions decay, structs are their address."""
        kind = place.type
        match kind:
            case Array():
                return Val(Ptr(kind.of), fold.add(place.base, Const(place.bit // 8)), place._replace(type=kind.of))
            case Func():
                return Val(Ptr(kind), place.base)
            case Struct():
                return Val(kind, self.address(place, pos).ir, place)
            case Void():
                return Val(kind, NOTHING)
        if place.local is not None:
            return Val(kind, local_of(place.local, kind, False))
        if self.types.size_of(kind) == 0:
            raise Unmodelled(f"load of {describe(kind)}", pos)
        word = word_type(kind)
        width = place.width or word.bits
        if place.shared:
            self.add(Touch(pos, place.base, place.bit, width, False, not self.guesses))
        ir: Expr = Load(place.base, place.bit, width, word, word.signed, place.align)
        if place.width is not None and isinstance(kind, Int):
            kind = bit_field_type(kind, place.width)
        if place.shared:
            ir = self.temp(ir)
        return Val(kind, ir)

    def store(self, place: Place, value: Val, pos: Pos) -> Val:
        """place = value. Returns the value as the place holds it."""
        kind = place.type
        if isinstance(kind, Struct):
            if not isinstance(value.type, Struct):
                raise Unmodelled(f"assignment of {describe(value.type)} to {kind}", pos)
            self.add(Copy(pos, self.address(place, pos).ir, value.ir, self.types.size_of(kind)))
            return Val(kind, value.ir)
        if not is_scalar(kind):
            raise Unmodelled(f"assignment to {describe(kind)}", pos)
        ir = self.convert(value, kind, pos).ir
        if place.local is not None:
            self.assign_local(place.local, ir, pos)
            return Val(kind, ir) if not ir.reads else Val(kind, local_of(place.local, kind, False))
        word = word_type(kind)
        if place.width is not None and kind is not BOOL:
            field = Int("bit-field", place.width, word.signed, word.rank)
            kept = fold.convert(ir, field)
            kind = bit_field_type(word, place.width)
        else:
            kept = ir
        if kept.reads and not isinstance(kept, Local):
            kept = self.temp(kept)
        if place.shared:
            self.add(Touch(pos, place.base, place.bit, place.width or word.bits, True, not self.guesses))
        self.add(Store(pos, place.base, place.bit, place.width or word.bits, kept, place.align, place.assumed))
        return Val(kind, kept)

    def assign_local(self, local: int, value: Expr, pos: Pos) -> None:
        """Set a variable of the function."""
        self.add(Set(pos, local, value))

    def convert(self, value: Val, kind: Type, pos: Pos) -> Val:
        """The value converted as by assignment or cast."""
        if isinstance(kind, Void):
            return Val(VOID, NOTHING)
        if isinstance(kind, Struct):
            if isinstance(value.type, Struct):
                return value
            raise Unmodelled(f"conversion of {describe(value.type)} to {kind}", pos)
        if isinstance(value.type, Struct | Void):
            raise Unmodelled(f"a value of type {describe(value.type)} where {describe(kind)} is needed", pos)
        place = value.place if isinstance(kind, Ptr) else None
        return Val(kind, fold.convert(value.ir, word_type(kind)), place)
