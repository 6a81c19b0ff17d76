"""KVM_RUN: the vCPU thread's loop around VMRUN, sleep and signals (x86.c). Start reading here.

    kvm_arch_vcpu_ioctl_run -> vcpu_run -+-> vcpu_enter_guest -> [VMRUN] -> vcpu_exit_guest -> exit handler -+
                                ^        +-> vcpu_block -> [sleep] -> vcpu_woken ---------------------------+
                                +---------------------------------------------------------------------------+

In the C, VMRUN and schedule() are calls that return. Here the thread hands over to the driver instead, and
vcpu_exit_guest() and vcpu_woken() are the second halves of vcpu_enter_guest() and vcpu_block().
"""

from __future__ import annotations

from iretrace.kvm.debug import (
    kvm_load_debug_registers,
    kvm_save_debug_registers,
    note_host,
    sev_es_prepare_switch_to_guest,
)
from iretrace.kvm.kvm_host import (
    AGAIN,
    CELL_MODE,
    EINTR,
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_INTR,
    KVM_EXIT_UNKNOWN,
    KVM_MP_STATE_AP_RESET_HOLD,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_RECALC_INTERCEPTS,
    KVM_REQ_SMI,
    OUTSIDE_GUEST_MODE,
    READ,
    TO_USERSPACE,
    VMRUN,
    Vcpu,
    kvm_check_request,
    kvm_make_request,
    kvm_request_pending,
    local_irq_disable,
    local_irq_enable,
    set_mode,
    vcpu_signal_pending,
)
from iretrace.kvm.kvm_main import kvm_vcpu_block
from iretrace.kvm.nested import svm_recalc_instruction_intercepts
from iretrace.kvm.reset import kvm_apic_accept_events
from iretrace.kvm.sev import sev_es_unmap_ghcb, sev_handle_vmgexit
from iretrace.kvm.smm import process_smi
from iretrace.kvm.svm import svm_cancel_injection, svm_update_cr8_intercept, svm_vcpu_exited, svm_vcpu_run
from iretrace.kvm.svm_exits import (
    EXIT_FASTPATH_EXIT_HANDLED,
    EXIT_FASTPATH_EXIT_USERSPACE,
    EXIT_FASTPATH_NONE,
    EXIT_FASTPATH_REENTER_GUEST,
    svm_exit_handlers_fastpath,
    svm_invoke_exit_handler,
)
from iretrace.kvm.x86 import kvm_arch_vcpu_runnable, kvm_check_and_inject_events, kvm_vcpu_running, process_nmi
from iretrace.machine.vmcb import SVM_EXIT_ERR, SVM_EXIT_VMGEXIT
from iretrace.subset import shared, u8


def kvm_vcpu_exit_request(vcpu: Vcpu) -> bool:
    """The last look before VMRUN, with mode IN_GUEST_MODE: from here on a sender sends an IPI."""
    shared(vcpu.thread, CELL_MODE, 1, READ)
    if vcpu.mode == EXITING_GUEST_MODE:
        return True
    return kvm_request_pending(vcpu) or vcpu_signal_pending(vcpu)


def vcpu_enter_guest(vcpu: Vcpu) -> u8:
    """Requests, events, VMRUN. If something came in between, the entry is cancelled and events are looked at again."""
    if kvm_request_pending(vcpu):
        if kvm_check_request(KVM_REQ_SMI, vcpu):
            process_smi(vcpu)
        if kvm_check_request(KVM_REQ_NMI, vcpu):
            process_nmi(vcpu)
        if kvm_check_request(KVM_REQ_RECALC_INTERCEPTS, vcpu):
            svm_recalc_instruction_intercepts(vcpu)
    req_immediate_exit: bool = False
    if kvm_check_request(KVM_REQ_EVENT, vcpu):
        kvm_apic_accept_events(vcpu)
        if vcpu.mp_state == KVM_MP_STATE_INIT_RECEIVED:
            return AGAIN
        req_immediate_exit = kvm_check_and_inject_events(vcpu)
        if vcpu.apic_enabled:
            svm_update_cr8_intercept(vcpu)
    sev_es_unmap_ghcb(vcpu)
    sev_es_prepare_switch_to_guest(vcpu)
    local_irq_disable(vcpu)
    set_mode(vcpu, IN_GUEST_MODE)
    if kvm_vcpu_exit_request(vcpu):
        set_mode(vcpu, OUTSIDE_GUEST_MODE)
        local_irq_enable(vcpu)
        if req_immediate_exit:
            kvm_make_request(KVM_REQ_EVENT, vcpu)
        svm_cancel_injection(vcpu)
        return AGAIN
    if req_immediate_exit:
        kvm_make_request(KVM_REQ_EVENT, vcpu)
    svm_vcpu_run(vcpu, req_immediate_exit, kvm_load_debug_registers(vcpu))
    return VMRUN


