"""General detect, moves of debug registers, their intercepts, and #VC for them."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import (
    DB_VECTOR,
    DR6_BD,
    DR6_RESET,
    DR7_GD,
    DR7_RESET,
    GP_VECTOR,
    MEMORY_WORDS,
    OP_FROM_DR,
    OP_IRETQ,
    OP_LOAD,
    OP_LOAD_BAD,
    OP_MOV_RAX,
    OP_NOP,
    OP_PUSH,
    OP_SHOW,
    OP_TO_DR,
    OP_VC_DB,
    OP_VMGEXIT,
    PF_VECTOR,
    SEEN_VALUE,
    STACK_WORDS,
    VC_FORWARD,
    VC_VECTOR,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
)
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.svm import vmrun
from iretrace.machine.vmcb import (
    INTERCEPT_INTR,
    SVM_EXIT_EXCP_BASE,
    SVM_EXIT_NPF,
    SVM_EXIT_READ_DR0,
    SVM_EXIT_READ_DR7,
    SVM_EXIT_WRITE_DR0,
    SVM_EXIT_WRITE_DR7,
)
from tests.machine.rig import DB, HANDLER, Handlers, Rig, push_words, rig, watching

FIRST = STACK_WORDS - 1
"""The word that the first push writes."""
W0, X0 = 0x9_0001, 0x1


# General detect, and moves. -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [OP_TO_DR, OP_FROM_DR])
def test_general_detect_is_a_fault_at_the_move_and_is_off_then(op: int) -> None:
    on = watching(DR7_GD, main=((op, 1),))
    on.cpu.rax, on.cpu.dr1, on.cpu.dr6 = 5, 6, on.cpu.dr6 | 3
    assert on.bare().delivered() == DB_VECTOR
    assert (on.cpu.seen_rip, on.cpu.dr6, on.cpu.dr7) == (0, DR6_RESET | DR6_BD, DR7_RESET)
    assert (on.cpu.rax, on.cpu.dr1) == (5, 6)
    assert on.frame()[2] & X86_EFLAGS_RF


def test_an_intercepted_general_detect_exits_with_dr6_and_dr7_as_they_are_then() -> None:
    on = watching(DR7_GD, main=((OP_TO_DR, 1),))
    on.vmcb.intercept_exception = 1 << DB_VECTOR
    on.enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_info_1) == (SVM_EXIT_EXCP_BASE + DB_VECTOR, 0)
    assert (on.vmcb.dr6, on.vmcb.dr7) == (DR6_RESET | DR6_BD, DR7_RESET)


def test_other_instructions_do_not_meet_general_detect() -> None:
    on = watching(DR7_GD, main=((OP_MOV_RAX, 5), OP_SHOW, OP_PUSH))
    assert (on.bare(3).cpu.rip, on.cpu.memory[FIRST]) == (3, 5)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_breakpoint_address_is_read_back_as_written(number: int) -> None:
    on = rig((OP_MOV_RAX, 0x1234), (OP_TO_DR, number), (OP_MOV_RAX, 0), (OP_FROM_DR, number)).bare(4)
    assert (on.cpu.rax, getattr(on.cpu, f"dr{number}"), on.cpu.rip) == (0x1234, 0x1234, 4)


@pytest.mark.parametrize(
    ("number", "written", "read"),
    [(6, 0, DR6_RESET), (6, 0xFFFF_FFFF, DR6_RESET | 0xE00F), (7, 0, DR7_RESET), (7, 0xFFFF_DFFF, 0xFFFF_07FF)],
)
def test_reserved_bits_of_dr6_and_dr7_are_as_at_reset(number: int, written: int, read: int) -> None:
    on = rig((OP_MOV_RAX, written), (OP_TO_DR, number), (OP_MOV_RAX, 1), (OP_FROM_DR, number)).bare(4)
    assert (on.cpu.rax, getattr(on.cpu, f"dr{number}")) == (read, read)


def test_general_detect_is_a_bit_of_dr7_that_can_be_written() -> None:
    assert rig((OP_MOV_RAX, DR7_GD), (OP_TO_DR, 7)).bare(2).cpu.dr7 == DR7_RESET | DR7_GD


def test_what_rax_holds_can_be_shown_and_pushed_and_loaded() -> None:
    on = rig((OP_MOV_RAX, 77), OP_PUSH, (OP_MOV_RAX, 1), (OP_LOAD, 0), OP_SHOW).bare(5)
    assert (on.cpu.seen, on.cpu.seen_error, on.cpu.seen_rip, on.cpu.rip) == (SEEN_VALUE, 77, 4, 5)


def test_a_load_from_a_cold_page_exits_and_from_none_faults() -> None:
    cold = rig((OP_LOAD, 0), cold=1)
    push_words(cold, 3)
    assert (cold.enter().guest().vmcb.exit_code, cold.cpu.rip) == (SVM_EXIT_NPF, 0)
    none = rig((OP_LOAD, 0), handlers={PF_VECTOR: [OP_NOP]}).bare()
    assert (none.delivered(), none.cpu.seen_error) == (PF_VECTOR, 0)


@pytest.mark.parametrize(("what", "vector"), [(0, PF_VECTOR), (1, GP_VECTOR)])
def test_a_read_from_nowhere_faults(what: int, vector: int) -> None:
    on = rig((OP_LOAD_BAD, what), handlers={vector: [OP_NOP]}).bare()
    assert (on.delivered(), on.cpu.seen_error, on.cpu.seen_rip, on.cpu.rip) == (vector, 0, 0, HANDLER)
    assert on.frame_behind_the_error_code()[2] & X86_EFLAGS_RF


# Intercepts. ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 3, 6, 7])
@pytest.mark.parametrize(
    ("op", "base", "bit"), [(OP_FROM_DR, SVM_EXIT_READ_DR0, 0), (OP_TO_DR, SVM_EXIT_WRITE_DR0, 16)]
)
def test_an_intercepted_move_exits_before_general_detect(number: int, op: int, base: int, bit: int) -> None:
    on = watching(DR7_GD, main=(OP_NOP, (op, number)))
    on.vmcb.intercept_dr = 1 << number + bit
    on.enter().guest(2)
    assert (on.vmcb.exit_code, on.vmcb.rip, on.vmcb.next_rip) == (base + number, 1, 2)
    assert (on.vmcb.exit_info_1, on.vmcb.exit_info_2, on.cpu.rip) == (0, 0, 1)
    free = watching(0, main=((op, number),))
    free.vmcb.intercept_dr = 0xFFFF_FFFF & ~(1 << number + bit)
    assert free.enter().guest().cpu.rip == 1


def test_rax_and_dr7_travel_in_the_vmcb_of_a_plain_guest() -> None:
    on = rig((OP_MOV_RAX, 9), OP_NOP, intercepts=(INTERCEPT_INTR,))
    on.cpu.dr7 = DR7_RESET | W0
    on.enter()
    assert (on.vmcb.rax, on.vmcb.dr7) == (0, 0)
    on.guest().cpu.intr_pending = 1
    on.guest()
    assert (on.vmcb.rax, on.vmcb.dr7) == (9, DR7_RESET | W0)
    on.vmcb.rax, on.vmcb.dr7 = 1, DR7_RESET | X0
    vmrun(on.m, on.cpu, on.vmcb)
    assert (on.cpu.rax, on.cpu.dr7, on.vmcb.rax, on.vmcb.dr7) == (1, DR7_RESET | X0, 0, 0)


# SEV-ES. --------------------------------------------------------------------------------------------------------------

VC: Handlers = {VC_VECTOR: [OP_VC_DB, (OP_VMGEXIT, VC_FORWARD), OP_IRETQ], **DB}


def vc_rig(*main: int | tuple[int, int]) -> Rig:
    """An SEV-ES guest with a #VC handler like Linux's."""
    return rig(*main, handlers=VC, sev_es=True)


