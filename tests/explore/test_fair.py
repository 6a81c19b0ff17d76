"""Infinite outcomes of fair runs."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import combinations, pairwise

from hypothesis import given

from iretrace.explore.fair import Ending, endings, loop_of
from iretrace.explore.graph import Graph, Kind
from tests.explore.toy import Arc, Toy, names, systems

RUN, RETIRE, TICK, OUTSIDE = Kind.RUN, Kind.RETIRE, Kind.TICK, Kind.OUTSIDE


def found(toy: Toy) -> list[tuple[set[Hashable], bool, bool]]:
    """The endings: (states, stuck, makes progress)."""
    graph = toy.explore()
    return [(names(graph, e.members), e.stuck, e.retires) for e in endings(graph, toy)]


def test_a_state_that_nothing_leaves_is_an_ending() -> None:
    assert found(Toy([(0, RUN, 1)])) == [({1}, True, False)]


def test_a_state_that_only_others_can_change_is_an_ending() -> None:
    assert found(Toy([(0, OUTSIDE, 1), (1, RETIRE, 1)])) == [({0}, True, False), ({1}, False, True)]


def test_a_state_that_owes_something_is_no_ending() -> None:
    assert found(Toy([(0, OUTSIDE, 1)], owing={0})) == [({1}, True, False)]


def test_a_loop_is_an_ending_and_says_whether_it_makes_progress() -> None:
    assert found(Toy([(0, RUN, 1), (1, RUN, 0)])) == [({0, 1}, False, False)]
    assert found(Toy([(0, RUN, 1), (1, RETIRE, 0)])) == [({0, 1}, False, True)]


def test_a_loop_of_others_is_none() -> None:
    assert found(Toy([(0, OUTSIDE, 1), (1, OUTSIDE, 0), (0, RUN, 2), (1, RUN, 2)])) == [({2}, True, False)]


def test_a_loop_of_ticks_alone_is_none() -> None:
    assert found(Toy([(0, TICK, 0), (0, RUN, 1)])) == [({1}, True, False)]


def test_no_fair_run_stays_in_a_loop_that_owes_something() -> None:
    assert found(Toy([(0, RETIRE, 1), (1, RETIRE, 0), (1, OUTSIDE, 2)], owing={1})) == [({2}, True, False)]


def test_a_loop_within_states_that_owe_nothing_is_found_beside_one_that_owes() -> None:
    arcs = [(0, RUN, 1), (1, RUN, 0), (1, RETIRE, 1)]
    assert found(Toy(arcs, owing={0})) == [({1}, False, True)]


def test_a_loop_that_a_tick_leaves_is_none() -> None:
    """Where a state is visited for ever it is ticked there for ever."""
    assert found(Toy([(0, RETIRE, 0), (0, TICK, 1)])) == [({1}, True, False)]


def test_a_loop_that_holds_its_ticks_is_one() -> None:
    assert found(Toy([(0, RETIRE, 0), (0, TICK, 1), (1, RUN, 0)])) == [({0, 1}, False, True)]


def test_ticks_do_not_starve_the_run() -> None:
    """Ticks come again and again, but never so fast that the run cannot go on in between."""
    assert found(Toy([(0, TICK, 1), (1, RUN, 0), (0, RETIRE, 2)])) == [({2}, True, False)]


def test_a_state_without_ticks_may_always_choose_the_same() -> None:
    assert found(Toy([(0, RUN, 0), (0, RUN, 1)])) == [({0}, False, False), ({1}, True, False)]


def test_a_ticked_state_that_may_go_where_nothing_is_modelled_is_no_ending() -> None:
    assert found(Toy([(0, RETIRE, -1), (0, TICK, 1), (1, RUN, 0)])) == []


def test_a_tick_can_split_a_loop_into_smaller_ones() -> None:
    arcs = [(0, RUN, 1), (1, RUN, 0), (0, TICK, 9), (1, RUN, 2), (2, RETIRE, 1), (2, TICK, 2)]
    assert ({1, 2}, False, True) in found(Toy(arcs))


def reach(arcs: list[Arc], within: set[int]) -> set[tuple[int, int]]:
    """Pairs (a, b): b is reached from a by one or more edges inside the set."""
    pairs = {(a, b) for a, kind, b in arcs if kind is not OUTSIDE and a in within and b in within}
    while True:
        more = {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs
        if not more:
            return pairs
        pairs |= more


def brute(arcs: list[Arc], states: set[int]) -> set[frozenset[int]]:
    """The largest sets that a fair run can stay in, by trying all subsets."""
    fit: list[frozenset[int]] = []
    ticked = {source for source, kind, _ in arcs if kind is TICK}
    for size in range(len(states), 0, -1):
        for chosen in combinations(sorted(states), size):
            inside = set(chosen)
            if any(inside < other for other in fit):
                continue
            pairs = reach(arcs, inside)
            if not all((a, b) in pairs for a in inside for b in inside):
                continue
            if any(a in inside & ticked and b not in inside for a, kind, b in arcs if kind is not OUTSIDE):
                continue
            fit.append(frozenset(inside))
    runs = {(a, b) for a, kind, b in arcs if kind in (RUN, RETIRE)}
    return {s for s in fit if any(a in s and b in s for a, b in runs)}


@given(systems(5, 10))
def test_loops_are_just_the_sets_that_trying_all_subsets_finds(arcs: list[Arc]) -> None:
    toy = Toy(arcs)
    graph = toy.explore()
    states = {state for state in graph.states if isinstance(state, int)}
    loops = {frozenset(names(graph, e.members)) for e in endings(graph, toy) if not e.stuck}
    assert loops == brute(arcs, states)


@given(systems(5, 10))
def test_stuck_states_are_just_those_that_only_others_leave(arcs: list[Arc]) -> None:
    toy = Toy(arcs)
    graph = toy.explore()
    stuck = {graph.states[e.entry] for e in endings(graph, toy) if e.stuck}
    own = {source for source, kind, _ in arcs if kind is not OUTSIDE}
    assert stuck == set(graph.states) - own


def circle(graph: Graph, loop: list[tuple[int, Kind, int]], ending: Ending) -> None:
    """The steps follow each other inside the ending, from its entry back to it."""
    assert loop[0][0] == loop[-1][2] == ending.entry
    assert all(a[2] == b[0] for a, b in pairwise(loop))
    assert {n for step in loop for n in (step[0], step[2])} <= ending.members


def shortest(graph: Graph, ending: Ending) -> int:
    """Length of the shortest way from the entry to the entry with a step of the run itself, by brute force."""
    steps = [
        (n, edge.kind, to)
        for n in ending.members
        for edge, to in graph.out[n]
        if to in ending.members and edge.kind is not OUTSIDE
    ]
    at = {(ending.entry, False)}
    for length in range(1, 2 * len(ending.members) + 2):
        at = {(to, ran or kind in (RUN, RETIRE)) for n, ran in at for source, kind, to in steps if source == n}
        if (ending.entry, True) in at:
            return length
    raise AssertionError("no way back")


@given(systems(5, 10))
def test_a_lasso_is_a_shortest_loop_of_real_edges_that_goes_on(arcs: list[Arc]) -> None:
    toy = Toy(arcs)
    graph = toy.explore()
    for ending in endings(graph, toy):
        loop = [(n, edge.kind, graph.number[edge.target]) for n, edge in loop_of(graph, ending)]
        if ending.stuck:
            assert loop == []
            continue
        circle(graph, loop, ending)
        assert any(kind in (RUN, RETIRE) for _, kind, _ in loop)
        ticked = any(edge.kind is TICK for edge, _ in graph.out[ending.entry])
        if not ticked:
            assert len(loop) == shortest(graph, ending)
        else:
            assert any(kind is TICK for _, kind, _ in loop)


def test_endings_come_nearest_first_and_enter_at_the_nearest_state() -> None:
    toy = Toy([(0, OUTSIDE, 1), (1, RUN, 2), (2, RUN, 1), (0, RUN, 0)])
    graph = toy.explore()
    assert [graph.states[ending.entry] for ending in endings(graph, toy)] == [0, 1]
