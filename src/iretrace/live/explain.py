"""Could the processor alone have shown this history? The patient reference answers, as it does for `check`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

from iretrace.explore.graph import Kind
from iretrace.litmus.test import VECTORS, Test
from iretrace.live.layout import SMI
from iretrace.live.observed import Run
from iretrace.live.walk import Delivery, Event, Mark, Shown
from iretrace.machine.cpu import SEEN_DELIVERY, SEEN_FLAGS, SEEN_MARK, SEEN_SMI, SEEN_VALUE, X86_EFLAGS_TF
from iretrace.world.alone import Alone, State
from iretrace.world.knobs import Values
from iretrace.world.reference import Ref

UNSEEN = frozenset({VECTORS["db"]})
"""Vectors whose error code (DR6) the log does not hold: reading DR6 would exit."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a run cannot be; none if why is "". shown: how many of its events can come. could: what could come next, in
    place of what did, as far as it was asked for."""

    why: str = ""
    shown: int = 0
    could: frozenset[Hashable] = frozenset()

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self.why)


class Explainer:
    """The processor alone on one test, for every value of the disputed rules: any value may explain a history."""

    def __init__(self, test: Test) -> None:
        self._test = test
        self._models: dict[int, Alone] = {}

    def objection(self, run: Run) -> Objection:
        """Why the processor alone could not have shown this run."""
        return for_some_value(lambda knobs: self._ask(knobs, run), lambda objection: objection.shown)

    def _ask(self, knobs: int, run: Run) -> tuple[Objection, int]:
        model = self._models.get(knobs)
        if model is None:
            model = self._models[knobs] = Alone(self._test, "plain", knobs)
        return _objection(model, run), model.reference.bare.machine.consulted


def for_some_value(ask: Callable[[int], tuple[T, int]], shown: Callable[[T], int]) -> T:
    """An objection that is none for some value of the disputed rules, else the one that lets most be shown. ask: for a
    value of all of them, the objection and which rules were consulted; only those are varied."""
    objections: list[T] = []
    for knobs in (values := Values()):
        objection, consulted = ask(knobs)
        if not objection:
            return objection
        objections.append(objection)
        values.consulted(knobs, consulted)
    return max(objections, key=shown)


def _objection(model: Alone, run: Run) -> Objection:
    initial = model.initial().target
    assert isinstance(initial, State)
    states = _closed(model, {initial}, not_yet(run, 0))
    for number, event in enumerate(run.history):
        after = {
            state._replace(reference=target)
            for state in states
            for shown, target in _moves(model, state)
            if shown is not None and matches(event, shown)
        }
        if not after:
            return Objection(f"event {number + 1}, {say(run, event)}, cannot come here", number, _could(model, states))
        states = _closed(model, after, not_yet(run, number + 1))
    if not run.complete and not run.reset:
        return Objection()
    if run.reset:
        states = _closed(model, states, not_yet(run, len(run.history)), marks=True)
    if any(_ends(model, state, run) for state in states):
        return Objection()
    why = f"after these it cannot be that the guest {run.ending} and no more comes"
    return Objection(why, len(run.history), _could(model, states))


def _could(model: Alone, states: set[State]) -> frozenset[Hashable]:
    """What the processor can show next."""
    return frozenset(shown for state in states for shown, _ in _moves(model, state) if shown is not None)


def not_yet(run: Run, shown: int) -> int:
    """The arrivals that came after more than this many events of the history, as bits."""
    return sum(1 << number for number, events in enumerate(run.after) if events > shown)


def _closed(model: Alone, states: set[State], barred: int, marks: bool = False) -> set[State]:
    """With all that can happen unseen: arrivals but those barred, latching, instructions that show nothing, PUSHFQ.

    marks: marks and values are not known, either."""
    unseen = (SEEN_FLAGS, SEEN_MARK, SEEN_VALUE) if marks else (SEEN_FLAGS,)
    pending, met = list(states), set(states)
    while pending:
        state = pending.pop()
        targets: list[Hashable] = [edge.target for edge in model.edges(state) if edge.kind is Kind.OUTSIDE]
        for shown, target in _moves(model, state):
            if shown is None or (isinstance(shown, tuple) and shown[0] in unseen):
                targets.append(state._replace(reference=target))
        for after in targets:
            assert isinstance(after, State)
            if after not in met and not after.started & barred:
                met.add(after)
                pending.append(after)
    return met


def _moves(model: Alone, state: State) -> list[tuple[Hashable, Ref]]:
    """What the processor can do; nothing while an arrival that belongs before this instruction has not come."""
    edges = list(model.edges(state))
    if len(edges) == 1 and edges[0].kind is Kind.OUTSIDE and edges[0].label == "end":
        return []
    return list(model.reference.moves(state.reference))


def matches(event: Event, shown: Hashable) -> bool:
    """Whether this is what the model shows in this form; DR6 is not compared."""
    assert isinstance(shown, tuple)
    if isinstance(event, Mark):
        return bool(shown[0] == SEEN_MARK and shown[1] == event.number)
    if isinstance(event, Shown):
        return bool(shown[0] == SEEN_VALUE and shown[4] == event.value)
    seen, vector, rip, flags, error = shown
    if event.debugged:
        flags &= ~X86_EFLAGS_TF
    if event.vector == SMI:
        return bool((seen, rip, flags) == (SEEN_SMI, event.place, event.flags))
    told = event.error == error or event.vector in UNSEEN
    return bool(seen == SEEN_DELIVERY and (vector, rip, flags) == (event.vector, event.place, event.flags) and told)


def _ends(model: Alone, state: State, run: Run) -> bool:
    if model.owed(state):
        return False
    said = model.reference.ending(state.reference) or model.reference.goes_on(state.reference)
    if run.ending in ("spins", "halted"):
        return said == f"{run.ending} at {run.place}"
    return said.split(" ")[0] == run.ending


def say(run: Run, event: Event) -> str:
    """An event in words."""
    test = run.guest.test
    if isinstance(event, Mark):
        return f"mark {test.marks[event.number]}"
    if isinstance(event, Shown):
        return f"value {event.value:#x} shown"
    return say_delivery(run, event)


def say_delivery(run: Run, event: Delivery) -> str:
    """A delivery in words: where it interrupts, and the TF and IF that it pushes."""
    test = run.guest.test
    names = {vector: name for name, vector in VECTORS.items()} | {SMI: "smi"}
    where = test.code[event.place].text if event.place >= 0 else "a place outside the test"
    flags = " and ".join(name for bit, name in ((0x100, "TF"), (0x200, "IF")) if event.flags & bit)
    return f"{names.get(event.vector, event.vector)} at `{where}`{f' with {flags} pushed' if flags else ''}"
