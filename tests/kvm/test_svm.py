"""What our KVM does about NMIs, interrupts and #DB, function by function."""

from __future__ import annotations

import pytest

from iretrace.kvm.debug import kvm_skip_emulated_instruction
from iretrace.kvm.exceptions import BP_VECTOR, DB_VECTOR, DR6_ACTIVE_LOW, DR6_BS, UD_VECTOR, VC_VECTOR
from iretrace.kvm.kvm_host import (
    AGAIN,
    KVM_EXIT_FAIL_ENTRY,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE,
    KVM_REQ_EVENT,
    NOT_MODELLED_EXCEPTIONS,
    NOT_MODELLED_EXIT,
    TO_USERSPACE,
    Vcpu,
)
from iretrace.kvm.kvm_host import VMRUN as ENTERS
from iretrace.kvm.sev import sev_handle_vmgexit
from iretrace.kvm.svm import (
    X86_EFLAGS_IF,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
    disable_nmi_singlestep,
    svm_cancel_injection,
    svm_complete_interrupts,
    svm_enable_irq_window,
    svm_enable_nmi_window,
    svm_get_rflags,
    svm_inject_exception,
    svm_inject_irq,
    svm_inject_nmi,
    svm_nmi_allowed,
    svm_set_rflags,
    svm_vcpu_run,
)
from iretrace.kvm.svm_exits import svm_invoke_exit_handler
from iretrace.kvm.x86 import (
    kvm_check_and_inject_events,
    kvm_emulate_halt,
    kvm_vcpu_has_events,
    process_nmi,
)
from iretrace.kvm.x86_run import svm_handle_exit, vcpu_enter_guest
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_IRET,
    INTERCEPT_STGI,
    INTERCEPT_VINTR,
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_TYPE_INTR,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_TYPE_SOFT,
    SVM_EVTINJ_VALID,
    SVM_EVTINJ_VALID_ERR,
    SVM_EXIT_EFER_WRITE_TRAP,
    SVM_EXIT_ERR,
    SVM_EXIT_EXCP_BASE,
    SVM_EXIT_HLT,
    SVM_EXIT_IRET,
    SVM_EXIT_STGI,
    SVM_EXIT_VINTR,
    SVM_GUEST_INTERRUPT_MASK,
    SVM_INTERRUPT_SHADOW_MASK,
    V_GIF_MASK,
    V_IRQ_MASK,
)
from tests.kvm.rig import make_vcpu

NMI = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_NMI
IRQ = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_INTR | 0x30
INT3 = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | BP_VECTOR


def intercepts(vcpu: Vcpu, number: int) -> bool:
    words = (vcpu.svm.vmcb.intercept_word3, vcpu.svm.vmcb.intercept_word4)
    return words[number // 32 - 3] >> number % 32 & 1 != 0


def wants_events(vcpu: Vcpu) -> bool:
    return vcpu.requests >> KVM_REQ_EVENT & 1 != 0


def left_guest(vcpu: Vcpu, exit_int_info: int = 0, error: int = 0) -> None:
    """The guest has left; this delivery was cut off."""
    vcpu.svm.vmcb.event_inj = 0
    vcpu.svm.vmcb.exit_int_info = exit_int_info
    vcpu.svm.vmcb.exit_int_info_err = error
    svm_complete_interrupts(vcpu)


# NMIs. ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queued", "masked", "injected", "pending"), [(3, 0, 0, 2), (3, 1, 0, 1), (3, 0, 1, 1), (1, 0, 0, 1)]
)
def test_nmis_merge_beyond_what_a_processor_remembers(queued: int, masked: int, injected: int, pending: int) -> None:
    vcpu = make_vcpu()
    vcpu.nmi_queued, vcpu.svm.nmi_masked, vcpu.nmi_injected = queued, masked, injected
    process_nmi(vcpu)
    assert (vcpu.nmi_queued, vcpu.nmi_pending) == (0, pending)


@pytest.mark.parametrize(("revision", "wanted"), [("v6.1", True), ("v6.12", False)])
def test_without_a_pending_nmi_events_are_looked_at_again_only_by_older_kvms(revision: str, wanted: bool) -> None:
    vcpu = make_vcpu(revision=revision)
    process_nmi(vcpu)
    assert wants_events(vcpu) is wanted


def test_an_injected_nmi_masks_the_next_and_arms_the_iret_intercept() -> None:
    vcpu = make_vcpu()
    svm_inject_nmi(vcpu)
    assert vcpu.svm.vmcb.event_inj == NMI
    assert vcpu.svm.nmi_masked
    assert intercepts(vcpu, INTERCEPT_IRET)


