"""Where a definition ends: brackets are followed through the active parts of a file only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from iretrace.linux.preprocess import Preprocessor
from iretrace.linux.source import Source

_BOUNDARY = re.compile(r'[][{}();=,]|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|\n[ \t]*#')

Boundary = tuple[int, str]
"""An offset and the bracket or separator there; the end of the file is an empty one."""

Until = Callable[[Iterator[Boundary]], int]
"""Follows boundaries to the end of a definition; 0 if it is not of the wanted kind."""


def boundaries(preprocessor: Preprocessor, source: Source, start: int) -> Iterator[Boundary]:
    """Brackets and separators from `start` on in active text."""
    text = source.text
    at = start
    while match := _BOUNDARY.search(text, at):
        mark = match[0][0]
        if mark == "\n":
            at = _behind_directives(preprocessor, source, match.end())
            continue
        at = match.end()
        if mark not in "\"'":
            yield match.start(), mark
    yield len(text), ""


def _behind_directives(preprocessor: Preprocessor, source: Source, offset: int) -> int:
    """The next active offset behind the directive around `offset`."""
    directives = source.directives
    for _, end in directives.spans[max(source.span_before(offset), 0) :]:
        if end >= offset and preprocessor.is_active(source, end):
            return end
    return len(source.text)


def until_brace(found: Iterator[Boundary]) -> int:
    """Behind the body of a function definition; 0 if it is none."""
    depth = 0
    has_parameters = False
    for _, mark in found:
        if mark in ("(", "["):
            depth += 1
            has_parameters = True
        elif mark in (")", "]"):
            depth -= 1
        elif mark == "{" and depth == 0:
            return _behind_braces(found) if has_parameters else 0
        elif mark == "" or (depth == 0 and mark in (";", "=", ",", "}")):
            return 0
        if depth < 0:
            return 0
    return 0


def _behind_braces(found: Iterator[Boundary]) -> int:
    depth = 1
    for offset, mark in found:
        if mark == "{":
            depth += 1
        elif mark == "}":
            depth -= 1
            if depth == 0:
                return offset + 1
        elif mark == "":
            return 0
    return 0


def until_semicolon(found: Iterator[Boundary]) -> int:
    """Behind the next semicolon outside of brackets, or before a closing bracket too many."""
    depth = 0
    for offset, mark in found:
        if mark == "":
            return offset
        if mark in "([{":
            depth += 1
        elif mark in ")]}":
            depth -= 1
            if depth < 0:
                return offset
        elif mark == ";" and depth == 0:
            return offset + 1
    return 0


def until_arguments_end(found: Iterator[Boundary]) -> int:
    """Behind the arguments of a macro."""
    depth = 0
    for offset, mark in found:
        if mark == "(":
            depth += 1
        elif mark == ")":
            depth -= 1
            if depth == 0:
                return offset + 1
        elif mark == "":
            return offset
    return 0
