"""A small hypervisor made by hand, for tests of the oracle: a queue, a mask, a request bit, one mistake at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from iretrace.machine.cpu import BP_VECTOR, DB_VECTOR, VC_VECTOR
from iretrace.machine.ghcb import SVM_VMGEXIT_NMI_COMPLETE, Ghcb
from iretrace.machine.vmcb import (
    INTERCEPT_CPUID,
    INTERCEPT_HLT,
    INTERCEPT_INTR,
    INTERCEPT_IRET,
    INTERCEPT_SHUTDOWN,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_TYPE_SOFT,
    SVM_EVTINJ_VALID,
    SVM_EXIT_HLT,
    SVM_EXIT_NPF,
    SVM_EXIT_SHUTDOWN,
    SVM_EXIT_VMGEXIT,
    SVM_INTERRUPT_SHADOW_MASK,
    V_INTR_MASKING_MASK,
    Vmcb,
)
from iretrace.subset import pack, record, u1, u8, u32, unpack
from iretrace.verdict import Assumption, CLine, InputError
from iretrace.world.protocol import (
    NO_HOST_DEBUG,
    NO_SENDER,
    PROCESSOR,
    Cause,
    Debug,
    Executed,
    Landing,
    Pause,
    PauseKind,
    Processor,
    SenderState,
    Sent,
    View,
)

INJECT_NMI = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_NMI | 2
EXCEPTION = SVM_EVTINJ_VALID | 3 << 8
RAISED_AGAIN = (EXCEPTION | 1 << 11 | VC_VECTOR, EXCEPTION | BP_VECTOR, SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_SOFT | 0x20)
"""Events that the guest's instruction raises again: #VC, INT3, INT 0x20. They cannot or must not be injected."""
SENDER = ("queue", "request", "wake", "kick")
HERE = CLine("small.py", 1, "small", "made by hand")
EINTR = 4
KVM_EXIT_SHUTDOWN = 8

MISTAKES = {
    "": "none: this one is right",
    "defer": "NMI_COMPLETE unmasks at the next exit",
    "deaf": "NMI_COMPLETE is ignored",
    "error": "NMI_COMPLETE is answered with an error",
    "one": "the queue limit is always 1",
    "two": "the queue limit is always 2",
    "lose": "queued NMIs are dropped",
    "double": "each NMI is queued twice",
    "invent": "after the first NMI another one is injected",
    "nest": "NMIs are injected while masked",
    "late": "each NMI waits for one more exit, which the hypervisor itself causes (right)",
    "shadow": "an NMI is held in an interrupt shadow, and nothing tells the hypervisor of its end",
    "forget": "EXITINTINFO is ignored",
    "again": "EXITINTINFO is injected again, and is also made pending",
    "behind": "an NMI behind an event that is injected again waits for whatever exit comes",
    "cold": "nested page faults are not resolved",
    "sleep": "a halted vCPU sleeps without a look at pending NMIs",
    "race": "a halted vCPU looks for NMIs, then sleeps without a second look",
    "insomnia": "HLT ends without an event",
    "poll": "the thread of a halted vCPU goes in a circle until an NMI comes (right)",
    "circle": "the thread of a halted vCPU goes in a circle without a look at pending NMIs",
    "kept": "behind the first NMI the thread goes in a circle",
    "iret": "IRET is intercepted",
    "stall": "the first NMI makes the hypervisor interrupt itself at every entry",
    "busy": "the first NMI makes KVM_RUN return -EINTR for ever",
    "shutdown": "KVM_EXIT_SHUTDOWN for the first NMI",
    "open": "shutdown is not intercepted",
    "warn": "a WARN is reached by the first NMI",
    "refuse": "the VMRUN after the first NMI has no VMRUN intercept",
}


S = TypeVar("S")


@record
class State:
    """What the small hypervisor remembers. injected: an event to be injected again, as EXITINTINFO gave it."""

    queued: u8 = 0
    pending: u8 = 0
    injected: u32 = 0
    error: u32 = 0
    masked: u1 = 0
    unmask_at_exit: u1 = 0
    requested: u1 = 0
    in_guest: u1 = 0
    halted: u1 = 0
    asleep: u1 = 0
    woken: u1 = 0
    delivered: u8 = 0
    waited: u1 = 0


