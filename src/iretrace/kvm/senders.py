"""Other CPUs: the code that raises an event, in steps of one shared access each.

    nmi     kvm_inject_nmi()        queue_nmi, request_nmi    and kvm_vcpu_kick()
    smi     kvm_inject_smi()        request_smi               and kvm_vcpu_kick()
            of an encrypted guest, since v7.3: drop_smi
    init    __apic_accept_irq()     set_init, request_event   and kvm_vcpu_kick()
    sipi    __apic_accept_irq()     set_sipi_vector, set_sipi, request_event   and kvm_vcpu_kick()
    irq     __apic_accept_irq()     look_whether_apic_is_enabled, set_irr, request_event    and kvm_vcpu_kick()
    signal  signal_wake_up_state()  set_signal, signal_wake_up

A step says whether there is another one, and whether it sends an interrupt to the vCPU's CPU.
"""

from __future__ import annotations

from iretrace.kvm.kvm_host import (
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    KVM_APIC_INIT,
    KVM_APIC_SIPI,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_SMI,
    Vcpu,
)
from iretrace.machine.vectors import SIPI_VECTOR
from iretrace.subset import u8, wrap8

GO_ON = 0
DONE = 1
DONE_WITH_IPI = 2


def queue_nmi(vcpu: Vcpu) -> u8:
    """atomic_inc(&vcpu->arch.nmi_queued)"""
    vcpu.nmi_queued = wrap8(vcpu.nmi_queued + 1)
    return GO_ON


def request_nmi(vcpu: Vcpu) -> u8:
    """kvm_make_request(KVM_REQ_NMI, vcpu)"""
    vcpu.requests = wrap8(vcpu.requests | 1 << KVM_REQ_NMI)
    return GO_ON


def request_smi(vcpu: Vcpu) -> u8:
    """kvm_make_request(KVM_REQ_SMI, vcpu)"""
    vcpu.requests = wrap8(vcpu.requests | 1 << KVM_REQ_SMI)
    return GO_ON


def drop_smi(vcpu: Vcpu) -> u8:
    """kvm_x86_call(has_emulated_msr)(vcpu->kvm, MSR_IA32_SMBASE)"""
    return DONE


def set_init(vcpu: Vcpu) -> u8:
    """apic->pending_events = (1UL << KVM_APIC_INIT)"""
    vcpu.pending_events = 1 << KVM_APIC_INIT
    return GO_ON


def set_sipi_vector(vcpu: Vcpu) -> u8:
    """apic->sipi_vector = vector"""
    vcpu.sipi_vector = SIPI_VECTOR
    return GO_ON


def set_sipi(vcpu: Vcpu) -> u8:
    """set_bit(KVM_APIC_SIPI, &apic->pending_events)"""
    vcpu.pending_events = wrap8(vcpu.pending_events | 1 << KVM_APIC_SIPI)
    return GO_ON


def look_whether_apic_is_enabled(vcpu: Vcpu) -> u8:
    """if (unlikely(!apic_enabled(apic)))"""
    return GO_ON if vcpu.apic_enabled else DONE


def set_irr(vcpu: Vcpu) -> u8:
    """kvm_lapic_set_irr(vector, apic)"""
    vcpu.irr = 1
    return GO_ON


def request_event(vcpu: Vcpu) -> u8:
    """kvm_make_request(KVM_REQ_EVENT, vcpu)"""
    vcpu.requests = wrap8(vcpu.requests | 1 << KVM_REQ_EVENT)
    return GO_ON


def kvm_vcpu_wake_up(vcpu: Vcpu) -> u8:
    """kvm_vcpu_wake_up(vcpu)"""
    if not vcpu.sleeping:
        return GO_ON
    vcpu.sleeping = 0
    return DONE  # a thread that sleeps needs no IPI


def kvm_vcpu_kick(vcpu: Vcpu) -> u8:
    """kvm_vcpu_kick(vcpu)"""
    if vcpu.mode != IN_GUEST_MODE:
        return DONE  # it will look before VMRUN, or another sender's IPI is on its way
    vcpu.mode = EXITING_GUEST_MODE
    return DONE_WITH_IPI


def set_signal(vcpu: Vcpu) -> u8:
    """set_tsk_thread_flag(vcpu thread, TIF_SIGPENDING)"""
    vcpu.signal_pending = 1
    return GO_ON


def signal_wake_up(vcpu: Vcpu) -> u8:
    """wake_up_state(vcpu thread) || kick_process(vcpu thread)"""
    if not vcpu.sleeping:
        return DONE_WITH_IPI  # to the CPU that it runs on
    vcpu.sleeping = 0
    return DONE
