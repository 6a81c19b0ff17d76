"""IDT delivery: the frame in guest memory, stacks, gates, and faults on the way."""

from __future__ import annotations

import pytest

from iretrace.machine import delivery
from iretrace.machine.cpu import (
    KERNEL_CS,
    KERNEL_DS,
    MEMORY_WORDS,
    NMI_VECTOR,
    OP_HLT,
    OP_IRETQ,
    OP_NOP,
    OP_SPIN,
    OP_STI,
    PAGE_MAIN,
    PAGE_NMI,
    PAGE_WORDS,
    PF_VECTOR,
    SHADOW_NONE,
    STACK_WORDS,
    VC_VECTOR,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_NT,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
)
from iretrace.machine.delivery import FAULT, contributory, event_info, makes_double_fault, pushes_error, raise_gp
from iretrace.machine.vmcb import SVM_EXIT_INTR, SVM_EXIT_NPF, SVM_EXIT_SHUTDOWN
from tests.machine.rig import HANDLER, INJECT_NMI, Rig, rig

NMI = {NMI_VECTOR: [OP_NOP, OP_IRETQ]}
FLAGS = X86_EFLAGS_FIXED | X86_EFLAGS_IF | X86_EFLAGS_TF | X86_EFLAGS_NT | X86_EFLAGS_RF


def delivering(vector: int, error: int = 0, *handled: int, rsp: int = STACK_WORDS) -> Rig:
    """A bench after the delivery of a vector, with handlers for the vectors given."""
    on = rig(OP_SPIN, handlers={v: [OP_SPIN] for v in handled or (vector,)})
    on.cpu.rsp = rsp
    on.deliver(vector, error)
    return on


def test_the_frame_is_rip_cs_rflags_rsp_ss_from_the_stack_pointer_up() -> None:
    """APM vol. 2, Interrupt To Same Privilege in Long Mode."""
    on = rig(OP_NOP, OP_SPIN, handlers=NMI, interrupts=True).bare()
    on.nmi().bare()
    assert on.frame() == [1, KERNEL_CS, X86_EFLAGS_FIXED | X86_EFLAGS_IF, STACK_WORDS, KERNEL_DS]
    assert on.cpu.rsp == STACK_WORDS - 5


def test_delivery_touches_no_other_word() -> None:
    """APM vol. 2, Interrupt To Same Privilege in Long Mode."""
    on = rig(OP_SPIN, handlers=NMI).nmi().bare()
    assert not any(on.cpu.memory[: STACK_WORDS - 5])
    assert not any(on.cpu.memory[STACK_WORDS:])


def test_the_stack_pointer_is_aligned_before_the_frame_is_pushed_and_saved_as_it_was() -> None:
    """APM vol. 2, 64-Bit Mode Interrupt-Handler Stack: 16-byte aligned."""
    on = delivering(NMI_VECTOR, rsp=21)
    assert on.cpu.rsp == 20 - 5
    assert on.frame()[3] == 21


def test_an_error_code_lies_below_the_frame() -> None:
    """APM vol. 2, Interrupt Stack Frame."""
    on = delivering(13, 0x18)
    assert on.cpu.rsp == STACK_WORDS - 6
    assert on.cpu.memory[on.cpu.rsp] == 0x18
    assert on.cpu.memory[on.cpu.rsp + 1 : on.cpu.rsp + 3] == [0, KERNEL_CS]


def test_just_the_vectors_with_an_error_code_push_one() -> None:
    """APM vol. 2, Error Codes."""
    assert [vector for vector in range(32) if pushes_error(vector)] == [8, 10, 11, 12, 13, 14, 17, VC_VECTOR]


def test_rflags_are_pushed_as_they_were_and_the_handler_starts_without_if_tf_rf_nt() -> None:
    """APM vol. 2, Interrupt To Same Privilege in Long Mode."""
    on = rig(OP_SPIN, handlers=NMI)
    on.cpu.rflags = FLAGS
    on.nmi().bare()
    assert on.frame()[2] == FLAGS
    assert on.cpu.rflags == X86_EFLAGS_FIXED


def test_only_tf_and_if_of_the_pushed_flags_are_compared() -> None:
    """docs/design.md, History."""
    on = rig(OP_SPIN, handlers=NMI)
    on.cpu.rflags = FLAGS
    assert on.nmi().bare().cpu.seen_rflags == X86_EFLAGS_IF | X86_EFLAGS_TF


