"""Encrypted guests: VMGEXIT and the GHCB (svm/sev.c)."""

from __future__ import annotations

from iretrace.kvm.debug import dr_interception
from iretrace.kvm.differences import SINCE_NMI_COMPLETE_UNMASKS_AT_ONCE, SINCE_RESET_HOLD_HAS_A_TYPE
from iretrace.kvm.kvm_host import (
    AGAIN,
    KVM_REQ_EVENT,
    NOT_MODELLED_VMGEXIT,
    Vcpu,
    kvm_make_request,
    not_modelled,
    since,
)
from iretrace.kvm.reset_hold import AP_RESET_HOLD_MSR_PROTO, AP_RESET_HOLD_NAE_EVENT, AP_RESET_HOLD_NONE
from iretrace.kvm.svm_exits import svm_invoke_exit_handler
from iretrace.kvm.x86 import kvm_emulate_ap_reset_hold
from iretrace.machine.ghcb import (
    GHCB_MSR_AP_RESET_HOLD_REQ,
    GHCB_MSR_AP_RESET_HOLD_RESP,
    GHCB_MSR_INFO_MASK,
    SVM_VMGEXIT_AP_HLT_LOOP,
    SVM_VMGEXIT_NMI_COMPLETE,
)
from iretrace.machine.vmcb import SVM_EXIT_CPUID, SVM_EXIT_IRET
from iretrace.subset import u8, u64

SVM_EXIT_READ_DR7 = 0x27
SVM_EXIT_WRITE_DR7 = 0x37

GHCB_ERROR = 2
GHCB_ERR_INVALID_USAGE = 2
GHCB_ERR_MISSING_INPUT = 4

