"""A result that was found on one tree, told of another one in which the same definitions stand on other lines."""

from __future__ import annotations

import re
from dataclasses import replace
from operator import is_
from typing import Any

from iretrace.cli.told import ONCE
from iretrace.verdict import CLine, Result, field_names

Moves = dict[tuple[str, int], int]
"""(path, line where a verdict was found) -> line here."""

PLACE = re.compile(r"([\w./+-]+\.[ch]):(\d+)")
"""A line that a sentence names."""


def relocated(result: Result, moves: Moves) -> Result | None:
    """The result with its C lines as they are here; None if it names a line that no definition it used holds."""
    return Relocation(moves).of(result)


class Relocation:
    """From one tree to another; moves may grow. What holds no line that has moved stays the same object: most of a
    result does, and much of it is in other results too."""

    def __init__(self, moves: Moves) -> None:
        self.moves = moves
        self._here: dict[int, Any] = {}
        self._there: list[Any] = []
        """What this knows by its id, so that the id stays its own."""

    def of(self, result: Result) -> Result | None:
        """The result here; None: see relocated."""
        try:
            moved: Result = self._moved(result)
        except KeyError:
            return None
        return moved

    def _moved(self, value: Any) -> Any:
        kind: Any = type(value)
        if kind is int:
            return value
        if kind is str:
            return PLACE.sub(self._place, value) if ".c:" in value or ".h:" in value else value
        if kind is tuple:
            known = self._here
            parts = [known.get(id(part)) or self._moved(part) for part in value]
            return value if all(map(is_, parts, value)) else tuple(parts)
        if kind not in ONCE:
            return self._with_parts(value, kind)
        moved = self._line(value) if kind is CLine else self._with_parts(value, kind)
        self._there.append(value)
        self._here[id(value)] = moved
        return moved

    def _with_parts(self, value: Any, kind: Any) -> Any:
        changed = {
            name: new for name in field_names(kind) if (new := self._moved(old := getattr(value, name))) is not old
        }
        return replace(value, **changed) if changed else value

    def _line(self, line: CLine) -> CLine:
        number = self.moves[line.path, line.line] if line.line else 0
        return line if number == line.line else replace(line, line=number)

    def _place(self, place: re.Match[str]) -> str:
        return f"{place[1]}:{self.moves[place[1], int(place[2])]}"