def test_delivery_ends_a_shadow() -> None:
    """Bochs, cpu/exception.cc."""
    on = rig(OP_STI, OP_SPIN, handlers=NMI).bare()
    on.deliver(NMI_VECTOR)
    assert on.cpu.shadow == SHADOW_NONE


def test_an_ist_stack_is_used_whatever_the_stack_pointer_is() -> None:
    """APM vol. 2, Interrupt-Stack Table."""
    on = rig(OP_SPIN, handlers=NMI, ist={NMI_VECTOR: PAGE_NMI}).nmi().bare()
    assert on.cpu.rsp == PAGE_NMI * PAGE_WORDS + STACK_WORDS - 5
    assert on.frame()[3] == STACK_WORDS


def test_a_nested_delivery_on_an_ist_stack_overwrites_the_first_frame() -> None:
    """APM vol. 2, Interrupt-Stack Table."""
    on = rig(OP_SPIN, handlers=NMI, ist={NMI_VECTOR: PAGE_NMI}).enter(INJECT_NMI).guest()
    first = on.cpu.rsp
    on.enter(INJECT_NMI).guest()
    assert on.cpu.rsp == first
    assert on.frame()[0] == HANDLER
    assert on.frame()[3] == first


def test_a_frame_needs_five_words_on_its_page() -> None:
    """APM vol. 2, 64-Bit Mode Interrupt-Handler Stack; the page below the stack is not mapped."""
    assert delivering(NMI_VECTOR, 0, NMI_VECTOR, rsp=6).delivered() == NMI_VECTOR
    assert delivering(NMI_VECTOR, 0, NMI_VECTOR, 8, rsp=4).delivered() == -1


def test_a_frame_with_an_error_code_needs_six_words() -> None:
    """APM vol. 2, Interrupt Stack Frame."""
    assert delivering(13, 0, rsp=6).delivered() == 13
    assert delivering(13, 0, 13, rsp=5).delivered() == -1


def test_a_stack_overflow_is_a_page_fault_that_finds_no_stack_either_then_df_then_shutdown() -> None:
    """APM vol. 2, Double-Fault Exception; Shutdown."""
    on = delivering(NMI_VECTOR, 0, NMI_VECTOR, 8, PF_VECTOR, rsp=2)
    assert on.cpu.shutdown
    assert on.delivered() == -1


def test_df_on_a_stack_of_its_own_survives_a_stack_overflow() -> None:
    """APM vol. 2, Double-Fault Exception; Interrupt-Stack Table."""
    on = rig(OP_SPIN, handlers={PF_VECTOR: [OP_SPIN], 8: [OP_SPIN]}, ist={8: 3})
    on.cpu.rsp = 2
    on.deliver(PF_VECTOR)
    assert on.delivered() == 8
    assert on.cpu.seen_error == 0
    assert not on.cpu.shutdown


def test_a_fault_that_is_not_df_is_no_way_out_of_a_failed_df() -> None:
    """APM vol. 2, Shutdown: a fault while #DF is delivered."""
    on = rig(OP_SPIN, handlers={PF_VECTOR: [OP_SPIN], 11: [OP_SPIN]}, ist={11: 3})
    on.cpu.rsp = 2
    on.deliver(PF_VECTOR)
    assert on.cpu.shutdown == 1
    assert on.delivered() == -1


def test_the_page_fault_of_a_stack_overflow_is_a_write() -> None:
    """APM vol. 2, Page-Fault Error Code."""
    on = rig(OP_SPIN, handlers={NMI_VECTOR: [OP_SPIN], PF_VECTOR: [OP_SPIN]}, ist={PF_VECTOR: 3})
    on.cpu.rsp = 2
    on.deliver(NMI_VECTOR)
    assert (on.delivered(), on.cpu.seen_error) == (PF_VECTOR, 2)


def test_an_event_ends_the_halt_of_a_guest() -> None:
    """APM vol. 3, HLT."""
    on = rig(OP_HLT, OP_SPIN, handlers=NMI).bare()
    on.deliver(NMI_VECTOR)
    assert on.cpu.halted == 0


def test_no_stack_at_all_is_a_page_fault_too() -> None:
    """A guest can return to any stack pointer that it has in memory."""
    assert delivering(NMI_VECTOR, rsp=MEMORY_WORDS + 20).cpu.shutdown
    assert delivering(NMI_VECTOR, rsp=0).cpu.shutdown


def test_a_missing_gate_is_np_with_the_vector_in_its_error_code() -> None:
    """APM vol. 2, Segment-Not-Present Exception; Error Codes: IDT and EXT."""
    on = delivering(NMI_VECTOR, 0, 11)
    assert on.delivered() == 11
    assert on.cpu.seen_error == NMI_VECTOR * 8 + 3


