"""Events: queued NMIs taken over, what is due injected, what has to wait given a window; HLT (x86.c)."""

from __future__ import annotations

from iretrace.kvm.debug import DR7_GD, kvm_skip_emulated_instruction, kvm_update_dr7
from iretrace.kvm.differences import SINCE_EVENT_REQUEST_IFF_NMI_PENDING, SINCE_HALT_LOOKS_FOR_EVENTS
from iretrace.kvm.exceptions import (
    DB_VECTOR,
    exception_is_fault,
    kvm_event_needs_reinjection,
    kvm_queue_interrupt,
)
from iretrace.kvm.kvm_host import (
    CELL_NMI_QUEUED,
    KVM_MP_STATE_AP_RESET_HOLD,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_SMI,
    WRITE,
    Vcpu,
    kvm_make_request,
    kvm_test_request,
    since,
)
from iretrace.kvm.lapic import (
    kvm_apic_has_interrupt,
    kvm_apic_has_pending_init_or_sipi,
    kvm_apic_init_sipi_allowed,
    kvm_get_apic_interrupt,
)
from iretrace.kvm.smm import enter_smm, svm_enable_smi_window, svm_smi_allowed
from iretrace.kvm.svm import (
    X86_EFLAGS_RF,
    kvm_get_rflags,
    kvm_write_rflags,
    svm_enable_irq_window,
    svm_enable_nmi_window,
    svm_get_nmi_mask,
    svm_inject_exception,
    svm_inject_irq,
    svm_inject_nmi,
    svm_interrupt_allowed,
    svm_is_vnmi_pending,
    svm_nmi_allowed,
    svm_set_vnmi_pending,
)
from iretrace.subset import shared, u8, u64, wrap8


def process_nmi(vcpu: Vcpu) -> None:
    """Take over the NMIs that other CPUs have queued. One waits behind one that is being handled; if none is, there may
    be two, since the processor would have taken the first at once. More than that merge, as on a processor. With
    virtual NMIs one of them is handed to the processor, masked or not."""
    limit: u8 = 2
    if svm_get_nmi_mask(vcpu) or vcpu.nmi_injected:
        limit = 1
    if svm_is_vnmi_pending(vcpu):
        limit = wrap8(limit - 1)
    shared(vcpu.thread, CELL_NMI_QUEUED, 1, WRITE)
    pending: u64 = vcpu.nmi_pending + vcpu.nmi_queued
    vcpu.nmi_queued = 0
    vcpu.nmi_pending = wrap8(pending if pending < limit else limit)
    if vcpu.nmi_pending != 0 and svm_set_vnmi_pending(vcpu):
        vcpu.nmi_pending = wrap8(vcpu.nmi_pending - 1)
    if vcpu.nmi_pending != 0 or not since(vcpu, SINCE_EVENT_REQUEST_IFF_NMI_PENDING):
        kvm_make_request(KVM_REQ_EVENT, vcpu)


def kvm_get_nr_pending_nmis(vcpu: Vcpu) -> u8:
    """NMIs that the guest has still to take, and that KVM or the processor knows of."""
    return wrap8(vcpu.nmi_pending + (1 if svm_is_vnmi_pending(vcpu) else 0))


def kvm_inject_pending_exception(vcpu: Vcpu) -> None:
    """An exception of the guest's last instruction, in kvm_check_and_inject_events(). It goes before all else."""
    if exception_is_fault(vcpu.exception_vector):
        kvm_write_rflags(vcpu, kvm_get_rflags(vcpu) | X86_EFLAGS_RF)
    if vcpu.exception_vector == DB_VECTOR and vcpu.debug.dr7 & DR7_GD != 0:
        vcpu.debug.dr7 &= ~DR7_GD
        kvm_update_dr7(vcpu)
    svm_inject_exception(vcpu)
    vcpu.exception_pending = 0
    vcpu.exception_injected = 1


