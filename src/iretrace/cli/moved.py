"""A result that was found on one tree, told of another one in which the same definitions stand on other lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from iretrace.verdict import CLine, Result

Moves = dict[tuple[str, int], int]
"""(path, line where a verdict was found) -> line here."""

PLACE = re.compile(r"([\w./+-]+\.[ch]):(\d+)")
"""A line that a sentence names."""


def relocated(result: Result, moves: Mapping[tuple[str, int], int]) -> Result | None:
    """The result with its C lines as they are here; None if it names a line that no definition it used holds."""
    known: dict[CLine, CLine] = {}

    def here(value: Any) -> Any:
        if isinstance(value, CLine):
            if value not in known:
                known[value] = replace(value, line=moves[value.path, value.line]) if value.line else value
            return known[value]
        if type(value) is str:
            if ".c:" not in value and ".h:" not in value:
                return value
            return PLACE.sub(lambda place: f"{place[1]}:{moves[place[1], int(place[2])]}", value)
        if isinstance(value, tuple):
            return tuple(here(item) for item in value)
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{part.name: here(getattr(value, part.name)) for part in fields(value)})
        return value

    try:
        moved: Result = here(result)
    except KeyError:
        return None
    return moved
