"""Breadth-first search: everything is reached, on shortest ways, and limits are kept."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import pairwise

from hypothesis import given

from iretrace.explore.graph import Edge, Kind, Limits, explore
from tests.explore.toy import Arc, Toy, systems

RUN = Kind.RUN


def distances(arcs: list[Arc]) -> dict[int, int]:
    """Steps from state 0, by relaxation."""
    far = {0: 0}
    for _ in range(len(arcs) + 1):
        for source, _, target in arcs:
            if source in far:
                far[target] = min(far.get(target, 99), far[source] + 1)
    return far


@given(systems())
def test_everything_that_can_be_reached_is_reached_on_a_shortest_way(arcs: list[Arc]) -> None:
    graph = Toy(arcs).explore()
    far = distances(arcs)
    assert set(graph.states) == set(far)
    for number, state in enumerate(graph.states):
        assert isinstance(state, int)
        assert len(graph.path(number)) == far[state] + 1  # the first edge leads into the first state


@given(systems())
def test_a_way_consists_of_edges_that_follow_each_other(arcs: list[Arc]) -> None:
    graph = Toy(arcs).explore()
    for number in range(len(graph.states)):
        path = graph.path(number)
        for (_, edge), (before, _) in pairwise(path):
            assert graph.states[before] == edge.target
        assert path[-1][1].target == graph.states[number]


@given(systems())
def test_each_edge_is_known_with_its_target(arcs: list[Arc]) -> None:
    graph = Toy(arcs).explore()
    reached = set(graph.states)
    assert graph.edges == sum(1 for source, _, _ in arcs if source in reached)
    for out in graph.out:
        assert all(graph.states[to] == edge.target for edge, to in out)


def test_the_search_stops_at_the_nearest_defect() -> None:
    arcs = [(0, RUN, 1), (1, RUN, 2), (2, RUN, 3)]
    graph = Toy(arcs, defects={(1, "near"), (2, "far")}).explore()
    assert [edge.defect for _, edge in graph.defects] == ["near"]
    assert 3 not in graph.number


def test_all_defects_are_found_if_asked_for() -> None:
    arcs = [(0, RUN, 1), (1, RUN, 2)]
    graph = explore(Toy(arcs, defects={(1, "near"), (2, "far")}), Limits(), stop_at_defect=False)
    assert [(graph.states[at], edge.defect) for at, edge in graph.defects] == [(1, "near"), (2, "far")]


def test_what_is_not_modelled_ends_a_way_and_not_the_search() -> None:
    graph = Toy([(0, RUN, -1), (0, RUN, 1)]).explore()
    assert [edge.unmodelled for _, edge in graph.unmodelled] == ["not modelled"]
    assert 1 in graph.number


class Endless:
    """Counts for ever; begins as it is told."""

    def __init__(self, first: Edge) -> None:
        self.first = first

    def initial(self) -> Edge:
        return self.first

    def edges(self, state: Hashable) -> Iterator[Edge]:
        assert isinstance(state, int)
        yield Edge(RUN, "count", state + 1)

    def owed(self, state: Hashable) -> bool:
        return False


def test_a_limit_on_states_is_kept_and_named() -> None:
    graph = explore(Endless(Edge(RUN, "start", 0)), Limits(max_states=1000))
    assert len(graph.states) <= 1001
    assert graph.gave_up == "the limit of 1,000 states"


def test_a_limit_on_time_is_kept_and_named() -> None:
    graph = explore(Endless(Edge(RUN, "start", 0)), Limits(timeout=0.001))
    assert graph.gave_up == "the time limit of 0.001 s"


def test_a_search_that_ends_just_at_the_limit_has_not_given_up() -> None:
    assert not explore(Toy([(0, RUN, 1)]), Limits(max_states=2)).gave_up


def test_progress_is_told() -> None:
    told: list[int] = []
    explore(Endless(Edge(RUN, "start", 0)), Limits(max_states=600), told.append)
    assert told == [257, 513]


def test_a_first_step_that_is_a_defect_is_one() -> None:
    assert explore(Endless(Edge(RUN, "start", defect="bad")), Limits()).defects[0][0] == -1


def test_a_first_step_that_is_not_modelled_is_told() -> None:
    assert explore(Endless(Edge(RUN, "start", unmodelled="odd")), Limits()).unmodelled[0][0] == -1
