"""AP reset hold in our KVM: the request, what wakes the vCPU, and the SIPI that is told in the GHCB."""

from __future__ import annotations

import pytest

from iretrace.kvm.host import HostRun
from iretrace.kvm.kvm_host import (
    AGAIN,
    KVM_APIC_INIT,
    KVM_APIC_SIPI,
    KVM_MP_STATE_AP_RESET_HOLD,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_REQ_NMI,
    NOT_MODELLED_VMGEXIT,
    Vcpu,
)
from iretrace.kvm.reset import kvm_apic_accept_events
from iretrace.kvm.reset_hold import AP_RESET_HOLD_NAE_EVENT, AP_RESET_HOLD_NONE
from iretrace.kvm.sev import sev_es_unmap_ghcb, sev_handle_vmgexit
from iretrace.kvm.x86 import kvm_emulate_ap_reset_hold
from iretrace.kvm.x86_run import leave_halt
from iretrace.machine.ghcb import (
    GHCB_MSR_AP_RESET_HOLD_REQ,
    GHCB_MSR_AP_RESET_HOLD_RESP,
    SVM_VMGEXIT_AP_HLT_LOOP,
    VALID_SW_EXIT_INFO_2_HI,
)
from iretrace.machine.vmcb import SVM_NESTED_CTL_SEV_ES_ENABLE
from tests.kvm.rig import make_vcpu

REVISIONS = ("v6.1", "v6.12", "v7.3")


def asked(revision: str = "v7.3", kind: str = "sev-es") -> Vcpu:
    """An application processor whose guest has just asked to be held."""
    vcpu = make_vcpu(kind, revision)
    vcpu.thread = HostRun(vcpu, (), (), True)
    vcpu.ap = 1
    ghcb = vcpu.svm.ghcb
    ghcb.sw_exit_code, ghcb.valid_bitmap_hi = SVM_VMGEXIT_AP_HLT_LOOP, 7 << 0x390 // 8 - 64
    assert sev_handle_vmgexit(vcpu) == AGAIN
    return vcpu


def told(vcpu: Vcpu) -> bool:
    """The guest finds that a SIPI has ended the hold."""
    ghcb = vcpu.svm.ghcb
    return ghcb.sw_exit_info_2 == 1 and ghcb.valid_bitmap_hi & VALID_SW_EXIT_INFO_2_HI != 0


@pytest.mark.parametrize("revision", REVISIONS)
def test_init_and_sipi_tell_a_guest_in_the_hold_that_it_has_ended(revision: str) -> None:
    vcpu = asked(revision)
    assert (vcpu.mp_state, vcpu.svm.ghcb.sw_exit_info_1, told(vcpu)) == (KVM_MP_STATE_AP_RESET_HOLD, 0, False)
    vcpu.pending_events = 1 << KVM_APIC_INIT
    leave_halt(vcpu)
    assert (vcpu.mp_state, told(vcpu)) == (KVM_MP_STATE_INIT_RECEIVED, False)
    vcpu.pending_events = 1 << KVM_APIC_SIPI
    leave_halt(vcpu)
    assert (vcpu.mp_state, told(vcpu), vcpu.cs_base) == (KVM_MP_STATE_RUNNABLE, True, 0)


def test_an_event_ends_the_hold_and_the_guest_is_not_told_of_a_sipi() -> None:
    vcpu = asked()
    vcpu.requests = 1 << KVM_REQ_NMI
    leave_halt(vcpu)
    assert (vcpu.mp_state, told(vcpu)) == (KVM_MP_STATE_RUNNABLE, False)


@pytest.mark.parametrize(("revision", "held"), [("v6.1", 1), ("v6.12", 0)])
def test_a_guest_that_has_an_event_is_held_all_the_same_in_v6_1(revision: str, held: int) -> None:
    vcpu = asked(revision)
    vcpu.mp_state, vcpu.requests = KVM_MP_STATE_RUNNABLE, 1 << KVM_REQ_NMI
    kvm_emulate_ap_reset_hold(vcpu)
    assert vcpu.mp_state == (KVM_MP_STATE_AP_RESET_HOLD if held else KVM_MP_STATE_RUNNABLE)


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_sipi_behind_an_init_that_finds_the_guest_entered_is_told_to_nobody(revision: str) -> None:
    vcpu = asked(revision)
    sev_es_unmap_ghcb(vcpu)
    vcpu.mp_state, vcpu.pending_events = KVM_MP_STATE_RUNNABLE, 1 << KVM_APIC_INIT | 1 << KVM_APIC_SIPI
    kvm_apic_accept_events(vcpu)
    assert (vcpu.mp_state, told(vcpu)) == (KVM_MP_STATE_RUNNABLE, False)


