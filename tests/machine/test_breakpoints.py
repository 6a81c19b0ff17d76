"""Breakpoints: what matches, when it traps, and what DR6 says then."""

from __future__ import annotations

import pytest

from iretrace.machine.boundary import latch_irq
from iretrace.machine.breakpoints import EXECUTE, READ, WRITE, matching
from iretrace.machine.cpu import (
    BP_VECTOR,
    DB_VECTOR,
    DR6_BD,
    DR6_BS,
    DR6_RESET,
    DR7_GD,
    DR7_RESET,
    GP_VECTOR,
    KNOB_STEP_CLEARS_B,
    NMI_VECTOR,
    OP_ANDN_STACK,
    OP_IRETQ,
    OP_LOAD,
    OP_MOV_SS,
    OP_MOV_STACK,
    OP_NOP,
    OP_OR_STACK,
    OP_POPFQ,
    OP_PUSH,
    PAGE_DB,
    PAGE_NMI,
    PAGE_WORDS,
    STACK_WORDS,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
)
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import (
    INTERCEPT_INTR,
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_VALID,
    SVM_EXIT_EXCP_BASE,
    SVM_EXIT_NPF,
)
from tests.machine.rig import DB, HANDLER, Handlers, push_words, return_frame, rig, watching

FIRST = STACK_WORDS - 1
"""The word that the first push writes."""
W0, RW0, X0, X1 = 0x9_0001, 0xB_0001, 0x1, 0x4
INJECT_DB = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | DB_VECTOR


# Matching. ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dr7", "access", "hit"),
    [
        (X0, EXECUTE, 1),
        (X0 << 1, EXECUTE, 1),
        (X0, WRITE, 0),
        (X0, READ, 0),
        (W0, WRITE, 1),
        (W0, READ, 0),
        (W0, EXECUTE, 0),
        (RW0, WRITE, 1),
        (RW0, READ, 1),
        (RW0, EXECUTE, 0),
        (0x2_0001, WRITE, 0),
        (0x2_0001, READ, 0),
        (0x2_0001, EXECUTE, 0),
        (0x9_0000, WRITE, 0),
        (0x9_0000 | DR7_GD, WRITE, 0),
    ],
)
def test_a_breakpoint_watches_what_dr7_says(dr7: int, access: int, hit: int) -> None:
    assert matching(watching(dr7, 5).cpu, access, 5) == hit
    assert matching(watching(dr7, 5).cpu, access, 6) == 0


@pytest.mark.parametrize("number", range(4))
def test_each_breakpoint_has_its_own_bits(number: int) -> None:
    addresses = [7 if n == number else 40 + n for n in range(4)]
    for enable in (1, 2):
        dr7 = enable << 2 * number | 0x1 << 16 + 4 * number
        assert matching(watching(dr7, *addresses).cpu, WRITE, 7) == 1 << number
        assert matching(watching(dr7, *addresses).cpu, EXECUTE, 7) == 0


def test_the_bits_above_the_enabling_ones_enable_nothing() -> None:
    assert matching(watching(0x300 | W0, 9, 9, 9, 9).cpu, EXECUTE, 9) == 0


def test_two_breakpoints_on_one_word_are_both_reported() -> None:
    assert matching(watching(0x99_0005, 9, 9).cpu, WRITE, 9) == 3


# Data breakpoints. ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "dr7", "word"),
    [
        (OP_PUSH, W0, FIRST - 5),
        ((OP_MOV_STACK, 1 << 24 | 7), W0, FIRST - 3),
        ((OP_OR_STACK, 7), W0, FIRST - 4),
        ((OP_ANDN_STACK, 7), W0, FIRST - 4),
        ((OP_LOAD, 1), RW0, FIRST - 3),
        (OP_POPFQ, RW0, FIRST - 4),
    ],
)
def test_an_access_of_a_watched_word_traps_behind_the_instruction(instruction: int, dr7: int, word: int) -> None:
    on = watching(dr7, word, main=(instruction, OP_NOP))
    push_words(on, 0, 0, 0, 0, 0)
    assert on.bare().cpu.trap == 1
    assert (on.cpu.rip, on.delivered()) == (1, -1)
    assert on.bare().delivered() == DB_VECTOR
    assert (on.cpu.seen_rip, on.cpu.dr6, on.cpu.seen_error) == (1, DR6_RESET | 1, DR6_RESET | 1)
    other = watching(dr7, word - 1, main=(instruction, OP_NOP))
    push_words(other, 0, 0, 0, 0, 0)
    assert other.bare().cpu.trap == 0