def svm_handle_exit(vcpu: Vcpu) -> u8:
    """What is done about the #VMEXIT (svm.c)."""
    exit_code = vcpu.svm.vmcb.exit_code
    if exit_code == SVM_EXIT_ERR:
        vcpu.thread.exit_reason = KVM_EXIT_FAIL_ENTRY
        return TO_USERSPACE
    if exit_code == SVM_EXIT_VMGEXIT:
        return sev_handle_vmgexit(vcpu)
    return svm_invoke_exit_handler(vcpu, exit_code)


def vcpu_exit_guest(vcpu: Vcpu) -> u8:
    """The second half of vcpu_enter_guest(): the guest has left."""
    svm_vcpu_exited(vcpu)
    exit_fastpath = svm_exit_handlers_fastpath(vcpu)
    if exit_fastpath == EXIT_FASTPATH_REENTER_GUEST:
        if not kvm_vcpu_exit_request(vcpu):
            svm_vcpu_run(vcpu, False, False)
            return VMRUN
        exit_fastpath = EXIT_FASTPATH_EXIT_HANDLED
    kvm_save_debug_registers(vcpu)
    set_mode(vcpu, OUTSIDE_GUEST_MODE)
    local_irq_enable(vcpu)
    note_host(vcpu.thread)
    if exit_fastpath == EXIT_FASTPATH_EXIT_USERSPACE:
        return TO_USERSPACE
    if exit_fastpath != EXIT_FASTPATH_NONE:
        return AGAIN
    return svm_handle_exit(vcpu)


def leave_halt(vcpu: Vcpu) -> None:
    """The end of vcpu_block(): an event ends HLT and AP reset hold, but not the wait for a SIPI."""
    kvm_apic_accept_events(vcpu)
    if vcpu.mp_state == KVM_MP_STATE_HALTED or vcpu.mp_state == KVM_MP_STATE_AP_RESET_HOLD:
        vcpu.mp_state = KVM_MP_STATE_RUNNABLE


def vcpu_block(vcpu: Vcpu) -> u8:
    """The vCPU is halted, or waits for a SIPI: sleep unless an event waits."""
    if not kvm_arch_vcpu_runnable(vcpu):
        return vcpu_woken(vcpu)
    leave_halt(vcpu)
    return AGAIN


def vcpu_woken(vcpu: Vcpu) -> u8:
    """Go to sleep, or back to sleep if there was no reason to wake up. HLT is over if an event waits; after a signal it
    is not."""
    r: u8 = kvm_vcpu_block(vcpu)
    if r == AGAIN and kvm_arch_vcpu_runnable(vcpu):
        leave_halt(vcpu)
    return r


def vcpu_pass(vcpu: Vcpu) -> u8:
    """One pass through the loop."""
    return vcpu_enter_guest(vcpu) if kvm_vcpu_running(vcpu) else vcpu_block(vcpu)


def vcpu_run(vcpu: Vcpu) -> u8:
    """KVM_RUN's loop goes on: a pass is over that ended with AGAIN. The driver calls it for each pass, and so can tell
    a loop that goes in a circle."""
    if vcpu_signal_pending(vcpu):
        vcpu.thread.exit_reason = KVM_EXIT_INTR
        return EINTR
    return vcpu_pass(vcpu)


def kvm_arch_vcpu_ioctl_run(vcpu: Vcpu) -> u8:
    """The VMM calls KVM_RUN."""
    vcpu.thread.exit_reason = KVM_EXIT_UNKNOWN
    return vcpu_pass(vcpu)


def vcpu_resume_after_vmexit(vcpu: Vcpu) -> u8:
    """The thread goes on where it called VMRUN."""
    return vcpu_exit_guest(vcpu)


def vcpu_resume_after_sleep(vcpu: Vcpu) -> u8:
    """The thread goes on where it called schedule()."""
    return vcpu_woken(vcpu)
