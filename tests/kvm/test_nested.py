"""What our KVM does about EFER.SVME, CLGI, STGI and VMRUN of a guest that has SVM, function by function."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.kvm.exceptions import GP_VECTOR, UD_VECTOR
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.kvm_host import (
    AGAIN,
    KVM_REQ_EVENT,
    KVM_REQ_RECALC_INTERCEPTS,
    NOT_MODELLED_L2,
    TO_USERSPACE,
    Vcpu,
)
from iretrace.kvm.nested import set_efer, svm_recalc_instruction_intercepts, svm_set_efer, svm_set_gif
from iretrace.kvm.svm import svm_enable_nmi_window
from iretrace.kvm.svm_exits import svm_invoke_exit_handler
from iretrace.kvm.svm_h import gif_set
from iretrace.litmus.parse import parse
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_CLGI,
    INTERCEPT_STGI,
    INTERCEPT_VINTR,
    SVM_EXIT_CLGI,
    SVM_EXIT_MSR,
    SVM_EXIT_STGI,
    SVM_EXIT_VMRUN,
)
from tests.kvm.rig import make_vcpu

LONG_MODE = 0xD01
LME = 1 << 8


def with_svm(revision: str = "v6.12", vgif: int = 1) -> Vcpu:
    """A vCPU whose guest has set EFER.SVME."""
    vcpu = make_vcpu("plain", revision, vgif)
    assert set_efer(vcpu, LONG_MODE | EFER_SVME)
    svm_recalc_instruction_intercepts(vcpu)
    vcpu.requests = 0
    return vcpu


def intercepts(vcpu: Vcpu, number: int) -> bool:
    """Whether an intercept of word 3 or 4 is set."""
    word = vcpu.svm.vmcb.intercept_word3 if number < 128 else vcpu.svm.vmcb.intercept_word4
    return word >> number % 32 & 1 != 0


def requested(vcpu: Vcpu, request: int) -> bool:
    """Whether a request has been made."""
    return vcpu.requests >> request & 1 != 0


@pytest.mark.parametrize("vgif", [0, 1])
@pytest.mark.parametrize(("code", "gif"), [(SVM_EXIT_CLGI, False), (SVM_EXIT_STGI, True)])
def test_an_exit_for_clgi_or_stgi_moves_the_guests_gif(code: int, gif: bool, vgif: int) -> None:
    """clgi_interception() and stgi_interception()."""
    vcpu = with_svm(vgif=vgif)
    svm_set_gif(vcpu, not gif)
    vcpu.svm.vmcb.exit_code, vcpu.svm.vmcb.next_rip = code, 11
    assert svm_invoke_exit_handler(vcpu, code) == AGAIN
    assert (gif_set(vcpu), vcpu.rip) == (gif, 11)


@pytest.mark.parametrize("revision", ["v6.1", "v6.12", "v7.3"])
def test_vmrun_of_a_guest_without_svme_is_ud(revision: str) -> None:
    """vmrun_interception(): nested_svm_check_permissions()."""
    vcpu = make_vcpu(revision=revision)
    vcpu.rip, vcpu.svm.vmcb.next_rip = 5, 6
    assert svm_invoke_exit_handler(vcpu, SVM_EXIT_VMRUN) == AGAIN
    assert (vcpu.exception_pending, vcpu.exception_vector, vcpu.rip) == (1, UD_VECTOR, 5)
    assert vcpu.thread.unmodelled == 0


def test_vmrun_of_a_guest_with_svme_is_not_modelled() -> None:
    """vmrun_interception(): nested_svm_vmrun()."""
    vcpu = with_svm()
    assert svm_invoke_exit_handler(vcpu, SVM_EXIT_VMRUN) == TO_USERSPACE
    assert (vcpu.thread.unmodelled, vcpu.exception_pending) == (NOT_MODELLED_L2, 0)


@pytest.mark.parametrize(("nmi_pending", "irr"), [(0, 0), (1, 0), (0, 1)])
def test_stgi_asks_for_a_look_at_events_if_one_waits(nmi_pending: int, irr: int) -> None:
    """svm_set_gif(): what was held may be injected now."""
    vcpu = with_svm()
    svm_set_gif(vcpu, False)
    vcpu.nmi_pending, vcpu.irr = nmi_pending, irr
    svm_enable_nmi_window(vcpu)
    assert intercepts(vcpu, INTERCEPT_STGI)
    svm_set_gif(vcpu, True)
    assert (requested(vcpu, KVM_REQ_EVENT), intercepts(vcpu, INTERCEPT_STGI)) == (bool(nmi_pending or irr), False)


@pytest.mark.parametrize(("vgif", "kept"), [(0, False), (1, True)])
def test_clgi_takes_an_interrupt_window_away_unless_gif_is_virtual(vgif: int, kept: bool) -> None:
    """svm_set_gif(): the processor masks the dummy by a virtual GIF."""
    vcpu = with_svm(vgif=vgif)
    vcpu.svm.vmcb.intercept_word3 |= 1 << INTERCEPT_VINTR % 32
    svm_set_gif(vcpu, False)
    assert intercepts(vcpu, INTERCEPT_VINTR) == kept
    svm_set_gif(vcpu, True)
    assert not intercepts(vcpu, INTERCEPT_VINTR)


@pytest.mark.parametrize(("revision", "gif"), [("v6.1", True), ("v6.12", True), ("v7.3", False)])
def test_clearing_svme_opened_gif_before_7_3(revision: str, gif: bool) -> None:
    """svm_set_efer()."""
    vcpu = with_svm(revision)
    svm_set_gif(vcpu, False)
    assert set_efer(vcpu, LONG_MODE)
    assert gif_set(vcpu) == gif


@pytest.mark.parametrize(("revision", "recalculated"), [("v6.12", False), ("v7.3", True)])
def test_a_change_of_svme_has_intercepts_worked_out_again(revision: str, recalculated: bool) -> None:
    """svm_set_efer(), from 7.3 on."""
    vcpu = make_vcpu("plain", revision)
    svm_set_efer(vcpu, LONG_MODE | EFER_SVME)
    assert requested(vcpu, KVM_REQ_RECALC_INTERCEPTS) == recalculated
    vcpu.requests = 0
    svm_set_efer(vcpu, LONG_MODE | EFER_SVME)
    assert vcpu.requests == 0


@pytest.mark.parametrize(("vgif", "svme", "exits"), [(1, 0, True), (1, EFER_SVME, False), (0, EFER_SVME, True)])
def test_clgi_and_stgi_exit_without_svme_and_without_virtual_gif(vgif: int, svme: int, exits: bool) -> None:
    """svm_recalc_instruction_intercepts() of 7.3."""
    vcpu = make_vcpu("plain", "v7.3", vgif)
    vcpu.efer = LONG_MODE | svme
    svm_recalc_instruction_intercepts(vcpu)
    assert (intercepts(vcpu, INTERCEPT_CLGI), intercepts(vcpu, INTERCEPT_STGI)) == (exits, exits)


@pytest.mark.parametrize("nmi_pending", [0, 1])
def test_an_nmi_that_waited_for_stgi_gets_its_window_again(nmi_pending: int) -> None:
    """svm_recalc_instruction_intercepts() of 7.3 clears the intercept that svm_enable_nmi_window() had set."""
    vcpu = make_vcpu("plain", "v7.3")
    vcpu.efer = LONG_MODE | EFER_SVME
    vcpu.nmi_pending = nmi_pending
    svm_recalc_instruction_intercepts(vcpu)
    assert requested(vcpu, KVM_REQ_EVENT) == bool(nmi_pending)


@pytest.mark.parametrize(
    ("svm", "value", "done"),
    [
        (1, LONG_MODE | EFER_SVME, True),
        (0, LONG_MODE | EFER_SVME, False),
        (0, LONG_MODE, True),
        (1, LONG_MODE & ~LME, False),
    ],
)
def test_what_efer_a_guest_may_write(svm: int, value: int, done: bool) -> None:
    """set_efer(), __kvm_valid_efer(): otherwise #GP."""
    vcpu = make_vcpu()
    vcpu.kvm.guest_svm = svm
    vcpu.svm.vmcb.exit_info_1, vcpu.svm.vmcb.rax, vcpu.svm.vmcb.next_rip = 1, value, 11
    svm_invoke_exit_handler(vcpu, SVM_EXIT_MSR)
    assert (vcpu.efer == value, vcpu.rip) == (done or value == LONG_MODE, 11 if done else 10)
    assert (vcpu.exception_pending, vcpu.exception_vector) == ((0, 0) if done else (1, GP_VECTOR))