@pytest.mark.parametrize("instruction", [(OP_LOAD, 0), OP_POPFQ, OP_IRETQ])
def test_a_read_does_not_hit_a_breakpoint_on_writes(instruction: int) -> None:
    on = watching(W0, FIRST - 4, main=(instruction, OP_NOP))
    push_words(on, *return_frame(1))
    assert on.bare().cpu.trap == 0


@pytest.mark.parametrize("word", range(5))
def test_iret_reads_its_whole_frame(word: int) -> None:
    on = watching(RW0, FIRST - word, main=(OP_IRETQ, OP_NOP, OP_NOP))
    push_words(on, *return_frame(2))
    assert (on.bare().cpu.trap, on.cpu.rip) == (1, 2)
    for outside in (FIRST + 1, FIRST - 5):
        beside = watching(RW0, outside, main=(OP_IRETQ, OP_NOP, OP_NOP))
        push_words(beside, *return_frame(2))
        assert beside.bare().cpu.trap == 0


def test_a_breakpoint_and_a_single_step_are_one_debug_exception() -> None:
    on = watching(W0, FIRST, main=(OP_PUSH, OP_NOP))
    on.cpu.rflags |= X86_EFLAGS_TF
    assert on.bare(2).cpu.dr6 == DR6_RESET | DR6_BS | 1
    assert on.delivered() == DB_VECTOR


def test_a_write_that_does_not_happen_hits_nothing() -> None:
    on = watching(W0, FIRST, main=(OP_PUSH,), cold=1)
    assert on.enter().guest().vmcb.exit_code == SVM_EXIT_NPF
    assert on.cpu.trap == 0


# Frames. --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", range(5))
def test_a_breakpoint_on_a_frame_comes_before_the_handlers_first_instruction(word: int) -> None:
    on = watching(W0, FIRST - word, handlers={NMI_VECTOR: [OP_IRETQ], **DB})
    on.nmi().bare()
    assert (on.delivered(), on.cpu.rip, on.cpu.trap) == (NMI_VECTOR, HANDLER, 1)
    assert on.bare().delivered() == DB_VECTOR
    assert on.cpu.seen_rip == HANDLER


def test_the_error_code_is_part_of_the_frame_and_no_word_below_it_is() -> None:
    for vector, handlers, hit in ((GP_VECTOR, {GP_VECTOR: [OP_NOP]}, 1), (BP_VECTOR, {BP_VECTOR: [OP_NOP]}, 0)):
        on = watching(W0, FIRST - 5, handlers=handlers)
        assert on.deliver(vector).cpu.trap == hit
    below = watching(W0, FIRST - 6, handlers={GP_VECTOR: [OP_NOP]})
    assert below.deliver(GP_VECTOR).cpu.trap == 0
    above = watching(W0, FIRST + 1, handlers={GP_VECTOR: [OP_NOP]})
    assert above.deliver(GP_VECTOR).cpu.trap == 0


def test_a_debug_exception_whose_own_frame_is_watched_never_ends_and_nothing_comes_between() -> None:
    top = PAGE_DB * PAGE_WORDS + STACK_WORDS
    on = watching(W0, top - 3, ist={DB_VECTOR: PAGE_DB}, handlers={NMI_VECTOR: [OP_IRETQ], **DB})
    on.deliver(DB_VECTOR).nmi()
    for _ in range(3):
        assert on.bare().delivered() == DB_VECTOR
        assert (on.cpu.seen_rip, on.cpu.trap) == (on.cpu.rip, 1)


def test_in_a_guest_not_even_an_interrupt_of_the_host_ends_that() -> None:
    top = PAGE_DB * PAGE_WORDS + STACK_WORDS
    on = watching(W0, top - 3, ist={DB_VECTOR: PAGE_DB}, handlers=DB)
    on.enter(INJECT_DB).guest()
    on.cpu.intr_pending = 1
    for _ in range(3):
        assert on.guest().delivered() == DB_VECTOR
    on.vmcb.intercept_exception = 1 << DB_VECTOR
    assert on.guest().vmcb.exit_code == SVM_EXIT_EXCP_BASE + DB_VECTOR


def test_no_nested_data_bp_ends_it() -> None:
    top = PAGE_DB * PAGE_WORDS + STACK_WORDS
    on = watching(W0, top - 3, ist={DB_VECTOR: PAGE_DB}, nested_data_bp=0)
    assert on.deliver(DB_VECTOR).cpu.trap == 0
    nmi = watching(
        W0, PAGE_NMI * PAGE_WORDS + FIRST, ist={NMI_VECTOR: PAGE_NMI}, nested_data_bp=0, handlers={NMI_VECTOR: [OP_NOP]}
    )
    assert nmi.deliver(NMI_VECTOR).cpu.trap == 1


