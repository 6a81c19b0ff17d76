"""Where an execution in Python stands: two that stand at the same place with the same state go on alike.

A step of a hypervisor is executed anew for each schedule. Most schedules make no difference to each other for long, so
that many lead to the same place; it will do to go on from there once. A place is told by its digest: there are many.
Digests are the same in every process.
"""

from __future__ import annotations

import marshal
import opcode
from collections.abc import Callable, Mapping
from hashlib import blake2b
from types import CodeType, FrameType
from typing import Any

WITHOUT_REFERENCES = 2
"""A version of marshal's format in which equal values have equal bytes."""


def digest(place: list[Any], memory: Any, state: Any, special: Callable[[int], Any] = int) -> bytes:
    """Of an execution that stands at a place, and of what else it depends on.

    memory: plain numbers in plain tuples. state: numbers, words and tuples of any type. special: what a number of a
    type of its own is told as."""
    return digest_of_plain((memory, place, plain(state, special)))


def digest_of_plain(told: Any) -> bytes:
    """Of plain numbers, words, bytes, tuples and lists of these, and None."""
    return blake2b(marshal.dumps(told, WITHOUT_REFERENCES), digest_size=16).digest()


def stack(
    frame: FrameType | None,
    outermost: CodeType,
    special: Callable[[int], Any] = int,
    beside: CodeType | None = None,
) -> list[Any]:
    """The place of an execution: where each function is, and its numbers, from the innermost to the one before
    `outermost`. beside: of a function that may be there or not.

    What the interpreter has worked out of an expression when it comes to a call in it is no local. But all code that is
    executed here takes care that this comes of locals and constants alone: linux.shape.inline_temporaries() puts
    nothing that depends on memory before a call, and tests hold the models and the built-in KVM to the same."""
    told: list[Any] = []
    while frame is not None and frame.f_code is not outermost:
        if frame.f_code is beside:
            frame = frame.f_back
            continue
        known = _PLACES.get(id(frame.f_code)) or _places(frame.f_code)
        told += (known[1], known[2][frame.f_lasti])
        for name, value in frame.f_locals.items():
            if type(value) is int:
                told += (name, value)
            elif isinstance(value, int | tuple):
                told += (name, plain(value, special))
        frame = frame.f_back
    return told


_PLACES: dict[int, tuple[CodeType, bytes, Mapping[int, int]]] = {}
"""By the id of code: the code itself, which so stays its own, a name of it, and the numbers of its instructions."""

_PARTS = {opcode.opmap["CACHE"], opcode.opmap["EXTENDED_ARG"]}
"""What belongs to an instruction; how much there is of it depends on how large the numbers in it are."""


def _places(code: CodeType) -> tuple[CodeType, bytes, Mapping[int, int]]:
    numbers, number = {}, 0
    for at, kind in enumerate(code.co_code[::2]):
        number += kind not in _PARTS
        numbers[2 * at] = number
    name = digest_of_plain((code.co_filename.rpartition("iretrace")[2], code.co_qualname))[:8]
    made = _PLACES[id(code)] = (code, name, numbers)
    return made


def plain(value: Any, special: Callable[[int], Any] = int) -> Any:
    """A value as plain numbers, words and tuples."""
    if type(value) is int or value is None:
        return value
    if isinstance(value, tuple):
        return tuple([part if type(part) is int else plain(part, special) for part in value])
    return special(value) if isinstance(value, int) else str(value)
