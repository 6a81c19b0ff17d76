"""A host step as passes through KVM_RUN's loop, each worked out once.

Between two passes no function is under way: how the thread goes on depends on flat state alone, and so does what a
landing makes of a pass. Most schedules of a step share their first passes with another one, and many come to the same
state in the end. A step is composed of what is known of its passes; only what is new is executed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from iretrace.explore.interned import Interned
from iretrace.kvm.host import HostRun, debug_of
from iretrace.kvm.kvm_host import (
    AGAIN,
    NOT_MODELLED_LOOP,
    OUTSIDE_GUEST_MODE,
    ROUND,
    Kvm,
    Vcpu,
    VcpuDebug,
    VcpuSvm,
    not_modelled,
)
from iretrace.kvm.lines import marks
from iretrace.kvm.x86_run import vcpu_run
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import pack, unpack
from iretrace.world.protocol import NO_HOST_DEBUG, Debug, Landing, Packed, SenderState

MOST_PASSES = 64
"""So many passes between two hand-overs, none like another, are a loop that counts."""

Entry = Callable[[Vcpu], int]
Landed = tuple[Landing, ...]


class Between(NamedTuple):
    """All that decides how a thread goes on that is between two passes; records are packed."""

    vcpu: Packed
    svm: Packed
    vmcb: Packed
    ghcb: Packed
    debug: Packed
    thread: Packed
    cpu: Debug
    itself: Debug
    wanted: Debug
    senders: tuple[SenderState, ...]
    log: tuple[tuple[str, int], ...] = ()
    """Of the step so far."""


MODE = Vcpu.field_names.index("mode")  # type: ignore[attr-defined]
THREADS: tuple[Packed, Packed] = ((0, 0, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0, 0))
"""Threads at the beginning of a step, with interrupts off and on."""


def beginning(
    vcpu: Packed, svm: Packed, vmcb: Packed, ghcb: Packed, debug: Packed, cpu: Debug, senders: tuple[SenderState, ...]
) -> Between:
    """Where a thread is at the beginning of a step. Interrupts are off where it goes on behind VMRUN."""
    thread = THREADS[vcpu[MODE] == OUTSIDE_GUEST_MODE]
    return Between(vcpu, svm, vmcb, ghcb, debug, thread, cpu, NO_HOST_DEBUG, NO_HOST_DEBUG, senders)


def at_rest(vcpu: Vcpu, run: HostRun) -> Between:
    """Where a thread is after a pass."""
    svm = vcpu.svm
    records = (pack(vcpu), pack(svm), pack(svm.vmcb), pack(svm.ghcb), pack(vcpu.debug), pack(run))
    registers = (debug_of(run.cpu), debug_of(run.itself), debug_of(run.wanted))
    return Between(*records, *registers, tuple(run.senders), tuple(run.log))


def set_up(kvm: Kvm, state: Between, landings: Landed = (), reduce: bool = True) -> HostRun:
    """A thread that goes on from there, with its vCPU."""
    vcpu, svm = unpack(Vcpu, state.vcpu), unpack(VcpuSvm, state.svm)
    svm.vmcb, svm.ghcb = unpack(Vmcb, state.vmcb), unpack(Ghcb, state.ghcb)
    vcpu.kvm, vcpu.svm, vcpu.debug = kvm, svm, unpack(VcpuDebug, state.debug)
    registers = (state.cpu, state.itself, state.wanted)
    run = vcpu.thread = HostRun(vcpu, state.senders, landings, reduce, *registers)
    run.noted, run.interrupts, run.ipi, run.warm, run.exit_reason, run.unmodelled, run.warned = state.thread
    run.log = list(state.log)
    return run


class Pass(NamedTuple):
    """What a pass comes to. result: why it ended. accesses: of shared cells. openings: behind its last landing. passed:
    the marks (kvm/lines.py)."""

    result: int
    after: int
    accesses: int
    openings: Landed
    turns: tuple[bytes, ...]
    passed: int

    def reaches(self, k: int) -> bool:
        """Whether its thread gets to the k-th access; the end of a step counts as one."""
        return k < self.accesses or (k == self.accesses and self.result != AGAIN)


class Step(NamedTuple):
    """What a step comes to. after: the number of the state. passed: the marks."""

    result: int
    after: int
    openings: Landed
    turns: tuple[bytes, ...]
    passed: int


class Passes:
    """All passes of one kind of vCPU. states: those between passes."""

    def __init__(self, kvm: Kvm, reduce: bool) -> None:
        self.states: Interned[Between] = Interned()
        self._kvm = kvm
        self._reduce = reduce
        self._marks = marks()
        self._known: dict[tuple[int, Entry], dict[Landed, Pass]] = {}

    def step(self, first: int, entry: Entry, schedule: Landed) -> Step:
        """Passes from a state, the first one by a function of its own, up to a hand-over.

        If nothing lands any more and a pass begins as an earlier one, the thread goes in a circle. It has passed all
        places in it since the last landing by then, so that its openings are noted."""
        state, begun, landed, passed = first, 0, 0, 0
        openings: list[Landing] = []
        turns: list[bytes] = []
        been: list[int] = []
        while True:
            made, more = self._pass(state, entry, _relative(schedule[landed:], begun))
            landed += more
            passed |= made.passed
            if landed == len(schedule):
                openings += _relative(made.openings, -begun)
                turns += made.turns
            state, begun, result = made.after, begun + made.accesses, made.result
            if result == AGAIN and landed == len(schedule):
                if state in been:
                    result = ROUND
                    rest = self._rest(state)
                    openings += _relative(rest.openings, -begun)
                    turns += rest.turns
                    passed |= rest.passed
                elif len(been) == MOST_PASSES:
                    made, _ = self._pass(state, _give_up, ())
                    state, result, passed = made.after, made.result, passed | made.passed
                been.append(state)
            if result != AGAIN:
                return Step(result, state, tuple(openings), tuple(turns), passed)
            entry = vcpu_run

    def _pass(self, state: int, entry: Entry, landings: Landed) -> tuple[Pass, int]:
        """A pass, and how many of the landings fall into it."""
        known = self._known.setdefault((state, entry), {})
        count = 0
        while True:
            fallen = landings[:count]
            made = known.get(fallen)
            if made is None:
                made = known[fallen] = self._execute(self.states.values[state], entry, fallen)
            if count == len(landings) or not made.reaches(landings[count][0]):
                return made, count
            count += 1

    def _rest(self, state: int) -> Pass:
        """What may land where a thread goes in a circle, as a pass in which nothing happens."""
        run = set_up(self._kvm, self.states.values[state])
        self._marks.clear()
        run.open_rest()
        return Pass(AGAIN, state, 0, tuple(run.openings), tuple(run.turns), self._marks.passed())

    def _execute(self, state: Between, entry: Entry, landings: Landed) -> Pass:
        run = set_up(self._kvm, state, landings, self._reduce)
        vcpu = run.vcpu
        self._marks.clear()
        result = run.perform(entry)
        if result != AGAIN:
            run.hand_over()
        after, passed = self.states(at_rest(vcpu, run)), self._marks.passed()
        made = Pass(result, after, run.accesses, tuple(run.openings), tuple(run.turns), passed)
        del run.vcpu  # so that no garbage collector has to find the two
        return made


class Once(Passes):
    """Passes that are executed as they come, with all landings at once; openings are not told."""

    def __init__(self, kvm: Kvm) -> None:
        super().__init__(kvm, True)

    def _pass(self, state: int, entry: Entry, landings: Landed) -> tuple[Pass, int]:
        made = self._execute(self.states.values[state], entry, landings)
        return made, sum(made.reaches(landing[0]) for landing in landings)

    def _rest(self, state: int) -> Pass:
        return Pass(AGAIN, state, 0, (), (), 0)


def _relative(landings: Landed, to: int) -> Landed:
    """Landings whose places are counted from another one."""
    return tuple([(k - to, number, steps) for k, number, steps in landings]) if to else landings


def _give_up(vcpu: Vcpu) -> int:
    return not_modelled(vcpu, NOT_MODELLED_LOOP)
