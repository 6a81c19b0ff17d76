"""What the processor alone makes of a test: every outcome that the patient reference allows, without a hypervisor."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import NamedTuple

from iretrace.explore.fair import endings
from iretrace.explore.graph import Edge, Kind, Limits, explore
from iretrace.litmus.test import Test, before_in_hold
from iretrace.machine.cpu import SEEN_MARK
from iretrace.verdict import Outcome
from iretrace.world.ioctls import by_vmm
from iretrace.world.protocol import PROCESSOR
from iretrace.world.reference import PatientReference, Ref

MAX_MARKS = 16
"""Marks beyond are not told apart, so that a guest that marks in a loop has finitely many outcomes."""


class State(NamedTuple):
    """The reference's state, which arrivals have started and ended (bit sets), and the marks so far."""

    reference: Ref
    started: int
    ended: int
    marks: tuple[int, ...]


class Alone:
    """explore.graph.Model of the patient reference: arrivals come at any time, as the test lists them."""

    def __init__(self, test: Test, vcpu: str, knobs: int = 0) -> None:
        self.test = test
        processor = PROCESSOR._replace(nested_data_bp=vcpu != "sev-es-debugswap")  # DebugSwap goes with NoNestedDataBp
        self.reference = PatientReference(test, vcpu, knobs, processor)

    def initial(self) -> Edge:
        """Main begins; nothing has arrived."""
        return Edge(Kind.RUN, "start", State(self.reference.start(), 0, 0, ()))

    def owed(self, state: Hashable) -> bool:
        """A promised arrival, the end of a sender, or an NMI that nothing holds is still to come."""
        assert isinstance(state, State)
        unstarted = any(
            arrival.promised and self._may_begin(state, number) and not state.started >> number & 1
            for number, arrival in enumerate(self.test.outside)
        )
        return (
            unstarted
            or self._placed(state) >= 0
            or state.started != state.ended
            or not self.reference.owes_nothing(state.reference)
        )

    def edges(self, state: Hashable) -> Iterator[Edge]:
        """Arrivals and their ends, and whatever the processor can do."""
        assert isinstance(state, State)
        placed = self._placed(state)
        if placed >= 0:
            yield self._stamp(self._stamp_state(state, "start", placed), "end", placed)
            return
        for number in range(len(self.test.outside)):
            if state.started >> number & 1:
                if not state.ended >> number & 1:
                    yield self._stamp(state, "end", number)
            elif self._may_begin(state, number):
                yield self._stamp(state, "start", number)
        for shown, after in self.reference.moves(state.reference):
            marks = state.marks
            if isinstance(shown, tuple) and shown[0] == SEEN_MARK and len(marks) < MAX_MARKS:
                marks = (*marks, shown[1])
            yield Edge(Kind.RETIRE, "cpu", state._replace(reference=after, marks=marks))

    def _may_begin(self, state: State, number: int) -> bool:
        """It is not placed, or `in` the hold where the guest is, and those before it in that hold are done."""
        arrival = self.test.outside[number]
        done = all(state.ended >> earlier & 1 for earlier in before_in_hold(self.test.outside, number))
        return arrival.at < 0 and done and self.reference.may_begin(state.reference, number)

    def _placed(self, state: State) -> int:
        """The `at LABEL` arrival that is complete before the instruction at RIP, or -1."""
        rip = self.reference.rip(state.reference)
        for number, arrival in enumerate(self.test.outside):
            if arrival.at == rip and not state.ended >> number & 1:
                return number
        return -1

    def _stamp(self, state: State, what: str, number: int) -> Edge:
        return Edge(Kind.OUTSIDE, what, self._stamp_state(state, what, number))

    def _stamp_state(self, state: State, what: str, number: int) -> State:
        reference = self.reference.stamp(state.reference, (what, number))
        if reference is not None and what == "end" and by_vmm(self.test.outside[number]):
            reference = self.reference.stamp(reference, ("call", number))
        assert reference is not None
        if what == "start":
            return state._replace(reference=reference, started=state.started | 1 << number)
        return state._replace(reference=reference, ended=state.ended | 1 << number)


def outcomes(test: Test, vcpu: str) -> tuple[Outcome, ...]:
    """Every infinite outcome: marks in order, and how it ends (spins, halted, shutdown, or loops)."""
    return allowed(test, vcpu, 0)[0]


def allowed(test: Test, vcpu: str, knobs: int) -> tuple[tuple[Outcome, ...], int]:
    """Every infinite outcome for these values of the disputed rules, and which of the rules were consulted (bits)."""
    model = Alone(test, vcpu, knobs)
    graph = explore(model, Limits())
    found = set()
    for ending in endings(graph, model):
        state = graph.states[ending.entry]
        assert isinstance(state, State)
        how = model.reference.ending(state.reference).split(" ")[0] or "loops"
        found.add((tuple(test.marks[mark] for mark in state.marks), how))
    return tuple(Outcome(marks, how) for marks, how in sorted(found)), model.reference.bare.machine.consulted
