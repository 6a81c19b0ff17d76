"""What the VMM saves of a vCPU's events, restores, and raises."""

from __future__ import annotations

import pytest

from iretrace.kvm.events import (
    VcpuEvents,
    kvm_vcpu_ioctl_nmi,
    kvm_vcpu_ioctl_x86_get_vcpu_events,
    kvm_vcpu_ioctl_x86_set_vcpu_events,
)
from iretrace.kvm.exceptions import BP_VECTOR, DB_VECTOR, DR6_ACTIVE_LOW, DR6_BS, GP_VECTOR
from iretrace.kvm.kvm_host import KVM_REQ_EVENT, KVM_REQ_NMI, Vcpu
from iretrace.kvm.svm import svm_clr_iret_intercept, svm_inject_nmi
from iretrace.machine.vmcb import INTERCEPT_IRET, SVM_INTERRUPT_SHADOW_MASK, V_NMI_BLOCKING_MASK
from tests.kvm.rig import make_vcpu


def saved(vcpu: Vcpu) -> VcpuEvents:
    events = VcpuEvents()
    kvm_vcpu_ioctl_x86_get_vcpu_events(vcpu, events)
    return events


def requested(vcpu: Vcpu, number: int) -> bool:
    return vcpu.requests >> number & 1 != 0


def test_kvm_nmi_queues_and_requests() -> None:
    vcpu = make_vcpu()
    kvm_vcpu_ioctl_nmi(vcpu)
    assert (vcpu.nmi_queued, requested(vcpu, KVM_REQ_NMI)) == (1, True)


def test_queued_nmis_are_taken_over_before_they_are_counted() -> None:
    vcpu = make_vcpu()
    vcpu.nmi_queued = 3
    assert (saved(vcpu).nmi_pending, vcpu.nmi_queued, vcpu.nmi_pending) == (2, 0, 2)


def test_an_exception_that_waits_comes_back_as_injected_with_its_payload_delivered() -> None:
    vcpu = make_vcpu()
    vcpu.exception_pending, vcpu.exception_vector = 1, DB_VECTOR
    vcpu.exception_has_payload, vcpu.exception_payload = 1, DR6_BS
    vcpu.dr6 = DR6_ACTIVE_LOW
    events = saved(vcpu)
    assert (events.exception_injected, events.exception_pending, vcpu.dr6 & DR6_BS) == (1, 1, DR6_BS)
    kvm_vcpu_ioctl_x86_set_vcpu_events(vcpu, events)
    assert (vcpu.exception_injected, vcpu.exception_pending, vcpu.exception_has_payload) == (1, 0, 0)


def test_an_error_code_comes_back() -> None:
    vcpu, other = make_vcpu(), make_vcpu()
    vcpu.exception_injected, vcpu.exception_vector = 1, GP_VECTOR
    vcpu.exception_has_error_code, vcpu.exception_error_code = 1, 0x10
    kvm_vcpu_ioctl_x86_set_vcpu_events(other, saved(vcpu))
    assert (other.exception_vector, other.exception_has_error_code, other.exception_error_code) == (GP_VECTOR, 1, 0x10)


def test_what_an_instruction_raises_again_is_not_reported() -> None:
    vcpu = make_vcpu()
    vcpu.exception_injected, vcpu.exception_vector = 1, BP_VECTOR
    vcpu.interrupt_injected, vcpu.interrupt_soft, vcpu.interrupt_nr = 1, 1, 0x20
    events = saved(vcpu)
    assert (events.exception_injected, events.interrupt_injected) == (0, 0)


def test_an_interrupt_a_shadow_and_an_injected_nmi_come_back() -> None:
    vcpu, other = make_vcpu(), make_vcpu()
    vcpu.interrupt_injected, vcpu.interrupt_nr, vcpu.nmi_injected = 1, 0x30, 1
    vcpu.svm.vmcb.int_state |= SVM_INTERRUPT_SHADOW_MASK
    kvm_vcpu_ioctl_x86_set_vcpu_events(other, saved(vcpu))
    assert (other.interrupt_injected, other.interrupt_nr, other.nmi_injected) == (1, 0x30, 1)
    assert other.svm.vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK
    kvm_vcpu_ioctl_x86_set_vcpu_events(other, saved(make_vcpu()))
    assert other.svm.vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK == 0


def test_a_mask_comes_back_with_the_intercept_that_finds_its_end() -> None:
    vcpu = make_vcpu()
    svm_inject_nmi(vcpu)
    vcpu.nmi_injected = 0
    svm_clr_iret_intercept(vcpu)
    kvm_vcpu_ioctl_x86_set_vcpu_events(vcpu, saved(vcpu))
    assert (vcpu.svm.nmi_masked, vcpu.svm.vmcb.intercept_word3 >> INTERCEPT_IRET % 32 & 1) == (1, 1)
    kvm_vcpu_ioctl_x86_set_vcpu_events(vcpu, VcpuEvents())
    assert (vcpu.svm.nmi_masked, vcpu.svm.vmcb.intercept_word3 >> INTERCEPT_IRET % 32 & 1) == (0, 0)


def test_with_virtual_nmis_the_processor_has_the_mask() -> None:
    vcpu = make_vcpu("vnmi")
    kvm_vcpu_ioctl_x86_set_vcpu_events(vcpu, VcpuEvents(nmi_masked=1))
    assert vcpu.svm.vmcb.int_ctl & V_NMI_BLOCKING_MASK
    kvm_vcpu_ioctl_x86_set_vcpu_events(vcpu, VcpuEvents())
    assert vcpu.svm.vmcb.int_ctl & V_NMI_BLOCKING_MASK == 0


@pytest.mark.parametrize(("revision", "pending", "queued", "asks"), [("v6.1", 1, 0, False), ("v6.12", 0, 2, True)])
def test_two_pending_nmis_come_back_as_one_in_older_kvms(revision: str, pending: int, queued: int, asks: bool) -> None:
    vcpu = make_vcpu(revision=revision)
    vcpu.nmi_pending = 2
    kvm_vcpu_ioctl_x86_set_vcpu_events(vcpu, saved(vcpu))
    assert (vcpu.nmi_pending, vcpu.nmi_queued, requested(vcpu, KVM_REQ_NMI)) == (pending, queued, asks)


def test_restoring_asks_for_a_look_at_events_and_for_nmis_only_if_there_are_any() -> None:
    vcpu = make_vcpu()
    kvm_vcpu_ioctl_x86_set_vcpu_events(vcpu, saved(vcpu))
    assert (requested(vcpu, KVM_REQ_EVENT), requested(vcpu, KVM_REQ_NMI)) == (True, False)
