"""A result that was found on one tree, told of another one in which the same definitions stand on other lines."""

from __future__ import annotations

import re
from dataclasses import replace
from operator import is_
from typing import Any

from iretrace.verdict import CLine, Result, field_names

Moves = dict[tuple[str, int], int]
"""(path, line where a verdict was found) -> line here."""

PLACE = re.compile(r"([\w./+-]+\.[ch]):(\d+)")
"""A line that a sentence names."""


def relocated(result: Result, moves: Moves) -> Result | None:
    """The result with its C lines as they are here; None if it names a line that no definition it used holds."""
    try:
        moved: Result = _Relocation(moves).here(result)
    except KeyError:
        return None
    return moved


class _Relocation:
    """What holds no line that has moved stays the same object: most of a result does."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._known: dict[CLine, CLine] = {}

    def here(self, value: Any) -> Any:
        """A value of a result. KeyError: see relocated."""
        if type(value) is str:
            return PLACE.sub(self._place, value) if ".c:" in value or ".h:" in value else value
        if isinstance(value, CLine):
            return self._line(value)
        if isinstance(value, tuple):
            parts = [self.here(part) for part in value]
            return value if all(map(is_, parts, value)) else tuple(parts)
        kind: Any = type(value)
        changed = {
            name: new for name in field_names(kind) if (new := self.here(old := getattr(value, name))) is not old
        }
        return replace(value, **changed) if changed else value

    def _line(self, line: CLine) -> CLine:
        known = self._known.get(line)
        if known is None:
            number = self._moves[line.path, line.line] if line.line else 0
            known = self._known[line] = line if number == line.line else replace(line, line=number)
        return known

    def _place(self, place: re.Match[str]) -> str:
        return f"{place[1]}:{self._moves[place[1], int(place[2])]}"
