"""What the VMM saves and restores of a vCPU's events, and the NMI that it raises (x86.c)."""

from __future__ import annotations

from iretrace.kvm.differences import SINCE_ALL_PENDING_NMIS_ARE_REPORTED, SINCE_RESTORED_NMIS_ARE_QUEUED
from iretrace.kvm.exceptions import kvm_deliver_exception_payload, kvm_exception_is_soft
from iretrace.kvm.kvm_host import (
    KVM_APIC_INIT,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_SMI,
    Vcpu,
    kvm_check_request,
    kvm_make_request,
    since,
)
from iretrace.kvm.smm import process_smi
from iretrace.kvm.svm import svm_get_nmi_mask, svm_set_interrupt_shadow, svm_set_nmi_mask
from iretrace.kvm.x86 import kvm_get_nr_pending_nmis, process_nmi
from iretrace.machine.vmcb import SVM_INTERRUPT_SHADOW_MASK
from iretrace.subset import record, u1, u8, u32, u64, wrap8

SHADOW_STI_OR_MOV_SS = 3
"""KVM_X86_SHADOW_INT_MOV_SS | KVM_X86_SHADOW_INT_STI"""


@record
class VcpuEvents:
    """struct kvm_vcpu_events, as far as it is ever filled. There is no capability for payloads: pending is for show."""

    exception_injected: u1 = 0
    exception_nr: u8 = 0
    exception_has_error_code: u1 = 0
    exception_pending: u1 = 0
    exception_error_code: u32 = 0
    interrupt_injected: u1 = 0
    interrupt_nr: u8 = 0
    interrupt_shadow: u8 = 0
    nmi_injected: u1 = 0
    nmi_pending: u8 = 0
    nmi_masked: u1 = 0
    smm: u1 = 0
    smi_pending: u1 = 0
    smm_inside_nmi: u1 = 0
    latched_init: u1 = 0
    exception_has_payload: u1 = 0
    exception_payload: u64 = 0
    """Of a #DB that an INIT has cancelled: nobody has taken it away."""


def kvm_vcpu_ioctl_nmi(vcpu: Vcpu) -> None:
    """KVM_NMI: an NMI is queued. Nobody is to be kicked, for the caller has the vCPU."""
    vcpu.nmi_queued = wrap8(vcpu.nmi_queued + 1)
    kvm_make_request(KVM_REQ_NMI, vcpu)


def kvm_vcpu_ioctl_x86_get_vcpu_events(vcpu: Vcpu, events: VcpuEvents) -> None:
    """KVM_GET_VCPU_EVENTS. What queued NMIs and an exception's payload will do is done first. INT3 and INT n are not
    reported: RIP is at the instruction, which will raise them again."""
    process_nmi(vcpu)
    if kvm_check_request(KVM_REQ_SMI, vcpu):
        process_smi(vcpu)
    if vcpu.exception_pending:
        kvm_deliver_exception_payload(vcpu)
    soft: bool = kvm_exception_is_soft(vcpu.exception_vector)
    waits: bool = vcpu.exception_injected != 0 or vcpu.exception_pending != 0
    events.exception_injected = 1 if waits and not soft else 0
    events.exception_pending = 1 if vcpu.exception_pending and not soft else 0
    events.exception_nr = vcpu.exception_vector
    events.exception_has_error_code = vcpu.exception_has_error_code
    events.exception_error_code = vcpu.exception_error_code
    events.interrupt_injected = 1 if vcpu.interrupt_injected and not vcpu.interrupt_soft else 0
    events.interrupt_nr = vcpu.interrupt_nr
    events.interrupt_shadow = SHADOW_STI_OR_MOV_SS if vcpu.svm.vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK != 0 else 0
    events.nmi_injected = vcpu.nmi_injected
    events.nmi_pending = kvm_get_nr_pending_nmis(vcpu)
    if not since(vcpu, SINCE_ALL_PENDING_NMIS_ARE_REPORTED) and events.nmi_pending != 0:
        events.nmi_pending = 1
    events.nmi_masked = 1 if svm_get_nmi_mask(vcpu) else 0
    events.smm = vcpu.smm
    events.smi_pending = vcpu.smi_pending
    events.smm_inside_nmi = vcpu.smm_inside_nmi
    events.latched_init = vcpu.pending_events & 1 << KVM_APIC_INIT
    events.exception_has_payload = vcpu.exception_has_payload
    events.exception_payload = vcpu.exception_payload


def kvm_vcpu_ioctl_x86_set_vcpu_events(vcpu: Vcpu, events: VcpuEvents) -> None:
    """KVM_SET_VCPU_EVENTS. Exceptions come back as injected, never as pending. That the VMM changes SMM is left out."""
    process_nmi(vcpu)
    vcpu.exception_injected = events.exception_injected
    vcpu.exception_pending = 0
    vcpu.exception_vector = events.exception_nr
    vcpu.exception_has_error_code = events.exception_has_error_code
    vcpu.exception_error_code = events.exception_error_code
    vcpu.exception_has_payload = 0
    vcpu.interrupt_injected = events.interrupt_injected
    vcpu.interrupt_nr = events.interrupt_nr
    vcpu.interrupt_soft = 0
    svm_set_interrupt_shadow(vcpu, 1 if events.interrupt_shadow else 0)
    vcpu.nmi_injected = events.nmi_injected
    if since(vcpu, SINCE_RESTORED_NMIS_ARE_QUEUED):
        vcpu.nmi_pending = 0
        vcpu.nmi_queued = events.nmi_pending
        if events.nmi_pending != 0:
            kvm_make_request(KVM_REQ_NMI, vcpu)
    else:
        vcpu.nmi_pending = events.nmi_pending
    svm_set_nmi_mask(vcpu, events.nmi_masked)
    vcpu.smi_pending = events.smi_pending
    if events.smm:
        vcpu.smm_inside_nmi = events.smm_inside_nmi
    vcpu.pending_events = wrap8(vcpu.pending_events & ~(1 << KVM_APIC_INIT) | events.latched_init)
    kvm_make_request(KVM_REQ_EVENT, vcpu)
