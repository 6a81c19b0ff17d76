"""What is done about each #VMEXIT (svm.c: svm_exit_handlers[])."""

from __future__ import annotations

from iretrace.kvm.debug import SVM_EXIT_READ_DR0, dr_interception, kvm_skip_emulated_instruction
from iretrace.kvm.differences import SINCE_HLT_IN_FASTPATH, SINCE_NMI_COMPLETE_UNMASKS_AT_ONCE
from iretrace.kvm.exceptions import DB_VECTOR, DR6_ACTIVE_LOW, UD_VECTOR, kvm_queue_exception, kvm_queue_exception_p
from iretrace.kvm.kvm_host import (
    AGAIN,
    KVM_EXIT_DEBUG,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
    KVM_REQ_EVENT,
    NOT_MODELLED_EXIT,
    TO_USERSPACE,
    Vcpu,
    kvm_make_request,
    not_modelled,
    since,
)
from iretrace.kvm.nested import efer_trap, msr_interception, svm_instruction_interception, vmrun_interception
from iretrace.kvm.reset import shutdown_interception
from iretrace.kvm.smm import rsm_interception
from iretrace.kvm.svm import (
    disable_nmi_singlestep,
    svm_clear_vintr,
    svm_clr_iret_intercept,
    svm_skip_emulated_instruction,
)
from iretrace.kvm.x86 import kvm_emulate_halt, kvm_vcpu_running
from iretrace.machine.vmcb import (
    SVM_EXIT_CLGI,
    SVM_EXIT_CPUID,
    SVM_EXIT_EFER_WRITE_TRAP,
    SVM_EXIT_EXCP_BASE,
    SVM_EXIT_HLT,
    SVM_EXIT_ICEBP,
    SVM_EXIT_INTR,
    SVM_EXIT_IRET,
    SVM_EXIT_MSR,
    SVM_EXIT_NMI,
    SVM_EXIT_NPF,
    SVM_EXIT_PAUSE,
    SVM_EXIT_RSM,
    SVM_EXIT_SHUTDOWN,
    SVM_EXIT_STGI,
    SVM_EXIT_VINTR,
    SVM_EXIT_VMRUN,
)
from iretrace.subset import u8, u64

EXIT_FASTPATH_NONE = 0
EXIT_FASTPATH_REENTER_GUEST = 1
EXIT_FASTPATH_EXIT_HANDLED = 2
EXIT_FASTPATH_EXIT_USERSPACE = 3


def iret_interception(vcpu: Vcpu) -> u8:
    """The guest is about to execute an IRET while it handles an NMI. NMIs stay masked until it has been executed; that
    is when RIP has moved. Before v6.6 NMI_COMPLETE comes here too, and there is no RIP to look at."""
    vcpu.svm.awaiting_iret_completion = 1
    svm_clr_iret_intercept(vcpu)
    if not vcpu.kvm.sev_es or since(vcpu, SINCE_NMI_COMPLETE_UNMASKS_AT_ONCE):
        vcpu.svm.nmi_iret_rip = vcpu.rip
    kvm_make_request(KVM_REQ_EVENT, vcpu)
    return AGAIN


def db_interception(vcpu: Vcpu) -> u8:
    """#DB: KVM's own single step is over, a debugger waits for it, or the guest has caused it and gets it."""
    debugger: bool = vcpu.debug.guest_debug & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP) != 0
    if not debugger and not vcpu.svm.nmi_singlestep:
        payload: u64 = vcpu.svm.vmcb.dr6 ^ DR6_ACTIVE_LOW
        kvm_queue_exception_p(vcpu, DB_VECTOR, 1, payload)
        return AGAIN
    if vcpu.svm.nmi_singlestep:
        disable_nmi_singlestep(vcpu)
        kvm_make_request(KVM_REQ_EVENT, vcpu)
    if debugger:
        vcpu.thread.exit_reason = KVM_EXIT_DEBUG
        return TO_USERSPACE
    return AGAIN


def ud_interception(vcpu: Vcpu) -> u8:
    """#UD: KVM would emulate an instruction that it knows better than the processor. It knows none of a litmus test."""
    kvm_queue_exception(vcpu, UD_VECTOR)
    return AGAIN


def interrupt_window_interception(vcpu: Vcpu) -> u8:
    """The processor would take an interrupt here: take the dummy away and inject the real one."""
    kvm_make_request(KVM_REQ_EVENT, vcpu)
    svm_clear_vintr(vcpu.svm)
    return AGAIN