def test_lma_is_not_the_guests_to_write() -> None:
    """set_efer()."""
    vcpu = make_vcpu()
    assert set_efer(vcpu, LME)
    assert vcpu.efer == LME | 1 << 10


def test_a_guest_reads_the_efer_that_it_has_written() -> None:
    """kvm_get_msr_common(): vcpu->arch.efer, not the VMCB's, which always has SVME."""
    vcpu = make_vcpu()
    vcpu.svm.vmcb.exit_info_1, vcpu.svm.vmcb.next_rip = 0, 11
    svm_invoke_exit_handler(vcpu, SVM_EXIT_MSR)
    assert (vcpu.svm.vmcb.rax, vcpu.svm.vmcb.efer) == (LONG_MODE, LONG_MODE | EFER_SVME)


WITHOUT_LMA = "test t\nabout x\nvcpu plain\n\nmain:\n    mov rax, 0x901\n    wrmsr efer\n    mark a\n    spin\n"


def test_a_guest_that_clears_lma_has_no_verdict() -> None:
    """KVM ignores the bit, as older manuals have it; by newer ones it is #GP."""
    test = parse(WITHOUT_LMA + "gp:\n    spin\n", "t.litmus")
    result = check(test, "plain", "tickless", BuiltinHypervisor("v6.12", "plain"))
    assert result.reason.startswith("holds if not efer_lma_is_checked, violated if efer_lma_is_checked")
