"""Queues of exceptions and interrupts that are to be injected (x86.c, x86.h)."""

from __future__ import annotations

from iretrace.kvm.differences import SINCE_PAYLOAD_COMES_WITH_INJECTION
from iretrace.kvm.kvm_host import KVM_REQ_EVENT, NOT_MODELLED_EXCEPTIONS, Vcpu, kvm_make_request, not_modelled, since
from iretrace.subset import u1, u8, u32, u64, wrap64

DB_VECTOR = 1
NMI_VECTOR = 2
BP_VECTOR = 3
OF_VECTOR = 4
UD_VECTOR = 6
DF_VECTOR = 8
GP_VECTOR = 13
AC_VECTOR = 17
MC_VECTOR = 18
VC_VECTOR = 29

DR_TRAP_BITS = 0xF
DR6_BS = 1 << 14
DR6_RTM = 1 << 16
DR6_ACTIVE_LOW = 0xFFFF_0FF0
"""Bits that are 1 unless something clears them: also the value of DR6 after reset."""
DR6_VOLATILE = 0x0001_E80F
DR6_FIXED_1 = DR6_ACTIVE_LOW & ~DR6_VOLATILE


def kvm_exception_is_soft(vector: u8) -> bool:
    """INT3 and INTO: RIP has to go past the instruction before they are delivered."""
    return vector == BP_VECTOR or vector == OF_VECTOR


def exception_is_fault(vector: u8) -> bool:
    """Whether the exception pushes RF set (exception_type() is EXCPT_FAULT)."""
    if vector == DB_VECTOR or kvm_exception_is_soft(vector):
        return False
    return vector != DF_VECTOR and vector != MC_VECTOR


def kvm_clear_exception_queue(vcpu: Vcpu) -> None:
    """No exception is to be injected any more. Its vector stays where it was."""
    vcpu.exception_pending = 0
    vcpu.exception_injected = 0


def kvm_multiple_exception(
    vcpu: Vcpu, vector: u8, has_error_code: u1, error_code: u32, has_payload: u1, payload: u64
) -> None:
    """Queue an exception that the guest has caused."""
    kvm_make_request(KVM_REQ_EVENT, vcpu)
    if vcpu.exception_pending or vcpu.exception_injected:
        not_modelled(vcpu, NOT_MODELLED_EXCEPTIONS)
        return
    vcpu.exception_pending = 1
    vcpu.exception_vector = vector
    vcpu.exception_has_error_code = has_error_code
    vcpu.exception_error_code = error_code
    vcpu.exception_has_payload = has_payload
    vcpu.exception_payload = payload
    if not since(vcpu, SINCE_PAYLOAD_COMES_WITH_INJECTION):
        kvm_deliver_exception_payload(vcpu)


def kvm_queue_exception_p(vcpu: Vcpu, vector: u8, has_payload: u1, payload: u64) -> None:
    """Queue an exception without error code. A #DB's payload are the bits that it sets in DR6."""
    kvm_multiple_exception(vcpu, vector, 0, 0, has_payload, payload)


def kvm_inject_gp(vcpu: Vcpu, error_code: u32) -> None:
    """Queue #GP."""
    kvm_multiple_exception(vcpu, GP_VECTOR, 1, error_code, 0, 0)


def kvm_queue_exception(vcpu: Vcpu, vector: u8) -> None:
    """Queue an exception without payload."""
    kvm_queue_exception_p(vcpu, vector, 0, 0)


def kvm_requeue_exception(vcpu: Vcpu, vector: u8, has_error_code: u1, error_code: u32) -> None:
    """The delivery of an exception was cut off: it has to be injected again."""
    kvm_make_request(KVM_REQ_EVENT, vcpu)
    vcpu.exception_injected = 1
    vcpu.exception_vector = vector
    vcpu.exception_has_error_code = has_error_code
    vcpu.exception_error_code = error_code
    vcpu.exception_has_payload = 0
    vcpu.exception_payload = 0


def kvm_deliver_exception_payload(vcpu: Vcpu) -> None:
    """The #DB happens now: DR6 shows why."""
    if vcpu.exception_has_payload == 0:
        return
    if vcpu.exception_vector == DB_VECTOR:
        vcpu.dr6 = wrap64(vcpu.dr6 & ~DR_TRAP_BITS | DR6_RTM)
        vcpu.dr6 = wrap64(vcpu.dr6 & ~(vcpu.exception_payload & DR6_ACTIVE_LOW))
        vcpu.dr6 = wrap64(vcpu.dr6 | vcpu.exception_payload & ~DR6_ACTIVE_LOW)
        vcpu.dr6 = wrap64(vcpu.dr6 & ~(1 << 12) | DR6_FIXED_1)
    vcpu.exception_has_payload = 0
    vcpu.exception_payload = 0


def kvm_queue_interrupt(vcpu: Vcpu, vector: u8, soft: u1) -> None:
    """An interrupt is being injected, or has to be injected again. soft: INTn."""
    vcpu.interrupt_injected = 1
    vcpu.interrupt_soft = soft
    vcpu.interrupt_nr = vector


def kvm_clear_interrupt_queue(vcpu: Vcpu) -> None:
    """No interrupt is being injected any more."""
    vcpu.interrupt_injected = 0


def kvm_event_needs_reinjection(vcpu: Vcpu) -> bool:
    """The slot for events (EVENTINJ is one) is taken."""
    return vcpu.exception_injected != 0 or vcpu.interrupt_injected != 0 or vcpu.nmi_injected != 0