def test_iret_of_an_encrypted_guest_is_never_intercepted() -> None:
    vcpu = make_vcpu("sev-es")
    svm_inject_nmi(vcpu)
    assert vcpu.svm.nmi_masked
    assert not intercepts(vcpu, INTERCEPT_IRET)


def test_an_intercepted_iret_leaves_nmis_masked_until_rip_has_moved() -> None:
    vcpu = make_vcpu()
    svm_inject_nmi(vcpu)
    left_guest(vcpu)
    assert svm_invoke_exit_handler(vcpu, SVM_EXIT_IRET) == AGAIN
    assert not intercepts(vcpu, INTERCEPT_IRET)
    left_guest(vcpu)
    assert not svm_nmi_allowed(vcpu)
    vcpu.rip = 11
    vcpu.requests = 0
    left_guest(vcpu)
    assert svm_nmi_allowed(vcpu)
    assert wants_events(vcpu)


@pytest.mark.parametrize(("revision", "at_once"), [("v6.1", False), ("v6.12", True)])
def test_nmi_complete_opens_the_gate_at_once_since_6_6(revision: str, at_once: bool) -> None:
    vcpu = make_vcpu("sev-es", revision)
    svm_inject_nmi(vcpu)
    vcpu.svm.ghcb.sw_exit_code = 0x8000_0003
    vcpu.svm.ghcb.valid_bitmap_hi = 7 << 50
    assert sev_handle_vmgexit(vcpu) == AGAIN
    assert svm_nmi_allowed(vcpu) is at_once
    left_guest(vcpu)
    assert svm_nmi_allowed(vcpu)


def test_a_shadow_holds_an_nmi_back_and_is_stepped_over() -> None:
    vcpu = make_vcpu()
    vcpu.svm.vmcb.int_state = SVM_INTERRUPT_SHADOW_MASK
    vcpu.nmi_pending = 1
    kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == 0
    assert vcpu.svm.nmi_singlestep
    assert vcpu.svm.vmcb.rflags & (X86_EFLAGS_TF | X86_EFLAGS_RF) == X86_EFLAGS_TF | X86_EFLAGS_RF


@pytest.mark.parametrize(("revision", "steps"), [("v6.1", 1), ("v6.12", 0)])
def test_an_encrypted_guest_is_not_stepped_since_6_6(revision: str, steps: int) -> None:
    vcpu = make_vcpu("sev-es", revision)
    vcpu.svm.vmcb.int_state = SVM_INTERRUPT_SHADOW_MASK
    svm_enable_nmi_window(vcpu)
    assert vcpu.svm.nmi_singlestep == steps


@pytest.mark.parametrize(("vgif", "armed"), [(1, True), (0, True)])
def test_without_gif_the_window_is_stgi(vgif: int, armed: bool) -> None:
    vcpu = make_vcpu(vgif=vgif)
    vcpu.svm.guest_gif = 0
    vcpu.svm.vmcb.int_ctl &= ~V_GIF_MASK
    vcpu.nmi_pending = 1
    kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == 0
    assert not vcpu.svm.nmi_singlestep
    assert intercepts(vcpu, INTERCEPT_STGI) is armed


def test_of_two_nmis_one_is_injected_and_the_other_waits_for_iret() -> None:
    vcpu = make_vcpu()
    vcpu.nmi_pending = 2
    assert not kvm_check_and_inject_events(vcpu)
    assert (vcpu.nmi_pending, vcpu.nmi_injected) == (1, 1)
    assert not vcpu.svm.nmi_singlestep


# Single-stepping. -----------------------------------------------------------------------------------------------


def test_the_flags_that_kvm_steps_with_are_hidden_and_taken_back() -> None:
    vcpu = make_vcpu()
    svm_enable_nmi_window(vcpu)
    assert svm_get_rflags(vcpu) & (X86_EFLAGS_TF | X86_EFLAGS_RF) == 0
    disable_nmi_singlestep(vcpu)
    assert vcpu.svm.vmcb.rflags & (X86_EFLAGS_TF | X86_EFLAGS_RF) == 0


def test_the_guests_own_tf_stays() -> None:
    vcpu = make_vcpu()
    vcpu.svm.vmcb.rflags |= X86_EFLAGS_TF
    svm_enable_nmi_window(vcpu)
    assert svm_get_rflags(vcpu) & X86_EFLAGS_TF
    disable_nmi_singlestep(vcpu)
    assert vcpu.svm.vmcb.rflags & (X86_EFLAGS_TF | X86_EFLAGS_RF) == X86_EFLAGS_TF


