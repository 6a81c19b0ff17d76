"""What our KVM does about NMIs of a guest with virtual NMIs, function by function."""

from __future__ import annotations

import pytest

from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.kvm_host import KVM_REQ_EVENT, WARN_NMI_WINDOW_WITH_VNMI, Vcpu
from iretrace.kvm.svm import (
    X86_EFLAGS_TF,
    svm_enable_nmi_window,
    svm_get_nmi_mask,
    svm_inject_nmi,
    svm_is_vnmi_pending,
    svm_nmi_allowed,
    svm_set_vnmi_pending,
)
from iretrace.kvm.svm_h import is_vnmi_enabled
from iretrace.kvm.x86 import kvm_check_and_inject_events, kvm_get_nr_pending_nmis, kvm_vcpu_has_events, process_nmi
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import (
    INTERCEPT_IRET,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_VALID,
    SVM_EXIT_INTR,
    SVM_INTERRUPT_SHADOW_MASK,
    V_NMI_BLOCKING_MASK,
    V_NMI_ENABLE_MASK,
    V_NMI_PENDING_MASK,
    Vmcb,
)
from iretrace.subset import unpack
from iretrace.world.protocol import Cause
from tests.kvm.rig import make_vcpu

KINDS = ("vnmi", "sev-es-vnmi")
REQ_EVENT = 1 << KVM_REQ_EVENT


def vnmi(kind: str = "vnmi", bits: int = 0, queued: int = 0) -> Vcpu:
    """A vCPU with virtual NMIs, with those bits of int_ctl and so many NMIs queued."""
    vcpu = make_vcpu(kind)
    vcpu.svm.vmcb.int_ctl |= bits
    vcpu.nmi_queued = queued
    return vcpu


def iret_intercepted(vcpu: Vcpu) -> bool:
    return vcpu.svm.vmcb.intercept_word3 >> INTERCEPT_IRET - 96 & 1 != 0


@pytest.mark.parametrize(("kind", "on"), [("vnmi", True), ("sev-es-vnmi", True), ("plain", False), ("sev-es", False)])
def test_init_vmcb_turns_virtual_nmis_on(kind: str, on: bool) -> None:
    vcpu = make_vcpu(kind)
    assert bool(vcpu.svm.vmcb.int_ctl & V_NMI_ENABLE_MASK) == is_vnmi_enabled(vcpu) == on


@pytest.mark.parametrize("kind", KINDS)
def test_one_nmi_goes_to_the_processor(kind: str) -> None:
    vcpu = vnmi(kind, queued=1)
    process_nmi(vcpu)
    assert (vcpu.nmi_pending, svm_is_vnmi_pending(vcpu), kvm_get_nr_pending_nmis(vcpu)) == (0, True, 1)
    assert vcpu.requests == 0


def test_a_masked_nmi_goes_to_the_processor_as_well() -> None:
    vcpu = vnmi(bits=V_NMI_BLOCKING_MASK, queued=1)
    process_nmi(vcpu)
    assert (vcpu.nmi_pending, svm_is_vnmi_pending(vcpu)) == (0, True)


@pytest.mark.parametrize(
    ("bits", "injected", "left"),
    [
        (0, 0, 1),
        (V_NMI_BLOCKING_MASK, 0, 0),
        (0, 1, 0),
        (V_NMI_PENDING_MASK, 0, 1),
        (V_NMI_PENDING_MASK | V_NMI_BLOCKING_MASK, 0, 0),
        (V_NMI_PENDING_MASK, 1, 0),
    ],
)
def test_of_many_nmis_as_many_are_kept_as_a_processor_would(bits: int, injected: int, left: int) -> None:
    """One in the latch, and one more if none is in service; what the latch holds counts."""
    vcpu = vnmi(bits=bits, queued=4)
    vcpu.nmi_injected = injected
    process_nmi(vcpu)
    assert (vcpu.nmi_pending, svm_is_vnmi_pending(vcpu)) == (left, True)
    assert vcpu.requests == (REQ_EVENT if left else 0)


def test_the_latch_of_the_processor_is_one_deep() -> None:
    vcpu = vnmi()
    assert svm_set_vnmi_pending(vcpu)
    assert not svm_set_vnmi_pending(vcpu)
    assert not svm_set_vnmi_pending(make_vcpu("plain"))
    assert not svm_is_vnmi_pending(make_vcpu("plain"))


