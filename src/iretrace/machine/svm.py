"""SVM: VMRUN with its checks, #VMEXIT, EVENTINJ and EXITINTINFO, intercepts; and SEV-ES's two kinds of exit."""

from __future__ import annotations

from iretrace.machine.cpu import (
    KNOB_SHADOW_BLOCKS_EXIT,
    SHADOW_NONE,
    SHADOW_STI,
    X86_EFLAGS_IF,
    Cpu,
    Machine,
    knob,
)
from iretrace.machine.vmcb import (
    INTERCEPT_INTR,
    INTERCEPT_SHUTDOWN,
    INTERCEPT_VMRUN,
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_TYPE_INTR,
    SVM_EVTINJ_TYPE_MASK,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_TYPE_SOFT,
    SVM_EVTINJ_VALID,
    SVM_EVTINJ_VEC_MASK,
    SVM_EXIT_ERR,
    SVM_EXIT_INTR,
    SVM_EXIT_NPF,
    SVM_EXIT_SHUTDOWN,
    SVM_GUEST_INTERRUPT_MASK,
    SVM_INTERRUPT_SHADOW_MASK,
    SVM_NESTED_CTL_SEV_ES_ENABLE,
    V_INTR_MASKING_MASK,
    V_NMI_ENABLE_MASK,
    Vmcb,
)
from iretrace.subset import rule, u8, u16, u32, u64, wrap64

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


@rule("AMD64 APM vol. 2", "Encrypted State: Event Injection Restrictions")
def event_inj_legal_sev_es(event_inj: u32) -> bool:
    """SEV-ES: software interrupts and the exceptions 3 and 4 cannot be injected."""
    kind: u32 = event_inj & SVM_EVTINJ_TYPE_MASK
    vector: u32 = event_inj & SVM_EVTINJ_VEC_MASK
    if kind == SVM_EVTINJ_TYPE_SOFT:
        return False
    return not (kind == SVM_EVTINJ_TYPE_EXEPT and (vector == 3 or vector == 4))


@rule("AMD64 APM vol. 2", "VMRUN Instruction: Canonicalization and Consistency Checks")
def vmcb_consistent(m: Machine, vmcb: Vmcb) -> bool:
    """VMRUN refuses: VMRUN not intercepted, ASID 0, an illegal EVENTINJ, vNMI without the NMI intercept, SEV-ES
    set up for a guest that is none."""
    if not intercepted(vmcb, INTERCEPT_VMRUN) or vmcb.asid == 0:
        return False
    if vmcb.event_inj & SVM_EVTINJ_VALID != 0 and not event_inj_legal(vmcb.event_inj):
        return False
    if vmcb.int_ctl & V_NMI_ENABLE_MASK != 0 and vmcb.intercept_word3 & INTERCEPT_NMI_BIT == 0:
        return False
    if m.sev_es:
        if vmcb.nested_ctl & SVM_NESTED_CTL_SEV_ES_ENABLE == 0 or vmcb.vmsa_pa == 0:
            return False
        return vmcb.event_inj & SVM_EVTINJ_VALID == 0 or event_inj_legal_sev_es(vmcb.event_inj)
    return True


@rule("AMD64 APM vol. 2", "VMRUN Instruction; Interrupt Shadows")
def vmrun(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """Enter the guest: check the VMCB, load the interrupt shadow and EVENTINJ. SEV-ES: registers come from the VMSA,
    so nothing that the hypervisor wrote into the save area (TF, RIP) has any effect."""
    if not vmcb_consistent(m, vmcb):
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


@rule("AMD64 APM vol. 2", "#VMEXIT; Exit During IDT Vectoring; Interrupt Shadows")
def vmexit(m: Machine, cpu: Cpu, vmcb: Vmcb, code: u64, info_1: u64, info_2: u64) -> None:
    """Leave the guest: exit code and infos, the interrupt shadow and (SEV-ES) the guest's IF are saved; EVENTINJ
    reads 0, all of it (as KVM expects in svm_vcpu_run(), and QEMU has it in do_vmexit()); EXITINTINFO is not valid
    unless the caller says that a delivery was cut off. A VMCB has no field that says that the guest was halted."""
    vmcb.exit_code = code
    vmcb.exit_info_1 = info_1
    vmcb.exit_info_2 = info_2
    vmcb.exit_int_info = 0
    vmcb.exit_int_info_err = 0
    vmcb.event_inj = 0
    state: u32 = SVM_INTERRUPT_SHADOW_MASK if cpu.shadow != SHADOW_NONE else 0
    if m.sev_es and cpu.rflags & X86_EFLAGS_IF != 0:
        state |= SVM_GUEST_INTERRUPT_MASK
    vmcb.int_state = state
    cpu.guest_mode = 0
    cpu.halted = 0
    cpu.event_inj = 0
    cpu.event_inj_err = 0


@rule("AMD64 APM vol. 2", "Exit During IDT Vectoring; Nested Page Fault: EXITINFO")
def vmexit_stack_npf(m: Machine, cpu: Cpu, vmcb: Vmcb, page: u16, event: u32, error: u32) -> None:
    """#NPF on the stack page while an event is delivered: EXITINTINFO names the event, which has not happened."""
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
