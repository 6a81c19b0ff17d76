"""A small hypervisor made by hand, for tests of the oracle: a queue, a mask, one request bit, and one mistake at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from iretrace.machine.ghcb import SVM_VMGEXIT_NMI_COMPLETE, Ghcb
from iretrace.machine.vmcb import (
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_VALID,
    SVM_EXIT_NPF,
    SVM_EXIT_SHUTDOWN,
    SVM_EXIT_VMGEXIT,
    SVM_INTERRUPT_SHADOW_MASK,
    Vmcb,
)
from iretrace.subset import pack
from iretrace.verdict import Assumption, CLine, InputError
from iretrace.world.protocol import (
    NO_SENDER,
    Cause,
    Executed,
    Landing,
    Pause,
    PauseKind,
    SenderState,
    Sent,
    View,
)

INJECT_NMI = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_NMI | 2
SENDER = ("queue", "request", "wake", "kick")
HERE = CLine("small.py", 1, "small", "made by hand")


class State(NamedTuple):
    """What the small hypervisor remembers."""

    queued: int = 0
    pending: int = 0
    injected: bool = False
    masked: bool = False
    unmask_at_exit: bool = False
    requested: bool = False
    in_guest: bool = False
    asleep: bool = False
    woken: bool = False
    delivered: int = 0
    waited: int = 0


@dataclass(frozen=True)
class Small:
    """mistake: "" for none, or one of: defer (unmask at the next exit), one (queue limit always 1), two (always 2),
    lose, double, invent, nest (injects while masked), late (each NMI waits for one more entry), warn, refuse."""

    mistake: str = ""
    name: str = "small"

    def start(self) -> Pause:
        return self._enter(State(), Vmcb(), Ghcb(), False, (), (), 0)

    def sender(self, kind: str) -> SenderState:
        if kind != "nmi":
            raise InputError(f"no sender for {kind}")
        return 0

    def send(self, private: object, sender: SenderState) -> Sent:
        assert isinstance(private, State) and isinstance(sender, int)
        state, ipi = self._sender_step(private, sender)
        after = NO_SENDER if sender == len(SENDER) - 1 else sender + 1
        return Sent(state, after, ipi, SENDER[sender], HERE)

    def _sender_step(self, state: State, sender: int) -> tuple[State, bool]:
        what = SENDER[sender]
        if what == "queue":
            return state._replace(queued=state.queued + (2 if self.mistake == "double" else 1)), False
        if what == "request":
            return state._replace(requested=True), False
        if what == "wake":
            return state._replace(woken=state.woken or state.asleep), False
        return state._replace(in_guest=False), state.in_guest

    def runnable(self, private: object) -> bool:
        assert isinstance(private, State)
        return private.woken

    def step(
        self,
        private: object,
        vmcb: Vmcb,
        ghcb: Ghcb,
        cause: Cause,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
    ) -> Pause:
        assert isinstance(private, State)
        run = _Run(self, private, list(senders), list(schedule))
        run.access("kick", "wake")
        run.state = run.state._replace(in_guest=False, asleep=False, woken=False)
        warm = cause is Cause.VMEXIT and vmcb.exit_code == SVM_EXIT_NPF
        if cause is Cause.VMEXIT:
            self._handle_exit(run, vmcb, ghcb)
            if vmcb.exit_code == SVM_EXIT_SHUTDOWN:
                return run.pause(PauseKind.USERSPACE, vmcb, ghcb, 8)
            if vmcb.exit_code == 0x78 and not self._deliverable(run.state, vmcb):
                return self._sleep(run, vmcb, ghcb)
        while True:
            self._events(run, vmcb)
            run.access("kick")
            run.state = run.state._replace(in_guest=True)
            run.access("request")
            if not run.state.requested:
                break
            run.state = self._take_back(run.state, vmcb)._replace(in_guest=False)
        vmcb.intercept_word4 = 1
        paused = run.pause(PauseKind.ENTER, vmcb, ghcb, 0)
        return self._enter(
            run.state, vmcb, ghcb, run.ipi, paused.senders, paused.log, len(schedule), paused.openings, warm
        )

    def _handle_exit(self, run: _Run, vmcb: Vmcb, ghcb: Ghcb) -> None:
        state = run.state
        if state.unmask_at_exit:
            state = state._replace(masked=False, unmask_at_exit=False)
        if vmcb.exit_int_info & SVM_EVTINJ_VALID:
            state = state._replace(injected=True)
        if vmcb.exit_code == SVM_EXIT_VMGEXIT and ghcb.sw_exit_code == SVM_VMGEXIT_NMI_COMPLETE:
            defer = self.mistake == "defer"
            state = state._replace(masked=state.masked and defer, unmask_at_exit=defer)
        run.state = state

    def _sleep(self, run: _Run, vmcb: Vmcb, ghcb: Ghcb) -> Pause:
        run.state = run.state._replace(asleep=True)
        run.access("wake", "request")
        if run.state.requested:
            run.state = run.state._replace(woken=True)
        return run.pause(PauseKind.BLOCK, vmcb, ghcb, 0)

    def _deliverable(self, state: State, vmcb: Vmcb) -> bool:
        return bool(state.requested or (state.pending and not state.masked))

    def _events(self, run: _Run, vmcb: Vmcb) -> None:
        run.access("request")
        if run.state.requested:
            run.state = run.state._replace(requested=False)
            run.access("queue")
            run.state = self._process(run.state)
        state = run.state
        shadow = vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK
        if state.injected:
            vmcb.event_inj = INJECT_NMI
            run.state = state._replace(injected=False)
        elif state.pending and (not state.masked or self.mistake == "nest") and not shadow:
            run.state = self._inject(state, vmcb)
        elif self.mistake == "invent" and state.delivered == 1 and not state.masked:
            vmcb.event_inj = INJECT_NMI
            run.state = state._replace(delivered=2, masked=True)

    def _process(self, state: State) -> State:
        limit = {"one": 1, "two": 2}.get(self.mistake, 1 if state.masked else 2)
        pending = 0 if self.mistake == "lose" else min(limit, state.pending + state.queued)
        return state._replace(queued=0, pending=pending)

    def _inject(self, state: State, vmcb: Vmcb) -> State:
        if self.mistake == "late" and state.waited == 0:
            return state._replace(waited=1, requested=False)
        vmcb.event_inj = INJECT_NMI
        return state._replace(pending=state.pending - 1, masked=True, delivered=min(2, state.delivered + 1), waited=0)

    def _take_back(self, state: State, vmcb: Vmcb) -> State:
        if not vmcb.event_inj & SVM_EVTINJ_VALID:
            return state
        vmcb.event_inj = 0
        return state._replace(injected=True)

    def _enter(
        self,
        state: State,
        vmcb: Vmcb,
        ghcb: Ghcb,
        ipi: bool,
        senders: tuple[SenderState, ...],
        log: tuple[tuple[str, int], ...],
        landed: int,
        openings: tuple[Landing, ...] = (),
        warm: bool = False,
    ) -> Pause:
        vmcb.intercept_word4 = 0 if self.mistake == "refuse" and state.delivered else 1
        vmcb.intercept_word3 = 1 | 1 << 24 | 1 << 31
        vmcb.asid = 1
        vmcb.nested_ctl = 5
        vmcb.vmsa_pa = 1
        defects = (("WARN reached", HERE),) if self.mistake == "warn" and state.delivered else ()
        late = self.mistake == "late" and state.waited == 1
        return Pause(
            PauseKind.ENTER,
            state._replace(in_guest=True),
            pack(vmcb),
            pack(ghcb),
            senders,
            log,
            ipi or late,
            openings,
            warm,
            0,
            defects,
        )

    def view(self, private: object) -> View:
        assert isinstance(private, State)
        return View(
            nmi_queued=private.queued,
            nmi_pending=private.pending,
            nmi_masked=int(private.masked),
            nmi_injected=int(private.injected),
            requests=int(private.requested),
        )

    def explain(
        self,
        private: object,
        vmcb: Vmcb,
        ghcb: Ghcb,
        cause: Cause,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
    ) -> Executed:
        return Executed((HERE,))

    def statements(self) -> int:
        return 0

    def assumptions(self) -> tuple[Assumption, ...]:
        return ()


class _Run:
    """One host step: counts shared accesses and lets senders land."""

    def __init__(self, small: Small, state: State, senders: list[SenderState], schedule: list[Landing]) -> None:
        self.small = small
        self.state = state
        self.senders = senders
        self.schedule = schedule
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
                    counts = (SENDER.index(step) - left + 1 for step in meets)
                    self.openings.extend((self.accesses, number, count) for count in counts if count > 0)
        self.accesses += 1

    def _land(self, landing: Landing) -> None:
        _, number, count = landing
        for _ in range(count):
            sender = self.senders[number]
            assert isinstance(sender, int)
            if sender == 0:
                self.log.append(("start", number))
            self.state, ipi = self.small._sender_step(self.state, sender)
            self.ipi = self.ipi or ipi
            self.senders[number] = sender + 1 if sender + 1 < len(SENDER) else NO_SENDER
            if self.senders[number] is NO_SENDER:
                self.log.append(("end", number))

    def pause(self, kind: PauseKind, vmcb: Vmcb, ghcb: Ghcb, reason: int) -> Pause:
        return Pause(
            kind,
            self.state,
            pack(vmcb),
            pack(ghcb),
            tuple(self.senders),
            tuple(self.log),
            self.ipi,
            tuple(self.openings),
            False,
            reason,
            (),
        )
