"""Infinite outcomes of fair runs: where a run can end up staying for ever, and the shortest lasso that shows it.

What is owed (promised events, the steps of a started sender) happens finitely often and stays enabled until it does,
so a fair run ends up among states where nothing is owed. There it either stops (no edge of its own left) or stays
in a strongly connected set of states. Where ticks can come, that set is closed under tick edges and under the run's
own: ticks come wherever the run stays, again and again, but never so fast that the run cannot go on between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from iretrace.explore.graph import Edge, Graph, Kind, Model


@dataclass(frozen=True, slots=True)
class Ending:
    """One way to go on for ever. members: states of the loop; empty loop: the run is stuck in the one member."""

    members: frozenset[int]
    stuck: bool
    retires: bool
    """The loop holds an edge that makes progress."""

    @property
    def entry(self) -> int:
        """The member that is reached first."""
        return min(self.members)


def endings(graph: Graph, model: Model) -> list[Ending]:
    """All endings, nearest first. Loops are the largest there are: that a run may stay in a smaller part of one does
    not matter where, as in the product, only ticks and what is owed give it a choice."""
    free = [not model.owed(state) for state in graph.states]
    found: list[Ending] = []
    for number, ok in enumerate(free):
        if ok and not any(edge.kind is not Kind.OUTSIDE for edge, _ in graph.out[number]):
            found.append(Ending(frozenset((number,)), True, False))
    for component in _components(graph, [n for n, ok in enumerate(free) if ok]):
        for closed in _closed_under_ticks(graph, component):
            kinds = {edge.kind for n in closed for edge, to in graph.out[n] if to in closed}
            if Kind.RUN in kinds or Kind.RETIRE in kinds:
                found.append(Ending(closed, False, Kind.RETIRE in kinds))
    found.sort(key=lambda ending: ending.entry)
    return found


def _own(graph: Graph, number: int) -> Iterable[int]:
    return (to for edge, to in graph.out[number] if to >= 0 and edge.kind is not Kind.OUTSIDE)


def _leaves(graph: Graph, number: int, component: frozenset[int]) -> bool:
    """Some edge of the run itself, or a tick, goes elsewhere, be it to where nothing is modelled."""
    return any(to not in component and edge.kind is not Kind.OUTSIDE for edge, to in graph.out[number])


def _ticked(graph: Graph, number: int) -> bool:
    return any(edge.kind is Kind.TICK for edge, _ in graph.out[number])


def _closed_under_ticks(graph: Graph, component: frozenset[int]) -> list[frozenset[int]]:
    """The largest strongly connected subsets that no ticked state leaves, by a tick or by itself."""
    leaving = {n for n in component if _ticked(graph, n) and _leaves(graph, n, component)}
    if not leaving:
        return [component]
    inner: list[frozenset[int]] = []
    for smaller in _components(graph, sorted(component - leaving), within=component - leaving):
        inner.extend(_closed_under_ticks(graph, smaller))
    return inner


def _components(graph: Graph, among: list[int], within: frozenset[int] | None = None) -> list[frozenset[int]]:
    """Strongly connected sets that hold a cycle (Tarjan's algorithm, iterative)."""
    allowed = within if within is not None else frozenset(among)
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    found: list[frozenset[int]] = []
    for root in among:
        if root in index:
            continue
        work = [(root, iter([to for to in _own(graph, root) if to in allowed]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, successors = work[-1]
            advanced = False
            for to in successors:
                if to not in index:
                    index[to] = low[to] = len(index)
                    stack.append(to)
                    on_stack.add(to)
                    work.append((to, iter([t for t in _own(graph, to) if t in allowed])))
                    advanced = True
                    break
                if to in on_stack:
                    low[node] = min(low[node], index[to])
            if advanced:
                continue
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[node])
            if low[node] == index[node]:
                component = set()
                while True:
                    member = stack.pop()
                    on_stack.discard(member)
                    component.add(member)
                    if member == node:
                        break
                if len(component) > 1 or node in _own(graph, node):
                    found.append(frozenset(component))
    return found


def loop_of(graph: Graph, ending: Ending) -> list[tuple[int, Edge]]:
    """The shortest loop through the entry that makes the run go on; where the entry is ticked, the tick comes too."""
    if ending.stuck:
        return []
    entry = ending.entry
    loop = _way(graph, ending.members, entry, entry, lambda edge: edge.kind in (Kind.RUN, Kind.RETIRE))
    ticks = [(edge, to) for edge, to in graph.out[entry] if edge.kind is Kind.TICK]
    if ticks and not any(edge.kind is Kind.TICK for _, edge in loop):
        edge, to = ticks[0]
        loop = [*loop, (entry, edge), *_way(graph, ending.members, to, entry, None)]
    return loop


def _way(graph: Graph, members: frozenset[int], start: int, goal: int, needs: object) -> list[tuple[int, Edge]]:
    """A shortest way inside the members. With needs (a predicate), at least one edge, one of which satisfies it."""
    if start == goal and needs is None:
        return []
    first = (start, needs is None)
    before: dict[tuple[int, bool], tuple[tuple[int, bool], Edge]] = {}
    queue = deque([first])
    seen = {first} if start != goal or needs is None else set()
    while queue:
        at = queue.popleft()
        for edge, to in graph.out[at[0]]:
            if to not in members or edge.kind is Kind.OUTSIDE:
                continue
            after = (to, at[1] or (callable(needs) and bool(needs(edge))))
            if after in seen:
                continue
            seen.add(after)
            before[after] = (at, edge)
            if after == (goal, True):
                return _unwind(before, after, first)
            queue.append(after)
    raise AssertionError("a strongly connected set has a way between any two members")


def _unwind(
    before: dict[tuple[int, bool], tuple[tuple[int, bool], Edge]], at: tuple[int, bool], first: tuple[int, bool]
) -> list[tuple[int, Edge]]:
    steps: list[tuple[int, Edge]] = []
    while True:
        previous, edge = before[at]
        steps.append((previous[0], edge))
        if previous == first:
            break
        at = previous
    steps.reverse()
    return steps
