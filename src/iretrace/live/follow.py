"""Does the model of this kernel have the history that the real one has shown? The product answers, held to it.

This is the other side of the comparison with the processor (explain.py): a history that no processor could show is a
defect of KVM, and the model must have the very same one. It asks for the whole history, not for the marks alone.
"""

from __future__ import annotations

from collections.abc import Hashable

from iretrace.check import UNKNOWN_KNOBS
from iretrace.explore.fair import endings
from iretrace.explore.graph import Graph, Limits, explore
from iretrace.explore.monitor import EMPTY, Monitor, Stamp
from iretrace.litmus.test import Test
from iretrace.live.explain import matches, say
from iretrace.live.observed import Run
from iretrace.machine.cpu import SEEN_FLAGS
from iretrace.world.endings import how, point
from iretrace.world.product import Product
from iretrace.world.protocol import Hypervisor
from iretrace.world.reference import Ref

LIMITS = Limits(max_states=300_000, timeout=60.0)
"""For one history."""


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
        if observation[0] == SEEN_FLAGS:
            return number
        history = self.run.history
        if number == len(history):
            return number if not self.run.complete else EMPTY
        return number + 1 if matches(history[number], observation) else EMPTY

    def stamp(self, number: int, event: Stamp) -> int:
        """Arrivals are free."""
        return number

    def allowed(self, number: int) -> list[Hashable]:
        """Never asked for in words."""
        return []


class Follower:
    """One test on one model, for several histories: what the hypervisor does is worked out once."""

    def __init__(self, test: Test, hypervisor: Hypervisor) -> None:
        values = range(1 << len(UNKNOWN_KNOBS))
        knobs = [sum(1 << number for bit, number in enumerate(UNKNOWN_KNOBS) if value >> bit & 1) for value in values]
        self._products = [Product(test, "plain", "ticking", hypervisor, value) for value in knobs]

    def objection(self, run: Run) -> str:
        """Why the model does not have this run, for any value of the disputed rules; "" if it has."""
        best = ""
        for product in self._products:
            said = _objection(product, run)
            if not said or not product.consulted():
                return said
            best = max(best, said, key=len)
        return best


def _objection(product: Product, run: Run) -> str:
    product.monitor = History(product, run)
    graph = explore(product, LIMITS, stop_at_defect=False)
    shown = max((point(graph, number).monitor for number in range(len(graph.states))), default=0)
    if _has(product, graph, run):
        return ""
    if graph.gave_up:
        return f"not known: {graph.gave_up}"
    if shown < len(run.history):
        return f"event {shown + 1}, {say(run, run.history[shown])}, does not come in the model"
    return f"in the model the guest {run.ending} after something else"


def _has(product: Product, graph: Graph, run: Run) -> bool:
    whole = len(run.history)
    if not run.complete:
        return any(point(graph, number).monitor == whole for number in range(len(graph.states)))
    if any(number >= 0 and point(graph, number).monitor == whole and _ended(run) for number, _ in graph.defects):
        return True
    for ending in endings(graph, product):
        if point(graph, ending.entry).monitor != whole:
            continue
        says = how(product, graph, ending)
        placed = run.ending in ("spins", "halted")
        if says == f"{run.ending} at {run.place}" or (not placed and says.split(" ")[0] == run.ending):
            return True
    return False


def _ended(run: Run) -> bool:
    """KVM_RUN came back for good, and not for a shutdown: in the model that is a defect."""
    return run.ending not in ("spins", "halted", "loops", "shutdown")
