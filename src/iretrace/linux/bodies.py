"""Patches that change nothing but the bodies of functions: then all other definitions of a tree are as they were.

That a definition is the same is told by its digest, which takes parsing it. Most patches on the list change a few
bodies; where that is all, only the functions in the files that they touch have to be looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from iretrace.linux.closure import SEPARATOR, Known
from iretrace.linux.scope import Extent, layout
from iretrace.linux.tree import Tree

_FAR_REACHING = re.compile(r"^[ \t]*#|\\$|\btypedef\b|\b(struct|union|enum)\b[^;()]*\{", re.MULTILINE)
"""What in a body may mean something outside of it."""


@dataclass(frozen=True, slots=True)
class Bodies:
    """paths: of the files that are touched. names: the words in the heads of the functions whose bodies differ."""

    paths: frozenset[str]
    names: frozenset[str]

    def concern(self, words: tuple[str, ...], path: str) -> bool:
        """Whether a lookup of these words (used.Query) that found something in a file may find something else now, or
        the same on other lines."""
        return path in self.paths or not self.names.isdisjoint(words)


def changed_bodies(tree: Tree) -> Bodies | None:
    """What the patches of a tree change, if they change nothing but bodies; None: they do, or it is not clear."""
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
    """The words in the heads of the functions whose bodies differ between two texts of a file; None where anything else
    does."""
    old, new = layout(before).functions, layout(after).functions
    lines, other_lines = ["", *before.split("\n")], ["", *after.split("\n")]
    if len(old) != len(new) or _outside(layout(before).lines, old) != _outside(layout(after).lines, new):
        return None
    if _outside(lines, old) != _outside(other_lines, new):
        return None
    names: set[str] = set()
    for one, other in zip(old, new, strict=True):
        (head, body), (other_head, other_body) = _function(lines, one), _function(other_lines, other)
        if head != other_head or _far(body) != _far(other_body):
            return None
        if body != other_body:
            names |= one.names - {"struct", "union", "enum"}
    return frozenset(names)


def _outside(lines: Sequence[str], functions: Sequence[Extent]) -> list[Sequence[str]]:
    """The lines between functions. lines: of a file, from 1."""
    starts = [0, *(function.last + 1 for function in functions)]
    ends = [*(function.first for function in functions), len(lines)]
    return [lines[start:end] for start, end in zip(starts, ends, strict=True)]


def _function(lines: Sequence[str], function: Extent) -> tuple[str, str]:
    """Head and body."""
    head, _, body = "\n".join(lines[function.first : function.last + 1]).partition("\n{")
    return head, body


def _far(body: str) -> list[str]:
    """The lines of a body that may mean something outside of it."""
    return [line for line in body.split("\n") if _FAR_REACHING.search(line)]
