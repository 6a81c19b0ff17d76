"""A small hypervisor of plain guests made by hand: IRET intercept and step, interrupt window, one mistake at a time."""

from __future__ import annotations

from dataclasses import dataclass

from iretrace.machine.cpu import DB_VECTOR, DR6_BS, DR6_RESET, UD_VECTOR, X86_EFLAGS_IF, X86_EFLAGS_TF
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_CLGI,
    INTERCEPT_CPUID,
    INTERCEPT_DR6_READ,
    INTERCEPT_HLT,
    INTERCEPT_INTR,
    INTERCEPT_IRET,
    INTERCEPT_SHUTDOWN,
    INTERCEPT_STGI,
    INTERCEPT_VINTR,
    INTERCEPT_VMRUN,
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_TYPE_INTR,
    SVM_EVTINJ_TYPE_MASK,
    SVM_EVTINJ_TYPE_SOFT,
    SVM_EVTINJ_VALID,
    SVM_EVTINJ_VALID_ERR,
    SVM_EXIT_CLGI,
    SVM_EXIT_CPUID,
    SVM_EXIT_EXCP_BASE,
    SVM_EXIT_HLT,
    SVM_EXIT_IRET,
    SVM_EXIT_NPF,
    SVM_EXIT_SHUTDOWN,
    SVM_EXIT_STGI,
    SVM_EXIT_VINTR,
    SVM_EXIT_VMRUN,
    SVM_INTERRUPT_SHADOW_MASK,
    V_INTR_MASKING_MASK,
    V_INTR_PRIO_MASK,
    V_IRQ_MASK,
    Vmcb,
)
from iretrace.subset import pack, record, u1, u8, u16, u32, unpack
from iretrace.verdict import Assumption
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
from tests.world.small import EINTR, HERE, INJECT_NMI, KVM_EXIT_SHUTDOWN, SENDER, Run

INJECT_IRQ = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_INTR | IRQ_VECTOR
EXCEPTION = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT
KINDS = ("nmi", "irq", "signal")
FAULTS = {11: True, 12: True, 13: True, 14: True}
"""Exceptions that a stepped IRET can raise: they would push the hypervisor's TF. True: with an error code."""

MISTAKES = {
    "": "none: this one is right",
    "lose": "queued NMIs are dropped",
    "double": "each NMI is queued twice",
    "open": "IRET is not intercepted: NMIs stay masked",
    "early": "NMIs are unmasked when the IRET is intercepted, and injected before it runs",
    "unstepped": "the IRET is not stepped: NMIs are unmasked at the next exit that finds another RIP",
    "lose irq": "interrupts are dropped",
    "double irq": "an interrupt in service does not hold the next one",
    "irq first": "an interrupt is injected before an NMI",
    "closed": "no window is opened for an interrupt that IF holds",
    "rude": "interrupts are injected whatever IF says",
    "shadow": "interrupts are injected in an interrupt shadow",
    "invent": "the #DB of the hypervisor's own step is given to the guest",
    "eat": "a #DB is dropped if the hypervisor steps, too",
    "leak": "a step that another exit cuts short leaves TF set",
    "open fault": "an exception of a stepped IRET is not intercepted",
    "dr6": "an injected #DB leaves DR6 as it was",
    "skip": "HLT is not skipped",
    "stay": "an instruction that was skipped leaves its interrupt shadow",
    "trapless": "an instruction that was skipped does not trap, although TF is set",
    "gif": "CLGI and STGI are not intercepted",
    "ud": "CLGI, STGI and VMRUN are skipped",
    "forget": "EXITINTINFO is ignored",
    "soft": "INT n is injected again without nRIP",
    "again": "an event that is injected again is also kept",
    "signal": "what is to be injected is lost when a signal is pending",
    "held": "neither #DB nor reads of DR6 are intercepted",
    "svme": "EFER.SVME is what the guest has",
}


