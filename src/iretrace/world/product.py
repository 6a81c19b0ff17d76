"""The product of guest, processor, hypervisor, other CPUs, host and patient reference, as a model to explore.

A state is flat and small: its parts are interned and named by number. What can happen in a state:
  guest    a step of the guest (an injected event, an exit, an instruction)
  host     the hypervisor runs from a #VMEXIT, a wake-up or KVM_RUN to its next hand-over, with steps of senders
           landing in between (every schedule that can matter is an edge of its own)
  send     a step of a sender while the guest runs or the vCPU sleeps; a kick's IPI arrives with the step that sends it
  tick     on a ticking host: an exit for no reason of the guest's
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, NamedTuple, TypeVar

from iretrace.explore.graph import Edge, Kind
from iretrace.explore.monitor import EMPTY, Monitor
from iretrace.litmus.test import Test
from iretrace.machine.boundary import guest_step
from iretrace.machine.cpu import (
    DF_VECTOR,
    SEEN_DELIVERY,
    SEEN_MARK,
    VC_VECTOR,
    Cpu,
)
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.svm import vmrun
from iretrace.machine.vmcb import SVM_EXIT_ERR, SVM_EXIT_IRET, SVM_EXIT_VMGEXIT, Vmcb
from iretrace.subset import pack, unpack
from iretrace.world.guest import make_cpu, make_machine, place
from iretrace.world.protocol import NO_SENDER, Cause, Hypervisor, Landing, Pause, PauseKind, SenderState, Sent
from iretrace.world.reference import PatientReference, Ref, ending_of, forget_seen, observation

KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTERNAL_ERROR = 17
EINTR = 4
EAGAIN = 11

UNSTARTED = -2
FINISHED = -1

T = TypeVar("T", bound=Hashable)


class Phase(IntEnum):
    """Who holds the CPU."""

    GUEST = 0
    HOST = 1
    BLOCKED = 2
    ENDED = 3
    """KVM_RUN returned for good (the guest shut down)."""


class Point(NamedTuple):
    """One product state. cpu, vmcb, ghcb, private and each sender are numbers of interned values."""

    phase: int
    cause: int
    cpu: int
    vmcb: int
    ghcb: int
    private: int
    senders: tuple[int, ...]
    monitor: int
    marks: tuple[int, ...]
    """Marks seen so far, for the test's clauses; at most as many as the longest clause has, and one more."""


class Interned(Generic[T]):
    """Values and their numbers."""

    def __init__(self) -> None:
        self._number: dict[T, int] = {}
        self.values: list[T] = []

    def __call__(self, value: T) -> int:
        """The number of a value."""
        number = self._number.get(value)
        if number is None:
            number = self._number[value] = len(self.values)
            self.values.append(value)
        return number


@dataclass(frozen=True, slots=True)
class GuestStep:
    """The memoised result of one step of the guest."""

    cpu: int
    vmcb: int
    ghcb: int
    exited: bool
    shown: Hashable
    mark: int
    retired: bool
    defect: str


