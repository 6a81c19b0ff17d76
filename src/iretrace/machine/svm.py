"""SVM: VMRUN with its checks, #VMEXIT, EVENTINJ and EXITINTINFO, intercepts; and SEV-ES's two kinds of exit."""

from __future__ import annotations

from iretrace.machine.cpu import (
    BP_VECTOR,
    KNOB_SHADOW_BLOCKS_EXIT,
    OF_VECTOR,
    SHADOW_NONE,
    SHADOW_STI,
    X86_EFLAGS_IF,
    Cpu,
    Machine,
    knob,
)
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_INTR,
    INTERCEPT_SHUTDOWN,
    INTERCEPT_VINTR,
    INTERCEPT_VMRUN,
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_TYPE_INTR,
    SVM_EVTINJ_TYPE_MASK,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_TYPE_SOFT,
    SVM_EVTINJ_VALID,
    SVM_EVTINJ_VEC_MASK,
    SVM_EXIT_ERR,
    SVM_EXIT_EXCP_BASE,
    SVM_EXIT_INTR,
    SVM_EXIT_NPF,
    SVM_EXIT_SHUTDOWN,
    SVM_EXIT_VINTR,
    SVM_GUEST_INTERRUPT_MASK,
    SVM_INTERRUPT_SHADOW_MASK,
    SVM_NESTED_CTL_SEV_ES_ENABLE,
    V_GIF_ENABLE_MASK,
    V_GIF_MASK,
    V_IGN_TPR_MASK,
    V_INTR_MASKING_MASK,
    V_INTR_PRIO_MASK,
    V_INTR_PRIO_SHIFT,
    V_IRQ_MASK,
    V_NMI_ENABLE_MASK,
    V_TPR_MASK,
    Vmcb,
)
from iretrace.machine.vnmi import load_virtual_nmi, save_virtual_nmi, unmask_if_cut_off
from iretrace.subset import rule, u8, u16, u32, u64, wrap16, wrap32, wrap64

SEV_FEATURE_DEBUG_SWAP = 5
"""Bit number in SEV_FEATURES."""

INTERCEPT_NMI_BIT = 1 << 1
NPF_WRITE_USER = 0x6
PAGE_SHIFT = 12


def intercepted(vmcb: Vmcb, number: u8) -> bool:
    """Whether the instruction or event intercept of that number (svm.h's enum) is set."""
    if number < 128:
        return (vmcb.intercept_word3 >> (number & 31)) & 1 != 0
    if number < 160:
        return (vmcb.intercept_word4 >> (number & 31)) & 1 != 0
    return (vmcb.intercept_word5 >> (number & 31)) & 1 != 0


def exception_intercepted(vmcb: Vmcb, vector: u8) -> bool:
    """Whether the exception intercept of that vector is set."""
    return (vmcb.intercept_exception >> (vector & 31)) & 1 != 0


@rule("AMD64 APM vol. 2", "Event Injection")
def event_inj_legal(event_inj: u32) -> bool:
    """EVENTINJ: reserved types, and type 3 with a vector that is no exception (2 included), are refused."""
    kind: u32 = event_inj & SVM_EVTINJ_TYPE_MASK
    vector: u32 = event_inj & SVM_EVTINJ_VEC_MASK
    if kind == SVM_EVTINJ_TYPE_EXEPT:
        return vector != 2 and vector < 32
    if kind == SVM_EVTINJ_TYPE_NMI:
        return True
    if kind == SVM_EVTINJ_TYPE_INTR:
        return True
    return kind == SVM_EVTINJ_TYPE_SOFT


@rule("AMD64 APM vol. 2", "Encrypted State (SEV-ES): VMRUN: event injection for SEV-ES guests is restricted")
def event_inj_legal_sev_es(event_inj: u32) -> bool:
    """SEV-ES: software interrupts and the exceptions 3 and 4 cannot be injected."""
    kind: u32 = event_inj & SVM_EVTINJ_TYPE_MASK
    vector: u32 = event_inj & SVM_EVTINJ_VEC_MASK
    if kind == SVM_EVTINJ_TYPE_SOFT:
        return False
    return not (kind == SVM_EVTINJ_TYPE_EXEPT and BP_VECTOR <= vector <= OF_VECTOR)