# Execution breakpoints. -----------------------------------------------------------------------------------------------


def test_an_execution_breakpoint_is_a_fault_before_the_instruction() -> None:
    on = watching(X1, 0, 0, main=(OP_PUSH,))
    assert on.bare().delivered() == DB_VECTOR
    assert (on.cpu.seen_rip, on.cpu.dr6, on.cpu.memory[FIRST - 4]) == (0, DR6_RESET | 2, 0)
    assert on.frame()[2] & X86_EFLAGS_RF == 0


def test_rf_holds_execution_breakpoints_off_for_one_instruction() -> None:
    on = watching(X0 | X1, 0, 1, main=(OP_NOP, OP_NOP))
    on.cpu.rflags |= X86_EFLAGS_RF
    assert (on.bare().cpu.rip, on.delivered()) == (1, -1)
    assert on.bare().delivered() == DB_VECTOR


def test_the_return_with_rf_gets_past_the_breakpoint() -> None:
    handler: Handlers = {DB_VECTOR: [(OP_OR_STACK, 2 << 24 | X86_EFLAGS_RF), OP_IRETQ]}
    on = watching(X0, 0, main=(OP_NOP, OP_NOP), handlers=handler)
    on.bare(3)
    assert (on.cpu.rip, on.cpu.rflags) == (0, X86_EFLAGS_FIXED | X86_EFLAGS_RF)
    assert (on.bare().cpu.rip, on.delivered()) == (1, -1)


def test_the_shadow_of_mov_ss_holds_an_execution_breakpoint_off() -> None:
    on = watching(X0, 1, main=(OP_MOV_SS, OP_NOP, OP_NOP))
    assert (on.bare(2).cpu.rip, on.delivered()) == (2, -1)


def test_an_execution_breakpoint_comes_behind_nmi_and_interrupt() -> None:
    handlers = {NMI_VECTOR: [OP_NOP], IRQ_VECTOR: [OP_NOP], **DB}
    on = watching(X0, 0, handlers=handlers).nmi()
    assert on.bare().delivered() == NMI_VECTOR
    irq = watching(X0, 0, handlers=handlers, interrupts=True)
    latch_irq(irq.cpu)
    assert irq.bare().delivered() == IRQ_VECTOR


def test_a_physical_interrupt_exits_before_an_execution_breakpoint() -> None:
    on = watching(X0, 0)
    on.enter().cpu.intr_pending = 1
    assert on.guest().vmcb.exit_code == INTERCEPT_INTR


def test_an_intercepted_execution_breakpoint_exits_at_it() -> None:
    on = watching(X0, 0)
    on.vmcb.intercept_exception = 1 << DB_VECTOR
    on.enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.rip, on.vmcb.exit_info_1) == (SVM_EXIT_EXCP_BASE + DB_VECTOR, 0, 0)
    assert (on.vmcb.dr6, on.vmcb.dr7) == (DR6_RESET | 1, DR7_RESET | X0)


# DR6. -----------------------------------------------------------------------------------------------------------------


def test_a_breakpoint_rewrites_the_low_bits_of_dr6_and_keeps_the_others() -> None:
    on = watching(W0, FIRST, main=(OP_PUSH,))
    on.cpu.dr6 |= DR6_BS | DR6_BD | 0xE
    assert on.bare(2).cpu.dr6 == DR6_RESET | DR6_BS | DR6_BD | 1


@pytest.mark.parametrize("clears", [False, True])
def test_whether_a_single_step_clears_the_low_bits_is_a_knob(clears: bool) -> None:
    on = rig(OP_NOP, handlers=DB, knobs=clears << KNOB_STEP_CLEARS_B)
    on.cpu.dr6 |= 3
    on.cpu.rflags |= X86_EFLAGS_TF
    assert on.bare(2).cpu.dr6 == DR6_RESET | DR6_BS | (0 if clears else 3)
    assert on.m.consulted == 1 << KNOB_STEP_CLEARS_B


@pytest.mark.parametrize(("dr6", "dr7"), [(0, 0), (3, W0)])
def test_the_knob_is_consulted_only_where_it_matters(dr6: int, dr7: int) -> None:
    on = watching(dr7, FIRST, main=(OP_PUSH,))
    on.cpu.dr6 |= dr6
    on.cpu.rflags |= X86_EFLAGS_TF
    assert on.bare(2).delivered() == DB_VECTOR
    assert on.m.consulted == 0
