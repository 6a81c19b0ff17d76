"""Which statements of a host step change what the view shows: memory that notes its writers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType

from iretrace.verdict import CLine
from iretrace.world.protocol import View

Writer = tuple[CLine, dict[int, int]]
"""A statement, and the memory as it left it."""


class NotedMemory(dict[int, int]):
    """Word memory that notes each statement that changes a watched word."""

    def __init__(
        self, words: dict[int, int], watched: frozenset[int], statement: Callable[[FrameType], CLine | None]
    ) -> None:
        super().__init__(words)
        self.first = dict(words)
        self._watched = watched
        self._statement = statement
        self.writers: list[Writer] = []

    def __setitem__(self, word: int, value: int) -> None:
        changes = word in self._watched and self.get(word, 0) != value
        super().__setitem__(word, value)
        if changes:
            line = self._statement(sys._getframe(1))
            if line is not None:
                self.writers.append((line, dict(self)))


def view_changes(
    before: View, writers: Iterable[Writer], view: Callable[[dict[int, int]], View]
) -> tuple[tuple[CLine, View], ...]:
    """The statements after which the view differs, with the view after each."""
    changes: list[tuple[CLine, View]] = []
    for line, memory in writers:
        after = view(memory)
        if before != after:
            changes.append((line, after))
        before = after
    return tuple(changes)


def handling(lines: Sequence[CLine], handlers: Iterable[str]) -> tuple[CLine, ...]:
    """Of the exit handlers that ran, the last statement of each that calls something: what it did about the exit."""
    last: dict[str, CLine] = {}
    for line in lines:
        if line.function in handlers and "(" in line.text and not line.text.startswith(("if", "return", "switch")):
            last[line.function] = line
    return tuple(last.values())