@pytest.mark.parametrize(("revision", "kept"), [("v6.1", AP_RESET_HOLD_NONE), ("v6.12", AP_RESET_HOLD_NAE_EVENT)])
def test_a_hold_has_a_type_until_the_guest_is_entered_again(revision: str, kept: int) -> None:
    vcpu = asked(revision)
    assert vcpu.svm.ap_reset_hold_type == kept
    sev_es_unmap_ghcb(vcpu)
    assert vcpu.svm.ap_reset_hold_type == AP_RESET_HOLD_NONE


@pytest.mark.parametrize(("revision", "is_told"), [("v6.1", True), ("v6.12", False)])
def test_without_a_type_any_request_that_is_not_answered_yet_is_told_of_a_sipi(revision: str, is_told: bool) -> None:
    vcpu = asked(revision)
    vcpu.svm.ap_reset_hold_type = AP_RESET_HOLD_NONE
    vcpu.pending_events = 1 << KVM_APIC_INIT | 1 << KVM_APIC_SIPI
    kvm_apic_accept_events(vcpu)
    assert told(vcpu) == is_told


def test_an_init_leaves_the_vmcb_that_of_an_encrypted_guest() -> None:
    vcpu = asked()
    vcpu.svm.vmcb.intercept_dr = 0xFF
    vcpu.pending_events = 1 << KVM_APIC_INIT
    kvm_apic_accept_events(vcpu)
    assert vcpu.svm.vmcb.nested_ctl & SVM_NESTED_CTL_SEV_ES_ENABLE
    assert vcpu.svm.vmcb.intercept_dr == 1 << 7 | 1 << 23


def asked_by_msr(revision: str) -> Vcpu:
    """An application processor whose guest has asked by the GHCB MSR protocol."""
    vcpu = make_vcpu("sev-es", revision)
    vcpu.thread = HostRun(vcpu, (), (), True)
    vcpu.ap = 1
    vcpu.svm.vmcb.ghcb_gpa = GHCB_MSR_AP_RESET_HOLD_REQ
    assert sev_handle_vmgexit(vcpu) == AGAIN
    return vcpu


def test_a_request_by_the_msr_is_answered_there() -> None:
    vcpu = asked_by_msr("v6.12")
    assert (vcpu.mp_state, vcpu.svm.vmcb.ghcb_gpa) == (KVM_MP_STATE_AP_RESET_HOLD, GHCB_MSR_AP_RESET_HOLD_RESP)
    vcpu.pending_events = 1 << KVM_APIC_INIT | 1 << KVM_APIC_SIPI
    leave_halt(vcpu)
    assert (vcpu.mp_state, vcpu.svm.vmcb.ghcb_gpa) == (KVM_MP_STATE_RUNNABLE, GHCB_MSR_AP_RESET_HOLD_RESP | 1 << 12)
    assert not told(vcpu)


def test_v6_1_leaves_a_request_by_the_msr_as_it_is() -> None:
    vcpu = asked_by_msr("v6.1")
    assert (vcpu.mp_state, vcpu.svm.vmcb.ghcb_gpa) == (KVM_MP_STATE_RUNNABLE, GHCB_MSR_AP_RESET_HOLD_REQ)


def test_another_request_by_the_msr_is_not_modelled() -> None:
    vcpu = make_vcpu("sev-es", "v6.12")
    vcpu.thread = HostRun(vcpu, (), (), True)
    vcpu.svm.vmcb.ghcb_gpa = 0x002
    sev_handle_vmgexit(vcpu)
    assert vcpu.thread.unmodelled == NOT_MODELLED_VMGEXIT
