"""The product of guest, processor, hypervisor, other CPUs, host and patient reference, as a model to explore.

A state is flat and small: its parts are interned and named by number. What can happen in a state:
  guest    a step of the guest (an injected event, an exit, an instruction)
  host     the hypervisor runs from a #VMEXIT, a wake-up or KVM_RUN to its next hand-over, with steps of senders
           landing in between (every schedule that can matter is an edge of its own)
  send     a step of a sender, or several, while the guest runs or the vCPU sleeps or is in userspace; a kick's IPI
           arrives with the step that sends it
  tick     on a ticking host: an exit for no reason of the guest's
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import NamedTuple

from iretrace.explore.graph import Edge, Kind
from iretrace.explore.monitor import EMPTY, Monitor
from iretrace.litmus.test import Arrival, Test, before_in_hold
from iretrace.machine.cpu import NMI_VECTOR, SEEN_DELIVERY, Cpu
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import SVM_EXIT_SHUTDOWN, SVM_EXIT_VMRUN, Vmcb
from iretrace.subset import unpack
from iretrace.world.bare import WAITS_FOR_SIPI, ending_of
from iretrace.world.commuting import commute
from iretrace.world.core import ASKED, FINISHED, UNSTARTED, Core, Did, HostStep, Phase, Schedule, Senders, SenderStep
from iretrace.world.debugger import ACTIONS, Attached, without_tf
from iretrace.world.ioctls import CALLS, by_vmm
from iretrace.world.protocol import NO_SENDER, Cause, Hypervisor, Pause, SenderState, VmmCall
from iretrace.world.reference import PatientReference, Ref
from iretrace.world.vcpu import Vcpu
from iretrace.world.words import say, vector_name

GUEST_LABEL = ("guest",)
TICK_LABEL = ("tick",)
WAKE_LABEL = ("wake",)

NOT_HELD = "the guest is still in AP reset hold, which has ended"
"""No explanation of the history has the guest there."""

KEPT_OUT = "kept out"
"""The ending of a guest that could run and whose hypervisor's thread goes in a circle: no processor ends so."""


class Point(NamedTuple):
    """One product state. core, monitor and each sender are numbers of interned values."""

    core: int
    senders: Senders
    monitor: int
    marks: tuple[int, ...]
    """Marks seen so far, for the test's clauses; at most as many as the longest clause has, and one more."""