def npf_interception(vcpu: Vcpu) -> u8:
    """A nested page fault: map the page. What was being delivered is in EXITINTINFO and is injected again."""
    vcpu.thread.warm = 1
    return AGAIN


def cpuid_interception(vcpu: Vcpu) -> u8:
    """CPUID. The values are of no interest here: zeros."""
    vcpu.rax = 0
    vcpu.rbx = 0
    vcpu.rcx = 0
    vcpu.rdx = 0
    vcpu.svm.vmcb.rax &= 0xFFFF_FFFF
    return kvm_skip_emulated_instruction(vcpu)


def pause_interception(vcpu: Vcpu) -> u8:
    """PAUSE in a loop. There is no other vCPU to yield to, and the filter is not adapted."""
    return kvm_skip_emulated_instruction(vcpu)


def icebp_interception(vcpu: Vcpu) -> u8:
    """INT1: KVM steps over it and queues #DB, which changes nothing in DR6."""
    svm_skip_emulated_instruction(vcpu)
    kvm_queue_exception(vcpu, DB_VECTOR)
    return AGAIN


def svm_exit_handlers_fastpath(vcpu: Vcpu) -> u8:
    """Exits that are handled before interrupts are on again."""
    vmcb = vcpu.svm.vmcb
    if not since(vcpu, SINCE_HLT_IN_FASTPATH) or vmcb.exit_code != SVM_EXIT_HLT:
        return EXIT_FASTPATH_NONE
    if not vcpu.kvm.nrips or vmcb.next_rip == 0:
        return EXIT_FASTPATH_NONE
    if kvm_emulate_halt(vcpu) == TO_USERSPACE:
        return EXIT_FASTPATH_EXIT_USERSPACE
    return EXIT_FASTPATH_REENTER_GUEST if kvm_vcpu_running(vcpu) else EXIT_FASTPATH_EXIT_HANDLED


def svm_invoke_exception_handler(vcpu: Vcpu, exit_code: u64) -> u8:
    """The handler of an intercepted exception or access of a debug register."""
    if SVM_EXIT_READ_DR0 <= exit_code < SVM_EXIT_EXCP_BASE:
        return dr_interception(vcpu)
    if exit_code == SVM_EXIT_EXCP_BASE + DB_VECTOR:
        return db_interception(vcpu)
    if exit_code == SVM_EXIT_EXCP_BASE + UD_VECTOR:
        return ud_interception(vcpu)
    return not_modelled(vcpu, NOT_MODELLED_EXIT)


def svm_invoke_svm_handler(vcpu: Vcpu, exit_code: u64) -> u8:
    """The handler of an instruction or event that is about virtualization."""
    if exit_code == SVM_EXIT_SHUTDOWN:
        return shutdown_interception(vcpu)
    if exit_code == SVM_EXIT_ICEBP:
        return icebp_interception(vcpu)
    if exit_code == SVM_EXIT_STGI or exit_code == SVM_EXIT_CLGI:
        return svm_instruction_interception(vcpu)
    if exit_code == SVM_EXIT_VMRUN:
        return vmrun_interception(vcpu)
    if exit_code == SVM_EXIT_MSR:
        return msr_interception(vcpu)
    if exit_code == SVM_EXIT_RSM:
        return rsm_interception(vcpu)
    if exit_code == SVM_EXIT_EFER_WRITE_TRAP:
        return efer_trap(vcpu)
    return svm_invoke_exception_handler(vcpu, exit_code)


def svm_invoke_exit_handler(vcpu: Vcpu, exit_code: u64) -> u8:
    """The handler of an exit: AGAIN if the guest can go on, TO_USERSPACE if the VMM has to be told."""
    if exit_code == SVM_EXIT_INTR or exit_code == SVM_EXIT_NMI:
        return AGAIN  # intr_interception(), nmi_interception(): the host has taken it
    if exit_code == SVM_EXIT_VINTR:
        return interrupt_window_interception(vcpu)
    if exit_code == SVM_EXIT_HLT:
        return kvm_emulate_halt(vcpu)
    if exit_code == SVM_EXIT_NPF:
        return npf_interception(vcpu)
    if exit_code == SVM_EXIT_IRET:
        return iret_interception(vcpu)
    if exit_code == SVM_EXIT_CPUID:
        return cpuid_interception(vcpu)
    if exit_code == SVM_EXIT_PAUSE:
        return pause_interception(vcpu)
    return svm_invoke_svm_handler(vcpu, exit_code)