def test_writing_rflags_keeps_the_step() -> None:
    vcpu = make_vcpu()
    svm_enable_nmi_window(vcpu)
    svm_set_rflags(vcpu, X86_EFLAGS_IF)
    assert vcpu.svm.vmcb.rflags == X86_EFLAGS_IF | X86_EFLAGS_TF | X86_EFLAGS_RF


def test_db_of_kvms_own_step_is_not_the_guests() -> None:
    vcpu = make_vcpu()
    svm_enable_nmi_window(vcpu)
    assert svm_invoke_exit_handler(vcpu, SVM_EXIT_EXCP_BASE + DB_VECTOR) == AGAIN
    assert not vcpu.exception_pending
    assert not vcpu.svm.nmi_singlestep
    assert wants_events(vcpu)


def test_db_of_the_guest_is_injected_with_its_dr6() -> None:
    vcpu = make_vcpu()
    vcpu.svm.vmcb.dr6 = DR6_ACTIVE_LOW | DR6_BS
    svm_invoke_exit_handler(vcpu, SVM_EXIT_EXCP_BASE + DB_VECTOR)
    kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | DB_VECTOR
    assert vcpu.dr6 == DR6_ACTIVE_LOW | DR6_BS
    assert vcpu.exception_injected
    assert not vcpu.svm.vmcb.rflags & X86_EFLAGS_RF


def test_an_injected_event_ends_the_step_and_forces_an_exit() -> None:
    vcpu = make_vcpu()
    svm_enable_nmi_window(vcpu)
    svm_inject_nmi(vcpu)
    svm_vcpu_run(vcpu, False, False)
    assert not vcpu.svm.nmi_singlestep
    assert not vcpu.svm.vmcb.rflags & X86_EFLAGS_TF
    assert vcpu.thread.ipi


def test_a_step_without_an_event_goes_on() -> None:
    vcpu = make_vcpu()
    svm_enable_nmi_window(vcpu)
    svm_vcpu_run(vcpu, False, False)
    assert vcpu.svm.vmcb.rflags & X86_EFLAGS_TF
    assert not vcpu.thread.ipi


# Interrupts. ----------------------------------------------------------------------------------------------------


def test_an_interrupt_is_injected_once_it_is_allowed() -> None:
    vcpu = make_vcpu()
    vcpu.irr = 1
    kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == 0
    assert intercepts(vcpu, INTERCEPT_VINTR)
    assert vcpu.svm.vmcb.int_ctl & V_IRQ_MASK
    vcpu.svm.vmcb.rflags |= X86_EFLAGS_IF
    assert svm_invoke_exit_handler(vcpu, SVM_EXIT_VINTR) == AGAIN
    assert not intercepts(vcpu, INTERCEPT_VINTR)
    assert not vcpu.svm.vmcb.int_ctl & V_IRQ_MASK
    kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == IRQ
    assert (vcpu.irr, vcpu.isr) == (0, 1)


def test_an_encrypted_guests_if_is_in_the_vmcb() -> None:
    vcpu = make_vcpu("sev-es")
    vcpu.irr = 1
    vcpu.svm.vmcb.rflags |= X86_EFLAGS_IF
    assert not kvm_vcpu_has_events(vcpu)
    vcpu.svm.vmcb.int_state = SVM_GUEST_INTERRUPT_MASK
    assert kvm_vcpu_has_events(vcpu)


def test_an_interrupt_of_the_class_in_service_waits() -> None:
    vcpu = make_vcpu()
    vcpu.irr = vcpu.isr = 1
    vcpu.svm.vmcb.rflags |= X86_EFLAGS_IF
    kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == 0
    assert not intercepts(vcpu, INTERCEPT_VINTR)


@pytest.mark.parametrize(("vgif", "window"), [(1, True), (0, False)])
def test_without_gif_there_is_an_interrupt_window_only_if_gif_is_virtual(vgif: int, window: bool) -> None:
    vcpu = make_vcpu(vgif=vgif)
    vcpu.svm.guest_gif = 0
    vcpu.svm.vmcb.int_ctl &= ~V_GIF_MASK
    svm_enable_irq_window(vcpu)
    assert intercepts(vcpu, INTERCEPT_VINTR) is window


@pytest.mark.parametrize("waiting", ["nmi_pending", "irr"])
def test_what_waits_behind_an_event_that_is_injected_again_asks_for_an_exit(waiting: str) -> None:
    vcpu = make_vcpu()
    vcpu.svm.vmcb.rflags |= X86_EFLAGS_IF
    vcpu.interrupt_injected, vcpu.interrupt_nr = 1, 0x20
    setattr(vcpu, waiting, 1)
    assert kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj & 0xFF == 0x20