@record
class State:
    """What the hypervisor remembers. injected, error: an event to be injected again, as EXITINTINFO gave it.

    iret_rip: where the intercepted IRET is; guest_tf: the guest's own TF while the hypervisor's is set."""

    queued: u8 = 0
    pending: u8 = 0
    masked: u1 = 0
    iret_seen: u1 = 0
    iret_rip: u16 = 0
    stepping: u1 = 0
    guest_tf: u1 = 0
    irr: u1 = 0
    isr: u1 = 0
    exception: u32 = 0
    exception_error: u32 = 0
    injected: u32 = 0
    error: u32 = 0
    soft_rip: u16 = 0
    dr6: u32 = DR6_RESET
    requested: u1 = 0
    signal: u1 = 0
    in_guest: u1 = 0
    halted: u1 = 0
    asleep: u1 = 0
    woken: u1 = 0


@dataclass(frozen=True)
class Plain:
    """A right hypervisor, but for one of MISTAKES."""

    mistake: str = ""
    name: str = "small and plain"
    vcpu: str = "plain"
    processor: Processor = PROCESSOR

    def __post_init__(self) -> None:
        assert self.mistake in MISTAKES

    def start(self) -> Pause:
        run = self._run(State(), (), ())
        return self._enter(run, Vmcb(dr7=0x400, dr6=DR6_RESET), Ghcb(), False)

    def sender(self, kind: str) -> SenderState:
        return KINDS.index(kind) * len(SENDER)

    def send(self, private: object, sender: SenderState) -> Sent:
        assert isinstance(private, tuple)
        assert isinstance(sender, int)
        state = unpack(State, private)
        ipi = self._sender_step(state, sender)
        after = sender + 1 if (sender + 1) % len(SENDER) else NO_SENDER
        return Sent(pack(state), after, ipi, SENDER[sender % len(SENDER)], HERE)

    def _sender_step(self, state: State, sender: int) -> bool:
        kind, what = KINDS[sender // len(SENDER)], SENDER[sender % len(SENDER)]
        if what == "queue" and kind == "nmi":
            state.queued += 2 if self.mistake == "double" else 1
        elif what == "queue" and kind == "irq":
            state.irr = int(self.mistake != "lose irq")
        elif what == "queue":
            state.signal = 1
        elif what == "request":
            state.requested = 1
        elif what == "wake":
            state.woken = int(state.woken or state.asleep)
        elif state.in_guest:
            state.in_guest = 0
            return True
        return False

    def _run(self, state: State, senders: tuple[SenderState, ...], schedule: tuple[Landing, ...]) -> Run[State]:
        return Run(state, list(senders), list(schedule), self._sender_step)

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
        if cause is Cause.VMEXIT:
            self._complete(state, vmcb)
            self._handle_exit(state, vmcb)
            if vmcb.exit_code == SVM_EXIT_SHUTDOWN:
                return run.pause(PauseKind.USERSPACE, vmcb, ghcb, reason=KVM_EXIT_SHUTDOWN)
        if state.halted and self._sleeps(run, vmcb):
            return run.pause(PauseKind.BLOCK, vmcb, ghcb)
        return self._enter(run, vmcb, ghcb, cause is Cause.VMEXIT and vmcb.exit_code == SVM_EXIT_NPF)

    # Exits. -----------------------------------------------------------------------------------------------------

    def _complete(self, state: State, vmcb: Vmcb) -> None:
        """What an exit says about the event that was injected, and about the IRET that was stepped."""
        stepped = state.stepping and vmcb.exit_code == SVM_EXIT_EXCP_BASE + DB_VECTOR
        if state.iret_seen and (stepped or (self.mistake == "unstepped" and vmcb.rip != state.iret_rip)):
            state.iret_seen = state.masked = 0
        if state.stepping and not stepped:
            self._end_step(state, vmcb)
            state.iret_seen = 0
        if vmcb.exit_int_info & SVM_EVTINJ_VALID and self.mistake != "forget":
            state.injected, state.error = vmcb.exit_int_info, vmcb.exit_int_info_err
            state.soft_rip = vmcb.rip + 1
            if self.mistake == "again" and vmcb.exit_int_info == INJECT_NMI:
                state.pending += 1

    def _end_step(self, state: State, vmcb: Vmcb) -> None:
        """The stepped instruction has not completed: TF is the guest's again."""
        state.stepping = 0
        if not state.guest_tf and self.mistake != "leak":
            vmcb.rflags &= ~X86_EFLAGS_TF

    def _handle_exit(self, state: State, vmcb: Vmcb) -> None:
        code = vmcb.exit_code
        if code == SVM_EXIT_HLT:
            state.halted = 1
            if self.mistake != "skip":
                self._skip(state, vmcb)
        elif code == SVM_EXIT_CPUID:
            self._skip(state, vmcb)
        elif code == SVM_EXIT_IRET:
            state.iret_seen, state.iret_rip = 1, vmcb.rip
            if self.mistake == "early":
                state.iret_seen = state.masked = 0
        elif code in (SVM_EXIT_STGI, SVM_EXIT_CLGI, SVM_EXIT_VMRUN):
            if self.mistake == "ud":
                self._skip(state, vmcb)
            else:
                state.exception = EXCEPTION | UD_VECTOR
        elif code == SVM_EXIT_EXCP_BASE + DB_VECTOR:
            self._debug_exit(state)
        elif code - SVM_EXIT_EXCP_BASE in FAULTS:
            state.exception = EXCEPTION | SVM_EVTINJ_VALID_ERR | code - SVM_EXIT_EXCP_BASE
            state.exception_error = vmcb.exit_info_1
        elif code == SVM_EXIT_VINTR:
            vmcb.int_ctl &= ~V_IRQ_MASK

    def _debug_exit(self, state: State) -> None:
        """The trap is the guest's if its TF was set when the instruction began."""
        stepped, guests = state.stepping, not state.stepping or state.guest_tf
        state.stepping = 0
        if stepped and self.mistake in ("eat", "invent"):
            guests = self.mistake == "invent"
        if guests:
            self._queue_trap(state)

    def _queue_trap(self, state: State) -> None:
        state.exception = EXCEPTION | DB_VECTOR
        if self.mistake != "dr6":
            state.dr6 |= DR6_BS

    def _skip(self, state: State, vmcb: Vmcb) -> None:
        """The instruction was emulated: RIP moves on, its shadow ends, and it traps if TF is set."""
        vmcb.rip = vmcb.next_rip
        if self.mistake != "stay":
            vmcb.int_state &= ~SVM_INTERRUPT_SHADOW_MASK
        if vmcb.rflags & X86_EFLAGS_TF and self.mistake != "trapless":
            self._queue_trap(state)

    # Sleep and entry. -------------------------------------------------------------------------------------------

    def _irq_allowed(self, state: State, vmcb: Vmcb) -> bool:
        """An interrupt waits that IF, a shadow or one in service does not hold."""
        serviced = state.isr and self.mistake != "double irq"
        enabled = vmcb.rflags & X86_EFLAGS_IF or self.mistake == "rude"
        shadow = vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK and self.mistake != "shadow"
        return bool(state.irr and not serviced and enabled and not shadow)

    def _sleeps(self, run: Run[State], vmcb: Vmcb) -> bool:
        """Whether a halted vCPU sleeps. It looks for events, goes to sleep, and looks again before it really does."""
        state = run.state
        self._fold(run)
        run.access("queue")
        if (state.pending and not state.masked) or self._irq_allowed(state, vmcb) or state.exception:
            state.halted = 0
            return False
        run.access("wake")
        state.asleep = 1
        run.access("request", "queue")
        state.woken = int(state.woken or state.requested)
        return True

    def _fold(self, run: Run[State]) -> None:
        """Take the queued NMIs over, if there is a request."""
        run.access("request")
        state = run.state
        if not state.requested:
            return
        state.requested = 0
        run.access("queue")
        if self.mistake != "lose":
            state.pending = min(1 if state.masked else 2, state.pending + state.queued)
        state.queued = 0

    def _enter(self, run: Run[State], vmcb: Vmcb, ghcb: Ghcb, warm: bool) -> Pause:
        state = run.state
        while True:
            self._fold(run)
            run.access("queue")
            self._inject(run, vmcb)
            run.access("kick")
            state.in_guest = 1
            run.access("request", "queue")
            if not state.requested and not state.signal:
                break
            run.access("kick")
            state.in_guest = 0
            self._take_back(state, vmcb)
            if state.signal:
                state.signal = 0
                return run.pause(PauseKind.USERSPACE, vmcb, ghcb, warm, -EINTR)
        self._set_up(state, vmcb)
        return run.pause(PauseKind.ENTER, vmcb, ghcb, warm)

    def _inject(self, run: Run[State], vmcb: Vmcb) -> None:
        """Give the processor an event; what waits behind it needs an exit right after that one."""
        state = run.state
        if state.injected or state.exception:
            self._inject_own(state, vmcb)
            waits = (state.pending and not state.masked) or state.irr
            run.ipi = run.ipi or bool(waits)
        elif state.iret_seen and self.mistake != "unstepped":
            return
        elif self.mistake == "irq first" and self._irq_allowed(state, vmcb):
            self._inject_irq(state, vmcb)
        elif state.pending and not state.masked:
            vmcb.event_inj = INJECT_NMI
            state.pending -= 1
            state.masked = 1
        elif self._irq_allowed(state, vmcb):
            self._inject_irq(state, vmcb)

    def _inject_irq(self, state: State, vmcb: Vmcb) -> None:
        vmcb.event_inj = INJECT_IRQ
        state.irr, state.isr = 0, 1

    def _inject_own(self, state: State, vmcb: Vmcb) -> None:
        """An event that is injected again, or an exception."""
        if state.injected:
            vmcb.event_inj, vmcb.event_inj_err = state.injected, state.error
            if state.injected & SVM_EVTINJ_TYPE_MASK == SVM_EVTINJ_TYPE_SOFT or state.injected & 0xFF == 3:
                vmcb.next_rip = state.soft_rip if self.mistake != "soft" else vmcb.rip
            state.injected = state.error = 0
        else:
            vmcb.event_inj, vmcb.event_inj_err = state.exception, state.exception_error
            state.exception = state.exception_error = 0

    def _take_back(self, state: State, vmcb: Vmcb) -> None:
        if vmcb.event_inj & SVM_EVTINJ_VALID:
            if not (state.signal and self.mistake == "signal"):
                state.injected, state.error, state.soft_rip = vmcb.event_inj, vmcb.event_inj_err, vmcb.next_rip
            vmcb.event_inj = 0

    def _set_up(self, state: State, vmcb: Vmcb) -> None:
        numbers = [INTERCEPT_INTR, INTERCEPT_HLT, INTERCEPT_CPUID, INTERCEPT_SHUTDOWN]
        if state.masked and not state.iret_seen and self.mistake != "open":
            numbers.append(INTERCEPT_IRET)
        vmcb.int_ctl = V_INTR_MASKING_MASK
        if state.irr and not state.isr and not state.iret_seen and not vmcb.event_inj and self.mistake != "closed":
            numbers.append(INTERCEPT_VINTR)
            vmcb.int_ctl |= V_IRQ_MASK | V_INTR_PRIO_MASK
        vmcb.intercept_word3 = sum(1 << number - 96 for number in numbers)
        gif = () if self.mistake == "gif" else (INTERCEPT_STGI, INTERCEPT_CLGI)
        vmcb.intercept_word4 = sum(1 << number - 128 for number in (INTERCEPT_VMRUN, *gif))
        vmcb.intercept_exception = 0 if self.mistake == "held" else 1 << DB_VECTOR
        vmcb.intercept_dr = 0 if self.mistake == "held" else 1 << INTERCEPT_DR6_READ
        vmcb.asid = 1
        vmcb.efer = 0 if self.mistake == "svme" else EFER_SVME
        vmcb.dr6 = DR6_RESET
        if state.iret_seen and not vmcb.event_inj and self.mistake != "unstepped":
            state.stepping, state.guest_tf = 1, int(vmcb.rflags & X86_EFLAGS_TF != 0)
            vmcb.rflags |= X86_EFLAGS_TF
            if self.mistake != "open fault":
                vmcb.intercept_exception |= sum(1 << vector for vector in FAULTS)

    # What it says. ----------------------------------------------------------------------------------------------

    def view(self, private: object) -> View:
        assert isinstance(private, tuple)
        state = unpack(State, private)
        return View(
            nmi_queued=state.queued,
            nmi_pending=state.pending,
            nmi_masked=state.masked,
            nmi_injected=int(state.injected == INJECT_NMI),
            awaiting_iret_completion=state.iret_seen,
            nmi_singlestep=state.stepping,
            irq_pending=state.irr,
            irq_injected=int(state.injected == INJECT_IRQ),
            exception_pending=int(state.exception != 0),
            requests=state.requested,
            mp_state=state.halted,
            dr6_active=state.dr6 ^ DR6_RESET,
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