# ghcb->save.valid_bitmap: bit n stands for the quadword at offset 8 * n of struct ghcb_save_area.
VALID_RAX_LO = 1 << (0x1F8 // 8)
VALID_RCX_HI = 1 << (0x308 // 8 - 64)
VALID_RDX_HI = 1 << (0x310 // 8 - 64)
VALID_RBX_HI = 1 << (0x318 // 8 - 64)
VALID_SW_EXIT_HI = 7 << (0x390 // 8 - 64)
"""sw_exit_code, sw_exit_info_1 and sw_exit_info_2."""
VALID_SW_EXIT_INFO_HI = 3 << (0x398 // 8 - 64)


def sev_es_sync_from_ghcb(vcpu: Vcpu) -> None:
    """Take over what the guest says in its GHCB: registers, if it gives them, and what it exits for."""
    ghcb = vcpu.svm.ghcb
    vmcb = vcpu.svm.vmcb
    vcpu.rax = ghcb.rax if ghcb.valid_bitmap_lo & VALID_RAX_LO != 0 else 0
    vcpu.rbx = ghcb.rbx if ghcb.valid_bitmap_hi & VALID_RBX_HI != 0 else 0
    vcpu.rcx = ghcb.rcx if ghcb.valid_bitmap_hi & VALID_RCX_HI != 0 else 0
    vcpu.rdx = ghcb.rdx if ghcb.valid_bitmap_hi & VALID_RDX_HI != 0 else 0
    vmcb.exit_code = ghcb.sw_exit_code
    vmcb.exit_info_1 = ghcb.sw_exit_info_1
    vmcb.exit_info_2 = ghcb.sw_exit_info_2


def sev_es_sync_to_ghcb(vcpu: Vcpu) -> None:
    """Give registers back."""
    ghcb = vcpu.svm.ghcb
    ghcb.rax = vcpu.rax
    ghcb.rbx = vcpu.rbx
    ghcb.rcx = vcpu.rcx
    ghcb.rdx = vcpu.rdx
    ghcb.valid_bitmap_lo |= VALID_RAX_LO
    ghcb.valid_bitmap_hi |= VALID_RBX_HI | VALID_RCX_HI | VALID_RDX_HI


def sev_es_unmap_ghcb(vcpu: Vcpu) -> None:
    """The guest is about to go on: the GHCB is its own again."""
    vcpu.svm.ap_reset_hold_type = AP_RESET_HOLD_NONE
    if vcpu.svm.ghcb_mapped:
        sev_es_sync_to_ghcb(vcpu)
        vcpu.svm.ghcb_mapped = 0


def sev_es_answer(vcpu: Vcpu, sw_exit_info_1: u64, sw_exit_info_2: u64) -> u8:
    """The result that the guest finds in its GHCB: 0 and 0, or 2 and why the request is malformed."""
    vcpu.svm.ghcb.sw_exit_info_1 = sw_exit_info_1
    vcpu.svm.ghcb.sw_exit_info_2 = sw_exit_info_2
    vcpu.svm.ghcb.valid_bitmap_hi |= VALID_SW_EXIT_INFO_HI
    return AGAIN


def sev_es_input_is_valid(valid_lo: u64, valid_hi: u64, exit_code: u64) -> bool:
    """Whether the guest has filled in what its request needs."""
    if valid_hi & VALID_SW_EXIT_HI != VALID_SW_EXIT_HI:
        return False
    if exit_code == SVM_EXIT_WRITE_DR7:
        return valid_lo & VALID_RAX_LO != 0
    if exit_code != SVM_EXIT_CPUID:
        return True
    return valid_lo & VALID_RAX_LO != 0 and valid_hi & VALID_RCX_HI != 0


def sev_nmi_complete(vcpu: Vcpu) -> u8:
    """The guest's NMI handler is through: it may be interrupted by the next NMI, at once."""
    if not since(vcpu, SINCE_NMI_COMPLETE_UNMASKS_AT_ONCE):
        return svm_invoke_exit_handler(vcpu, SVM_EXIT_IRET)
    vcpu.svm.nmi_masked = 0
    kvm_make_request(KVM_REQ_EVENT, vcpu)
    return AGAIN


def sev_handle_vmgexit_msr_protocol(vcpu: Vcpu) -> u8:
    """The guest asks for something by the MSR that else has the address of its GHCB. A request that KVM does not know
    it leaves there as it is."""
    if vcpu.svm.vmcb.ghcb_gpa & GHCB_MSR_INFO_MASK != GHCB_MSR_AP_RESET_HOLD_REQ:
        return not_modelled(vcpu, NOT_MODELLED_VMGEXIT)
    if not since(vcpu, SINCE_RESET_HOLD_HAS_A_TYPE):
        return AGAIN
    vcpu.svm.ap_reset_hold_type = AP_RESET_HOLD_MSR_PROTO
    r: u8 = kvm_emulate_ap_reset_hold(vcpu)
    vcpu.svm.vmcb.ghcb_gpa = GHCB_MSR_AP_RESET_HOLD_RESP
    return r


def sev_handle_vmgexit(vcpu: Vcpu) -> u8:
    """The guest asks for something through its GHCB."""
    svm = vcpu.svm
    if svm.vmcb.ghcb_gpa == 0:
        return AGAIN
    if svm.vmcb.ghcb_gpa & GHCB_MSR_INFO_MASK != 0:
        return sev_handle_vmgexit_msr_protocol(vcpu)
    svm.ghcb_mapped = 1
    valid_lo: u64 = svm.ghcb.valid_bitmap_lo
    valid_hi: u64 = svm.ghcb.valid_bitmap_hi
    sev_es_sync_from_ghcb(vcpu)
    svm.ghcb.valid_bitmap_lo = 0
    svm.ghcb.valid_bitmap_hi = 0
    if svm.ghcb.ghcb_usage != 0:
        return sev_es_answer(vcpu, GHCB_ERROR, GHCB_ERR_INVALID_USAGE)
    if not sev_es_input_is_valid(valid_lo, valid_hi, svm.vmcb.exit_code):
        return sev_es_answer(vcpu, GHCB_ERROR, GHCB_ERR_MISSING_INPUT)
    sev_es_answer(vcpu, 0, 0)
    if svm.vmcb.exit_code == SVM_VMGEXIT_NMI_COMPLETE:
        return sev_nmi_complete(vcpu)
    if svm.vmcb.exit_code == SVM_VMGEXIT_AP_HLT_LOOP:
        if since(vcpu, SINCE_RESET_HOLD_HAS_A_TYPE):
            svm.ap_reset_hold_type = AP_RESET_HOLD_NAE_EVENT
        return kvm_emulate_ap_reset_hold(vcpu)
    if svm.vmcb.exit_code == SVM_EXIT_READ_DR7 or svm.vmcb.exit_code == SVM_EXIT_WRITE_DR7:
        return dr_interception(vcpu)
    if svm.vmcb.exit_code == SVM_EXIT_CPUID:
        return svm_invoke_exit_handler(vcpu, SVM_EXIT_CPUID)
    return not_modelled(vcpu, NOT_MODELLED_VMGEXIT)
