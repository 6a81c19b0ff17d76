"""Breadth-first search of everything reachable, with shortest ways back to the start.

A model names its states (hashable) and edges. An edge says what fairness has to know about it, and carries a label
from which the model can tell its story later. Nothing here knows what a state stands for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

State = Hashable


class Kind(IntEnum):
    """What fairness has to know about an edge."""

    RUN = 0
    """The one process that must go on goes on (weakly fair)."""
    RETIRE = 1
    """The same, and it makes progress that counts (here: a guest instruction retires)."""
    TICK = 2
    """Where a state is visited for ever, this edge is taken there for ever (strongly fair)."""
    OUTSIDE = 3
    """Anything else; what of it is owed, `Model.owed` says."""


@dataclass(slots=True)
class Edge:
    """An edge; never changed. With `defect` or `unmodelled` set there is no target: the run ends there."""

    kind: Kind
    label: Hashable
    target: State = None
    defect: str = ""
    unmodelled: str = ""


class Model(Protocol):
    """A transition system."""

    def initial(self) -> Edge:
        """The edge into the first state (it may itself be a defect)."""
        ...

    def edges(self, state: State) -> Iterable[Edge]:
        """Every edge that leaves the state."""
        ...

    def owed(self, state: State) -> bool:
        """Whether something must still happen: no fair run stays among such states for ever."""
        ...


@dataclass(slots=True)
class Limits:
    """When to give up: number of states, seconds."""

    max_states: int = 2_000_000
    timeout: float = 0.0


@dataclass(slots=True)
class Graph:
    """What was reached. States are numbered in breadth-first order; parent[n] is (number of predecessor, edge)."""

    states: list[State] = field(default_factory=list)
    number: dict[State, int] = field(default_factory=dict)
    out: list[list[tuple[Edge, int]]] = field(default_factory=list)
    """Edges of each state with the number of the target (-1: the run ends there)."""
    parent: list[tuple[int, Edge]] = field(default_factory=list)
    defects: list[tuple[int, Edge]] = field(default_factory=list)
    """Edges that are defects, shortest way first, with the number of the state they leave (-1: the start)."""
    unmodelled: list[tuple[int, Edge]] = field(default_factory=list)
    edges: int = 0
    gave_up: str = ""
    """Which limit stopped the search, if one did."""

    def path(self, number: int) -> list[tuple[int, Edge]]:
        """The shortest way to a state: (state it leaves, edge), first to last."""
        steps: list[tuple[int, Edge]] = []
        while number >= 0:
            before, edge = self.parent[number]
            steps.append((before, edge))
            number = before
        steps.reverse()
        return steps


def explore(
    model: Model,
    limits: Limits,
    progress: Callable[[int], None] | None = None,
    stop_at_defect: bool = True,
) -> Graph:
    """Reach everything, breadth first. Stops at the first state that a defect leaves: no way to one is shorter."""
    graph = Graph()
    first = model.initial()
    if first.defect:
        graph.defects.append((-1, first))
        return graph
    if first.unmodelled:
        graph.unmodelled.append((-1, first))
        return graph
    deadline = time.monotonic() + limits.timeout if limits.timeout else None
    _add(graph, first.target, -1, first)
    at = 0
    while at < len(graph.states):
        if graph.defects and stop_at_defect:
            return graph
        for edge in model.edges(graph.states[at]):
            graph.edges += 1
            graph.out[at].append((edge, _follow(graph, at, edge)))
        at += 1
        if at & 0xFF == 0:
            if progress is not None:
                progress(len(graph.states))
            if deadline is not None and time.monotonic() > deadline:
                graph.gave_up = f"the time limit of {limits.timeout:g} s"
                return graph
        if len(graph.states) > limits.max_states:
            graph.gave_up = f"the limit of {limits.max_states:,} states"
            return graph
    return graph


def _follow(graph: Graph, at: int, edge: Edge) -> int:
    if edge.defect:
        graph.defects.append((at, edge))
        return -1
    if edge.unmodelled:
        graph.unmodelled.append((at, edge))
        return -1
    known = graph.number.get(edge.target)
    if known is not None:
        return known
    return _add(graph, edge.target, at, edge)


def _add(graph: Graph, state: State, before: int, edge: Edge) -> int:
    number = len(graph.states)
    graph.number[state] = number
    graph.states.append(state)
    graph.out.append([])
    graph.parent.append((before, edge))
    return number
