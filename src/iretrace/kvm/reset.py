"""INIT: the local APIC's pending events (lapic.c), and the reset that INIT is (x86.c, svm.c)."""

from __future__ import annotations

from iretrace.kvm.create import RESET_RIP, init_vmcb, sev_es_init_vmcb
from iretrace.kvm.debug import DR7_FIXED_1, kvm_update_dr0123, kvm_update_dr7
from iretrace.kvm.differences import SINCE_NMI_MASK_OUTLIVES_INIT, SINCE_SHUTDOWN_OF_SEV_ES_IS_TOLD
from iretrace.kvm.exceptions import DR6_ACTIVE_LOW, kvm_clear_exception_queue, kvm_clear_interrupt_queue
from iretrace.kvm.kvm_host import (
    CELL_APIC_ENABLED,
    CELL_IRR,
    CELL_NMI_QUEUED,
    CELL_SIPI_VECTOR,
    EINVAL,
    KVM_APIC_INIT,
    KVM_APIC_SIPI,
    KVM_EXIT_SHUTDOWN,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_REQ_EVENT,
    READ,
    TO_USERSPACE,
    WRITE,
    Vcpu,
    kvm_make_request,
    since,
)
from iretrace.kvm.lapic import (
    kvm_apic_has_pending_init_or_sipi,
    kvm_apic_init_sipi_allowed,
    test_and_clear_pending,
)
from iretrace.kvm.nested import svm_set_efer
from iretrace.kvm.reset_hold import sev_vcpu_deliver_sipi_vector
from iretrace.kvm.smm import X86_EFLAGS_FIXED, kvm_smm_left
from iretrace.kvm.svm import kvm_set_rflags
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import shared, u8


def kvm_lapic_reset(vcpu: Vcpu) -> None:
    """The local APIC forgets its interrupts, and is not enabled by software any more."""
    shared(vcpu.thread, CELL_APIC_ENABLED, 1, WRITE)
    vcpu.apic_enabled = 0
    shared(vcpu.thread, CELL_IRR, 1, WRITE)
    vcpu.irr = 0
    vcpu.isr = 0


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
    if vcpu.kvm.sev_es:
        sev_es_init_vmcb(vcpu)
    kvm_set_rflags(vcpu, X86_EFLAGS_FIXED)
    vcpu.rip = RESET_RIP
    svm_set_efer(vcpu, 0)


def clear_page(vmcb: Vmcb) -> None:
    """A VMCB that is all zeros."""
    vmcb.intercept_cr = 0
    vmcb.intercept_dr = 0
    vmcb.intercept_exception = 0
    vmcb.intercept_word3 = 0
    vmcb.intercept_word4 = 0
    vmcb.intercept_word5 = 0
    vmcb.pause_filter_count = 0
    vmcb.asid = 0
    vmcb.tlb_ctl = 0
    vmcb.int_ctl = 0
    vmcb.int_vector = 0
    vmcb.int_state = 0
    vmcb.exit_code = 0
    vmcb.exit_info_1 = 0
    vmcb.exit_info_2 = 0
    vmcb.exit_int_info = 0
    vmcb.exit_int_info_err = 0
    vmcb.nested_ctl = 0
    vmcb.ghcb_gpa = 0
    vmcb.event_inj = 0
    vmcb.event_inj_err = 0
    vmcb.virt_ext = 0
    vmcb.clean = 0
    vmcb.next_rip = 0
    vmcb.vmsa_pa = 0
    vmcb.allowed_sev_features = 0
    vmcb.cpl = 0
    vmcb.ss = 0
    vmcb.efer = 0
    vmcb.dr6 = 0
    vmcb.dr7 = 0
    vmcb.rflags = 0
    vmcb.rip = 0
    vmcb.rsp = 0
    vmcb.rax = 0


def shutdown_interception(vcpu: Vcpu) -> u8:
    """The guest's processor has shut down (svm.c). Its VMCB is undefined then, and KVM does an INIT to have a good one.
    An encrypted guest's state is not KVM's to reset; 6.1 does not tell the VMM of it as of any other, but fails."""
    if not vcpu.kvm.sev_es:
        clear_page(vcpu.svm.vmcb)
        if vcpu.smm:
            kvm_smm_left(vcpu)
        kvm_vcpu_reset(vcpu)
    elif not since(vcpu, SINCE_SHUTDOWN_OF_SEV_ES_IS_TOLD):
        return EINVAL
    vcpu.thread.exit_reason = KVM_EXIT_SHUTDOWN
    return TO_USERSPACE


def kvm_vcpu_deliver_sipi_vector(vcpu: Vcpu, vector: u8) -> None:
    """The vCPU begins where the SIPI says, in 16-bit code (x86.c)."""
    vcpu.cs_base = vector << 12
    vcpu.rip = 0


def kvm_apic_accept_events(vcpu: Vcpu) -> None:
    """INIT, if one waits and nothing holds it; behind it the bootstrap processor goes on, any other one waits for a
    SIPI. A SIPI that nobody waits for is dropped."""
    if not kvm_apic_has_pending_init_or_sipi(vcpu):
        return
    if not kvm_apic_init_sipi_allowed(vcpu):
        test_and_clear_pending(vcpu, KVM_APIC_SIPI)
        return
    if test_and_clear_pending(vcpu, KVM_APIC_INIT):
        kvm_vcpu_reset(vcpu)
        vcpu.mp_state = KVM_MP_STATE_INIT_RECEIVED if vcpu.ap else KVM_MP_STATE_RUNNABLE
    if test_and_clear_pending(vcpu, KVM_APIC_SIPI) and vcpu.mp_state == KVM_MP_STATE_INIT_RECEIVED:
        shared(vcpu.thread, CELL_SIPI_VECTOR, 0xFF, READ)
        if vcpu.kvm.sev_es:
            sev_vcpu_deliver_sipi_vector(vcpu)
        else:
            kvm_vcpu_deliver_sipi_vector(vcpu, vcpu.sipi_vector)
        vcpu.mp_state = KVM_MP_STATE_RUNNABLE
