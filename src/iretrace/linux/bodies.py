"""Patches that change nothing but functions: then all other definitions of a tree are as they were.

That a definition is the same is told by its digest, which takes parsing it. Most patches on the list change, add or
remove a few functions; where that is all, only what is called like them and the functions in the files that they touch
have to be looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import NamedTuple

from iretrace.linux.closure import SEPARATOR, Known
from iretrace.linux.scope import layout
from iretrace.linux.tree import Tree

_FAR_REACHING = re.compile(r"^[ \t]*#|\\$|\btypedef\b|\b(struct|union|enum)\b[^;()]*\{", re.MULTILINE)
"""What in a body may mean something outside of it."""

_HEAD = re.compile(r"(?:\w+[\s*]+)+(?=\w*[a-z])\w+\([^{};#\\]*\)\s*")
"""The head of a function that no macro defines."""


@dataclass(frozen=True, slots=True)
class Bodies:
    """paths: of the files that are touched. names: the words in the heads of the functions that differ."""

    paths: frozenset[str]
    names: frozenset[str]

    def concern(self, words: tuple[str, ...], path: str) -> bool:
        """Whether a lookup of these words (used.Query) that found something in a file may find something else now, or
        the same on other lines."""
        return path in self.paths or not self.names.isdisjoint(words) or words[0] == "functions_in"


def changed_bodies(tree: Tree) -> Bodies | None:
    """What the patches of a tree change, if they change nothing but functions; None: they do, or it is not clear."""
    names: set[str] = set()
    for path, patched in tree.patched.items():
        before = tree.unpatched.text(path) if tree.unpatched is not None else None
        if before is None or patched.text is None:
            return None
        found = changed_in(before, patched.text)
        if found is None:
            return None
        names |= found
    return Bodies(frozenset(tree.patched), frozenset(names))


def left_alone(known: Known, bodies: Bodies) -> Known:
    """What is known of a tree, without what the patches that change bodies may change in it: no lines are in it."""

    def is_left_alone(looked_up: str) -> bool:
        return bodies.names.isdisjoint(looked_up.split(SEPARATOR))

    functions = {name: found for name, found in known.functions.items() if is_left_alone(name)}
    return replace(known, functions=functions, values=tuple(filter(is_left_alone, known.values)))


def changed_in(before: str, after: str) -> frozenset[str] | None:
    """The words in the heads of the functions that differ between two texts of a file, or are in one of them only; None
    where anything else differs."""
    old, new = _parts(before), _parts(after)
    names: set[str] = set()
    at = other_at = 0
    for number, other_number in _same_heads(old, new):
        if _outside(old[at : number + 1]) != _outside(new[other_at : other_number + 1]):
            return None
        alone = [*old[at:number], *new[other_at:other_number]]
        one, other = old[number], new[other_number]
        if not all(map(_is_plain, alone)) or one.is_whole != other.is_whole or _far(one.body) != _far(other.body):
            return None
        names.update(*(part.names for part in alone), one.names if one.body != other.body else ())
        at, other_at = number + 1, other_number + 1
    return frozenset(names - {"struct", "union", "enum"})


class _Part(NamedTuple):
    """A function, and the lines of code before it; the last part of a file has no function. is_whole: whether it begins
    behind a whole line and ends as functions do."""

    outside: Sequence[str]
    head: str = ""
    body: str = ""
    names: frozenset[str] = frozenset()
    is_whole: bool = True


def _parts(text: str) -> list[_Part]:
    found = layout(text)
    plain, lines = found.lines, ["", *text.split("\n")]
    parts: list[_Part] = []
    start = 0
    for function in found.functions:
        head, _, body = "\n".join(lines[function.first : function.last + 1]).partition("\n{")
        outside = _code(plain, lines, start, function.first)
        is_whole = not lines[function.first - 1].endswith("\\") and plain[function.last].rstrip() == "}"
        parts.append(_Part(outside, head, body, function.names, is_whole))
        start = function.last + 1
    return [*parts, _Part(_code(plain, lines, start, len(lines)))]


def _same_heads(old: Sequence[_Part], new: Sequence[_Part]) -> Iterator[tuple[int, int]]:
    """The numbers of parts that have one head, in the order of both; the last ones are such."""
    matches = SequenceMatcher(None, [part.head for part in old], [part.head for part in new], autojunk=False)
    for first, other_first, size in matches.get_matching_blocks():
        yield from ((first + more, other_first + more) for more in range(size))


def _code(plain: Sequence[str], lines: Sequence[str], start: int, end: int) -> list[str]:
    """Some lines, without those that hold nothing but comments. plain: all lines without comments."""
    return [lines[number] for number in range(start, end) if plain[number].strip()]


def _is_plain(part: _Part) -> bool:
    """Whether it defines a function, and nothing else."""
    return part.is_whole and _HEAD.fullmatch(part.head) is not None and not _far(part.body)


def _outside(parts: Sequence[_Part]) -> list[str]:
    return [line for part in parts for line in part.outside]


def _far(body: str) -> list[str]:
    """The lines of a body that may mean something outside of it."""
    return [line for line in body.split("\n") if _FAR_REACHING.search(line)]