def test_a_missing_gate_for_np_too_is_df() -> None:
    """APM vol. 2, Double-Fault Exception."""
    assert delivering(NMI_VECTOR, 0, 8).delivered() == 8


def test_no_gate_at_all_is_a_shutdown() -> None:
    """APM vol. 2, Shutdown."""
    on = rig(OP_SPIN)
    on.deliver(NMI_VECTOR)
    assert on.cpu.shutdown
    assert on.cpu.rip == 0


def test_a_guests_shutdown_exits_if_it_is_intercepted() -> None:
    """APM vol. 2, Shutdown Intercept."""
    on = rig(OP_SPIN).enter(INJECT_NMI).guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (SVM_EXIT_SHUTDOWN, 0, 0)
    assert (on.cpu.guest_mode, on.cpu.shutdown) == (0, 1)


def test_a_guests_shutdown_that_is_not_intercepted_does_not_exit() -> None:
    """APM vol. 2, Shutdown Intercept."""
    on = rig(OP_SPIN)
    on.vmcb.intercept_word3 = 1
    on.enter(INJECT_NMI).guest()
    assert on.cpu.shutdown
    assert on.cpu.guest_mode


CONTRIBUTORY = {0, 10, 11, 12, 13, VC_VECTOR}


def test_the_contributory_exceptions() -> None:
    """APM vol. 2, Double-Fault Exception; #VC Exception."""
    assert {vector for vector in range(32) if contributory(vector)} == CONTRIBUTORY


@pytest.mark.parametrize("first", range(32))
def test_which_two_faults_make_df(first: int) -> None:
    """APM vol. 2, Double-Fault Exception: the table of pairs."""
    second = {vector for vector in range(32) if makes_double_fault(first, vector)}
    if first in CONTRIBUTORY:
        assert second == CONTRIBUTORY
    elif first == PF_VECTOR:
        assert second == CONTRIBUTORY | {PF_VECTOR}
    else:
        assert second == set()


# Nested paging. ------------------------------------------------------------------------------------------------------


def on_a_cold_page() -> Rig:
    on = rig(OP_SPIN, handlers=NMI, ist={NMI_VECTOR: PAGE_NMI}, cold=1 << PAGE_NMI)
    return on.enter(INJECT_NMI).guest()


def test_a_cold_stack_page_exits_and_exitintinfo_names_the_event() -> None:
    """APM vol. 2, Exit During IDT Vectoring."""
    on = on_a_cold_page()
    assert (on.vmcb.exit_code, on.vmcb.exit_int_info) == (SVM_EXIT_NPF, INJECT_NMI)
    assert on.vmcb.exit_info_2 == PAGE_NMI << 12


def test_a_delivery_that_was_cut_off_has_changed_nothing() -> None:
    """APM vol. 2, Exit During IDT Vectoring."""
    on = on_a_cold_page()
    assert (on.cpu.rip, on.cpu.rsp, on.delivered()) == (0, STACK_WORDS, -1)
    assert not any(on.cpu.memory)
    assert not on.cpu.shutdown


def test_a_cold_page_that_the_delivery_does_not_use_does_not_exit() -> None:
    """APM vol. 2, Nested Paging."""
    on = rig(OP_SPIN, handlers=NMI, ist={NMI_VECTOR: PAGE_NMI}, cold=1 << PAGE_MAIN).enter(INJECT_NMI).guest()
    assert on.delivered() == NMI_VECTOR


def test_exitintinfo_keeps_the_error_code_of_the_event() -> None:
    """APM vol. 2, Exit During IDT Vectoring."""
    on = rig(OP_SPIN, handlers={13: [OP_SPIN]}, cold=1).enter(1 << 31 | 1 << 11 | 3 << 8 | 13, 0x28).guest()
    assert on.vmcb.exit_int_info == 1 << 31 | 1 << 11 | 3 << 8 | 13
    assert on.vmcb.exit_int_info_err == 0x28


def test_an_exit_without_a_delivery_clears_exitintinfo() -> None:
    """APM vol. 2, Exit During IDT Vectoring."""
    on = on_a_cold_page()
    on.cpu.cold = 0
    on.cpu.intr_pending = 1
    on.enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_int_info) == (SVM_EXIT_INTR, 0)