@rule("AMD64 APM vol. 2", "Allowed SEV Features", "read")
def features_allowed(cpu: Cpu, vmcb: Vmcb) -> bool:
    """A VMSA may turn on only what ALLOWED_SEV_FEATURES has, if that is valid."""
    if (vmcb.allowed_sev_features >> 63) & 1 == 0 or cpu.debug_swap == 0:
        return True
    return (vmcb.allowed_sev_features >> SEV_FEATURE_DEBUG_SWAP) & 1 != 0


@rule("AMD64 APM vol. 2", "VMRUN Instruction: Canonicalization and Consistency Checks")
def vmcb_consistent(m: Machine, cpu: Cpu, vmcb: Vmcb) -> bool:
    """VMRUN refuses: VMRUN not intercepted, ASID 0, an illegal EVENTINJ, vNMI without the NMI intercept, a SEV-ES
    guest that is not set up as one; for other guests EFER.SVME clear and high bits in DR6 or DR7."""
    if not intercepted(vmcb, INTERCEPT_VMRUN) or vmcb.asid == 0:
        return False
    if vmcb.event_inj & SVM_EVTINJ_VALID != 0 and not event_inj_legal(vmcb.event_inj):
        return False
    if vmcb.int_ctl & V_NMI_ENABLE_MASK != 0 and vmcb.intercept_word3 & INTERCEPT_NMI_BIT == 0:
        return False
    if m.sev_es:
        if vmcb.nested_ctl & SVM_NESTED_CTL_SEV_ES_ENABLE == 0 or vmcb.vmsa_pa == 0:
            return False
        if not features_allowed(cpu, vmcb):
            return False
        return vmcb.event_inj & SVM_EVTINJ_VALID == 0 or event_inj_legal_sev_es(vmcb.event_inj)
    return vmcb.efer & EFER_SVME != 0 and vmcb.dr6 >> 32 == 0 and vmcb.dr7 >> 32 == 0