def test_an_nmi_goes_before_an_interrupt_that_then_asks_for_an_exit() -> None:
    vcpu = make_vcpu()
    vcpu.svm.vmcb.rflags |= X86_EFLAGS_IF
    vcpu.nmi_pending = vcpu.irr = 1
    assert kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == NMI


# Injection that is cut off. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [NMI, IRQ, SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | SVM_EVTINJ_VALID_ERR | 13])
def test_a_delivery_that_was_cut_off_is_redone(event: int) -> None:
    vcpu = make_vcpu()
    left_guest(vcpu, event, 8)
    assert wants_events(vcpu)
    kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == event
    assert vcpu.svm.vmcb.event_inj_err == (8 if event & SVM_EVTINJ_VALID_ERR else 0)


def test_vc_is_never_redone() -> None:
    vcpu = make_vcpu("sev-es")
    left_guest(vcpu, SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | VC_VECTOR)
    kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == 0


def test_a_delivery_that_was_done_is_not_redone() -> None:
    vcpu = make_vcpu()
    vcpu.nmi_injected = vcpu.exception_injected = vcpu.interrupt_injected = 1
    left_guest(vcpu)
    assert not (vcpu.nmi_injected or vcpu.exception_injected or vcpu.interrupt_injected)


def test_a_cancelled_entry_takes_the_event_back() -> None:
    vcpu = make_vcpu()
    vcpu.nmi_pending = 1
    kvm_check_and_inject_events(vcpu)
    svm_cancel_injection(vcpu)
    assert vcpu.svm.vmcb.event_inj == 0
    assert vcpu.nmi_injected
    kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == NMI


@pytest.mark.parametrize(("nrips", "rip"), [(1, 10), (0, 11)])
def test_a_redone_int3_pushes_the_rip_behind_it(nrips: int, rip: int) -> None:
    vcpu = make_vcpu(nrips=nrips)
    left_guest(vcpu, INT3)
    svm_inject_exception(vcpu)
    assert vcpu.svm.vmcb.event_inj == INT3
    assert (vcpu.rip, vcpu.svm.vmcb.next_rip) == (rip, 11)


@pytest.mark.parametrize("nrips", [1, 0])
def test_an_int3_that_is_cut_off_again_is_where_it_was(nrips: int) -> None:
    vcpu = make_vcpu(nrips=nrips)
    vcpu.exception_injected, vcpu.exception_vector = 1, BP_VECTOR
    svm_inject_exception(vcpu)
    vcpu.svm.vmcb.next_rip = 0
    left_guest(vcpu, INT3)
    assert vcpu.rip == 10
    assert vcpu.svm.vmcb.next_rip == (11 if nrips else 0)


def test_an_intn_is_redone_as_a_software_interrupt() -> None:
    vcpu = make_vcpu()
    left_guest(vcpu, SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_SOFT | 0x20)
    svm_inject_irq(vcpu)
    assert vcpu.svm.vmcb.event_inj == SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_SOFT | 0x20
    assert (vcpu.rip, vcpu.svm.vmcb.next_rip) == (10, 11)


# Instructions. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("next_rip", "nrips", "rip"), [(13, 1, 13), (0, 1, 11), (13, 0, 11)])
def test_an_instruction_that_kvm_has_done_is_skipped_with_its_shadow(next_rip: int, nrips: int, rip: int) -> None:
    vcpu = make_vcpu(nrips=nrips)
    vcpu.svm.vmcb.next_rip = next_rip
    vcpu.svm.vmcb.int_state = SVM_INTERRUPT_SHADOW_MASK
    kvm_skip_emulated_instruction(vcpu)
    assert vcpu.rip == rip
    assert vcpu.svm.vmcb.int_state == 0


def test_an_encrypted_guests_rip_is_not_moved() -> None:
    vcpu = make_vcpu("sev-es")
    vcpu.svm.vmcb.int_state = SVM_INTERRUPT_SHADOW_MASK
    kvm_skip_emulated_instruction(vcpu)
    assert vcpu.rip == 10
    assert vcpu.svm.vmcb.int_state == 0


def test_a_guest_that_steps_itself_gets_db_after_an_instruction_that_kvm_has_done() -> None:
    vcpu = make_vcpu()
    vcpu.svm.vmcb.rflags |= X86_EFLAGS_TF
    kvm_skip_emulated_instruction(vcpu)
    assert (vcpu.exception_pending, vcpu.exception_vector, vcpu.exception_payload) == (1, DB_VECTOR, DR6_BS)


