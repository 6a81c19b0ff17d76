"""A host step in progress: where the vCPU thread's code accesses shared cells, other CPUs' steps land."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from iretrace.explore.landings import Landings
from iretrace.explore.turns import digest, stack
from iretrace.kvm import senders as code
from iretrace.kvm.kvm_host import (
    CELL_APIC_ENABLED,
    CELL_IRR,
    CELL_MODE,
    CELL_NMI_QUEUED,
    CELL_PENDING_EVENTS,
    CELL_REQUESTS,
    CELL_SIPI_VECTOR,
    CELL_TASK_STATE,
    CELL_THREAD_FLAGS,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_SMI,
    READ,
    SET,
    WRITE,
    DebugRegisters,
    Thread,
    Vcpu,
)
from iretrace.subset import pack, unpack
from iretrace.world.protocol import NO_HOST_DEBUG, NO_SENDER, Debug, Landing, SenderState


class SenderStep(NamedTuple):
    """One step of a sender: its code, and the cell, the bits and the way of its access."""

    run: Callable[[Vcpu], int]
    cell: int
    bits: int
    how: int


class Sender(NamedTuple):
    """A sender that is not done. at: the number of its next step."""

    kind: str
    at: int


_KICK = (
    SenderStep(code.kvm_vcpu_wake_up, CELL_TASK_STATE, 1, WRITE),
    SenderStep(code.kvm_vcpu_kick, CELL_MODE, 1, WRITE),
)

DROPPED_SMI = "dropped smi"
"""An SMI that is sent to an encrypted guest, which has no SMM."""

STEPS: dict[str, tuple[SenderStep, ...]] = {
    "nmi": (
        SenderStep(code.queue_nmi, CELL_NMI_QUEUED, 1, WRITE),
        SenderStep(code.request_nmi, CELL_REQUESTS, 1 << KVM_REQ_NMI, SET),
        *_KICK,
    ),
    "smi": (
        SenderStep(code.request_smi, CELL_REQUESTS, 1 << KVM_REQ_SMI, SET),
        *_KICK,
    ),
    DROPPED_SMI: (SenderStep(code.drop_smi, CELL_REQUESTS, 0, READ),),
    "init": (
        SenderStep(code.set_init, CELL_PENDING_EVENTS, 3, WRITE),
        SenderStep(code.request_event, CELL_REQUESTS, 1 << KVM_REQ_EVENT, SET),
        *_KICK,
    ),
    "sipi": (
        SenderStep(code.set_sipi_vector, CELL_SIPI_VECTOR, 0xFF, WRITE),
        SenderStep(code.set_sipi, CELL_PENDING_EVENTS, 3, WRITE),
        SenderStep(code.request_event, CELL_REQUESTS, 1 << KVM_REQ_EVENT, SET),
        *_KICK,
    ),
    "irq": (
        SenderStep(code.look_whether_apic_is_enabled, CELL_APIC_ENABLED, 1, READ),
        SenderStep(code.set_irr, CELL_IRR, 1, WRITE),
        SenderStep(code.request_event, CELL_REQUESTS, 1 << KVM_REQ_EVENT, SET),
        *_KICK,
    ),
    "signal": (
        SenderStep(code.set_signal, CELL_THREAD_FLAGS, 1, WRITE),
        SenderStep(code.signal_wake_up, CELL_TASK_STATE, 1, WRITE),
    ),
}
"""What each kind of event takes."""

EVENTS = tuple(kind for kind in STEPS if kind != DROPPED_SMI)
"""The kinds that the world can ask for."""


def _ahead(steps: tuple[SenderStep, ...]) -> dict[int, tuple[tuple[int, SenderStep], ...]]:
    cells = {step.cell for step in steps}
    return {cell: tuple(item for item in enumerate(steps, 1) if item[1].cell == cell) for cell in cells}


AHEAD = {Sender(kind, at): _ahead(steps[at:]) for kind, steps in STEPS.items() for at in range(len(steps))}
"""What senders have still to do: cell -> (after how many steps, the step that accesses it)."""


def registers_of(debug: Debug) -> DebugRegisters:
    """Debug registers as our KVM has them."""
    return DebugRegisters(list(debug.dr), list(debug.masks), debug.dr7, debug.dr6, debug.debugctl)


def debug_of(registers: DebugRegisters) -> Debug:
    """Debug registers as the protocol has them."""
    dr, mask = registers.dr, registers.mask
    masks = (mask[0], mask[1], mask[2], mask[3])
    return Debug((dr[0], dr[1], dr[2], dr[3]), masks, registers.dr7, registers.dr6, registers.debugctl)


def send(vcpu: Vcpu, sender: Sender) -> tuple[SenderState, bool]:
    """One step of a sender: what it still has to do, and whether it has sent an IPI."""
    done = STEPS[sender.kind][sender.at].run(vcpu)
    after = NO_SENDER if done != code.GO_ON else Sender(sender.kind, sender.at + 1)
    return after, done == code.DONE_WITH_IPI


def conflict(how: int, other: int) -> bool:
    """Whether the order of two accesses of the same bits matters."""
    return how != other or how == WRITE


Here = tuple[list[Any], list[tuple[int, ...]]]
"""The place of an execution, and packed records."""


class HostRun(Landings, Thread):
    """The vCPU thread during a pass. Shared accesses are counted; before the k-th one the schedule lets senders
    take their steps, and behind the schedule's last landing it is noted where a further one could matter.

    reduce: note only such landings; False: note every one (for tests of that claim). cpu, itself, wanted:
    see Thread.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        reduce: bool,
        cpu: Debug = NO_HOST_DEBUG,
        itself: Debug = NO_HOST_DEBUG,
        wanted: Debug = NO_HOST_DEBUG,
    ) -> None:
        super().__init__(registers_of(cpu), registers_of(itself), registers_of(wanted))
        self.vcpu = vcpu
        self.senders = list(senders)
        self.log: list[tuple[str, int]] = []
        self.openings: list[Landing] = []
        self.turns: list[bytes] = []
        """For each opening everything that decides how the step goes on if that landing is made, as a digest."""
        self.accesses = 0
        """Of shared cells."""
        self._reduce = reduce
        self._follow(schedule)
        self._watching = any(sender is not NO_SENDER for sender in senders)

    def perform(self, entry: Callable[[Vcpu], int]) -> int:
        """A pass through KVM_RUN's loop, from where the thread goes on."""
        return entry(self.vcpu)

    def access(self, cell: int, bits: int, how: int) -> None:
        """A shared cell is about to be accessed: `shared()` of the restricted Python."""
        k = self.accesses
        self.accesses = k + 1
        if k == self._next:
            self._land(k)
        if self._watching and k >= self._last[0]:
            self._open(k, cell, bits, how)

    def hand_over(self) -> None:
        """The end of the step, where senders can land for the last time."""
        k = self.accesses
        if k == self._next:
            self._land(k)
        if self._watching and not self._reduce:
            self._open_all(k)

    def _send(self, number: int) -> None:
        sender = self.senders[number]
        if not isinstance(sender, Sender):
            return
        if sender.at == 0:
            self.log.append(("start", number))
        self.senders[number], ipi = send(self.vcpu, sender)
        if ipi and not self.interrupts:
            self.ipi = 1
        if self.senders[number] is NO_SENDER:
            self.log.append(("end", number))

    def _open(self, k: int, cell: int, bits: int, how: int) -> None:
        if not self._reduce:
            self._open_all(k)
            return
        known: set[Sender] = set()
        here: Here | None = None
        for number, sender in enumerate(self.senders):
            # Of senders that are equally far, one will do, unless the order in which they start is seen.
            if not isinstance(sender, Sender) or (sender.at and sender in known):
                continue
            known.add(sender)
            if (k, number) == self._last:
                continue
            if cell == CELL_MODE and self.vcpu.sleeping:
                continue  # a sender's last step is to wake the thread up
            for taken, step in AHEAD[sender].get(cell, ()):
                if step.bits & bits and conflict(how, step.how):
                    self.openings.append((k, number, taken))
                    here = here or self._here(sys._getframe(2))
                    self.turns.append(self._turn(here, number, taken))

    def _here(self, frame: FrameType | None) -> Here:
        """Where the thread stands, and all that it goes by but the vCPU itself. frame: KVM's innermost one; None:
        between two passes."""
        svm = self.vcpu.svm
        records = (svm, svm.vmcb, svm.ghcb, self.vcpu.debug, self, self.cpu, self.itself, self.wanted)
        return stack(frame, HostRun.perform.__code__), [pack(record) for record in records]

    def _turn(self, here: Here, number: int, taken: int) -> bytes:
        """See turns: the thread's state and the senders as they are after a landing, which changes nothing of the
        thread's but the vCPU's own fields and its CPU's pending interrupt."""
        vcpu, ipi = _copy(self.vcpu), self.ipi
        before = sender = self.senders[number]
        assert isinstance(before, Sender)
        for _ in range(taken):
            if not isinstance(sender, Sender):
                break  # it was done earlier
            sender, sent = send(vcpu, sender)
            ipi = 1 if sent and not self.interrupts else ipi
        senders = (*self.senders[:number], sender, *self.senders[number + 1 :])
        events = (("start", before.at == 0), ("end", sender is NO_SENDER))
        log = (*self.log, *((what, number) for what, happens in events if happens))
        place, packed = here
        return digest(place, (pack(vcpu), packed), (senders, log, ipi))

    def open_rest(self) -> None:
        """The thread goes in a circle, and no hand-over follows: what senders have still to do may come here, between
        two passes, be it nothing that the circle accesses."""
        here = self._here(None)
        for number, sender in enumerate(self.senders if self._watching else ()):
            if isinstance(sender, Sender):
                rest = len(STEPS[sender.kind]) - sender.at
                self.openings.append((self.accesses, number, rest))
                self.turns.append(self._turn(here, number, rest))

    def _open_all(self, k: int) -> None:
        for number, sender in enumerate(self.senders):
            if sender is not NO_SENDER:
                self.openings.append((k, number, 1))


def _copy(vcpu: Vcpu) -> Vcpu:
    """A vCPU for senders to act on; they change nothing but its own fields."""
    copied = unpack(Vcpu, pack(vcpu))
    copied.kvm, copied.svm, copied.debug, copied.thread = vcpu.kvm, vcpu.svm, vcpu.debug, vcpu.thread
    return copied
