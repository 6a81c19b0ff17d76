"""Macros that are used at the top level as if they were declarations, and what such uses may define.

Register accessors, per-CPU variables, static keys, sequence counters and guards have names that stand nowhere in the
text. Which uses are worth expanding is told from the macros' bodies and from the words among the arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property

from iretrace.linux.scan import Names, Place
from iretrace.linux.source import Source

_WORD = re.compile(r"\w+")
_MAX_DEPTH = 4
_DEFINE_NOTHING = frozenset(("EXPORT_SYMBOL", "EXPORT_SYMBOL_GPL", "module_param", "MODULE_LICENSE"))


class Invocations:
    """The uses of macros at the top level of the files that were scanned."""

    def __init__(self, names: Names, sources: list[Source], defining: Callable[[str], Iterable[Source]]) -> None:
        self._all = [use for use in names.invocations if use[2] not in _DEFINE_NOTHING]
        self._sources = sources
        self._defining = defining
        self._holds: dict[tuple[str, str], bool] = {}

    def with_argument(self, name: str) -> list[Place]:
        """The uses that have `name` among their first arguments."""
        return self._by_argument.get(name, [])

    @cached_property
    def _by_argument(self) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = {}
        for number, offset, _ in self._all:
            for word in self._words(number, offset):
                found.setdefault(word, []).append((number, offset))
        return found

    def may_define_function(self, name: str) -> list[Place]:
        """The uses that could make a function `name`: a body with a {, and an argument that is part of the name."""
        return [place for place, words in self._function_makers if any(word in name for word in words)]

    @cached_property
    def _function_makers(self) -> list[tuple[Place, tuple[str, ...]]]:
        return [
            ((number, offset), self._words(number, offset))
            for number, offset, macro in self._all
            if self._body_holds(macro, "{")
        ]

    @cached_property
    def defining_types(self) -> list[Place]:
        """The uses of macros that hold a typedef."""
        return [(number, offset) for number, offset, macro in self._all if self._body_holds(macro, "typedef")]

    def _body_holds(self, macro: str, what: str, depth: int = 0) -> bool:
        """Whether a definition of `macro`, or of a macro in its body, holds a text."""
        key = macro, what
        if key not in self._holds:
            self._holds[key] = False
            self._holds[key] = any(
                what in body or (depth < _MAX_DEPTH and self._any_holds(body, what, depth + 1))
                for body in self._bodies(macro)
            )
        return self._holds[key]

    def _any_holds(self, body: str, what: str, depth: int) -> bool:
        return any(self._body_holds(word, what, depth) for word in _WORD.findall(body))

    def _bodies(self, macro: str) -> list[str]:
        return [
            definition.body
            for source in self._defining(macro)
            if source.is_header
            for definition in source.directives.macros.get(macro, ())
            if definition.body
        ]

    def _words(self, number: int, offset: int) -> tuple[str, ...]:
        """The words before the first closing parenthesis, and before the first nested opening one."""
        raw = self._sources[number].raw
        start = raw.find("(", offset) + 1
        end = raw.find(")", start)
        nested = raw.find("(", start, end)
        return tuple(_WORD.findall(raw[start : end if nested < 0 else nested]))
