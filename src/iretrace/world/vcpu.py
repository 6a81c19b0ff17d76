"""The vCPU's half of the product: processor, guest and hypervisor, and what each can do next, worked out once.

Nothing here knows of fairness, of the reference or of what has been observed so far.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from iretrace.explore.interned import Interned
from iretrace.litmus.test import Test
from iretrace.machine.boundary import guest_step, virtual_nmi_due
from iretrace.machine.cpu import (
    DB_VECTOR,
    DR6_RESET,
    OP_HLT,
    OP_INT1,
    OP_LOOK_AT_HOLD,
    SEEN_MARK,
    VC_VECTOR,
    X86_EFLAGS_TF,
    Cpu,
)
from iretrace.machine.ghcb import GHCB_MSR_AP_RESET_HOLD_REQ, GHCB_MSR_INFO_MASK, Ghcb
from iretrace.machine.smm import RESET_VECTOR, find_firmware, find_itself_started
from iretrace.machine.svm import PAGE_SHIFT, SEV_FEATURE_DEBUG_SWAP, exception_intercepted, intercepted, vmrun
from iretrace.machine.swap import lbr_virtualized, swap_in, swap_out
from iretrace.machine.vmcb import (
    INTERCEPT_DR6_READ,
    INTERCEPT_ICEBP,
    SVM_EVTINJ_VEC_MASK,
    SVM_EXIT_ERR,
    SVM_EXIT_ICEBP,
    SVM_EXIT_IRET,
    SVM_EXIT_VMGEXIT,
    Vmcb,
)
from iretrace.subset import pack, unpack
from iretrace.world.bare import forget_seen, observation
from iretrace.world.core import ASKED, FINISHED, UNSTARTED, Core, Did, HostStep, Phase, Schedule, Senders, SenderStep
from iretrace.world.debugger import after_stop, wanted_of
from iretrace.world.guest import make_cpu, make_machine
from iretrace.world.host import changed_debug, debug_of, state_of
from iretrace.world.ioctls import IOCTLS, by_vmm, sender_kind
from iretrace.world.protocol import (
    NO_SENDER,
    ApHypervisor,
    CallableHypervisor,
    Cause,
    Debug,
    DebuggableHypervisor,
    Hypervisor,
    Pause,
    PauseKind,
    SenderState,
    VmmCall,
)
from iretrace.world.schedules import MayLand, differing

KVM_EXIT_DEBUG = 4
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTERNAL_ERROR = 17
HALTED = 1
INIT_RECEIVED = 2
"""View.mp_state of a vCPU that waits for a SIPI: the others have nothing but 0 and 1."""
EINTR = 4
EAGAIN = 11

NO_GHCB_EVENT = {SVM_EXIT_IRET: "IRET", SVM_EXIT_ICEBP: "INT1"}
"""Instructions whose intercept an encrypted guest can do nothing about: the GHCB specification has no such event."""

NOT_IN_THIS_PROTOCOL = "no contract: the hypervisor has no AP reset hold by the GHCB MSR protocol (version 2)"


class Vcpu:
    """Processor, guest and hypervisor of one test, for one value of the knobs.

    ValueError: the hypervisor's vCPU is of another kind, and the processor would do for it what it does for none."""

    def __init__(self, test: Test, vcpu: str, hypervisor: Hypervisor, knobs: int) -> None:
        if hypervisor.vcpu != vcpu:
            raise ValueError(f"{hypervisor.name} was opened for {hypervisor.vcpu}, not for {vcpu}")
        self.hypervisor = hypervisor
        self.machine = make_machine(test, vcpu, knobs, hypervisor.processor)
        self.first = pack(make_cpu(test, vcpu))
        self._holds = frozenset(n for n, op in enumerate(self.machine.ops) if op == OP_LOOK_AT_HOLD)
        self.cores: Interned[Core] = Interned()
        self.cpus: Interned[tuple[int, ...]] = Interned()
        self.vmcbs: Interned[tuple[int, ...]] = Interned()
        self.ghcbs: Interned[tuple[int, ...]] = Interned()
        self.privates: Interned[Hashable] = Interned()
        self.debugs: Interned[tuple[Debug, Debug]] = Interned()
        self.senders: Interned[SenderState] = Interned()
        self.fresh = tuple(self.senders(hypervisor.sender(sender_kind(arrival))) for arrival in test.outside)
        self._by_vmm = tuple(by_vmm(arrival) for arrival in test.outside)
        """For each arrival: the number of its sender's state before the first step."""
        self._did: dict[tuple[int, int, int], Did] = {}
        self._interrupted: dict[int, int] = {}
        self._left: dict[tuple[int, bool, int], tuple[int, int]] = {}
        self._pauses: dict[Hashable, list[tuple[Schedule, Pause]]] = {}
        self._shows_dr6: dict[int, bool] = {}
        self._handed: dict[tuple[int, bool, int], int] = {}
        self._entered: dict[Hashable, tuple[int, int] | None] = {}

    def core(self, number: int) -> Core:
        """The core of that number."""
        return self.cores.values[number]

    def cpu(self, core: int) -> Cpu:
        """A copy of a core's processor."""
        return unpack(Cpu, self.cpus.values[self.cores.values[core].cpu])

    def vmcb(self, core: int) -> Vmcb:
        """A copy of a core's VMCB."""
        return unpack(Vmcb, self.vmcbs.values[self.cores.values[core].vmcb])

    def ghcb(self, core: int) -> Ghcb:
        """A copy of a core's GHCB."""
        return unpack(Ghcb, self.ghcbs.values[self.cores.values[core].ghcb])

    def private(self, core: int) -> Hashable:
        """A core's hypervisor state."""
        return self.privates.values[self.cores.values[core].private]

    def debug(self, core: int) -> Debug:
        """The physical CPU's debug registers, where the host has the CPU."""
        return self.debugs.values[self.cores.values[core].debug][0]

    # The guest. -------------------------------------------------------------------------------------------------

    def did(self, core: int) -> Did:
        """What the guest's next step does."""
        _, _, cpu, vmcb, ghcb, *_ = self.cores.values[core]
        known = self._did.get((cpu, vmcb, ghcb))
        if known is None:
            known = self._did[cpu, vmcb, ghcb] = self._guest_step(self.cpu(core), self.vmcb(core), self.ghcb(core))
        return known

    def after(self, core: int, did: Did) -> int:
        """The core after the guest's step."""
        _, _, _, _, _, private, debugger, debug = self.cores.values[core]
        if not did.exited:
            return self.cores(Core(Phase.GUEST, 0, did.cpu, did.vmcb, did.ghcb, private, debugger, debug))
        cpu, debug = self._swap_out(did.cpu, did.vmcb, debug)
        return self.cores(Core(Phase.HOST, Cause.VMEXIT, cpu, did.vmcb, did.ghcb, private, debugger, debug))

    def _swap_out(self, cpu: int, vmcb: int, debug: int) -> tuple[int, int]:
        """Processor and debug registers after #VMEXIT."""
        switched = lbr_virtualized(unpack(Vmcb, self.vmcbs.values[vmcb]))
        known = self._left.get((cpu, switched, debug))
        if known is None:
            left = unpack(Cpu, self.cpus.values[cpu])
            physical, area = (state_of(registers) for registers in self.debugs.values[debug])
            swap_out(self.machine, left, physical, area, switched)
            after = (debug_of(physical), self.debugs.values[debug][1])
            known = self._left[cpu, switched, debug] = (self.cpus(pack(left)), self.debugs(after))
        return known

    def _guest_step(self, cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb) -> Did:
        before = cpu.rip
        delivering = cpu.event_inj != 0 or cpu.trap != 0 or cpu.smm_found != 0
        delivering = delivering or virtual_nmi_due(cpu, vmcb)
        guest_step(self.machine, cpu, vmcb, ghcb)
        shown = observation(cpu)
        mark = cpu.seen_vector if cpu.seen == SEEN_MARK else -1
        exited = cpu.guest_mode == 0
        retired = not delivering and (not exited or vmcb.exit_code == SVM_EXIT_VMGEXIT or cpu.rip != before)
        defect = self._guest_defect(cpu)
        forget_seen(cpu)
        after = (self.cpus(pack(cpu)), self.vmcbs(pack(vmcb)), self.ghcbs(pack(ghcb)))
        return Did(*after, exited, shown, mark, retired, defect)

    def _guest_defect(self, cpu: Cpu) -> str:
        """Defects whatever the history: a #VC that no GHCB event answers; a shutdown nobody intercepts."""
        if cpu.shutdown and cpu.guest_mode:
            return "the guest shuts down and the hypervisor does not intercept it: the host's processor shuts down"
        at_vc = self.machine.idt[VC_VECTOR] == cpu.rip + 1
        if self.machine.sev_es and at_vc and cpu.rsp < len(cpu.memory) and cpu.memory[cpu.rsp] in NO_GHCB_EVENT:
            what = NO_GHCB_EVENT[cpu.memory[cpu.rsp]]
            return f"the guest gets #VC for its {what}, an event that the GHCB protocol does not have"
        return ""

    def halted_at(self, core: int) -> int:
        """RIP of a sleeping vCPU's guest: behind its HLT, which exits before it is done, but under SEV-ES after."""
        rip = self.cpu(core).rip
        return rip + 1 if not self.machine.sev_es and self.machine.ops[rip] == OP_HLT else rip

    def is_halted(self, core: int) -> bool:
        """Whether the guest has executed HLT, and nothing has ended it."""
        return self.hypervisor.view(self.private(core)).mp_state == HALTED

    def held_at(self, core: int) -> int:
        """Where the guest is in AP reset hold: it has asked for it, and not looked at an answer yet. Else -1."""
        if not self._holds or self.cores.values[core].phase in (Phase.GUEST, Phase.ENDED):
            return -1
        rip = self.cpus.values[self.cores.values[core].cpu][0]
        return rip if rip in self._holds else -1

    def waits_for_sipi(self, core: int) -> bool:
        """Whether the vCPU has taken an INIT, and no SIPI yet."""
        return self.hypervisor.view(self.private(core)).mp_state == INIT_RECEIVED

    def interrupted(self, core: int) -> int:
        """The core with a physical interrupt pending."""
        known = self._interrupted.get(core)
        if known is None:
            cpu = self.cpu(core)
            cpu.intr_pending = 1
            changed = self.cores.values[core]._replace(cpu=self.cpus(pack(cpu)))
            known = self._interrupted[core] = self.cores(changed)
        return known

    # Other CPUs. ------------------------------------------------------------------------------------------------

    def sender_step(self, core: int, sender: int) -> SenderStep:
        """A step of a sender while the guest runs, or the vCPU sleeps or is in userspace."""
        sent = self.hypervisor.send(self.private(core), self.senders.values[sender])
        left = FINISHED if sent.sender is NO_SENDER else self.senders(sent.sender)
        if sent.unmodelled:
            return SenderStep(sent, -1, left)
        after = self.cores(self.cores.values[core]._replace(private=self.privates(sent.private)))
        if sent.ipi and self.cores.values[core].phase == Phase.GUEST:
            after = self.interrupted(after)
        return SenderStep(sent, after, left)

    # The hypervisor. --------------------------------------------------------------------------------------------

    def start(self, arrivals: int) -> HostStep:
        """Create the vCPU and run it to its first VMRUN. No sender is around yet."""
        pause = self._first_pause()
        if not pause.unmodelled and not self.machine.sev_es:
            pause = pause._replace(vmcb=self._set_registers(pause.vmcb))
        self.machine.efer_passes = pause.efer_passes
        first = unpack(Cpu, self.first)
        first.debug_swap = pause.sev_features >> SEV_FEATURE_DEBUG_SWAP & 1
        first.rflags |= pause.launched[0] & X86_EFLAGS_TF
        first.dr7 |= pause.launched[1]
        return self._hand_over(self.cpus(pack(first)), 0, (UNSTARTED,) * arrivals, (), pause, False)

    def _first_pause(self) -> Pause:
        if not self.machine.ap:
            return self.hypervisor.start()
        if isinstance(self.hypervisor, ApHypervisor):
            return self.hypervisor.start_ap()
        return self.hypervisor.start()._replace(unmodelled="this hypervisor has no application processors")

    def _set_registers(self, packed: tuple[int, ...]) -> tuple[int, ...]:
        """What the VMM's KVM_SET_REGS and KVM_SET_SREGS before the first KVM_RUN comes to at the first VMRUN."""
        vmcb, cpu = unpack(Vmcb, packed), unpack(Cpu, self.first)
        vmcb.rip, vmcb.rsp, vmcb.rflags, vmcb.cpl, vmcb.ss = cpu.rip, cpu.rsp, cpu.rflags, cpu.cpl, cpu.ss
        return pack(vmcb)

    def woken(self, core: int) -> int:
        """The core of a sleeping vCPU after it woke up, or -1: nobody has woken it."""
        if not self.hypervisor.runnable(self.private(core)):
            return -1
        return self.cores(self.cores.values[core]._replace(phase=Phase.HOST, cause=Cause.WAKE))

    def pauses(
        self, core: int, senders: Senders, around: tuple[SenderState, ...], may_land: MayLand
    ) -> list[tuple[Schedule, Pause]]:
        """The hypervisor's step under every schedule that makes a difference, short ones first.

        around: what each sender that may land has still to do. may_land: whether another one may.
        """
        _, cause, _, vmcb, ghcb, private, _, debug = self.cores.values[core]
        key = (cause, vmcb, ghcb, private, debug, senders, self.held_at(core))
        known = self._pauses.get(key)
        if known is not None:
            return known

        def step(schedule: Schedule) -> Pause:
            state = (self.private(core), self.vmcb(core), self.ghcb(core))
            return self.hypervisor.step(*state, Cause(cause), around, schedule, self.debug(core))

        made = self._pauses[key] = differing(step, may_land)
        return made

    def handed_over(self, core: int, senders: Senders, schedule: Schedule, pause: Pause) -> HostStep:
        """What becomes of a core by a step of the hypervisor."""
        vmcb, cause = self.vmcb(core), self.cores.values[core].cause
        faulted_page = vmcb.exit_info_2 >> PAGE_SHIFT
        asked = cause == Cause.VMEXIT and vmcb.exit_code == SVM_EXIT_VMGEXIT
        _, _, cpu, _, _, _, debugger, _ = self.cores.values[core]
        made = self._hand_over(cpu, faulted_page, senders, schedule, pause, asked, debugger)
        if asked and made.core >= 0 and _ignored(vmcb, pause):
            return replace(made, core=-1, log=(), unmodelled=NOT_IN_THIS_PROTOCOL)
        return made

    def _hand_over(
        self, cpu: int, page: int, senders: Senders, schedule: Schedule, pause: Pause, asked: bool, debugger: int = 0
    ) -> HostStep:
        """page: the stack page of the nested page fault that the step was entered for. asked: or it was a VMGEXIT."""
        label = ("host", schedule)
        if pause.unmodelled:
            return HostStep(label, -1, senders, (), unmodelled=pause.unmodelled)
        if pause.defects:
            return HostStep(label, -1, senders, (), defect=pause.defects[0][0])
        if asked and (refusal := _refusal(unpack(Ghcb, pause.ghcb))):
            return HostStep(label, -1, senders, (), defect=refusal)
        if pause.host is not None and (change := changed_debug(self.hypervisor.processor.host_debug, pause.host)):
            return HostStep(label, -1, senders, (), defect=change)
        made = HostStep(label, -1, self._senders_after(senders, pause), pause.log)
        core = Core(
            Phase.HOST,
            0,
            self._resumed(cpu, pause.ipi, page if pause.warm else -1),
            self.vmcbs(pause.vmcb),
            self.ghcbs(pause.ghcb),
            self.privates(pause.private),
            debugger,
            self.debugs((pause.debug, pause.host_area)),
        )
        if pause.kind == PauseKind.ENTER:
            self._enter(core, made, pause.smram, pause.code_base)
        elif pause.kind == PauseKind.BLOCK:
            made.core = self.cores(core._replace(phase=Phase.BLOCKED))
        elif pause.kind == PauseKind.LOOP:
            made.core = self.cores(core._replace(phase=Phase.LOOPS))
        else:
            self._to_userspace(core, pause.exit_reason, made)
        return made

    def finished(self, number: int) -> int:
        """The state of a sender that has taken its last step."""
        return ASKED if self._by_vmm[number] else FINISHED

    def set_guest_debug(self, core: int, debugger: int, target: int) -> HostStep:
        """The VMM calls KVM_SET_GUEST_DEBUG. An encrypted guest's is refused; another one's is not."""
        if not isinstance(self.hypervisor, DebuggableHypervisor):
            return HostStep(("ioctl",), -1, (), (), unmodelled="this hypervisor has no KVM_SET_GUEST_DEBUG")
        at = (self.private(core), self.vmcb(core), self.ghcb(core))
        pause = self.hypervisor.set_guest_debug(*at, wanted_of(debugger, target), self.debug(core))
        made = self.handed_over(core, (), (), pause._replace(exit_reason=-EINTR))
        if pause.exit_reason == 0 and self.machine.sev_es:
            made.core, made.defect = -1, "KVM_SET_GUEST_DEBUG succeeds for a guest whose state is protected"
        elif pause.exit_reason != 0 and not self.machine.sev_es:
            made.core, made.defect = -1, f"KVM_SET_GUEST_DEBUG fails with errno {-pause.exit_reason}"
        elif made.core >= 0 and pause.exit_reason == 0:
            made.core = self.cores(self.cores.values[made.core]._replace(debugger=debugger))
        return made

    def vmm_call(self, core: int, call: VmmCall) -> HostStep:
        """The VMM calls an ioctl about events, which succeeds."""
        if not isinstance(self.hypervisor, CallableHypervisor):
            return HostStep(("ioctl",), -1, (), (), unmodelled=f"this hypervisor has no {IOCTLS[call]}")
        at = (self.private(core), self.vmcb(core), self.ghcb(core))
        pause = self.hypervisor.vmm_call(*at, call, self.debug(core))
        made = self.handed_over(core, (), (), pause._replace(exit_reason=-EINTR))
        if pause.exit_reason != 0:
            made.core, made.defect = -1, f"{IOCTLS[call]} fails with errno {-pause.exit_reason}"
        return made

    def _senders_after(self, senders: Senders, pause: Pause) -> Senders:
        after = list(senders)
        for what, number in pause.log:
            after[number] = 0 if what == "start" else self.finished(number)
        return tuple(
            self.senders(pause.senders[number]) if sender >= 0 else sender for number, sender in enumerate(after)
        )

    def _resumed(self, number: int, ipi: bool, warmed: int) -> int:
        """The processor at a hand-over: interrupts were taken by the host, but for a new one; a page was mapped."""
        key = (number, ipi, warmed)
        known = self._handed.get(key)
        if known is None:
            cpu = unpack(Cpu, self.cpus.values[number])
            cpu.intr_pending = int(ipi)
            if warmed >= 0:
                cpu.cold &= ~(1 << warmed)
            known = self._handed[key] = self.cpus(pack(cpu))
        return known

    def _enter(self, core: Core, made: HostStep, smram: tuple[int, int], code_base: int) -> None:
        """VMRUN: a refusal is a defect."""
        read_dr6 = self._dr6_as_read(core)
        key = (core.cpu, core.vmcb, read_dr6, core.debug, smram, code_base)
        if key not in self._entered:
            cpu = unpack(Cpu, self.cpus.values[core.cpu])
            vmcb = unpack(Vmcb, self.vmcbs.values[core.vmcb])
            cpu.read_dr6 = read_dr6
            swap_in(cpu, state_of(self.debugs.values[core.debug][0]), lbr_virtualized(vmcb))
            vmrun(self.machine, cpu, vmcb)
            self._find_firmware(cpu, smram)
            find_itself_started(self.machine, cpu, code_base)
            refused = vmcb.exit_code == SVM_EXIT_ERR and cpu.guest_mode == 0
            self._entered[key] = None if refused else (self.cpus(pack(cpu)), self.vmcbs(pack(vmcb)))
        entered = self._entered[key]
        if entered is None:
            made.defect = "the processor refuses this VMRUN: #VMEXIT(INVALID)"
            return
        made.core = self.cores(core._replace(phase=Phase.GUEST, cause=0, cpu=entered[0], vmcb=entered[1]))

    def _find_firmware(self, cpu: Cpu, smram: tuple[int, int]) -> None:
        """Where the hypervisor has put the guest at the entry of SMM it finds itself there; SMRAM says since where."""
        find_firmware(self.machine, cpu)
        if cpu.smm_found:
            at_reset = smram[0] == RESET_VECTOR and self.machine.init
            cpu.smm_rip = self.machine.init - 1 if at_reset else smram[0] & 0xFFFF
            cpu.smm_rflags = smram[1] & 0xFFFF_FFFF

    def _dr6_as_read(self, core: Core) -> int:
        """What the hypervisor answers if the guest reads DR6 in a #DB handler that it can enter now; 0: it need not."""
        known = self._shows_dr6.get(core.vmcb)
        if known is None:
            vmcb = unpack(Vmcb, self.vmcbs.values[core.vmcb])
            enters = vmcb.event_inj & SVM_EVTINJ_VEC_MASK == DB_VECTOR or not exception_intercepted(vmcb, DB_VECTOR)
            enters |= OP_INT1 in self.machine.ops and not intercepted(vmcb, INTERCEPT_ICEBP)
            answered = (vmcb.intercept_dr >> INTERCEPT_DR6_READ) & 1 != 0 and not self.machine.sev_es
            known = self._shows_dr6[core.vmcb] = enters and answered
        return self.hypervisor.view(self.privates.values[core.private]).dr6_active ^ DR6_RESET if known else 0

    def _to_userspace(self, core: Core, reason: int, made: HostStep) -> None:
        """KVM_RUN returned. After a signal it is called again; errors are defects; the rest is not modelled."""
        if reason in (-EINTR, -EAGAIN):
            made.core = self.cores(core._replace(cause=Cause.RERUN))
        elif reason == KVM_EXIT_DEBUG and core.debugger:
            made.core = self.cores(core._replace(cause=Cause.RERUN, debugger=after_stop(core.debugger)))
        elif reason == KVM_EXIT_DEBUG:
            made.defect = "KVM_EXIT_DEBUG although no debugger is attached"
        elif reason == KVM_EXIT_SHUTDOWN and unpack(Cpu, self.cpus.values[core.cpu]).shutdown:
            made.core = self.cores(core._replace(phase=Phase.ENDED))
        elif reason == KVM_EXIT_SHUTDOWN:
            made.defect = "KVM_EXIT_SHUTDOWN although the guest has not shut down"
        elif reason == KVM_EXIT_INTERNAL_ERROR:
            made.defect = "KVM_EXIT_INTERNAL_ERROR"
        elif reason == KVM_EXIT_FAIL_ENTRY:
            made.defect = "KVM_EXIT_FAIL_ENTRY"
        elif reason < 0:
            made.defect = f"KVM_RUN fails with errno {-reason}"
        else:
            made.unmodelled = f"KVM_RUN returns to userspace with exit reason {reason}; no VMM for it is modelled"


def _ignored(vmcb: Vmcb, pause: Pause) -> bool:
    """A request of the GHCB MSR protocol stands where its response belongs."""
    asks = vmcb.ghcb_gpa & GHCB_MSR_INFO_MASK == GHCB_MSR_AP_RESET_HOLD_REQ
    return asks and unpack(Vmcb, pause.vmcb).ghcb_gpa == vmcb.ghcb_gpa


def _refusal(ghcb: Ghcb) -> str:
    """What the guest asks for by VMGEXIT here has a contract, so that it has to be done: SW_EXITINFO1 is 0."""
    if ghcb.sw_exit_info_1 == 0:
        return ""
    result = f"SW_EXITINFO1 {ghcb.sw_exit_info_1:#x}, SW_EXITINFO2 {ghcb.sw_exit_info_2:#x}"
    return f"the guest's VMGEXIT({ghcb.sw_exit_code:#x}) is not done but answered with an error: {result}"
