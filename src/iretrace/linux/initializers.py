"""Lowering of initializers: which subobject gets which expression, by C's rules for braces and designators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from iretrace.linux import ctree
from iretrace.linux.calls import Calls
from iretrace.linux.ctree import Pos
from iretrace.linux.ir import Fill, Frame
from iretrace.linux.places import Place
from iretrace.linux.types import Array, Int, Member, Struct, Type, describe
from iretrace.linux.unmodelled import Unmodelled

Designator = str | ctree.Expr | tuple[ctree.Expr, ctree.Expr]
Item = tuple[tuple[Designator, ...], ctree.Expr]

UNBOUNDED = 1 << 40
"""More elements than any array has: the count of `[]` while its initializer is read."""


LONGEST_RANGE = 1 << 16
"""More elements than any range of designators initializes."""


class Part(NamedTuple):
    """An initialized subobject: bits from the object's start, type, bit-field width, and the expression."""

    bit: int
    type: Type
    width: int | None
    value: ctree.Expr


class Initializers(Calls):
    """Initializers."""

    def parts(self, kind: Type, init: ctree.Expr) -> list[Part]:
        """The initialized subobjects in source order; what is not named is zero."""
        out: list[Part] = []
        self._object(Member("", kind, 0, None), init, out)
        return out

    def completed(self, kind: Type, init: ctree.Expr) -> Type:
        """The type with the size that the initializer gives to `[]`."""
        if not isinstance(kind, Array) or kind.count is not None:
            return kind
        size = 8 * self.types.size_of(kind.of)
        parts = self.parts(Array(kind.of, UNBOUNDED), init)
        return Array(kind.of, max((part.bit // size + 1 for part in parts), default=0))

    def _object(self, at: Member, init: ctree.Expr, out: list[Part]) -> None:
        """Initialize one object by one initializer."""
        kind = at.type
        if isinstance(kind, Array) and isinstance(kind.of, Int) and kind.of.bits == 8:
            text = init.items[0][1] if isinstance(init, ctree.InitList) and len(init.items) == 1 else init
            if isinstance(text, ctree.Str):
                count = len(text.text) + 1 if kind.count in (None, UNBOUNDED) else kind.count or 0
                for number, char in enumerate((text.text + "\0")[:count]):
                    out.append(Part(at.bit + 8 * number, kind.of, None, ctree.Num(text.pos, ord(char))))
                return
        if not isinstance(init, ctree.InitList):
            out.append(Part(at.bit, kind, at.width, init))
        elif isinstance(kind, Array | Struct):
            self._fill(at, init.items, 0, out, braced=True, pos=init.pos)
        elif init.items:
            self._object(at, init.items[0][1], out)

    def _fill(self, at: Member, items: Sequence[Item], number: int, out: list[Part], braced: bool, pos: Pos) -> int:
        """Initialize an aggregate by items from `number` on. Returns the number of the first item not used."""
        subobject = 0
        while number < len(items):
            designators, value = items[number]
            if designators:
                if not braced:
                    return number
                subobject = self._designated(at, designators, value, out, pos)
                number += 1
                continue
            target = self._subobject(at, subobject)
            if target is None:
                if braced:
                    raise Unmodelled(f"more initializers than {describe(at.type)} has members", pos)
                return number
            subobject += 1
            if self._elided(target.type, value):
                number = self._fill(target, items, number, out, braced=False, pos=pos)
            else:
                self._object(target, value, out)
                number += 1
        return number

    def _elided(self, kind: Type, value: ctree.Expr) -> bool:
        """Whether the value begins the contents of an aggregate whose own braces were left out."""
        if isinstance(value, ctree.InitList) or not isinstance(kind, Array | Struct):
            return False
        if isinstance(value, ctree.Str) and isinstance(kind, Array):
            return not (isinstance(kind.of, Int) and kind.of.bits == 8)
        return not isinstance(self.type_of(value, self.path), Struct)

    def _subobject(self, at: Member, number: int) -> Member | None:
        """The numbered element or member."""
        kind = at.type
        if isinstance(kind, Array):
            if kind.count is not None and number >= kind.count:
                return None
            return Member("", kind.of, at.bit + number * 8 * self.types.size_of(kind.of), None)
        if not isinstance(kind, Struct):
            return None
        fields = kind.body.fields
        if number >= len(fields) or (kind.kind == "union" and number):
            return None
        return fields[number]._replace(bit=at.bit + fields[number].bit)

    def _designated(
        self, at: Member, designators: tuple[Designator, ...], value: ctree.Expr, out: list[Part], pos: Pos
    ) -> int:
        """Initialize what designators name. Returns the number of the subobject that follows."""
        first, rest = designators[0], designators[1:]
        if isinstance(first, str):
            target, number = self._named(at, first, pos)
            targets = [target]
        else:
            low, high = first if isinstance(first, tuple) else (first, first)
            start, number = self.constant(low, self.path), self.constant(high, self.path)
            if not 0 <= start <= number < start + LONGEST_RANGE:
                raise Unmodelled(f"the designator [{start} ... {number}]", pos)
            targets = [t for n in range(start, number + 1) if (t := self._subobject(at, n)) is not None]
        for target in targets:
            if rest:
                self._designated(target, rest, value, out, pos)
            else:
                self._object(target, value, out)
        return number + 1

    def _named(self, at: Member, name: str, pos: Pos) -> tuple[Member, int]:
        """The member of a name, and the number of the subobject that it is in."""
        kind = at.type
        if not isinstance(kind, Struct) or name not in kind.body.members:
            raise Unmodelled(f"{describe(kind)} has no member {name}", pos)
        member = kind.body.members[name]
        number = next(n for n, candidate in enumerate(kind.body.fields) if _holds(candidate, name))
        return member._replace(bit=at.bit + member.bit), number

    # Objects in memory.

    def initialize(self, place: Place, init: ctree.Expr, pos: Pos) -> None:
        """Initialize a place in memory."""
        kind = place.type
        if isinstance(kind, Array | Struct) and isinstance(init, ctree.InitList | ctree.Str):
            self.add(Fill(pos, self.address(place, pos).ir, self.types.size_of(kind)))
            last = {(part.bit, part.width): part for part in self.parts(kind, init)}
            for part in sorted(last.values(), key=_bit):  # GCC evaluates them in the order of the members
                inner = place._replace(type=part.type, bit=place.bit + part.bit, width=part.width)
                mark = self.mark()
                value = self.rvalue(part.value)
                self.store(inner._replace(base=self.keep(inner.base, mark)), value, pos)
            return
        if isinstance(init, ctree.InitList):
            init = self.parts(kind, init)[0].value
        self.store(place, self.rvalue(init), pos)

    def compound_literal(self, expr: ctree.CompoundLiteral) -> Place:
        """`(type){ ... }`: a variable without name."""
        kind = self.completed(self.resolve(expr.type), expr.init)
        offset = self.on_stack(self.types.size_of(kind), self.types.align_of(kind))
        place = Place(kind, None, Frame(offset), align=16)
        self.initialize(place, expr.init, expr.pos)
        return place


def _holds(member: Member, name: str) -> bool:
    """Whether a member is, or anonymously holds, the one of a name."""
    if member.name:
        return member.name == name
    return isinstance(member.type, Struct) and name in member.type.body.members


def _bit(part: Part) -> int:
    return part.bit