@pytest.mark.parametrize(("op", "code"), [(OP_TO_DR, SVM_EXIT_WRITE_DR7), (OP_FROM_DR, SVM_EXIT_READ_DR7)])
def test_dr7_of_an_encrypted_guest_is_vc_on_the_machine_alone_and_where_it_is_intercepted(op: int, code: int) -> None:
    alone = vc_rig((op, 7)).bare()
    assert (alone.cpu.rip, alone.cpu.memory[alone.cpu.rsp]) == (HANDLER, code)
    guest = vc_rig((op, 7))
    guest.vmcb.intercept_dr = 0x80_0080
    assert guest.enter().guest().cpu.memory[guest.cpu.rsp] == code
    assert guest.cpu.rip == HANDLER
    free = vc_rig((op, 7))
    assert free.enter().guest().cpu.rip == 1


@pytest.mark.parametrize("number", [0, 6])
def test_other_debug_registers_of_an_encrypted_guest_are_its_own(number: int) -> None:
    assert vc_rig((OP_TO_DR, number)).bare().cpu.rip == 1


def test_debug_swap_gives_the_guest_its_dr7_and_its_debug_exception() -> None:
    on = vc_rig((OP_MOV_RAX, W0), (OP_TO_DR, 7), OP_PUSH)
    on.cpu.debug_swap, on.cpu.dr0 = 1, FIRST
    assert on.bare(4).delivered() == DB_VECTOR
    assert on.cpu.dr6 == DR6_RESET | 1