def test_the_mask_is_the_processors() -> None:
    vcpu = vnmi()
    vcpu.svm.nmi_masked = 1
    assert not svm_get_nmi_mask(vcpu)
    vcpu.svm.vmcb.int_ctl |= V_NMI_BLOCKING_MASK
    assert svm_get_nmi_mask(vcpu)
    assert not svm_nmi_allowed(vcpu)


@pytest.mark.parametrize("kind", KINDS)
def test_an_injected_nmi_is_masked_by_the_processor(kind: str) -> None:
    vcpu = vnmi(kind)
    svm_inject_nmi(vcpu)
    assert vcpu.svm.vmcb.event_inj == SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_NMI
    assert (vcpu.svm.nmi_masked, iret_intercepted(vcpu)) == (0, False)


def test_the_second_of_two_nmis_is_injected_and_the_first_waits_in_the_latch() -> None:
    vcpu = vnmi(queued=2)
    process_nmi(vcpu)
    assert not kvm_check_and_inject_events(vcpu)
    assert (vcpu.nmi_pending, vcpu.nmi_injected, svm_is_vnmi_pending(vcpu)) == (0, 1, True)
    assert vcpu.thread.warned == 0


@pytest.mark.parametrize(("bits", "warned"), [(0, 0), (V_NMI_BLOCKING_MASK, WARN_NMI_WINDOW_WITH_VNMI)])
def test_a_window_while_nmis_are_masked_is_warned_of(bits: int, warned: int) -> None:
    vcpu = vnmi(bits=bits)
    svm_enable_nmi_window(vcpu)
    assert vcpu.thread.warned == warned
    assert bool(vcpu.svm.vmcb.rflags & X86_EFLAGS_TF) == (bits == 0)


def test_without_virtual_nmis_a_window_while_nmis_are_masked_is_usual() -> None:
    vcpu = make_vcpu("plain")
    vcpu.svm.nmi_masked = 1
    svm_enable_nmi_window(vcpu)
    assert vcpu.thread.warned == 0


def test_an_nmi_in_the_latch_does_not_keep_a_vcpu_awake() -> None:
    """KVM looks at nmi_pending alone (x86.c: kvm_vcpu_has_events())."""
    assert not kvm_vcpu_has_events(vnmi(bits=V_NMI_PENDING_MASK))


def test_the_view_counts_the_latch_and_a_warn_is_a_defect() -> None:
    kvm = BuiltinHypervisor("v7.3", "sev-es-vnmi")
    start = kvm.start()
    sent = kvm.send(start.private, kvm.sender("nmi"))
    for _ in range(2):
        sent = kvm.send(sent.private, kvm.sender("nmi"))
    vmcb = unpack(Vmcb, start.vmcb)
    vmcb.exit_code, vmcb.int_state = SVM_EXIT_INTR, SVM_INTERRUPT_SHADOW_MASK
    again = kvm.send(sent.private, kvm.send(sent.private, kvm.sender("nmi")).sender)
    pause = kvm.step(again.private, vmcb, Ghcb(), Cause.VMEXIT, (), ())
    assert (kvm.view(pause.private).nmi_pending, pause.defects) == (2, ())
    masked = unpack(Vmcb, pause.vmcb)
    masked.int_ctl |= V_NMI_BLOCKING_MASK
    masked.exit_code, masked.exit_int_info = SVM_EXIT_INTR, SVM_EVTINJ_VALID | 0x30
    assert kvm.view(pause.private).nmi_masked == 0
    redone = kvm.step(pause.private, masked, Ghcb(), Cause.VMEXIT, (), ())
    assert kvm.view(redone.private).nmi_masked == 1
    masked = unpack(Vmcb, redone.vmcb)
    masked.exit_code, masked.int_ctl = SVM_EXIT_INTR, masked.int_ctl | V_NMI_BLOCKING_MASK
    ((sentence, line),) = kvm.step(redone.private, masked, Ghcb(), Cause.VMEXIT, (), ()).defects
    assert sentence == "WARN_ON_ONCE() is reached: an NMI window while NMIs are masked, with virtual NMIs"
    assert line.function == "svm_enable_nmi_window"
