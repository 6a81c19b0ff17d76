"""AP reset hold of encrypted guests: the SIPI that ends it (svm/sev.c)."""

from __future__ import annotations

from iretrace.kvm.differences import SINCE_RESET_HOLD_HAS_A_TYPE
from iretrace.kvm.kvm_host import Vcpu, since
from iretrace.machine.ghcb import (
    GHCB_MSR_AP_RESET_HOLD_RESP,
    GHCB_MSR_AP_RESET_HOLD_RESULT_POS,
    VALID_SW_EXIT_INFO_2_HI,
)

AP_RESET_HOLD_NONE = 0
AP_RESET_HOLD_NAE_EVENT = 1
AP_RESET_HOLD_MSR_PROTO = 2


def sev_vcpu_deliver_sipi_vector(vcpu: Vcpu) -> None:
    """The guest is told that a SIPI has ended the hold: SW_EXITINFO2 is 1, or the value of the response in the MSR. KVM
    cannot set its RIP. (The first SIPI of all, which starts the guest as the VMM has set it up, comes before a litmus
    test begins.)"""
    told: bool = False
    if since(vcpu, SINCE_RESET_HOLD_HAS_A_TYPE):
        told = vcpu.svm.ap_reset_hold_type == AP_RESET_HOLD_NAE_EVENT
    else:
        told = vcpu.svm.ghcb_mapped != 0
    if vcpu.svm.ap_reset_hold_type == AP_RESET_HOLD_MSR_PROTO:
        vcpu.svm.vmcb.ghcb_gpa = GHCB_MSR_AP_RESET_HOLD_RESP | 1 << GHCB_MSR_AP_RESET_HOLD_RESULT_POS
    if told:
        vcpu.svm.ghcb.sw_exit_info_2 = 1
        vcpu.svm.ghcb.valid_bitmap_hi |= VALID_SW_EXIT_INFO_2_HI