def kvm_reinject_event(vcpu: Vcpu) -> None:
    """The event whose delivery was cut off, in kvm_check_and_inject_events()."""
    if vcpu.exception_injected:
        svm_inject_exception(vcpu)
    elif vcpu.exception_pending:
        pass  # it came of the delivery, and goes first
    elif vcpu.nmi_injected:
        svm_inject_nmi(vcpu)
    elif vcpu.interrupt_injected:
        svm_inject_irq(vcpu)


def kvm_check_and_inject_events(vcpu: Vcpu) -> bool:
    """Inject the one event that is due, and arm a window for the next. Whether the guest has to leave right after the
    delivery, because another event could have been injected, had the slot been free."""
    kvm_reinject_event(vcpu)
    can_inject: bool = not kvm_event_needs_reinjection(vcpu)
    if vcpu.exception_pending:
        kvm_inject_pending_exception(vcpu)
        can_inject = False
    if vcpu.smi_pending:
        if not can_inject:
            return True
        if svm_smi_allowed(vcpu):
            vcpu.smi_pending = 0
            enter_smm(vcpu)
            can_inject = False
        else:
            svm_enable_smi_window(vcpu)
    if vcpu.nmi_pending != 0:
        if not can_inject:
            return True
        if svm_nmi_allowed(vcpu):
            vcpu.nmi_pending = wrap8(vcpu.nmi_pending - 1)
            vcpu.nmi_injected = 1
            svm_inject_nmi(vcpu)
            can_inject = False
        if vcpu.nmi_pending != 0:
            svm_enable_nmi_window(vcpu)
    if kvm_apic_has_interrupt(vcpu):
        if not can_inject:
            return True
        if svm_interrupt_allowed(vcpu):
            kvm_queue_interrupt(vcpu, kvm_get_apic_interrupt(vcpu), 0)
            svm_inject_irq(vcpu)
        if kvm_apic_has_interrupt(vcpu):
            svm_enable_irq_window(vcpu)
    return False


def kvm_vcpu_running(vcpu: Vcpu) -> bool:
    """Whether the guest executes instructions, as opposed to being halted."""
    return vcpu.mp_state == KVM_MP_STATE_RUNNABLE


def kvm_vcpu_has_events(vcpu: Vcpu) -> bool:
    """Whether something waits that ends HLT."""
    if kvm_apic_has_pending_init_or_sipi(vcpu) and kvm_apic_init_sipi_allowed(vcpu):
        return True
    if vcpu.exception_pending:
        return True
    if kvm_test_request(KVM_REQ_NMI, vcpu):
        return True
    if vcpu.nmi_pending != 0 and svm_nmi_allowed(vcpu):
        return True
    if kvm_test_request(KVM_REQ_SMI, vcpu) or (vcpu.smi_pending and svm_smi_allowed(vcpu)):
        return True
    return svm_interrupt_allowed(vcpu) and kvm_apic_has_interrupt(vcpu)


def kvm_arch_vcpu_runnable(vcpu: Vcpu) -> bool:
    """Whether the vCPU has anything to do."""
    return kvm_vcpu_running(vcpu) or kvm_vcpu_has_events(vcpu)


def kvm_emulate_halt(vcpu: Vcpu) -> u8:
    """HLT. The loop of KVM_RUN puts the thread to sleep when it finds the vCPU halted."""
    r: u8 = kvm_skip_emulated_instruction(vcpu)
    halt(vcpu, KVM_MP_STATE_HALTED)
    return r


def kvm_emulate_ap_reset_hold(vcpu: Vcpu) -> u8:
    """An encrypted guest asks to be held until a SIPI comes: to KVM that is much like HLT."""
    r: u8 = kvm_skip_emulated_instruction(vcpu)
    halt(vcpu, KVM_MP_STATE_AP_RESET_HOLD)
    return r


def halt(vcpu: Vcpu, mp_state: u8) -> None:
    """__kvm_emulate_halt()"""
    if not since(vcpu, SINCE_HALT_LOOKS_FOR_EVENTS) or not kvm_vcpu_has_events(vcpu):
        vcpu.mp_state = mp_state