class Product:
    """explore.graph.Model of one test on one hypervisor."""

    def __init__(self, test: Test, vcpu: str, host: str, hypervisor: Hypervisor, knobs: int = 0) -> None:
        self.test = test
        self.hypervisor = hypervisor
        self.ticking = host == "ticking"
        self.machine = make_machine(test, vcpu, knobs)
        self.reference = PatientReference(test, vcpu, knobs)
        self.monitor: Monitor[Ref] = Monitor(self.reference)
        self.cpus: Interned[tuple[object, ...]] = Interned()
        self.vmcbs: Interned[tuple[int, ...]] = Interned()
        self.ghcbs: Interned[tuple[int, ...]] = Interned()
        self.privates: Interned[Hashable] = Interned()
        self.senders: Interned[SenderState] = Interned()
        self.longest = max((len(clause.marks) for clause in test.clauses), default=-1) + 1
        self._guest_steps: dict[tuple[int, int, int], GuestStep] = {}
        self._host_steps: dict[Hashable, list[tuple[tuple[Landing, ...], Pause]]] = {}
        self._sends: dict[tuple[int, int], Sent] = {}

    # The model. -------------------------------------------------------------------------------------------------

    def initial(self) -> Edge:
        """Create the vCPU and run it to its first VMRUN. No sender is around yet."""
        senders = tuple(UNSTARTED for _ in self.test.outside)
        before = Point(
            phase=Phase.HOST,
            cause=Cause.RERUN,
            cpu=self.cpus(pack(make_cpu(self.test))),
            vmcb=-1,
            ghcb=-1,
            private=-1,
            senders=senders,
            monitor=self.monitor.start(),
            marks=(),
        )
        return self._handed_over(before, (), self.hypervisor.start())

    def owed(self, state: Hashable) -> bool:
        """A promised arrival, one that is placed here, or a step of a started sender is still to come."""
        assert isinstance(state, Point)
        if self._arrival_placed_here(state) >= 0:
            return True
        return any(
            sender >= 0 or (sender == UNSTARTED and arrival.promised and arrival.at < 0)
            for sender, arrival in zip(state.senders, self.test.outside, strict=True)
        )

    def edges(self, state: Hashable) -> Iterator[Edge]:
        """Everything that can happen."""
        assert isinstance(state, Point)
        if state.phase == Phase.HOST:
            yield from self._host_edges(state)
            return
        placed = self._arrival_placed_here(state)
        if placed >= 0:
            yield self._send(state, placed)
            return
        yield from self._sends_from(state)
        if state.phase == Phase.GUEST:
            yield self._guest_edge(state)
            if self.ticking:
                yield self._tick(state)
        elif state.phase == Phase.BLOCKED and self.hypervisor.runnable(self.privates.values[state.private]):
            yield Edge(Kind.RUN, ("wake",), state._replace(phase=Phase.HOST, cause=Cause.WAKE))

    # The guest. -------------------------------------------------------------------------------------------------

    def _guest_edge(self, state: Point) -> Edge:
        step = self.guest_step(state)
        kind = Kind.RETIRE if step.retired else Kind.RUN
        if step.defect:
            return Edge(kind, ("guest",), defect=step.defect)
        monitor, marks = state.monitor, state.marks
        if step.shown is not None:
            monitor = self.monitor.observe(monitor, step.shown)
            if monitor == EMPTY:
                return Edge(kind, ("guest",), defect=self._inexplicable(state, step))
            if step.mark >= 0 and len(marks) < self.longest:
                marks = (*marks, step.mark)
        if self.reference.without_contract:
            return Edge(kind, ("guest",), unmodelled=self.reference.without_contract)
        target = state._replace(cpu=step.cpu, vmcb=step.vmcb, ghcb=step.ghcb, monitor=monitor, marks=marks)
        if step.exited:
            target = target._replace(phase=Phase.HOST, cause=Cause.VMEXIT)
        return Edge(kind, ("guest",), target)

    def guest_step(self, state: Point) -> GuestStep:
        """What the guest's next step does, memoised."""
        key = (state.cpu, state.vmcb, state.ghcb)
        known = self._guest_steps.get(key)
        if known is not None:
            return known
        cpu = unpack(Cpu, self.cpus.values[state.cpu])
        vmcb = unpack(Vmcb, self.vmcbs.values[state.vmcb])
        ghcb = unpack(Ghcb, self.ghcbs.values[state.ghcb])
        before = cpu.rip
        injecting = cpu.event_inj != 0
        guest_step(self.machine, cpu, vmcb, ghcb)
        shown = observation(cpu)
        mark = cpu.seen_vector if cpu.seen == SEEN_MARK else -1
        exited = cpu.guest_mode == 0
        retired = not injecting and (not exited or vmcb.exit_code == SVM_EXIT_VMGEXIT or cpu.rip != before)
        defect = self._guest_defect(cpu)
        forget_seen(cpu)
        made = GuestStep(
            cpu=self.cpus(pack(cpu)),
            vmcb=self.vmcbs(pack(vmcb)),
            ghcb=self.ghcbs(pack(ghcb)),
            exited=exited,
            shown=shown,
            mark=mark,
            retired=retired,
            defect=defect,
        )
        self._guest_steps[key] = made
        return made

    def _guest_defect(self, cpu: Cpu) -> str:
        """Defects whatever the history: #VC for IRET, which no GHCB event answers."""
        at_vc = self.machine.idt[VC_VECTOR] == cpu.rip + 1
        if self.machine.sev_es and at_vc and cpu.rsp < len(cpu.memory) and cpu.memory[cpu.rsp] == SVM_EXIT_IRET:
            return "the guest gets #VC for its IRET, an event that the GHCB protocol does not have"
        return ""

    def _inexplicable(self, state: Point, step: GuestStep) -> str:
        return f"the guest sees {self.say(step.shown)}; {self.say_allowed(state.monitor)}"

    # Other CPUs. ------------------------------------------------------------------------------------------------

    def _arrival_placed_here(self, state: Point) -> int:
        """The `at LABEL` arrival that must be complete before the guest's next instruction, or -1."""
        if state.phase != Phase.GUEST:
            return -1
        rip = self.cpus.values[state.cpu][0]
        for number, arrival in enumerate(self.test.outside):
            if arrival.at == rip and state.senders[number] != FINISHED:
                return number
        return -1

    def _startable(self, senders: tuple[int, ...], number: int) -> bool:
        """An arrival can start; of several alike, the first that has not (they cannot be told apart)."""
        arrival = self.test.outside[number]
        if senders[number] != UNSTARTED or arrival.at >= 0:
            return False
        return all(
            senders[other] != UNSTARTED or self.test.outside[other] != arrival for other in range(number)
        )

    def _sends_from(self, state: Point) -> Iterator[Edge]:
        if state.phase == Phase.ENDED:
            return
        for number, sender in enumerate(state.senders):
            if sender >= 0 or self._startable(state.senders, number):
                yield self._send(state, number)

    def sent(self, state: Point, number: int) -> Sent:
        """The next step of a sender, memoised."""
        sender = state.senders[number]
        if sender == UNSTARTED:
            sender = self.senders(self.hypervisor.sender(self.test.outside[number].kind))
        key = (state.private, sender)
        known = self._sends.get(key)
        if known is None:
            private = self.privates.values[state.private]
            known = self._sends[key] = self.hypervisor.send(private, self.senders.values[sender])
        return known

    def _send(self, state: Point, number: int) -> Edge:
        sent = self.sent(state, number)
        label = ("send", number)
        if sent.unmodelled:
            return Edge(Kind.OUTSIDE, label, unmodelled=sent.unmodelled)
        monitor = state.monitor
        if state.senders[number] == UNSTARTED:
            monitor = self.monitor.stamp(monitor, ("start", number))
        after = FINISHED
        if sent.sender is NO_SENDER:
            monitor = self.monitor.stamp(monitor, ("end", number))
        else:
            after = self.senders(sent.sender)
        senders = (*state.senders[:number], after, *state.senders[number + 1 :])
        target = state._replace(
            private=self.privates(sent.private),
            senders=senders,
            monitor=monitor,
        )
        if sent.ipi and state.phase == Phase.GUEST:
            target = target._replace(cpu=self._interrupted(target))
        return Edge(Kind.OUTSIDE, label, target)

    def _interrupted(self, state: Point) -> int:
        cpu = unpack(Cpu, self.cpus.values[state.cpu])
        cpu.intr_pending = 1
        return self.cpus(pack(cpu))

    def _tick(self, state: Point) -> Edge:
        return Edge(Kind.TICK, ("tick",), state._replace(cpu=self._interrupted(state)))

    # The hypervisor. --------------------------------------------------------------------------------------------

    def _host_edges(self, state: Point) -> Iterator[Edge]:
        for schedule, pause in self.host_steps(state):
            yield self._handed_over(state, schedule, pause)

    def senders_around(self, state: Point) -> tuple[SenderState, ...]:
        """What each sender that may land in a host step has still to do."""
        return tuple(
            self.senders.values[sender]
            if sender >= 0
            else self.hypervisor.sender(arrival.kind)
            if sender == UNSTARTED and arrival.at < 0
            else NO_SENDER
            for sender, arrival in zip(state.senders, self.test.outside, strict=True)
        )

    def host_steps(self, state: Point) -> list[tuple[tuple[Landing, ...], Pause]]:
        """The hypervisor's step under every schedule that can matter, memoised."""
        key = (state.private, state.vmcb, state.ghcb, state.cause, state.senders)
        known = self._host_steps.get(key)
        if known is not None:
            return known
        senders = self.senders_around(state)
        results: list[tuple[tuple[Landing, ...], Pause]] = []
        schedules: list[tuple[Landing, ...]] = [()]
        while schedules:
            schedule = schedules.pop()
            pause = self.hypervisor.step(
                self.privates.values[state.private],
                unpack(Vmcb, self.vmcbs.values[state.vmcb]),
                unpack(Ghcb, self.ghcbs.values[state.ghcb]),
                Cause(state.cause),
                senders,
                schedule,
            )
            results.append((schedule, pause))
            landed = {landing[1] for landing in schedule}
            for landing in pause.openings:
                if landing[1] in landed or self._may_land(state, landed, landing[1]):
                    schedules.append((*schedule, landing))
        self._host_steps[key] = results
        return results

    def _may_land(self, state: Point, landed: set[int], number: int) -> bool:
        if state.senders[number] >= 0:
            return True
        senders = tuple(FINISHED if n in landed else sender for n, sender in enumerate(state.senders))
        return self._startable(senders, number)

    def _handed_over(self, state: Point, schedule: tuple[Landing, ...], pause: Pause) -> Edge:
        label = ("host", schedule)
        if pause.unmodelled:
            return Edge(Kind.RUN, label, unmodelled=pause.unmodelled)
        if pause.defects:
            return Edge(Kind.RUN, label, defect=pause.defects[0][0])
        target = self._after_host(state, pause)
        if pause.kind == PauseKind.ENTER:
            return self._entered(target, label, pause)
        if pause.kind == PauseKind.BLOCK:
            return Edge(Kind.RUN, label, target._replace(phase=Phase.BLOCKED))
        if pause.exit_reason in (-EINTR, -EAGAIN):
            return Edge(Kind.RUN, label, target._replace(phase=Phase.HOST, cause=Cause.RERUN))
        if pause.exit_reason == KVM_EXIT_SHUTDOWN:
            return self._shut_down(target, label)
        return Edge(Kind.RUN, label, **_userspace(pause.exit_reason))

    def _after_host(self, state: Point, pause: Pause) -> Point:
        senders = list(state.senders)
        monitor = state.monitor
        for what, number in pause.log:
            monitor = self.monitor.stamp(monitor, (what, number))
            senders[number] = FINISHED if what == "end" else self.senders(pause.senders[number])
        for number, sender in enumerate(senders):
            if sender >= 0:
                senders[number] = self.senders(pause.senders[number])
        cpu = unpack(Cpu, self.cpus.values[state.cpu])
        cpu.intr_pending = int(pause.ipi)
        if pause.warm:
            cpu.cold = 0
        return state._replace(
            cpu=self.cpus(pack(cpu)),
            vmcb=self.vmcbs(pause.vmcb),
            ghcb=self.ghcbs(pause.ghcb),
            private=self.privates(pause.private),
            senders=tuple(senders),
            monitor=monitor,
        )

    def _entered(self, state: Point, label: Hashable, pause: Pause) -> Edge:
        """VMRUN: a refusal is a defect."""
        cpu = unpack(Cpu, self.cpus.values[state.cpu])
        vmcb = unpack(Vmcb, pause.vmcb)
        vmrun(self.machine, cpu, vmcb)
        if vmcb.exit_code == SVM_EXIT_ERR and cpu.guest_mode == 0:
            return Edge(Kind.RUN, label, defect="the processor refuses this VMRUN: #VMEXIT(INVALID)")
        return Edge(
            Kind.RUN,
            label,
            state._replace(phase=Phase.GUEST, cause=0, cpu=self.cpus(pack(cpu)), vmcb=self.vmcbs(pack(vmcb))),
        )

    def _shut_down(self, state: Point, label: Hashable) -> Edge:
        cpu = unpack(Cpu, self.cpus.values[state.cpu])
        if not cpu.shutdown:
            return Edge(Kind.RUN, label, defect="KVM_EXIT_SHUTDOWN although the guest has not shut down")
        return Edge(Kind.RUN, label, state._replace(phase=Phase.ENDED))

    # Endings. ---------------------------------------------------------------------------------------------------

    def ending(self, state: Point) -> str:
        """How the guest goes on for ever if it stays in this state. A vCPU that sleeps has executed HLT."""
        cpu = unpack(Cpu, self.cpus.values[state.cpu])
        if state.phase == Phase.BLOCKED:
            return f"halted at {cpu.rip}"
        return ending_of(self.machine, cpu) or "loops"

    def explains_ending(self, state: Point, ending: str) -> bool:
        """Some explanation of the history goes on in the same way, and nothing is owed in it."""
        return any(
            (ending == "loops" or self.reference.ending(ref) == ending) and self.reference.owes_nothing(ref)
            for ref in self.monitor.members(state.monitor)
        )

    # Words. -----------------------------------------------------------------------------------------------------

    def say(self, shown: Hashable) -> str:
        """An observation in words."""
        assert isinstance(shown, tuple)
        seen, vector, rip, rflags, error = shown
        if seen == SEEN_MARK:
            return f"mark {self.test.marks[vector]}"
        assert seen == SEEN_DELIVERY
        name = {2: "an NMI", DF_VECTOR: "#DF", 11: "#NP", 13: "#GP", 14: "#PF"}.get(vector, f"vector {vector}")
        flags = f"{' IF' if rflags & 0x200 else ''}{' TF' if rflags & 0x100 else ''}"
        code = f", error code {error:#x}" if error else ""
        return f"{name} at {place(self.test, rip)}{' with' + flags if flags else ''}{code}"

    def say_allowed(self, monitor: int) -> str:
        """What the processor could have shown instead."""
        allowed = [self.say(shown) for shown in self.monitor.allowed(monitor)]
        if not allowed:
            return "the processor would show nothing"
        return "the processor could only show " + " or ".join(allowed)


def _userspace(reason: int) -> dict[str, str]:
    """Returns to userspace that end a run: errors are defects, the rest is not modelled."""
    if reason == KVM_EXIT_INTERNAL_ERROR:
        return {"defect": "KVM_EXIT_INTERNAL_ERROR"}
    if reason == KVM_EXIT_FAIL_ENTRY:
        return {"defect": "KVM_EXIT_FAIL_ENTRY"}
    if reason < 0:
        return {"defect": f"KVM_RUN fails with errno {-reason}"}
    return {"unmodelled": f"KVM_RUN returns to userspace with exit reason {reason}; no VMM for it is modelled"}