@rule("AMD64 APM vol. 2", "VMRUN Instruction; Interrupt Shadows")
def vmrun(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """Enter the guest: check the VMCB, load guest state, the interrupt shadow and EVENTINJ."""
    if not vmcb_consistent(m, cpu, vmcb):
        vmcb.exit_code = SVM_EXIT_ERR
        vmcb.exit_info_1 = 0
        vmcb.exit_info_2 = 0
        vmcb.exit_int_info = 0
        vmcb.exit_int_info_err = 0
        return
    cpu.guest_mode = 1
    cpu.shadow = SHADOW_STI if vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK != 0 else SHADOW_NONE
    if vmcb.event_inj & SVM_EVTINJ_VALID != 0:
        cpu.event_inj = vmcb.event_inj
        cpu.event_inj_err = vmcb.event_inj_err
    load_virtual_nmi(cpu, vmcb)
    if m.sev_es == 0:
        load_guest_state(cpu, vmcb)


@rule("AMD64 APM vol. 2", "VMRUN Instruction: Loading Guest State; Single Stepping")
def load_guest_state(cpu: Cpu, vmcb: Vmcb) -> None:
    """RIP, RSP, RFLAGS, CPL, SS, RAX, EFER, DR6, DR7 come from the VMCB; no trap is pending, whatever TF says. SEV-ES
    guests load them from the VMSA, so that nothing which the hypervisor writes into the save area has any effect.

    What the next #VMEXIT writes in any case is cleared here, so that it makes no difference while the guest runs."""
    cpu.rip = wrap16(vmcb.rip)
    cpu.rsp = wrap16(vmcb.rsp)
    cpu.rflags = wrap32(vmcb.rflags)
    cpu.cpl = vmcb.cpl
    cpu.ss = vmcb.ss
    cpu.rax = vmcb.rax
    cpu.efer = wrap32(vmcb.efer)
    cpu.dr6 = wrap32(vmcb.dr6)
    cpu.dr7 = wrap32(vmcb.dr7)
    cpu.trap = 0
    vmcb.rip = 0
    vmcb.rsp = 0
    vmcb.rflags = 0
    vmcb.cpl = 0
    vmcb.ss = 0
    vmcb.rax = 0
    vmcb.dr6 = 0
    vmcb.dr7 = 0
    vmcb.exit_code = 0
    vmcb.exit_info_1 = 0
    vmcb.exit_info_2 = 0
    vmcb.exit_int_info = 0
    vmcb.exit_int_info_err = 0
    if cpu.event_inj == 0:
        vmcb.next_rip = 0


@rule("AMD64 APM vol. 2", "#VMEXIT: Saving Guest State")
def save_guest_state(cpu: Cpu, vmcb: Vmcb) -> None:
    """The registers of a guest whose state is not encrypted."""
    vmcb.rip = cpu.rip
    vmcb.rsp = cpu.rsp
    vmcb.rflags = cpu.rflags
    vmcb.cpl = cpu.cpl
    vmcb.ss = cpu.ss
    vmcb.rax = cpu.rax
    vmcb.efer = cpu.efer
    vmcb.dr6 = cpu.dr6
    vmcb.dr7 = cpu.dr7


@rule("AMD64 APM vol. 2", "#VMEXIT; Exit During IDT Vectoring; Interrupt Shadows")
def vmexit(m: Machine, cpu: Cpu, vmcb: Vmcb, code: u64, info_1: u64, info_2: u64) -> None:
    """Leave the guest: exit code and infos, guest state, the interrupt shadow and (SEV-ES) the guest's IF are saved;
    EVENTINJ reads 0, all of it (as KVM expects in svm_vcpu_run(), and QEMU has it in do_vmexit()); EXITINTINFO is not
    valid unless the caller says that a delivery was cut off, nor is nRIP. A VMCB has no field that says that the guest
    was halted, and none for a trap."""
    vmcb.exit_code = code
    vmcb.exit_info_1 = info_1
    vmcb.exit_info_2 = info_2
    vmcb.exit_int_info = 0
    vmcb.exit_int_info_err = 0
    vmcb.event_inj = 0
    vmcb.next_rip = 0
    state: u32 = SVM_INTERRUPT_SHADOW_MASK if cpu.shadow != SHADOW_NONE else 0
    if m.sev_es and cpu.rflags & X86_EFLAGS_IF != 0:
        state |= SVM_GUEST_INTERRUPT_MASK
    vmcb.int_state = state
    save_virtual_nmi(cpu, vmcb)
    if m.sev_es == 0:
        save_guest_state(cpu, vmcb)
    cpu.guest_mode = 0
    cpu.halted = 0
    cpu.trap = 0
    cpu.read_dr6 = 0
    cpu.event_inj = 0
    cpu.event_inj_err = 0


@rule("AMD64 APM vol. 2", "Instruction Intercepts; State Saved on Exit: nRIP")
def exits_instead(m: Machine, cpu: Cpu, vmcb: Vmcb, number: u8) -> bool:
    """An intercepted instruction of a guest whose state is not encrypted exits before it has done anything: RIP is at
    it, nRIP behind it. The exit code is the number of the intercept."""
    if cpu.guest_mode == 0 or m.sev_es or not intercepted(vmcb, number):
        return False
    vmexit(m, cpu, vmcb, number, 0, 0)
    vmcb.next_rip = wrap64(cpu.rip + 1)
    return True


@rule("AMD64 APM vol. 2", "Exception Intercepts; Exit During IDT Vectoring")
def vmexit_exception(m: Machine, cpu: Cpu, vmcb: Vmcb, vector: u8, error: u32, event: u32, event_error: u32) -> None:
    """#VMEXIT(40h + vector) instead of the exception. event: what was being delivered when it arose, or 0."""
    unmask_if_cut_off(cpu, event)
    vmexit(m, cpu, vmcb, wrap64(SVM_EXIT_EXCP_BASE + vector), error, 0)
    vmcb.exit_int_info = event
    vmcb.exit_int_info_err = event_error


@rule("AMD64 APM vol. 2", "Exit During IDT Vectoring; Nested Page Fault: EXITINFO")
def vmexit_stack_npf(m: Machine, cpu: Cpu, vmcb: Vmcb, page: u16, event: u32, error: u32) -> None:
    """#NPF on the stack page while an event is delivered: EXITINTINFO names the event, which has not happened."""
    unmask_if_cut_off(cpu, event)
    vmexit(m, cpu, vmcb, SVM_EXIT_NPF, NPF_WRITE_USER, wrap64(page << PAGE_SHIFT))
    vmcb.exit_int_info = event
    vmcb.exit_int_info_err = error


@rule("AMD64 APM vol. 2", "Shutdown Intercept; Types of Exits (SEV-ES)")
def vmexit_shutdown(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """Shutdown is intercepted (an automatic exit under SEV-ES), or the guest's processor stops for good."""
    if intercepted(vmcb, INTERCEPT_SHUTDOWN):
        vmexit(m, cpu, vmcb, SVM_EXIT_SHUTDOWN, 0, 0)


@rule("AMD64 APM vol. 2", "INTR Intercept; Virtualizing APIC.TPR and RFLAGS.IF")
def intr_exit_due(m: Machine, cpu: Cpu, vmcb: Vmcb) -> bool:
    """A physical interrupt ends guest mode at the next boundary; without V_INTR_MASKING only if the guest's IF is set.
    The guest's shadow does not delay it (disputed)."""
    if cpu.intr_pending == 0 or not intercepted(vmcb, INTERCEPT_INTR):
        return False
    if vmcb.int_ctl & V_INTR_MASKING_MASK == 0 and cpu.rflags & X86_EFLAGS_IF == 0:
        return False
    if cpu.shadow == SHADOW_NONE:
        return True
    return not knob(m, KNOB_SHADOW_BLOCKS_EXIT)


def take_intr_exit(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """#VMEXIT(INTR): the interrupt stays pending for the host, RIP is where it was."""
    vmexit(m, cpu, vmcb, SVM_EXIT_INTR, 0, 0)


@rule("AMD64 APM vol. 2", "Virtual GIF")
def virtual_gif_holds(vmcb: Vmcb) -> bool:
    """GIF is virtual and V_GIF clear: virtual interrupts and virtual NMIs wait."""
    return vmcb.int_ctl & V_GIF_ENABLE_MASK != 0 and vmcb.int_ctl & V_GIF_MASK == 0


@rule("AMD64 APM vol. 2", "Injecting Virtual (INTR) Interrupts; Virtual GIF")
def virtual_intr_due(cpu: Cpu, vmcb: Vmcb) -> bool:
    """V_IRQ is recognised if its priority is above V_TPR (or that is ignored), the guest's IF is set, no shadow is cast
    and, where GIF is virtual, V_GIF is set."""
    if vmcb.int_ctl & V_IRQ_MASK == 0 or cpu.rflags & X86_EFLAGS_IF == 0 or cpu.shadow != SHADOW_NONE:
        return False
    if virtual_gif_holds(vmcb):
        return False
    priority: u32 = (vmcb.int_ctl & V_INTR_PRIO_MASK) >> V_INTR_PRIO_SHIFT
    return vmcb.int_ctl & V_IGN_TPR_MASK != 0 or priority > vmcb.int_ctl & V_TPR_MASK


@rule("AMD64 APM vol. 2", "VINTR Intercept")
def vintr_exits(m: Machine, cpu: Cpu, vmcb: Vmcb) -> bool:
    """Where a virtual interrupt would be taken, the VINTR intercept exits instead and consumes nothing."""
    if not intercepted(vmcb, INTERCEPT_VINTR):
        return False
    vmexit(m, cpu, vmcb, SVM_EXIT_VINTR, 0, 0)
    return True
