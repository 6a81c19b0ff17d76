"""Transition systems written down as tables, and random ones."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from hypothesis import strategies as st

from iretrace.explore.graph import Edge, Graph, Kind, Limits, explore

Arc = tuple[int, Kind, int]
"""(from, kind, to). A negative `to`: nothing is modelled there."""


@dataclass
class Toy:
    """A model from a list of arcs. States are ints, 0 is the first."""

    arcs: list[Arc]
    owing: set[int] = field(default_factory=set)
    defects: set[tuple[int, str]] = field(default_factory=set)

    def initial(self) -> Edge:
        return Edge(Kind.RUN, "start", 0)

    def edges(self, state: Hashable) -> Iterator[Edge]:
        for at, what in sorted(self.defects):
            if at == state:
                yield Edge(Kind.RUN, what, defect=what)
        for number, (source, kind, target) in enumerate(self.arcs):
            if source == state and target < 0:
                yield Edge(kind, number, unmodelled="not modelled")
            elif source == state:
                yield Edge(kind, number, target)

    def owed(self, state: Hashable) -> bool:
        return state in self.owing

    def explore(self) -> Graph:
        return explore(self, Limits())


def systems(states: int = 6, arcs: int = 12) -> st.SearchStrategy[list[Arc]]:
    """Random small systems."""
    number = st.integers(0, states - 1)
    return st.lists(st.tuples(number, st.sampled_from(Kind), number), max_size=arcs)


def names(graph: Graph, numbers: frozenset[int]) -> set[Hashable]:
    """States by what the toy calls them."""
    return {graph.states[number] for number in numbers}
