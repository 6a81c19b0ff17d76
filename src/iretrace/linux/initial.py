"""The first state: objects and steps from the rules, run by the tree's own functions (rules/initial.toml)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from iretrace.linux import memory
from iretrace.linux.layout import Layout
from iretrace.linux.rules import Row
from iretrace.linux.tree import NothingInScope
from iretrace.linux.types import Int, Ptr, Struct, Type
from iretrace.linux.unmodelled import Unmodelled
from iretrace.verdict import InputError


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in memory: address in bytes, bits behind it, width in bits (0: no integer or pointer)."""

    address: int
    bit: int
    width: int
    type: Type


class Memory(memory.HasMemory, Protocol):
    """What is needed of a run."""

    def call(self, name: str, *args: int) -> Any:
        """Calls a C function."""


class Places:
    """Finds places by name: `svm.vcpu.arch.apic->irr_pending` starts at the object or global `svm`."""

    def __init__(self, layout: Layout, roots: Callable[[str], tuple[int, Type] | None]) -> None:
        self._layout = layout
        self._roots = roots

    def find(self, run: memory.HasMemory, text: str) -> Spot | None:
        """The place; None if this tree lacks a member. InputError: no such object, or no pointer before ->."""
        first, *rest = text.split("->")
        name, _, members = first.partition(".")
        root = self._roots(name)
        if root is None:
            raise InputError(f"no object or global {name!r} in {text!r}")
        spot = self._member(*root, members)
        for members in rest:
            if spot is None:
                return None
            if not isinstance(spot.type, Ptr):
                raise InputError(f"{text!r}: what stands before ->{members} is no pointer")
            spot = self._member(memory.load(run, spot.address, spot.bit, 64), spot.type.to, members)
        return spot

    def _member(self, address: int, kind: Type, members: str) -> Spot | None:
        if not members:
            return Spot(address, 0, _width(kind), kind)
        if not isinstance(kind, Struct):
            raise InputError(f"{members}: its owner is no struct")
        try:
            bits, type_, width = self._layout.place(kind, members)
        except Unmodelled as error:
            if "has no member" in error.what:
                return None
            raise
        return Spot(address + bits // 8, bits % 8, width or _width(type_), type_)


def _width(kind: Type) -> int:
    if isinstance(kind, Int):
        return kind.bits
    return 64 if isinstance(kind, Ptr) else 0


def build(run: Memory, steps: Iterable[Row], layout: Layout, places: Places) -> None:
    """Take steps. Raises Unmodelled where the tree needs something that nobody answers, NothingInScope where KVM has no
    such vCPU, or refuses it."""
    for row in steps:
        refused = str(row.keys.get("refused", ""))
        if row.never:
            raise NothingInScope(refused)
        result = take(run, row, layout, places)
        if refused and result < 0:
            raise NothingInScope(f"{row.name}() returns {result}: {refused}")
        if result < 0:
            raise Unmodelled(f"{row.name}() of the first state fails with {result} ({row.where})")


def take(run: Memory, row: Row, layout: Layout, places: Places) -> int:
    """One step: what a call returns, 0 if that is no number."""
    if "call" not in row.keys:
        _set(run, layout, places, row)
        return 0
    args = [_value(run, layout, places, row, argument) for argument in row.keys["call"]]
    result = run.call(row.name, *args)
    return result if isinstance(result, int) else 0


def _set(run: Memory, layout: Layout, places: Places, row: Row) -> None:
    spot = places.find(run, row.name)
    if spot is None:
        if row.keys.get("optional"):
            return
        raise InputError(f'{row.where}: this tree has no {row.name}; add versions = "..." or optional = true')
    if not spot.width:
        raise InputError(f"{row.where}: {row.name} is neither an integer nor a pointer")
    value = _value(run, layout, places, row, row.keys["value"])
    memory.store(run, spot.address, spot.bit, spot.width, value)


def _value(run: Memory, layout: Layout, places: Places, row: Row, written: int | str) -> int:
    """A number, an enumeration constant, the address of a place (&PLACE), or what it holds (*PLACE)."""
    if isinstance(written, int):
        return written
    if written.startswith(("&", "*")):
        spot = places.find(run, written[1:])
        if spot is None:
            raise InputError(f"{row.where}: this tree has no {written[1:]}")
        return spot.address if written.startswith("&") else memory.load(run, spot.address, spot.bit, spot.width)
    value = layout.enumerator(written)
    if value is None:
        raise InputError(f"{row.where}: this tree has no enumeration constant {written}")
    return value


def member_words(layout: Layout, roots: Mapping[str, tuple[int, Type]], name: str) -> list[tuple[int, int]]:
    """(word address, mask) of a member `struct_tag.member` in every object that holds such a struct, directly."""
    tag, _, member = name.partition(".")
    found: dict[int, int] = {}
    for address, kind in roots.values():
        for start in _structs(layout, address, kind, tag):
            spot_bits, type_, width = layout.place(layout.struct_named("struct", tag), member)
            size = width or 8 * layout.size_of(type_)
            first = 8 * start + spot_bits
            for bit in range(first & ~63, first + size, 64):
                low, high = max(first, bit) - bit, min(first + size, bit + 64) - bit
                found[bit // 8] = found.get(bit // 8, 0) | ((1 << high - low) - 1) << low
    return list(found.items())


def _structs(layout: Layout, address: int, kind: Type, tag: str) -> list[int]:
    """Addresses of the structs with this tag inside an object."""
    if not isinstance(kind, Struct) or kind.opaque:
        return []
    found = [address] if kind.tag == tag else []
    for field in kind.body.fields:
        if isinstance(field.type, Struct):
            found += _structs(layout, address + field.bit // 8, field.type, tag)
    return found
