"""Our KVM as a hypervisor: world.protocol.ComparableHypervisor. This is the driver; what KVM does is in x86_run.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from iretrace.kvm.create import kvm_arch_vcpu_create
from iretrace.kvm.debug import DR7_FIXED_1, kvm_arch_vcpu_ioctl_set_guest_debug
from iretrace.kvm.differences import (
    SINCE_ALL_PENDING_NMIS_ARE_REPORTED,
    SINCE_DR_EXITS_OF_SEV_ES_ARE_IGNORED,
    SINCE_ENCRYPTED_GUESTS_GET_NO_SMI,
)
from iretrace.kvm.events import (
    VcpuEvents,
    kvm_vcpu_ioctl_nmi,
    kvm_vcpu_ioctl_x86_get_vcpu_events,
    kvm_vcpu_ioctl_x86_set_vcpu_events,
)
from iretrace.kvm.exceptions import DR6_ACTIVE_LOW
from iretrace.kvm.host import DROPPED_SMI, EVENTS, STEPS, HostRun, Sender, debug_of, registers_of, send
from iretrace.kvm.kvm_host import (
    EINTR,
    EINVAL,
    KVM_APIC_INIT,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_SMI,
    NOT_MODELLED_EXCEPTIONS,
    NOT_MODELLED_EXIT,
    NOT_MODELLED_L2,
    NOT_MODELLED_LOOP,
    NOT_MODELLED_VMGEXIT,
    ROUND,
    SLEEP,
    TO_USERSPACE,
    VMRUN,
    WARN_NMI_WINDOW_WITH_VNMI,
    DebugRegisters,
    Kvm,
    Vcpu,
    VcpuDebug,
    VcpuSvm,
)
from iretrace.kvm.lines import marks
from iretrace.kvm.passes import Between, Once, Passes, beginning, set_up
from iretrace.kvm.revisions import Revision, find
from iretrace.kvm.svm import svm_enable_nmi_window, svm_get_nmi_mask
from iretrace.kvm.svm_h import gif_set
from iretrace.kvm.trace import Tracer, first_line
from iretrace.kvm.x86 import kvm_get_nr_pending_nmis
from iretrace.kvm.x86_run import kvm_arch_vcpu_ioctl_run, vcpu_resume_after_sleep, vcpu_resume_after_vmexit
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import (
    EFER_SVME,
    SVM_INTERRUPT_SHADOW_MASK,
    V_NMI_BLOCKING_MASK,
    V_NMI_ENABLE_MASK,
    V_NMI_PENDING_MASK,
    Vmcb,
)
from iretrace.subset import pack, unpack
from iretrace.verdict import Assumption, CLine, InputError
from iretrace.world.protocol import (
    HOST_DEBUG,
    NO_HOST_DEBUG,
    Cause,
    Comparison,
    Debug,
    Executed,
    GuestDebug,
    Landing,
    Packed,
    Pause,
    PauseKind,
    Private,
    Processor,
    SenderState,
    Sent,
    View,
    VmmCall,
)

KINDS = ("sev-es", "sev-es-vnmi", "sev-es-debugswap", "plain", "vnmi")
OPTIONS = {
    "vgif": 1,
    "nrips": 1,
    "pause_filter_count": 3000,
    "host_breakpoints": 1,
    "host_debugctl": 0,
    "guest_svm": 1,
}
"""Module parameters that can be given, and their defaults: those of an EPYC of the third generation; whether the host
uses its breakpoints, what its DEBUGCTL is, and whether the CPUID of a guest that is not encrypted has SVM."""

SVM_SEV_FEAT_DEBUG_SWAP = 1 << 5
VNMI_BITS = V_NMI_ENABLE_MASK | V_NMI_PENDING_MASK | V_NMI_BLOCKING_MASK

BOTH = 3
"""An encrypted guest reads and writes EFER without an exit; only a write is told of afterwards (sev_es_init_vmcb())."""

KVM_VCPUEVENT_FLAGS = 0xD
"""VALID_NMI_PENDING, VALID_SHADOW and VALID_SMM."""
EVENT_FIELDS = (
    "exception.injected", "exception.nr", "exception.has_error_code", "exception.pending", "exception.error_code",
    "interrupt.injected", "interrupt.nr", "interrupt.shadow", "nmi.injected", "nmi.pending", "nmi.masked",
    "smi.smm", "smi.pending", "smi.smm_inside_nmi", "smi.latched_init",
    "exception_has_payload", "exception_payload",
)  # fmt: skip
"""The names of VcpuEvents in struct kvm_vcpu_events."""
EVENT_ORDER = (*EVENT_FIELDS[:11], "flags", *EVENT_FIELDS[11:])
"""With flags, where the struct has them."""

REQUESTS = (("EVENT", KVM_REQ_EVENT), ("NMI", KVM_REQ_NMI), ("SMI", KVM_REQ_SMI))
"""Those that are compared, by name."""

ENTRIES: dict[Cause, Callable[[Vcpu], int]] = {
    Cause.VMEXIT: vcpu_resume_after_vmexit,
    Cause.WAKE: vcpu_resume_after_sleep,
    Cause.RERUN: kvm_arch_vcpu_ioctl_run,
}
"""Where the vCPU thread goes on."""

UNMODELLED = {
    NOT_MODELLED_EXIT: "our KVM has no handler for this #VMEXIT (kvm/svm_exits.py); a Linux tree may have",
    NOT_MODELLED_VMGEXIT: "our KVM does not know this VMGEXIT (kvm/sev.py); a Linux tree may",
    NOT_MODELLED_EXCEPTIONS: "our KVM does not combine two exceptions (kvm/exceptions.py); a Linux tree does",
    NOT_MODELLED_LOOP: "our KVM does not come to a hand-over: its loop neither waits nor goes in a circle",
    NOT_MODELLED_L2: "our KVM has no nested_svm_vmrun() (kvm/nested.py): no L2 is modelled, in a Linux tree neither",
}

WARNS = {
    WARN_NMI_WINDOW_WITH_VNMI: (svm_enable_nmi_window, "an NMI window while NMIs are masked, with virtual NMIs"),
}
"""The function that a WARN is in, and what KVM believes cannot be."""

ASSUMPTIONS = (
    ("one vCPU that stays on its CPU; no nested guest or migration", "the guests of the tests"),
    ("VMCB clean bits, TLB flushes and ASIDs are left out", "the processor of this model caches nothing"),
    ("no halt polling, and PAUSE does not adapt its filter", "only time depends on them"),
    ("local APIC: one edge-triggered vector, TPR 0, no EOI; no AVIC", "one device"),
    ("memory and CPUID: nested page faults are resolved at once, CPUID is all zeros", "no event depends on them"),
)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Hypervisor state at a hand-over; interned, so that equal states are the same object. shadow, gif, event_inj,
    vnmi: of the VMCB at that moment, for the view."""

    vcpu: Packed
    svm: Packed
    debug: Packed
    shadow: int
    gif: int
    event_inj: int
    vnmi: int
    """The bits of int_ctl that are about virtual NMIs."""