@dataclass(frozen=True)
class Small:
    """A right hypervisor, but for one of MISTAKES."""

    mistake: str = ""
    name: str = "small"
    vcpu: str = "sev-es"
    processor: Processor = PROCESSOR

    def __post_init__(self) -> None:
        assert self.mistake in MISTAKES

    def start(self) -> Pause:
        return self._enter(self._run(State(), (), ()), Vmcb(), Ghcb(), False)

    def _run(self, state: State, senders: tuple[SenderState, ...], schedule: tuple[Landing, ...]) -> Run[State]:
        return Run(state, list(senders), list(schedule), lambda state, step: sender_step(state, step, self.mistake))

    def sender(self, kind: str) -> SenderState:
        if kind != "nmi":
            raise InputError(f"no sender for {kind}")
        return 0

    def send(self, private: object, sender: SenderState) -> Sent:
        assert isinstance(private, tuple) and isinstance(sender, int)
        state = unpack(State, private)
        ipi = sender_step(state, sender, self.mistake)
        after = NO_SENDER if sender == len(SENDER) - 1 else sender + 1
        return Sent(pack(state), after, ipi, SENDER[sender], HERE)

    def runnable(self, private: object) -> bool:
        assert isinstance(private, tuple)
        return unpack(State, private).woken != 0

    def step(
        self,
        private: object,
        vmcb: Vmcb,
        ghcb: Ghcb,
        cause: Cause,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        debug: Debug = NO_HOST_DEBUG,
    ) -> Pause:
        assert isinstance(private, tuple)
        run = self._run(unpack(State, private), senders, schedule)
        run.access("kick", "wake")
        state = run.state
        state.in_guest = state.asleep = state.woken = 0
        warm = cause is Cause.VMEXIT and vmcb.exit_code == SVM_EXIT_NPF and self.mistake != "cold"
        if cause is Cause.VMEXIT:
            self._handle_exit(state, vmcb, ghcb)
            if vmcb.exit_code == SVM_EXIT_SHUTDOWN:
                return run.pause(PauseKind.USERSPACE, vmcb, ghcb, reason=KVM_EXIT_SHUTDOWN)
        if state.delivered and self.mistake in ("busy", "shutdown"):
            reason = -EINTR if self.mistake == "busy" else KVM_EXIT_SHUTDOWN
            return run.pause(PauseKind.USERSPACE, vmcb, ghcb, reason=reason)
        if state.halted and self._sleeps(run):
            circles = self.mistake in ("poll", "circle")
            return run.pause(PauseKind.LOOP if circles else PauseKind.BLOCK, vmcb, ghcb)
        if state.delivered and self.mistake == "kept":
            return run.pause(PauseKind.LOOP, vmcb, ghcb)
        return self._enter(run, vmcb, ghcb, warm)

    def _handle_exit(self, state: State, vmcb: Vmcb, ghcb: Ghcb) -> None:
        if state.unmask_at_exit:
            state.masked = state.unmask_at_exit = 0
        cut_off = vmcb.exit_int_info if vmcb.exit_int_info not in RAISED_AGAIN else 0
        if cut_off & SVM_EVTINJ_VALID and self.mistake != "forget":
            state.injected, state.error = cut_off, vmcb.exit_int_info_err
            if self.mistake == "again":
                state.pending += 1
        if vmcb.exit_code == SVM_EXIT_HLT:
            state.halted = 1
        if vmcb.exit_code == SVM_EXIT_VMGEXIT and ghcb.sw_exit_code == SVM_VMGEXIT_NMI_COMPLETE:
            vmcb.exit_code = SVM_VMGEXIT_NMI_COMPLETE  # KVM too handles it as an exit of its own
            if self.mistake == "error":
                ghcb.sw_exit_info_1 = 2
            if self.mistake == "defer":
                state.unmask_at_exit = 1
            elif self.mistake != "deaf":
                state.masked = 0

    def _sleeps(self, run: Run[State]) -> bool:
        """Whether a halted vCPU sleeps. It looks for an NMI, goes to sleep, and looks again before it really does."""
        state = run.state
        for _ in range({"sleep": 0, "circle": 0, "poll": 2}.get(self.mistake, 1)):
            self._fold(run)
            if (state.pending and not state.masked) or self.mistake == "insomnia":
                state.halted = 0
                return False
        if self.mistake in ("poll", "circle"):
            return True
        run.access("wake")
        state.asleep = 1
        if self.mistake not in ("sleep", "race"):
            run.access("request")
            state.woken = int(state.woken or state.requested)
        return True

    def _fold(self, run: Run[State]) -> None:
        """Take the queued NMIs over, if there is a request. One that finds one pending while masked is merged."""
        run.access("request")
        state = run.state
        if not state.requested:
            return
        state.requested = 0
        run.access("queue")
        limit = {"one": 1, "two": 2}.get(self.mistake, 1 if state.masked else 2)
        if self.mistake != "lose":
            state.pending = min(limit, state.pending + state.queued)
        state.queued = 0

    def _enter(self, run: Run[State], vmcb: Vmcb, ghcb: Ghcb, warm: bool) -> Pause:
        state = run.state
        while True:
            self._fold(run)
            self._inject(run, vmcb)
            run.access("kick")
            state.in_guest = 1
            run.access("request")
            if not state.requested:
                break
            run.access("kick")
            state.in_guest = 0
            self._take_back(state, vmcb)
        self._set_up(state, vmcb)
        late = self.mistake == "late" and state.waited
        run.ipi = bool(run.ipi or late or (self.mistake == "stall" and state.delivered))
        defects = (("WARN reached", HERE),) if self.mistake == "warn" and state.delivered else ()
        return run.pause(PauseKind.ENTER, vmcb, ghcb, warm, defects=defects)

    def _set_up(self, state: State, vmcb: Vmcb) -> None:
        words = [INTERCEPT_INTR, INTERCEPT_HLT, INTERCEPT_CPUID]
        if self.mistake != "open":
            words.append(INTERCEPT_SHUTDOWN)
        if self.mistake == "iret":
            words.append(INTERCEPT_IRET)
        vmcb.intercept_exception = 1 << DB_VECTOR
        vmcb.intercept_dr = 1 << 7 | 1 << 16 + 7
        vmcb.intercept_word3 = sum(1 << number - 96 for number in words)
        vmcb.intercept_word4 = 0 if self.mistake == "refuse" and state.delivered else 1
        vmcb.int_ctl = V_INTR_MASKING_MASK
        vmcb.asid = 1
        vmcb.nested_ctl = 5
        vmcb.vmsa_pa = 1

    def _inject(self, run: Run[State], vmcb: Vmcb) -> None:
        """Give the processor an event. An NMI that is behind another event needs an exit right after that one."""
        state = run.state
        if state.injected:
            vmcb.event_inj, vmcb.event_inj_err = state.injected, state.error
            state.injected = state.error = 0
            waits = state.pending and not state.masked
            run.ipi = run.ipi or bool(waits and self.mistake != "behind")
            return
        if self.mistake == "invent" and state.delivered == 1 and not state.masked and not state.pending:
            state.pending = 1
        if not state.pending or (state.masked and self.mistake != "nest"):
            return
        if self.mistake == "shadow" and vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK:
            return
        if self.mistake == "late" and not state.waited:
            state.waited = 1
            return
        vmcb.event_inj = INJECT_NMI
        state.pending -= 1
        state.masked = 1
        state.delivered = min(2, state.delivered + 1)
        state.waited = 0

    def _take_back(self, state: State, vmcb: Vmcb) -> None:
        if vmcb.event_inj & SVM_EVTINJ_VALID:
            state.injected, state.error = vmcb.event_inj, vmcb.event_inj_err
            vmcb.event_inj = 0

    def view(self, private: object) -> View:
        assert isinstance(private, tuple)
        state = unpack(State, private)
        return View(
            nmi_queued=state.queued,
            nmi_pending=state.pending,
            nmi_masked=state.masked,
            nmi_injected=int(state.injected != 0),
            requests=state.requested,
            mp_state=state.halted,
        )

    def explain(
        self,
        private: object,
        vmcb: Vmcb,
        ghcb: Ghcb,
        cause: Cause,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        debug: Debug = NO_HOST_DEBUG,
    ) -> Executed:
        return Executed((HERE,))

    def new_ledger(self) -> None:
        pass

    def statements(self) -> int:
        return 0

    def assumptions(self) -> tuple[Assumption, ...]:
        return ()


