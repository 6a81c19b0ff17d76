"""What generated code calls that is neither C nor a rule's answer, by its name in the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from iretrace.linux import fold, memory
from iretrace.linux.calls import BIT_FUNCTIONS


def _ignoring_run(function: Callable[[int, int], int]) -> Callable[..., int]:
    return lambda run, value, bits: function(value, bits)


PRIMITIVES: Mapping[str, Callable[..., Any]] = {
    "C_memcpy": memory.copy,
    "C_memset": memory.memset,
    "C_memcmp": memory.memcmp,
    "C_strlen": memory.strlen,
    **{f"C_{name}": _ignoring_run(function) for name, function in BIT_FUNCTIONS.items()},
}
"""The callees of lowered functions (calls.Calls)."""

EMITTED: Mapping[str, Callable[..., Any]] = {
    "C_load": memory.load,
    "C_store": memory.store,
    "C_touch": memory.touch,
    "C_copy": memory.copy,
    "C_fill": memory.fill,
    "C_leave": memory.leave,
    "C_divide": fold.divide,
    "C_remainder": fold.remainder,
}
"""What other operations are emitted as (emit, pytext)."""
