"""Variables with __attribute__((cleanup(f))): f(&variable) runs wherever control leaves their scope.

The kernel's guard(), scoped_guard(), CLASS() and __free() are such variables (include/linux/cleanup.h). Which of them
are alive at a label decides what a goto has to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from iretrace.linux import ctree

Alive = tuple[ctree.Declaration, ...]
"""The variables with a cleanup whose scope one is in, first declared first."""


class Cleanup(NamedTuple):
    """A variable with a cleanup in a scope that is being lowered. depth: how many scopes were open where it stands."""

    variable: ctree.Declaration
    call: ctree.Expr
    depth: int


def alive_at_labels(body: ctree.Block) -> dict[str, Alive]:
    """Label -> what is alive there. Labels inside statement expressions are left out."""
    return dict(_labels(body, ()))


def _labels(node: ctree.Statement | None, alive: Alive) -> Iterator[tuple[str, Alive]]:
    match node:
        case ctree.Block():
            yield from _in_order(node.items, alive)
        case ctree.For():
            yield from _in_order((*node.init, node.body), alive)
        case ctree.If():
            yield from _labels(node.then, alive)
            yield from _labels(node.other, alive)
        case ctree.Label():
            yield node.name, alive
            yield from _labels(node.body, alive)
        case ctree.While() | ctree.Switch() | ctree.Case():
            yield from _labels(node.body, alive)


def _in_order(items: tuple[ctree.Statement, ...], alive: Alive) -> Iterator[tuple[str, Alive]]:
    for item in items:
        yield from _labels(item, alive)
        if isinstance(item, ctree.Declaration) and item.cleanup is not None:
            alive = (*alive, item)