def test_without_it_a_single_step_is_vc_and_goes_on_in_the_handler_of_db() -> None:
    on = vc_rig(OP_NOP, OP_NOP)
    on.cpu.rflags |= X86_EFLAGS_TF
    on.bare(2)
    assert (on.cpu.rip, on.delivered(), on.cpu.memory[on.cpu.rsp]) == (HANDLER, -1, SVM_EXIT_EXCP_BASE + DB_VECTOR)
    assert (on.bare().cpu.rip, on.frame()[0]) == (HANDLER + 3, 1)
    assert on.bare().cpu.rip == 1


@pytest.mark.parametrize(("intercepted", "vector"), [(True, -1), (False, DB_VECTOR)])
def test_in_a_guest_debug_exceptions_are_vc_if_they_are_intercepted(intercepted: bool, vector: int) -> None:
    on = vc_rig(OP_NOP)
    on.cpu.rflags |= X86_EFLAGS_TF
    on.vmcb.intercept_exception = intercepted << DB_VECTOR
    assert on.enter().guest(2).delivered() == vector


def test_vc_db_passes_by_where_the_vc_is_for_something_else() -> None:
    on = vc_rig((OP_FROM_DR, 7)).bare(2)
    assert on.cpu.rip == HANDLER + 1
    without = rig(OP_NOP, handlers={VC_VECTOR: [OP_VC_DB, OP_NOP]}, sev_es=True)
    without.cpu.rflags |= X86_EFLAGS_TF
    assert without.bare(3).cpu.rip == HANDLER + 1
    no_stack = rig(OP_VC_DB, sev_es=True)
    no_stack.cpu.rsp = MEMORY_WORDS
    assert no_stack.bare().cpu.rip == 1


def test_the_handler_remembers_dr7_and_tells_the_hypervisor() -> None:
    on = vc_rig((OP_MOV_RAX, W0), (OP_TO_DR, 7))
    on.vmcb.intercept_dr = 0x80_0080
    on.enter().guest(4)
    assert (on.cpu.shadow_dr7, on.cpu.dr7) == (W0, DR7_RESET)
    assert (on.ghcb.sw_exit_code, on.ghcb.rax, on.ghcb.valid_bitmap_lo) == (SVM_EXIT_WRITE_DR7, W0, 1 << 63)
    assert on.cpu.guest_mode == 0


def test_the_handler_answers_a_read_of_dr7_by_itself() -> None:
    on = vc_rig((OP_FROM_DR, 7))
    on.cpu.shadow_dr7, on.vmcb.intercept_dr = 0x123, 0x80_0080
    on.enter().guest(3)
    assert (on.cpu.rax, on.cpu.guest_mode, on.cpu.rip) == (0x123, 1, HANDLER + 2)
    assert on.ghcb.pack() == Ghcb().pack()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("swap", "allowed", "enters"),
    [(1, 0, 1), (1, 1 << 63, 0), (1, 1 << 63 | 1 << 5, 1), (1, 1 << 5, 1), (1, 1 << 63 | 1 << 6, 0), (0, 1 << 63, 1)],
)
def test_vmrun_refuses_a_feature_that_is_not_allowed(swap: int, allowed: int, enters: int) -> None:
    on = rig(OP_NOP, sev_es=True)
    on.cpu.debug_swap, on.vmcb.allowed_sev_features = swap, allowed
    vmrun(on.m, on.cpu, on.vmcb)
    assert on.cpu.guest_mode == enters