def lacks(revision: Revision, vcpu: str) -> str:
    """Why a revision has no such kind of vCPU; "" if it has one."""
    if vcpu == "sev-es-debugswap" and not revision.bits >> SINCE_DR_EXITS_OF_SEV_ES_ARE_IGNORED & 1:
        return "VMMs can ask for DebugSwap since v6.10"
    if vcpu.endswith("vnmi") and not revision.bits >> SINCE_ALL_PENDING_NMIS_ARE_REPORTED & 1:
        return "KVM has virtual NMIs since v6.4"
    return ""


class BuiltinHypervisor:
    """Our KVM of a revision, with a vCPU of a kind.

    options: module parameters (OPTIONS). reduce: offer only landings that can matter; False offers every place (for
    tests of that claim). InputError for a revision, kind or option that there is not.
    """

    def __init__(
        self,
        revision: str | Revision,
        vcpu: str,
        options: Mapping[str, int] | None = None,
        reduce: bool = True,
        merge: bool = True,
    ) -> None:
        self.revision = find(revision) if isinstance(revision, str) else revision
        if vcpu not in KINDS:
            raise InputError(f"--vcpu {vcpu}: the built-in KVM runs the kinds {' and '.join(KINDS)} so far")
        self.vcpu = vcpu
        self.options = OPTIONS | dict(options or {})
        for name in self.options.keys() - OPTIONS.keys():
            raise InputError(f"--option {name}: no such option of the built-in KVM; known are {', '.join(OPTIONS)}")
        if lacks(self.revision, vcpu):
            raise InputError(f"--vcpu {vcpu}: {lacks(self.revision, vcpu)}; take --revision v6.12")
        if vcpu.endswith("vnmi") and not self.options["vgif"]:
            raise InputError(f"--vcpu {vcpu}: KVM has no virtual NMIs without virtual GIF; drop --option vgif=0")
        host_debug = HOST_DEBUG if self.options["host_breakpoints"] else NO_HOST_DEBUG
        self._processor = Processor(
            nested_data_bp=vcpu != "sev-es-debugswap",
            host_debug=host_debug._replace(debugctl=self.options["host_debugctl"]),
            guest_svm=self.options["guest_svm"] != 0,
        )
        self._kvm = Kvm(
            host=registers_of(self._processor.host_debug),
            sev_es=int(vcpu.startswith("sev-es")),
            debug_swap=int(vcpu == "sev-es-debugswap"),
            guest_svm=int(not vcpu.startswith("sev-es") and self._processor.guest_svm),
            vgif=int(self.options["vgif"] != 0),
            vnmi=int(vcpu.endswith("vnmi")),
            nrips=int(self.options["nrips"] != 0),
            pause_filter_count=self.options["pause_filter_count"],
            revision=self.revision.bits,
        )
        self._merge = merge
        self._states: dict[object, State] = {}
        self._passes = Passes(self._kvm, reduce)
        self._steps: dict[object, tuple[Pause, int]] = {}
        """Of each step what it comes to, and the marks that it passes."""
        self._pauses: dict[object, Pause] = {}
        self._marks = marks()
        self._passed = 0
        """Of the marks those that have been passed since new_ledger()."""

    # Protocol. --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """For the verdict table."""
        return f"built-in {self.revision.name}"

    @property
    def processor(self) -> Processor:
        """The processor that it runs on."""
        return self._processor

    def start(self) -> Pause:
        """Create the vCPU and run it to its first VMRUN."""
        return self._start()

    def start_ap(self) -> Pause:
        """The same, of a vCPU that is not the bootstrap processor; the VMM has made it runnable (KVM_SET_MP_STATE)."""
        return self._start(ap=1)

    def sender(self, kind: str) -> SenderState:
        """A fresh sender."""
        if kind not in EVENTS:
            raise InputError(f"outside: {kind}: the built-in KVM knows the outside events {', '.join(EVENTS)}")
        dropped = self._kvm.sev_es and self._kvm.revision >> SINCE_ENCRYPTED_GUESTS_GET_NO_SMI & 1
        return Sender(DROPPED_SMI if kind == "smi" and dropped else kind, 0)

    def step(
        self,
        private: Private,
        vmcb: Vmcb,
        ghcb: Ghcb,
        cause: Cause,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        debug: Debug = NO_HOST_DEBUG,
    ) -> Pause:
        """Run from a hand-over to the next one."""
        assert isinstance(private, State)
        key = (private, pack(vmcb), pack(ghcb), cause, senders, schedule, debug)
        known = self._steps.get(key)
        if known is None:
            first = beginning(private.vcpu, private.svm, *key[1:3], private.debug, debug, senders)
            done = self._passes.step(self._passes.states(first), ENTRIES[cause], schedule)
            pause = self._paused(self._passes.states.values[done.after], done.result, cause)
            if done.openings:
                pause = pause._replace(openings=done.openings, turns=done.turns if self._merge else ())
            known = self._steps[key] = pause, done.passed
        self._passed |= known[1]
        return known[0]

    def send(self, private: Private, sender: SenderState) -> Sent:
        """One step of a sender outside of host steps."""
        assert isinstance(private, State) and isinstance(sender, Sender)
        vcpu = self._quiet_vcpu(private, Vmcb())
        after, ipi = send(vcpu, sender)
        function = STEPS[sender.kind][sender.at].run
        what = " ".join((function.__doc__ or "").split())
        of_vmcb = (private.shadow, private.gif, private.event_inj, private.vnmi)
        state = self._intern(pack(vcpu), pack(vcpu.svm), private.debug, of_vmcb)
        return Sent(state, after, ipi, what, first_line(function))

    def set_guest_debug(self, private: Private, vmcb: Vmcb, ghcb: Ghcb, wanted: GuestDebug, debug: Debug) -> Pause:
        """KVM_SET_GUEST_DEBUG between two KVM_RUNs."""
        assert isinstance(private, State)
        vcpu = self._vcpu(private, unpack(Vmcb, pack(vmcb)), unpack(Ghcb, pack(ghcb)))
        run = vcpu.thread = HostRun(vcpu, (), (), True, debug)
        run.wanted = registers_of(Debug(wanted.dr, NO_HOST_DEBUG.masks, wanted.dr7))
        result = kvm_arch_vcpu_ioctl_set_guest_debug(vcpu, wanted.control, wanted.dr7)
        return self._pause(vcpu, run, TO_USERSPACE)._replace(exit_reason=-result)

    def vmm_call(self, private: Private, vmcb: Vmcb, ghcb: Ghcb, call: VmmCall, debug: Debug) -> Pause:
        """An ioctl about events between two KVM_RUNs."""
        assert isinstance(private, State)
        vcpu = self._vcpu(private, unpack(Vmcb, pack(vmcb)), unpack(Ghcb, pack(ghcb)))
        run = vcpu.thread = HostRun(vcpu, (), (), True, debug)
        if call == VmmCall.NMI:
            kvm_vcpu_ioctl_nmi(vcpu)
        else:
            events = VcpuEvents()
            kvm_vcpu_ioctl_x86_get_vcpu_events(vcpu, events)
            kvm_vcpu_ioctl_x86_set_vcpu_events(vcpu, events)
        return self._pause(vcpu, run, TO_USERSPACE)._replace(exit_reason=0)

    def runnable(self, private: Private) -> bool:
        """Whether a sleeping vCPU thread has been woken."""
        assert isinstance(private, State)
        return not unpack(Vcpu, private.vcpu).sleeping

    def view(self, private: Private) -> View:
        """What the state looks like from outside."""
        assert isinstance(private, State)
        vcpu = self._quiet_vcpu(private, Vmcb(int_ctl=private.vnmi))
        return _view(vcpu, private.shadow, private.gif, private.event_inj)

    def compare(self, private: Private) -> Comparison:
        """What agreement is about; the events are those that KVM_GET_VCPU_EVENTS would report."""
        assert isinstance(private, State)
        vcpu = self._quiet_vcpu(private, Vmcb(int_ctl=private.vnmi, int_state=private.shadow))
        requests = {name for name, bit in REQUESTS if vcpu.requests >> bit & 1}
        queued, mp_state = vcpu.nmi_queued, vcpu.mp_state
        saved = VcpuEvents()
        kvm_vcpu_ioctl_x86_get_vcpu_events(vcpu, saved)
        values = {**dict(zip(EVENT_FIELDS, pack(saved), strict=True)), "flags": KVM_VCPUEVENT_FLAGS}
        events = tuple((name, values[name]) for name in EVENT_ORDER if values[name])
        loaded = tuple(vcpu.debug.eff_db) if vcpu.debug.switch_db_regs else ()
        return Comparison(frozenset(requests), queued, mp_state, events, loaded)

    def explain(
        self,
        private: Private,
        vmcb: Vmcb,
        ghcb: Ghcb,
        cause: Cause,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        debug: Debug = NO_HOST_DEBUG,
    ) -> Executed:
        """The statements of a step, those that change the view, and what became of a waiting event."""
        assert isinstance(private, State)
        tracer, once = Tracer(_view_now), Once(self._kvm)
        first = beginning(private.vcpu, private.svm, pack(vmcb), pack(ghcb), private.debug, debug, senders)
        done = tracer.run(lambda: once.step(once.states(first), ENTRIES[cause], schedule))
        pause = self._paused(once.states.values[done.after], done.result, cause)
        return tracer.executed(pause.kind, self.view(pause.private))

    def new_ledger(self) -> None:
        """What statements() tells is about what is asked from now on."""
        self._passed = 0

    def statements(self) -> int:
        """How many distinct lines of this room have been executed."""
        return len(self._marks.lines(self._passed))

    def assumptions(self) -> tuple[Assumption, ...]:
        """What our KVM leaves out, and the options."""
        left_out = [Assumption("model", what, "kvm/hypervisor.py", why) for what, why in ASSUMPTIONS]
        options = [
            Assumption("option", f"{name}: value={value}", "kvm/hypervisor.py", "module parameter")
            for name, value in self.options.items()
        ]
        return (*left_out, *options)

    # Host steps. ------------------------------------------------------------------------------------------------

    def _vcpu(self, state: State, vmcb: Vmcb, ghcb: Ghcb) -> Vcpu:
        vcpu, svm = unpack(Vcpu, state.vcpu), unpack(VcpuSvm, state.svm)
        svm.vmcb, svm.ghcb = vmcb, ghcb
        vcpu.kvm, vcpu.svm, vcpu.debug = self._kvm, svm, unpack(VcpuDebug, state.debug)
        return vcpu

    def _quiet_vcpu(self, state: State, vmcb: Vmcb) -> Vcpu:
        """A vCPU to look at: nobody is around."""
        vcpu = self._vcpu(state, vmcb, Ghcb())
        vcpu.thread = HostRun(vcpu, (), (), True)
        return vcpu

    def _start(self, ap: int = 0) -> Pause:
        svm = VcpuSvm(vmcb=Vmcb(), ghcb=Ghcb())
        debug = VcpuDebug([0] * 4, [0] * 4, [0] * 4, [0] * 4, 0, 0, 0, 0, 0, 0, 0)
        vcpu = Vcpu(kvm=self._kvm, thread=None, svm=svm, debug=debug, ap=ap)  # type: ignore[arg-type]
        run = vcpu.thread = HostRun(vcpu, (), (), True, self._processor.host_debug)
        self._marks.clear()
        kvm_arch_vcpu_create(vcpu)
        result = kvm_arch_vcpu_ioctl_run(vcpu)
        self._passed |= self._marks.passed()
        return self._pause(vcpu, run, result)

    def _paused(self, state: Between, result: int, cause: Cause) -> Pause:
        key = (state, result, cause)
        known = self._pauses.get(key)
        if known is None:
            run = set_up(self._kvm, state)
            if cause is not Cause.VMEXIT:
                run.noted = 0
            known = self._pauses[key] = self._pause(run.vcpu, run, result)
            del run.vcpu  # so that no garbage collector has to find the two
        return known

    def _pause(self, vcpu: Vcpu, run: HostRun, result: int) -> Pause:
        kind = {VMRUN: PauseKind.ENTER, SLEEP: PauseKind.BLOCK, ROUND: PauseKind.LOOP}.get(result, PauseKind.USERSPACE)
        vmcb, code_base = vcpu.svm.vmcb, vcpu.cs_base
        if kind is PauseKind.USERSPACE:
            vcpu.signal_pending = 0  # on the way there the thread handles its signals
            vcpu.debug.guest_state_loaded = 0
        elif kind is PauseKind.ENTER:
            _forget_what_the_exit_writes(vcpu)
        reason = -result if result in (EINTR, EINVAL) else run.exit_reason
        return Pause(
            kind=kind,
            private=self._state(vcpu),
            vmcb=pack(vmcb),
            ghcb=pack(vcpu.svm.ghcb),
            senders=tuple(run.senders),
            log=tuple(run.log),
            ipi=run.ipi != 0,
            openings=(),
            warm=run.warm != 0,
            exit_reason=reason if kind is PauseKind.USERSPACE else 0,
            defects=_warned(run.warned),
            unmodelled=UNMODELLED.get(run.unmodelled, ""),
            debug=debug_of(run.cpu),
            host_area=self._host_area(vcpu) if kind is PauseKind.ENTER else NO_HOST_DEBUG,
            sev_features=SVM_SEV_FEAT_DEBUG_SWAP if vcpu.kvm.debug_swap else 0,
            efer_passes=BOTH if vcpu.kvm.sev_es else 0,
            smram=(vcpu.smram_rip, vcpu.smram_rflags),
            code_base=code_base if kind is PauseKind.ENTER else 0,
            host=debug_of(run.itself) if run.noted else None,
        )

    def _state(self, vcpu: Vcpu) -> State:
        vmcb = vcpu.svm.vmcb
        shadow = vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK
        of_vmcb = (shadow, int(gif_set(vcpu)), vmcb.event_inj, vmcb.int_ctl & VNMI_BITS)
        return self._intern(pack(vcpu), pack(vcpu.svm), pack(vcpu.debug), of_vmcb)

    def _intern(self, vcpu: Packed, svm: Packed, debug: Packed, of_vmcb: tuple[int, int, int, int]) -> State:
        key = (vcpu, svm, debug, of_vmcb)
        known = self._states.get(key)
        if known is None:
            known = self._states[key] = State(vcpu, svm, debug, *of_vmcb)
        return known

    def _host_area(self, vcpu: Vcpu) -> Debug:
        return debug_of(DebugRegisters(vcpu.debug.host_dr, vcpu.debug.host_mask, DR7_FIXED_1, DR6_ACTIVE_LOW, 0))