def sender_step(state: State, sender: int, mistake: str) -> bool:
    """One step of a sender; whether it sends an IPI."""
    what = SENDER[sender]
    if what == "queue":
        state.queued += 2 if mistake == "double" else 1
    elif what == "request":
        state.requested = 1
    elif what == "wake":
        state.woken = int(state.woken or state.asleep)
    elif state.in_guest:
        state.in_guest = 0
        return True
    return False


class Run(Generic[S]):
    """One host step: counts shared accesses and lets senders land.

    A sender's state is the number of its next step, and a multiple of len(SENDER) more for another kind of event.
    take: does a step of a sender, and says whether it sends an IPI."""

    def __init__(
        self, state: S, senders: list[SenderState], schedule: list[Landing], take: Callable[[S, int], bool]
    ) -> None:
        self.state = state
        self.senders = senders
        self.schedule = schedule
        self.take = take
        self.openings: list[Landing] = []
        self.log: list[tuple[str, int]] = []
        self.ipi = False
        self.accesses = 0

    def access(self, *meets: str) -> None:
        """An access of something that senders touch too: the sender steps named can make a difference before it."""
        while self.schedule and self.schedule[0][0] == self.accesses:
            self._land(self.schedule.pop(0))
        if not self.schedule:
            for number, left in enumerate(self.senders):
                if isinstance(left, int):
                    counts = (SENDER.index(step) - left % len(SENDER) + 1 for step in meets)
                    self.openings.extend((self.accesses, number, count) for count in counts if count > 0)
        self.accesses += 1

    def _land(self, landing: Landing) -> None:
        _, number, count = landing
        for _ in range(count):
            sender = self.senders[number]
            assert isinstance(sender, int)
            if sender % len(SENDER) == 0:
                self.log.append(("start", number))
            self.ipi = self.take(self.state, sender) or self.ipi
            self.senders[number] = sender + 1 if (sender + 1) % len(SENDER) else NO_SENDER
            if self.senders[number] is NO_SENDER:
                self.log.append(("end", number))

    def pause(
        self,
        kind: PauseKind,
        vmcb: Vmcb,
        ghcb: Ghcb,
        warm: bool = False,
        reason: int = 0,
        defects: tuple[tuple[str, CLine], ...] = (),
    ) -> Pause:
        return Pause(
            kind,
            pack(self.state),
            pack(vmcb),
            pack(ghcb),
            tuple(self.senders),
            tuple(self.log),
            self.ipi,
            tuple(self.openings),
            warm,
            reason,
            defects,
        )
