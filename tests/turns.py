"""What is run in turns: with IRETRACE_FULL=1 in the environment everything, else each case on one of several sides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

FULL = bool(os.environ.get("IRETRACE_FULL"))

Case = TypeVar("Case")


def turn(cases: Sequence[Case], side: int, sides: int) -> Sequence[Case]:
    """The cases whose turn it is on one of so many sides."""
    return cases if FULL else cases[side::sides]
