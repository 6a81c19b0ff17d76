"""Does the model of this kernel have the history that the real one has shown? The product answers, held to it.

This is the other side of the comparison with the processor (explain.py): a history that no processor could show is a
defect of KVM, and the model must have the very same one. It asks for the whole history, not for the marks alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from iretrace.explore.fair import endings
from iretrace.explore.graph import Edge, Kind, Limits, explore
from iretrace.explore.monitor import EMPTY, Monitor, Stamp
from iretrace.litmus.test import Test
from iretrace.live.explain import Objection, for_some_value, matches, say
from iretrace.live.observed import Run
from iretrace.machine.cpu import SEEN_FLAGS, SEEN_MARK, SEEN_VALUE
from iretrace.world.endings import how
from iretrace.world.product import Point, Product
from iretrace.world.protocol import Hypervisor
from iretrace.world.reference import Ref

MOST_STATES = 30_000
"""Of the product, for one history and one value of the disputed rules: work, not time, so that a search that is given
up is given up everywhere."""

NOT_KNOWN = "not known"
"""So an objection begins that is none: the search was given up."""

MAX_REST = 20_000
"""States, for the end of a history."""

WHERE_IT_STOPS = "the model stops at: "
"""So the limit begins that is not one of work."""


class History(Monitor[Ref]):
    """In place of the reference: the history itself. A set's number is how many of its events have been shown."""

    def __init__(self, product: Product, run: Run) -> None:
        super().__init__(product.reference)
        self.run = run

    def start(self) -> int:
        """Nothing has been shown."""
        return 0

    def observe(self, number: int, observation: Hashable) -> int:
        """The next event of the history, or none. What PUSHFQ shows is not in the log."""
        assert isinstance(observation, tuple)
        if number == EMPTY:
            return EMPTY
        if observation[0] == SEEN_FLAGS:
            return number
        history = self.run.history
        if number == len(history):
            unseen = self.run.reset and observation[0] in (SEEN_MARK, SEEN_VALUE)
            return number if unseen or not (self.run.complete or self.run.reset) else EMPTY
        return number + 1 if matches(history[number], observation) else EMPTY

    def stamp(self, number: int, event: Stamp) -> int:
        """Arrivals are free, but for what is known to have come before them."""
        what, which = event
        return EMPTY if what == "start" and number < self.run.after[which] else number

    def allowed(self, number: int) -> list[Hashable]:
        """Never asked for in words."""
        return []


class Follower:
    """One test on one model, for several histories: what the hypervisor does is worked out once."""

    def __init__(self, test: Test, hypervisor: Hypervisor) -> None:
        self._test, self._hypervisor = test, hypervisor
        self._products: dict[int, Product] = {}

    def objection(self, run: Run) -> Objection:
        """Why the model does not have this run, for any value of the disputed rules."""
        return for_some_value(lambda knobs: self._ask(knobs, run), lambda objection: objection.shown)

    def _ask(self, knobs: int, run: Run) -> tuple[Objection, int]:
        product = self._products.get(knobs)
        if product is None:
            product = self._products[knobs] = Product(self._test, "plain", "ticking", self._hypervisor, knobs)
        return _objection(product, run), product.consulted()


@dataclass(frozen=True, slots=True)
class Search:
    """What a search has found. way: the states to the end of the history, () if there is none.

    shown: how many of its events can be shown. gave_up: the limit that was hit, or ""."""

    way: tuple[Point, ...]
    shown: int
    gave_up: str = ""


def _objection(product: Product, run: Run) -> Objection:
    product.monitor = History(product, run)
    search = find(product, run)
    if search.way:
        return Objection()
    if search.gave_up:
        return Objection(f"{NOT_KNOWN}: {search.gave_up}", search.shown)
    if search.shown < len(run.history):
        event = say(run, run.history[search.shown])
        return Objection(f"event {search.shown + 1}, {event}, does not come in the model", search.shown)
    return Objection(f"in the model it is not the end that the guest {run.ending}", search.shown)


def find(product: Product, run: Run, most: int = MOST_STATES) -> Search:
    """A way through the product that shows the run; its monitor tells what counts.

    States that have shown most are looked at first, of these the newest: one way through is sought, not all of them."""
    first = product.initial().target
    assert isinstance(first, Point)
    waiting: list[tuple[int, int, Point]] = [(0, 0, first)]
    came: dict[Point, Point | None] = {first: None}
    rests = Rests(product, run)
    shown = 0
    while waiting:
        _, _, state = heappop(waiting)
        shown = max(shown, state.monitor)
        if state.monitor == len(run.history) and rests.ends(state):
            return Search(_way(came, state), shown)
        for edge in product.edges(state):
            if edge.defect and state.monitor == len(run.history) and (_came_back(run) or _warns(edge)):
                return Search(_way(came, state), shown)
            if edge.unmodelled:
                rests.gave_up = WHERE_IT_STOPS + edge.unmodelled
            if isinstance(edge.target, Point) and edge.target.monitor != EMPTY and edge.target not in came:
                came[edge.target] = state
                heappush(waiting, (-edge.target.monitor, -len(came), edge.target))
        if len(came) > most:
            return Search((), shown, f"the limit of {most:,} states")
    return Search((), shown, rests.gave_up)


def _way(came: dict[Point, Point | None], state: Point | None) -> tuple[Point, ...]:
    way: list[Point] = []
    while state is not None:
        way.append(state)
        state = came[state]
    return tuple(reversed(way))


class Rests:
    """How the guest can go on once all of a history has been shown."""

    def __init__(self, product: Product, run: Run) -> None:
        self._product, self._run = product, run
        self._dead = set[Hashable]()
        """States known not to go on so."""
        self.gave_up = ""
        """Why an answer was not to be had, if one was not."""

    def ends(self, state: Point) -> bool:
        """From here the guest can go on as it did."""
        run, product = self._run, self._product
        if not run.complete and not run.reset:
            return True
        if state in self._dead or product.owed(state):
            return False
        graph = explore(Rest(product, state), Limits(max_states=MAX_REST), stop_at_defect=False)
        if graph.gave_up:
            self.gave_up = graph.gave_up
            return False
        if graph.unmodelled:
            self.gave_up = WHERE_IT_STOPS + graph.unmodelled[0][1].unmodelled
        if any(self._is_it(how(product, graph, ending)) for ending in endings(graph, product)):
            return True
        self._dead.update(graph.states)
        return False

    def _is_it(self, says: str) -> bool:
        run = self._run
        placed = run.ending in ("spins", "halted") and run.place >= 0
        return says == f"{run.ending} at {run.place}" or (not placed and says.split(" ")[0] == run.ending)


def _came_back(run: Run) -> bool:
    """KVM_RUN came back for good, and not for a shutdown: in the model that is a defect."""
    return run.complete and run.ending not in ("spins", "halted", "loops", "shutdown")


def _warns(edge: Edge) -> bool:
    """The model ends at a WARN, where the kernel goes on: what comes behind it is not known of the model."""
    return edge.defect.startswith("WARN")


class Rest:
    """explore.graph.Model of what comes after a state of the product."""

    def __init__(self, product: Product, state: Point) -> None:
        self._product = product
        self._state = state

    def initial(self) -> Edge:
        """The state."""
        return Edge(Kind.RUN, "rest", self._state)

    def edges(self, state: Hashable) -> Iterator[Edge]:
        """As in the product, without what the history excludes."""
        for edge in self._product.edges(state):
            if not isinstance(edge.target, Point) or edge.target.monitor != EMPTY:
                yield edge

    def owed(self, state: Hashable) -> bool:
        """As in the product."""
        return self._product.owed(state)