def _forget_what_the_exit_writes(vcpu: Vcpu) -> None:
    """Nobody can see at the next #VMEXIT what was there before it: exit fields, CS, and KVM's copy of RIP."""
    vmcb = vcpu.svm.vmcb
    vcpu.cs_base = 0
    vmcb.exit_code = vmcb.exit_info_1 = vmcb.exit_info_2 = vmcb.exit_int_info = vmcb.exit_int_info_err = 0
    if not vcpu.kvm.sev_es:
        vcpu.rip = 0


def _warned(which: int) -> tuple[tuple[str, CLine], ...]:
    """The WARN that a step reached."""
    if not which:
        return ()
    function, what = WARNS[which]
    return ((f"WARN_ON_ONCE() is reached: {what}", first_line(function)),)


def _view_now(vcpu: Vcpu) -> View:
    """The view in the middle of a step."""
    vmcb = vcpu.svm.vmcb
    return _view(vcpu, vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK, int(gif_set(vcpu)), vmcb.event_inj)


def _view(vcpu: Vcpu, shadow: int, gif: int, event_inj: int) -> View:
    svm = vcpu.svm
    return View(
        nmi_queued=vcpu.nmi_queued,
        nmi_pending=kvm_get_nr_pending_nmis(vcpu),
        nmi_injected=vcpu.nmi_injected,
        nmi_masked=int(svm_get_nmi_mask(vcpu)),
        awaiting_iret_completion=svm.awaiting_iret_completion,
        nmi_singlestep=svm.nmi_singlestep,
        int_shadow=shadow,
        gif=gif,
        event_inj=event_inj,
        requests=vcpu.requests.bit_count(),
        mp_state={KVM_MP_STATE_RUNNABLE: 0, KVM_MP_STATE_HALTED: 1}.get(vcpu.mp_state, 2),
        irq_pending=vcpu.irr,
        irq_injected=vcpu.interrupt_injected,
        exception_pending=int(vcpu.exception_pending or vcpu.exception_injected),
        dr6_active=vcpu.dr6 ^ DR6_ACTIVE_LOW,
        guest_debug=vcpu.debug.guest_debug,
        switch_db_regs=vcpu.debug.switch_db_regs,
        svme=int(vcpu.efer & EFER_SVME != 0),
        smi_pending=vcpu.smi_pending,
        smm=vcpu.smm,
        init_pending=vcpu.pending_events >> KVM_APIC_INIT & 1,
    )
