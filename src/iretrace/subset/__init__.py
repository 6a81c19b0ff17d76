"""The restricted Python in which machine rules, guest steps and the built-in KVM are written.

A width is an annotation: the value is a plain int, and `wrapN` is what makes arithmetic wrap, as it does in C.
`record` declares flat mutable state. `rule` attaches a rule's source; it does nothing at run time.
docs/subset.md says what the checker (`iretrace.subset.check`) accepts and why.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Annotated, Any, TypeVar, dataclass_transform


@dataclass(frozen=True, slots=True)
class Width:
    """Marks an int as an unsigned integer of so many bits."""

    bits: int


u1 = Annotated[int, Width(1)]
u8 = Annotated[int, Width(8)]
u16 = Annotated[int, Width(16)]
u32 = Annotated[int, Width(32)]
u64 = Annotated[int, Width(64)]


@dataclass(frozen=True, slots=True)
class Array:
    """Marks a list of ints as a fixed array: element width in bits and length, as in C."""

    bits: int
    length: int


def wrap8(value: int) -> u8:
    """The value as a u8."""
    return value & 0xFF


def wrap16(value: int) -> u16:
    """The value as a u16."""
    return value & 0xFFFF


def wrap32(value: int) -> u32:
    """The value as a u32."""
    return value & 0xFFFF_FFFF


def wrap64(value: int) -> u64:
    """The value as a u64."""
    return value & 0xFFFF_FFFF_FFFF_FFFF


C = TypeVar("C", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Any])


@dataclass_transform()
def record(cls: C) -> C:
    """Flat mutable state with `pack() -> tuple` (hashable, canonical) and `unpack(tuple) -> record`.

    Fields are unsigned ints of declared width or fixed arrays of them (lists). Only drivers pack and unpack;
    the semantics mutate in place. A field of a record's type, before the others, refers to another record, as a pointer
    does in C: the driver sets it, and it is no part of what is packed.
    """
    made = dataclass(slots=True, eq=False)(cls)
    module = vars(sys.modules[cls.__module__])
    held = [field for field in fields(made) if not hasattr(module.get(str(field.type)), "field_names")]
    references = len(fields(made)) - len(held)
    names = [field.name for field in held]
    arrays = [index for index, field in enumerate(held) if "Array(" in str(field.type)]
    if len(names) == 1:
        raise TypeError(f"{cls.__name__}: a record has at least two fields")
    getter = attrgetter(*names)
    unattached = [None] * references

    if arrays:

        def pack(self: Any) -> tuple[Any, ...]:
            values = list(getter(self))
            for index in arrays:
                values[index] = tuple(values[index])
            return tuple(values)

        def unpack(values: tuple[Any, ...]) -> Any:
            copied = list(values)
            for index in arrays:
                copied[index] = list(copied[index])
            return made(*unattached, *copied)
    else:

        def pack(self: Any) -> tuple[Any, ...]:
            packed: tuple[Any, ...] = getter(self)
            return packed

        def unpack(values: tuple[Any, ...]) -> Any:
            return made(*unattached, *values)

    made.pack = pack
    made.unpack = staticmethod(unpack)
    made.field_names = tuple(names)
    return made  # type: ignore[return-value]


def shared(who: Any, cell: int, bits: int, how: int) -> None:
    """These bits of a cell are about to be accessed, and others access it too: here their steps may come first.

    who: the record of the thread that runs; the driver has given it an `access` method. The one primitive that drivers
    provide.
    """
    who.access(cell, bits, how)


R = TypeVar("R")


def pack(state: Any) -> tuple[Any, ...]:
    """A record's fields as a hashable tuple."""
    packed: tuple[Any, ...] = state.pack()
    return packed


def unpack(kind: type[R], values: tuple[Any, ...]) -> R:
    """A fresh record of that kind from what `pack` made."""
    made: R = kind.unpack(values)  # type: ignore[attr-defined]
    return made


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a machine rule comes from."""

    name: str
    text: str
    manual: str
    section: str
    confidence: str
    module: str
    """Where the function stands: iretrace.machine.boundary, say."""

    @property
    def source(self) -> str:
        """Manual and section, or program and place in it."""
        return f"{self.manual}, {self.section}"


RULES: dict[str, Rule] = {}


def rule(manual: str, section: str, confidence: str = "read") -> Callable[[F], F]:
    """Metadata of a machine rule: manual (or kernel / emulator) and section title (or file:function).

    confidence: "read" (read in the source named), "derived" (follows from other rules), "emulator" (emulator or
    other hypervisor code), "memory" (from memory, not confirmed).
    """

    def note(function: F) -> F:
        text = " ".join((function.__doc__ or "").split())
        RULES[function.__name__] = Rule(function.__name__, text, manual, section, confidence, function.__module__)
        return function

    return note