class Product:
    """explore.graph.Model of one test on one hypervisor.

    at_once: a sender that starts outside of host steps takes all its steps where that loses nothing (see _arrive); else
    each by itself, which shows more states and the same verdicts."""

    def __init__(
        self, test: Test, vcpu: str, host: str, hypervisor: Hypervisor, knobs: int = 0, at_once: bool = False
    ) -> None:
        self.test = test
        self.hypervisor = hypervisor
        self.ticking = host == "ticking"
        self.vcpu = Vcpu(test, vcpu, hypervisor, knobs)
        self.reference = PatientReference(test, vcpu, knobs, hypervisor.processor)
        self.monitor: Monitor[Ref] = Monitor(self.reference)
        self.longest = marks_kept(test)
        self._placed = tuple((n, arrival.at) for n, arrival in enumerate(test.outside) if arrival.at >= 0)
        self._by_vmm = tuple(n for n, arrival in enumerate(test.outside) if by_vmm(arrival))
        self._before = tuple(before_in_hold(test.outside, number) for number in range(len(test.outside)))
        self._twins = tuple(_twins_before(test.outside, number) for number in range(len(test.outside)))
        self._at_once = at_once and not self._by_vmm
        self._commute: dict[tuple[int, int, int], bool] = {}
        self._sender_steps: dict[tuple[int, int], SenderStep] = {}
        self._host_steps: dict[tuple[int, Senders], list[HostStep]] = {}

    def consulted(self) -> int:
        """The knobs that mattered so far, as a bit set."""
        return self.vcpu.machine.consulted | self.reference.bare.machine.consulted

    # The model. -------------------------------------------------------------------------------------------------

    def initial(self) -> Edge:
        """Create the vCPU and run it to its first VMRUN. No sender is around yet."""
        return self._handed_over(self.monitor.start(), (), self.vcpu.start(len(self.test.outside)))

    def owed(self, state: Hashable) -> bool:
        """A promised arrival, one that is placed here, or a step of a started sender is still to come.

        Once KVM_RUN has returned for good nothing can reach the guest any more."""
        assert isinstance(state, Point)
        core = self.core(state)
        if core.phase == Phase.ENDED:
            return False
        if self.placed_here(state) >= 0:
            return True
        held = self.vcpu.held_at(state.core)
        return any(
            sender >= 0 or sender == ASKED or (sender == UNSTARTED and arrival.promised and free(arrival, held))
            for sender, arrival in zip(state.senders, self.test.outside, strict=True)
        )

    def edges(self, state: Hashable) -> Iterator[Edge]:
        """Everything that can happen."""
        assert isinstance(state, Point)
        core = self.core(state)
        if core.phase == Phase.GUEST:
            placed = self.placed_here(state)
            if placed >= 0:
                yield self._send(state, placed)
                return
            yield from self._sends(state)
            yield self._guest_edge(state)
            if self.ticking:
                yield Edge(Kind.TICK, TICK_LABEL, state._replace(core=self.vcpu.interrupted(state.core)))
        elif core.phase == Phase.HOST:
            if core.cause == Cause.RERUN:
                if (ioctl := self.ioctl(state)) is not None:
                    yield ioctl
                    return
                yield from self._sends(state)
            for step in self.host_steps(state):
                yield self._went_on(state, step)
        elif core.phase == Phase.BLOCKED:
            yield from self._sends(state)
            woken = self.vcpu.woken(state.core)
            if woken >= 0:
                yield Edge(Kind.RUN, WAKE_LABEL, state._replace(core=woken))

    # The guest. -------------------------------------------------------------------------------------------------

    def core(self, state: Point) -> Core:
        """Processor, guest and hypervisor of a state."""
        return self.vcpu.cores.values[state.core]

    def cpu(self, state: Point) -> Cpu:
        """A copy of a state's processor."""
        return self.vcpu.cpu(state.core)

    def rip(self, state: Point) -> int:
        """Where the guest executes."""
        return self.vcpu.cpus.values[self.core(state).cpu][0]

    def did(self, state: Point) -> Did:
        """What the guest's next step does."""
        return self.vcpu.did(state.core)

    def shuts_down(self, state: Point) -> bool:
        """Whether the guest shuts down by its next step."""
        did = self.did(state)
        return did.exited and unpack(Vmcb, self.vcpu.vmcbs.values[did.vmcb]).exit_code == SVM_EXIT_SHUTDOWN

    def _guest_edge(self, state: Point) -> Edge:
        core, senders, monitor, marks = state
        did = self.vcpu.did(core)
        kind = Kind.RETIRE if did.retired else Kind.RUN
        if did.defect:
            return Edge(kind, GUEST_LABEL, defect=did.defect)
        if did.shown is not None:
            monitor = self.monitor.observe(monitor, without_tf(did.shown) if self.core(state).debugger else did.shown)
            if monitor == EMPTY:
                return Edge(kind, GUEST_LABEL, defect=self._inexplicable(state, did))
            if did.mark >= 0 and len(marks) < self.longest:
                marks = (*marks, did.mark)
        if self.reference.bare.without_contract:
            return Edge(kind, GUEST_LABEL, unmodelled=self.reference.bare.without_contract)
        return Edge(kind, GUEST_LABEL, Point(self.vcpu.after(core, did), senders, monitor, marks))

    def _inexplicable(self, state: Point, did: Did) -> str:
        return f"the guest sees {self.say(did.shown)}; {self.say_allowed(state.monitor)}"

    # Other CPUs. ------------------------------------------------------------------------------------------------

    def placed_here(self, state: Point) -> int:
        """The `at LABEL` arrival that must be complete before the guest's next instruction, or -1."""
        if not self._placed or self.core(state).phase != Phase.GUEST:
            return -1
        rip = self.rip(state)
        for number, at in self._placed:
            if at == rip and state.senders[number] not in (FINISHED, ASKED):
                return number
        return -1

    def _startable(self, state: Point, number: int, landed: set[int], done: set[int]) -> bool:
        """An arrival can start; of several alike, the first that has not (they cannot be told apart)."""
        senders, arrival = state.senders, self.test.outside[number]
        if senders[number] != UNSTARTED or not free(arrival, self.vcpu.held_at(state.core)):
            return False
        if arrival.within >= 0:
            return all(senders[earlier] == FINISHED or earlier in done for earlier in self._before[number])
        before = [earlier for earlier in self._by_vmm if earlier < number] if number in self._by_vmm else []
        if any(senders[earlier] != FINISHED for earlier in before):
            return False  # a VMM does one thing after the other
        return all(senders[twin] != UNSTARTED or twin in landed for twin in self._twins[number])

    def sendable(self, state: Point) -> list[int]:
        """The senders that can take a step by themselves; where an arrival is placed, that one alone."""
        placed = self.placed_here(state)
        if placed >= 0:
            return [placed]
        senders = enumerate(state.senders)
        return [n for n, sender in senders if sender >= 0 or self._startable(state, n, set(), set())]

    def _sends(self, state: Point) -> Iterator[Edge]:
        for number in self.sendable(state):
            yield self._arrive(state, number) if self._at_once else self._send(state, number)

    def _arrive(self, state: Point, number: int) -> Edge:
        """A step of a sender; of one that starts, all steps up to the one that the vCPU's CPU or thread notices.

        Until then nobody can tell how far it is but a host step, and in a host step it may start as well. It then
        starts later, which leaves the reference less to explain with. See docs/decisions, 0012."""
        edge = self._send(state, number)
        if state.senders[number] != UNSTARTED or not self._alone(state, number):
            return edge
        steps = 1
        while isinstance(edge.target, Point) and edge.target.senders[number] >= 0 and not self._noticed(state, edge):
            edge, steps = self._send(edge.target, number), steps + 1
        return replace(edge, label=("send", number, steps))

    def _noticed(self, state: Point, edge: Edge) -> bool:
        """The vCPU's CPU has been interrupted, or its thread has been woken, since a state."""
        assert isinstance(edge.target, Point)
        before, after = self.core(state), self.core(edge.target)
        return after.cpu != before.cpu or (
            before.phase == Phase.BLOCKED and self.vcpu.woken(state.core) != self.vcpu.woken(edge.target.core)
        )

    def _alone(self, state: Point, number: int) -> bool:
        """No other sender that has steps to take gets in the way of one that starts."""
        fresh, private = self.vcpu.fresh, self.core(state).private
        others = {
            fresh[other] if sender == UNSTARTED else sender
            for other, sender in enumerate(state.senders)
            if other != number and (sender >= 0 or sender == UNSTARTED)
        }
        return all(self._in_any_order(private, fresh[number], other) for other in others)

    def _in_any_order(self, private: int, one: int, other: int) -> bool:
        key = (private, one, other)
        known = self._commute.get(key)
        if known is None:
            states, hypervisor = self.vcpu.senders.values, self.hypervisor
            at = self.vcpu.privates.values[private]
            known = self._commute[key] = commute(hypervisor.send, at, states[one], states[other])
        return known

    def sender_step(self, state: Point, number: int) -> SenderStep:
        """The next step of a sender, memoised."""
        sender = state.senders[number]
        if sender == UNSTARTED:
            sender = self.vcpu.fresh[number]
        key = (state.core, sender)
        known = self._sender_steps.get(key)
        if known is None:
            known = self._sender_steps[key] = self.vcpu.sender_step(state.core, sender)
        return known

    def sent(self, state: Point, number: int) -> Point:
        """A state after one step of a sender, which is modelled."""
        after = self._send(state, number).target
        assert isinstance(after, Point)
        return after

    def _send(self, state: Point, number: int) -> Edge:
        step = self.sender_step(state, number)
        label = ("send", number, 1)
        if step.sent.unmodelled:
            return Edge(Kind.OUTSIDE, label, unmodelled=step.sent.unmodelled)
        monitor = state.monitor
        if state.senders[number] == UNSTARTED:
            monitor = self.monitor.stamp(monitor, ("start", number))
            if monitor == EMPTY:
                return Edge(Kind.OUTSIDE, label, defect=NOT_HELD)
        left = step.sender
        if left == FINISHED:
            monitor = self.monitor.stamp(monitor, ("end", number))
            left = self.vcpu.finished(number)
        senders = (*state.senders[:number], left, *state.senders[number + 1 :])
        return Edge(Kind.OUTSIDE, label, Point(step.core, senders, monitor, state.marks))

    # The hypervisor. --------------------------------------------------------------------------------------------

    def senders_around(self, state: Point) -> tuple[SenderState, ...]:
        """What each sender that may land in a host step has still to do."""
        values, held = self.vcpu.senders.values, self.vcpu.held_at(state.core)
        return tuple(
            values[sender]
            if sender >= 0
            else values[fresh]
            if sender == UNSTARTED and free(arrival, held)
            else NO_SENDER
            for sender, fresh, arrival in zip(state.senders, self.vcpu.fresh, self.test.outside, strict=True)
        )

    def pauses(self, state: Point) -> list[tuple[Schedule, Pause]]:
        """The hypervisor's step under every schedule that makes a difference."""
        senders = state.senders

        def may_land(landed: set[int], done: set[int], number: int) -> bool:
            return senders[number] >= 0 or self._startable(state, number, landed, done)

        return self.vcpu.pauses(state.core, senders, self.senders_around(state), may_land)

    def host_steps(self, state: Point) -> list[HostStep]:
        """What becomes of a state's core and senders by the hypervisor's step, memoised."""
        key = (state.core, state.senders)
        known = self._host_steps.get(key)
        if known is None:
            known = self._host_steps[key] = [
                self.vcpu.handed_over(state.core, state.senders, schedule, pause)
                for schedule, pause in self.pauses(state)
            ]
        return known

    def ioctl(self, state: Point) -> Edge | None:
        """What the VMM does before it calls KVM_RUN again, one thing after the other."""
        asked = next((n for n in self._by_vmm if state.senders[n] == ASKED), -1)
        hit = self.core(state).debugger == Attached.HIT
        if asked < 0 and not hit:
            return None
        if not hit and self.test.outside[asked].kind in CALLS:
            return self._call(state, asked, CALLS[self.test.outside[asked].kind])
        attached = Attached.OFF if hit else ACTIONS[self.test.outside[asked].debugger]
        step = self.vcpu.set_guest_debug(state.core, attached, -1 if hit else self.test.outside[asked].target)
        label = ("ioctl", int(attached))
        if step.core < 0:
            return Edge(Kind.RUN, label, defect=step.defect, unmodelled=step.unmodelled)
        senders = state.senders
        if not hit:
            senders = (*senders[:asked], FINISHED, *senders[asked + 1 :])
        now = self.vcpu.cores.values[step.core].debugger
        monitor = self.monitor.stamp(state.monitor, ("attach" if now else "detach", asked))
        return Edge(Kind.RUN, label, state._replace(core=step.core, senders=senders, monitor=monitor))

    def _call(self, state: Point, asked: int, call: VmmCall) -> Edge:
        """An ioctl about events."""
        step = self.vcpu.vmm_call(state.core, call)
        label = ("ioctl", call.name)
        if step.core < 0:
            return Edge(Kind.RUN, label, defect=step.defect, unmodelled=step.unmodelled)
        senders = (*state.senders[:asked], FINISHED, *state.senders[asked + 1 :])
        monitor = self.monitor.stamp(state.monitor, ("call", asked))
        return Edge(Kind.RUN, label, state._replace(core=step.core, senders=senders, monitor=monitor))

    def _handed_over(self, monitor: int, marks: tuple[int, ...], step: HostStep) -> Edge:
        if step.core < 0:
            return Edge(Kind.RUN, step.label, defect=step.defect, unmodelled=step.unmodelled)
        for stamp in step.log:
            monitor = self.monitor.stamp(monitor, stamp)
            if monitor == EMPTY:
                return Edge(Kind.RUN, step.label, defect=NOT_HELD)
        return Edge(Kind.RUN, step.label, Point(step.core, step.senders, monitor, marks))

    def _went_on(self, state: Point, step: HostStep) -> Edge:
        """A step behind an exit. Of one behind VMRUN nobody can judge if the reference would enter a guest there."""
        edge = self._handed_over(state.monitor, state.marks, step)
        if not self.reference.bare.runs_guest or edge.target is None:
            return edge
        if self.core(state).cause != Cause.VMEXIT or self.vcpu.vmcb(state.core).exit_code != SVM_EXIT_VMRUN:
            return edge
        return replace(edge, target=None, unmodelled="VMRUN with EFER.SVME set has no contract: no L2 is modelled")

    # Endings. ---------------------------------------------------------------------------------------------------

    def ending(self, state: Point) -> str:
        """How the guest goes on for ever if it stays in this state. A vCPU that sleeps has executed HLT, or waits for a
        SIPI; to the guest it is the same if its thread goes in a circle instead."""
        core = self.core(state)
        if core.phase in (Phase.BLOCKED, Phase.LOOPS):
            if self.test.ap and self.vcpu.waits_for_sipi(state.core):
                return WAITS_FOR_SIPI
            if core.phase == Phase.LOOPS and not self.vcpu.is_halted(state.core):
                return KEPT_OUT
            return f"halted at {self.vcpu.halted_at(state.core)}"
        return ending_of(self.vcpu.machine, unpack(Cpu, self.vcpu.cpus.values[core.cpu]))

    # Words. -----------------------------------------------------------------------------------------------------

    def say(self, shown: Hashable) -> str:
        """An observation in words."""
        return say(self.test, shown)

    def owed_event(self, monitor: int) -> str:
        """The event from outside whose delivery is all that the processor could show next, in words, or ""."""
        kinds = {shown[:2] for shown in self.monitor.allowed(monitor) if isinstance(shown, tuple)}
        for vector in (NMI_VECTOR, IRQ_VECTOR):
            if kinds == {(SEEN_DELIVERY, vector)}:
                return vector_name(vector)
        return ""

    def reference_cpus(self, monitor: int) -> list[Cpu]:
        """The processors that explain the history so far."""
        return [self.reference.cpu(ref) for ref in self.monitor.members(monitor)]

    def reference_waits(self, monitor: int, vector: int) -> bool:
        """Whether an NMI, or an interrupt, can still come on one of them."""
        kind = "nmi" if vector == NMI_VECTOR else "irq"
        return any(self.reference.waits(ref, kind) for ref in self.monitor.members(monitor))

    def say_allowed(self, monitor: int) -> str:
        """What the processor could have shown instead."""
        allowed = [self.say(shown) for shown in self.monitor.allowed(monitor)]
        if not allowed:
            return "the processor would show nothing"
        return "the processor could only show " + " or ".join(allowed)


def marks_kept(test: Test) -> int:
    """How many marks a run keeps: one more than the longest clause has, and none where there is no clause."""
    return max((len(clause.marks) for clause in test.clauses), default=-1) + 1


def free(arrival: Arrival, held: int) -> bool:
    """It can begin, as far as that is a matter of where the guest is: it is placed nowhere, or where it is held."""
    return arrival.at < 0 and arrival.within in (-1, held)


def _twins_before(outside: tuple[Arrival, ...], number: int) -> tuple[int, ...]:
    """The arrivals before this one that are just like it."""
    return tuple(n for n in range(number) if replace(outside[n], line=0) == replace(outside[number], line=0))
