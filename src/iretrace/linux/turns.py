"""Where a host step stands: two runs of one step that stand at the same place with the same memory go on alike.

A step is executed anew for each schedule. Most schedules make no difference to each other for long, so that many lead
to the same place; it will do to go on from there once. A place is told by its digest, as there are many.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from types import CodeType, FrameType
from typing import Any

from iretrace.linux.registers import Opaque

WITHOUT_REFERENCES = 2
"""A version of marshal's format in which equal values have equal bytes."""


def digest(frame: FrameType | None, outermost: CodeType, memory: Mapping[int, int], *others: Any) -> bytes:
    """Of a run, from its innermost frame to the one before `outermost`, and what else matters: numbers and tuples."""
    frames = tuple(part for part in _stack(frame, outermost))
    words = tuple(sorted([(word, told(value)) for word, value in memory.items()]))
    return blake2b(marshal.dumps((frames, words, told(others)), WITHOUT_REFERENCES), digest_size=16).digest()


def _stack(frame: FrameType | None, outermost: CodeType) -> Iterator[Any]:
    """Where a run is, and its numbers: the frames of generated code and of the models that it calls.

    What the interpreter has worked out of an expression when it comes to a call in it is no local. But that comes of
    locals and constants alone: shape.inline_temporaries() puts nothing that depends on memory before a call, and the
    models (prims.py) keep to that, too."""
    while frame is not None and frame.f_code is not outermost:
        yield id(frame.f_code), frame.f_lasti
        for name, value in frame.f_locals.items():
            if isinstance(value, int | tuple):
                yield name, told(value)
        frame = frame.f_back


def told(value: Any) -> Any:
    """A value, as plain numbers and tuples; of a number that must not be looked at, which register it is."""
    if type(value) is int or value is None:
        return value
    if isinstance(value, tuple):
        return tuple([told(part) for part in value])
    if type(value) is Opaque:
        return "register", value.register
    return int(value) if isinstance(value, int) else str(value)