def test_kvms_own_step_does_not_make_a_db_there() -> None:
    vcpu = make_vcpu()
    svm_enable_nmi_window(vcpu)
    kvm_skip_emulated_instruction(vcpu)
    assert not vcpu.exception_pending


def test_a_fault_pushes_rf() -> None:
    vcpu = make_vcpu()
    svm_invoke_exit_handler(vcpu, SVM_EXIT_EXCP_BASE + UD_VECTOR)
    kvm_check_and_inject_events(vcpu)
    assert vcpu.svm.vmcb.event_inj == SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | UD_VECTOR
    assert vcpu.svm.vmcb.rflags & X86_EFLAGS_RF


@pytest.mark.parametrize(("revision", "state"), [("v6.1", KVM_MP_STATE_HALTED), ("v6.12", KVM_MP_STATE_RUNNABLE)])
def test_hlt_with_a_deliverable_nmi_does_not_halt_newer_kvms(revision: str, state: int) -> None:
    vcpu = make_vcpu(revision=revision)
    vcpu.nmi_pending = 1
    kvm_emulate_halt(vcpu)
    assert vcpu.mp_state == state


def test_hlt_halts() -> None:
    vcpu = make_vcpu()
    assert svm_invoke_exit_handler(vcpu, SVM_EXIT_HLT) == AGAIN
    assert vcpu.mp_state == KVM_MP_STATE_HALTED


def test_stgi_of_a_guest_without_svm_is_ud() -> None:
    vcpu = make_vcpu()
    svm_invoke_exit_handler(vcpu, SVM_EXIT_STGI)
    assert (vcpu.exception_pending, vcpu.exception_vector) == (1, UD_VECTOR)


def test_the_guest_does_not_see_svme_in_the_efer_that_it_has_written() -> None:
    vcpu = make_vcpu("sev-es")
    vcpu.svm.vmcb.exit_info_1 = 0xD01 | EFER_SVME
    assert svm_invoke_exit_handler(vcpu, SVM_EXIT_EFER_WRITE_TRAP) == AGAIN
    assert vcpu.efer == 0xD01
    assert vcpu.svm.vmcb.efer == 0xD01 | EFER_SVME


def test_an_unknown_exit_is_not_modelled() -> None:
    vcpu = make_vcpu()
    svm_invoke_exit_handler(vcpu, 0x7B)
    assert vcpu.thread.unmodelled == NOT_MODELLED_EXIT


def test_two_exceptions_at_once_are_not_modelled() -> None:
    vcpu = make_vcpu()
    vcpu.exception_injected = 1
    svm_invoke_exit_handler(vcpu, SVM_EXIT_EXCP_BASE + UD_VECTOR)
    assert vcpu.thread.unmodelled == NOT_MODELLED_EXCEPTIONS


def test_a_refused_vmrun_goes_to_userspace() -> None:
    vcpu = make_vcpu()
    vcpu.svm.vmcb.exit_code = SVM_EXIT_ERR
    assert svm_handle_exit(vcpu) == TO_USERSPACE
    assert vcpu.thread.exit_reason == KVM_EXIT_FAIL_ENTRY


@pytest.mark.parametrize(
    ("exit_code", "valid", "usage", "error"), [(0x72, 0, 0, 4), (0x72, 7 << 50, 0, 4), (0x72, 7 << 50, 1, 2)]
)
def test_a_malformed_vmgexit_is_answered_with_an_error(exit_code: int, valid: int, usage: int, error: int) -> None:
    vcpu = make_vcpu("sev-es")
    ghcb = vcpu.svm.ghcb
    ghcb.sw_exit_code, ghcb.valid_bitmap_hi, ghcb.ghcb_usage = exit_code, valid, usage
    assert sev_handle_vmgexit(vcpu) == AGAIN
    assert (ghcb.sw_exit_info_1, ghcb.sw_exit_info_2) == (2, error)


def test_the_vmcb_says_what_the_entry_injects() -> None:
    vcpu = make_vcpu()
    vcpu.nmi_queued = 1
    vcpu.requests = 2
    assert vcpu_enter_guest(vcpu) == ENTERS
    assert vcpu.svm.vmcb.event_inj == NMI
    assert vcpu.svm.vmcb.rip == 10
    assert vcpu.svm.vmcb.dr6 == DR6_ACTIVE_LOW
    assert not vcpu.thread.interrupts
