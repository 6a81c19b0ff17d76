"""Breakpoints, general detect, moves of debug registers, #VC for them, and what VMRUN and #VMEXIT do to DR0-3."""

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
    IRQ_VECTOR,
    KNOB_STEP_CLEARS_B,
    MEMORY_WORDS,
    NMI_VECTOR,
    OP_ANDN_STACK,
    OP_FROM_DR,
    OP_IRETQ,
    OP_JMP,
    OP_LOAD,
    OP_LOAD_BAD,
    OP_MOV_RAX,
    OP_MOV_SS,
    OP_MOV_STACK,
    OP_NOP,
    OP_OR_STACK,
    OP_POPFQ,
    OP_PUSH,
    OP_SHOW,
    OP_SPIN,
    OP_TO_DR,
    OP_VC_DB,
    OP_VMGEXIT,
    PAGE_DB,
    PAGE_NMI,
    PAGE_WORDS,
    PF_VECTOR,
    SEEN_VALUE,
    STACK_WORDS,
    VC_FORWARD,
    VC_VECTOR,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
)
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.svm import vmrun
from iretrace.machine.swap import DebugState, lbr_virtualized, swap_in, swap_out
from iretrace.machine.vmcb import (
    INTERCEPT_INTR,
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_VALID,
    SVM_EXIT_EXCP_BASE,
    SVM_EXIT_NPF,
    SVM_EXIT_READ_DR0,
    SVM_EXIT_READ_DR7,
    SVM_EXIT_WRITE_DR0,
    SVM_EXIT_WRITE_DR7,
)
from tests.machine.rig import HANDLER, Handlers, Rig, push_words, return_frame, rig

FIRST = STACK_WORDS - 1
"""The word that the first push writes."""
W0, RW0, X0, X1 = 0x9_0001, 0xB_0001, 0x1, 0x4
DB: Handlers = {DB_VECTOR: [OP_IRETQ]}
INJECT_DB = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | DB_VECTOR


def watching(dr7: int, *addresses: int, main: tuple[int | tuple[int, int], ...] = (OP_NOP,), **how: object) -> Rig:
    """A bench whose breakpoints are set."""
    on = rig(*main, **{"handlers": DB, **how})  # type: ignore[arg-type]
    for number, address in enumerate(addresses):
        setattr(on.cpu, f"dr{number}", address)
    on.cpu.dr7 = DR7_RESET | dr7
    return on


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


# Swap types. ----------------------------------------------------------------------------------------------------------

GUESTS, HOSTS, AREAS = (11, 12, 13, 14), (21, 22, 23, 24), (31, 32, 33, 34)


def debug_state(base: tuple[int, ...], masks: int) -> DebugState:
    return DebugState(base[0], base[1], base[2], base[3], masks, masks + 1, masks + 2, masks + 3, 0x4AA, 0xFFFF_0FF1, 2)


def registers(on: Rig) -> tuple[int, ...]:
    return (on.cpu.dr0, on.cpu.dr1, on.cpu.dr2, on.cpu.dr3)


def addresses(state: DebugState) -> tuple[int, ...]:
    return (state.dr0, state.dr1, state.dr2, state.dr3)


def masks(state: DebugState) -> tuple[int, ...]:
    return (state.mask0, state.mask1, state.mask2, state.mask3)


@pytest.mark.parametrize("swapped", [False, True])
def test_vmrun_leaves_the_breakpoint_addresses_unless_they_are_swapped(swapped: bool) -> None:
    on = rig()
    on.cpu.dr0, on.cpu.dr1, on.cpu.dr2, on.cpu.dr3 = GUESTS
    on.cpu.debug_swap = int(swapped)
    swap_in(on.cpu, debug_state(HOSTS, 1), False)
    assert registers(on) == (GUESTS if swapped else HOSTS)


@pytest.mark.parametrize("sev_es", [False, True])
def test_without_debug_swap_the_guests_addresses_stay_in_the_processor(sev_es: bool) -> None:
    on = rig(sev_es=sev_es)
    on.cpu.dr0, on.cpu.dr1, on.cpu.dr2, on.cpu.dr3 = GUESTS
    physical = debug_state(HOSTS, 1)
    swap_out(on.m, on.cpu, physical, debug_state(AREAS, 5), False)
    assert (addresses(physical), masks(physical), registers(on)) == (GUESTS, (1, 2, 3, 4), (0, 0, 0, 0))
    assert physical.dr7 == (0x4AA if sev_es else DR7_RESET)
    assert physical.dr6 == (0xFFFF_0FF1 if sev_es else DR6_RESET)


def test_with_debug_swap_the_save_area_is_loaded_and_the_guest_keeps_its_own() -> None:
    on = rig(sev_es=True)
    on.cpu.dr0, on.cpu.dr1, on.cpu.dr2, on.cpu.dr3 = GUESTS
    on.cpu.debug_swap = 1
    physical = debug_state(HOSTS, 1)
    swap_out(on.m, on.cpu, physical, debug_state(AREAS, 5), False)
    assert (addresses(physical), masks(physical), registers(on)) == (AREAS, (5, 6, 7, 8), GUESTS)
    assert physical.dr7 == 0x4AA


def test_debugctl_is_the_hosts_unless_lbr_virtualization_switches_it() -> None:
    """APM vol. 2, Last Branch Record Virtualization."""
    on = rig()
    assert not lbr_virtualized(on.vmcb)
    on.vmcb.virt_ext = 3
    assert lbr_virtualized(on.vmcb)
    for switched in (False, True):
        physical = debug_state(HOSTS, 1)
        swap_in(on.cpu, physical, switched)
        assert on.cpu.debugctl == (0 if switched else 2)
        on.cpu.debugctl = 1
        swap_out(on.m, on.cpu, physical, debug_state(AREAS, 5), switched)
        assert (physical.debugctl, on.cpu.debugctl) == (2 if switched else 1, 0)


@pytest.mark.parametrize(("op", "traps"), [(OP_NOP, False), (OP_SPIN, True), ((OP_JMP, 5), True)])
def test_with_btf_only_branches_are_single_stepped(op: int | tuple[int, int], traps: bool) -> None:
    """APM vol. 2, Control-Transfer Breakpoint Feature."""
    on = rig(op)
    on.cpu.rflags |= X86_EFLAGS_TF
    on.cpu.debugctl = 2
    assert on.bare().cpu.trap == (DR6_BS if traps else 0)
    on = rig(op)
    on.cpu.rflags |= X86_EFLAGS_TF
    on.cpu.debugctl = 1
    assert on.bare().cpu.trap == DR6_BS
    on = rig(op)
    on.cpu.debugctl = 2
    assert on.bare().cpu.trap == 0


def test_a_debug_exception_ends_btf() -> None:
    """APM vol. 2, Control-Transfer Breakpoint Feature."""
    on = rig(OP_SPIN, handlers={DB_VECTOR: [OP_NOP]})
    on.cpu.rflags |= X86_EFLAGS_TF
    on.cpu.debugctl = 3
    assert on.bare(2).cpu.debugctl == 1