def test_an_exit_without_a_delivery_clears_the_error_code_of_exitintinfo() -> None:
    """APM vol. 2, Exit During IDT Vectoring."""
    on = rig(OP_SPIN, handlers={13: [OP_SPIN]}, cold=1, sev_es=True).enter(1 << 31 | 1 << 11 | 3 << 8 | 13, 0x28)
    assert on.guest().vmcb.exit_int_info_err == 0x28
    on.cpu.cold = 0
    on.cpu.intr_pending = 1
    on.enter().guest()
    assert (on.vmcb.exit_int_info, on.vmcb.exit_int_info_err) == (0, 0)


def test_bare_metal_has_no_cold_pages() -> None:
    """Nested paging is the hypervisor's."""
    on = rig(OP_SPIN, handlers=NMI, cold=0xF).nmi().bare()
    assert on.delivered() == NMI_VECTOR


def test_events_in_the_format_of_exitintinfo() -> None:
    """APM vol. 2, Event Injection."""
    assert event_info(delivery.NMI, NMI_VECTOR, 0) == 0x8000_0202
    assert event_info(FAULT, 13, 1) == 0x8000_0B0D
    assert event_info(FAULT, 6, 0) == 0x8000_0306


# SEV-ES. -------------------------------------------------------------------------------------------------------------


def test_an_intercepted_fault_of_a_delivery_becomes_vc_with_the_exit_code() -> None:
    """APM vol. 2, #VC Exception; Non-Automatic Exits."""
    on = rig(OP_SPIN, handlers={VC_VECTOR: [OP_SPIN]}, sev_es=True)
    on.vmcb.intercept_exception = 1 << 11
    on.enter(INJECT_NMI).guest()
    assert on.cpu.rip == HANDLER
    assert on.cpu.memory[on.cpu.rsp] == 0x4B


def test_a_fault_that_is_not_intercepted_is_delivered_as_it_is() -> None:
    """APM vol. 2, Non-Automatic Exits: only if the intercept is set."""
    on = rig(OP_SPIN, handlers={VC_VECTOR: [OP_SPIN], 11: [OP_SPIN]}, sev_es=True).enter(INJECT_NMI).guest()
    assert on.delivered() == 11


def test_vc_that_finds_no_gate_is_df() -> None:
    """APM vol. 2, #VC Exception: contributory."""
    on = rig(OP_SPIN, handlers={8: [OP_SPIN]}, sev_es=True)
    on.vmcb.intercept_exception = 1 << 11
    assert on.enter(INJECT_NMI).guest().delivered() == 8


def test_bare_metal_has_no_exception_intercepts() -> None:
    """APM vol. 2, Exception Intercepts: of a guest's."""
    for sev_es in (True, False):
        on = rig(OP_SPIN, handlers={VC_VECTOR: [OP_SPIN], 11: [OP_SPIN]}, sev_es=sev_es)
        on.vmcb.intercept_exception = 0xFFFF_FFFF
        assert on.nmi().bare().delivered() == 11


def test_a_plain_guests_fault_in_a_delivery_exits_and_names_the_event() -> None:
    """APM vol. 2, Exception Intercepts; Exit During IDT Vectoring."""
    on = rig(OP_SPIN, handlers={VC_VECTOR: [OP_SPIN], 11: [OP_SPIN]})
    on.vmcb.intercept_exception = 1 << 11
    on.enter(INJECT_NMI).guest()
    assert on.vmcb.exit_code == 0x40 + 11
    assert (on.vmcb.exit_info_1, on.vmcb.exit_int_info, on.vmcb.exit_int_info_err) == (2 * 8 + 3, INJECT_NMI, 0)


GP_OR_VC = {13: [OP_SPIN, OP_SPIN], VC_VECTOR: [OP_SPIN]}


@pytest.mark.parametrize(
    ("sev_es", "guest", "intercept", "is_vc"),
    [(True, True, True, True), (True, False, True, False), (True, True, False, False)],
)
def test_an_intercepted_fault_of_an_encrypted_guests_instruction_is_vc(
    sev_es: bool, guest: bool, intercept: bool, is_vc: bool
) -> None:
    """APM vol. 2, Non-Automatic Exits: all three are needed."""
    on = rig(OP_SPIN, handlers=GP_OR_VC, sev_es=sev_es)
    on.vmcb.intercept_exception = 1 << 13 if intercept else 0
    if guest:
        on.enter()
    raise_gp(on.m, on.cpu, on.vmcb)
    assert on.cpu.rip == (HANDLER + 2 if is_vc else HANDLER)
    assert on.cpu.rsp == STACK_WORDS - 6
    assert on.cpu.memory[on.cpu.rsp] == (0x4D if is_vc else 0)
