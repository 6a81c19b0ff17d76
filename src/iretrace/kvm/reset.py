"""INIT: the local APIC's pending events (lapic.c), and the reset that INIT is (x86.c, svm.c)."""

from __future__ import annotations

from iretrace.kvm.create import RESET_RIP, init_vmcb
from iretrace.kvm.debug import DR7_FIXED_1, kvm_update_dr0123, kvm_update_dr7
from iretrace.kvm.differences import SINCE_NMI_MASK_OUTLIVES_INIT
from iretrace.kvm.exceptions import DR6_ACTIVE_LOW, kvm_clear_exception_queue, kvm_clear_interrupt_queue
from iretrace.kvm.kvm_host import (
    CELL_IRR,
    CELL_NMI_QUEUED,
    CELL_PENDING_EVENTS,
    KVM_MP_STATE_RUNNABLE,
    KVM_REQ_EVENT,
    WRITE,
    Vcpu,
    kvm_make_request,
    since,
)
from iretrace.kvm.lapic import kvm_apic_has_pending_init_or_sipi, kvm_apic_init_sipi_allowed
from iretrace.kvm.nested import svm_set_efer
from iretrace.kvm.smm import X86_EFLAGS_FIXED
from iretrace.kvm.svm import kvm_set_rflags
from iretrace.subset import shared


def kvm_lapic_reset(vcpu: Vcpu) -> None:
    """The local APIC forgets its interrupts, and is not enabled by software any more."""
    shared(vcpu.thread, CELL_IRR, 1, WRITE)
    vcpu.irr = 0
    vcpu.isr = 0
    vcpu.apic_enabled = 0


def kvm_reset_events(vcpu: Vcpu) -> None:
    """What was pending is gone, in kvm_vcpu_reset(): hflags, SMI, NMIs, interrupts and exceptions. Linux 6.1 has the
    mask of NMIs in hflags; later it is a field of its own, which only RESET clears."""
    vcpu.smm = 0
    vcpu.smm_inside_nmi = 0
    if not since(vcpu, SINCE_NMI_MASK_OUTLIVES_INIT):
        vcpu.svm.nmi_masked = 0
        vcpu.svm.awaiting_iret_completion = 0
    vcpu.smi_pending = 0
    shared(vcpu.thread, CELL_NMI_QUEUED, 1, WRITE)
    vcpu.nmi_queued = 0
    vcpu.nmi_pending = 0
    vcpu.nmi_injected = 0
    kvm_clear_interrupt_queue(vcpu)
    kvm_clear_exception_queue(vcpu)


def kvm_vcpu_reset(vcpu: Vcpu) -> None:
    """The vCPU as after RESET, but for what INIT leaves."""
    kvm_lapic_reset(vcpu)
    kvm_reset_events(vcpu)
    for i in range(4):
        vcpu.debug.db[i] = 0
    kvm_update_dr0123(vcpu)
    vcpu.dr6 = DR6_ACTIVE_LOW
    vcpu.debug.dr7 = DR7_FIXED_1
    kvm_update_dr7(vcpu)
    kvm_make_request(KVM_REQ_EVENT, vcpu)
    vcpu.svm.vmcb.rax = 0
    vcpu.svm.vmcb.rsp = 0
    init_vmcb(vcpu)
    kvm_set_rflags(vcpu, X86_EFLAGS_FIXED)
    vcpu.rip = RESET_RIP
    svm_set_efer(vcpu, 0)


def kvm_apic_accept_events(vcpu: Vcpu) -> None:
    """INIT, if one waits and nothing holds it. The one vCPU is the bootstrap processor, which needs no SIPI."""
    if not kvm_apic_has_pending_init_or_sipi(vcpu) or not kvm_apic_init_sipi_allowed(vcpu):
        return
    shared(vcpu.thread, CELL_PENDING_EVENTS, 1, WRITE)
    if vcpu.pending_init:
        vcpu.pending_init = 0
        kvm_vcpu_reset(vcpu)
        vcpu.mp_state = KVM_MP_STATE_RUNNABLE
