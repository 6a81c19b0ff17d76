"""Instructions that use the stack, and flags."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import (
    CODE_SIZE,
    MEMORY_WORDS,
    OP_ADD_RSP,
    OP_ANDN_STACK,
    OP_IRETQ,
    OP_MOV_STACK,
    OP_NOP,
    OP_OR_STACK,
    OP_POPFQ,
    OP_PUSH,
    OP_PUSHFQ,
    OP_SPIN,
    PAGE_DB,
    PAGE_WORDS,
    PF_VECTOR,
    SEEN_FLAGS,
    SEEN_NOTHING,
    STACK_WORDS,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_NT,
    X86_EFLAGS_TF,
)
from iretrace.machine.vmcb import (
    SVM_EXIT_NPF,
)
from tests.machine.rig import HANDLER, push_words, return_frame, rig


def test_pushfq_stores_rflags_and_shows_tf_and_if() -> None:
    """APM vol. 3, PUSHF."""
    on = rig(OP_NOP, OP_PUSHFQ, interrupts=True).bare()
    on.cpu.rflags |= X86_EFLAGS_NT
    on.bare()
    assert on.cpu.memory[on.cpu.rsp] == X86_EFLAGS_FIXED | X86_EFLAGS_IF | X86_EFLAGS_NT
    assert (on.cpu.seen, on.cpu.seen_rip, on.cpu.seen_rflags) == (SEEN_FLAGS, 1, X86_EFLAGS_IF)
    assert (on.cpu.rip, on.cpu.rsp) == (2, STACK_WORDS - 1)


def test_pushfq_that_stores_nothing_shows_nothing() -> None:
    """An observation is what the guest can read."""
    on = rig(OP_PUSHFQ, cold=1).enter().guest()
    assert on.cpu.seen == SEEN_NOTHING
    on = rig(OP_PUSHFQ)
    on.m.hidden[0] = 1
    assert on.bare().cpu.seen == SEEN_NOTHING


def test_pushfq_needs_one_word() -> None:
    """APM vol. 3, PUSHF."""
    on = rig(OP_PUSHFQ)
    on.cpu.rsp = PAGE_DB * PAGE_WORDS + 1
    assert on.bare().cpu.seen == SEEN_FLAGS


def test_popfq_loads_tf_if_and_nt_and_casts_no_shadow() -> None:
    """APM vol. 3, POPF."""
    on = rig(OP_POPFQ)
    push_words(on, 0xFFFF_FFFF & ~X86_EFLAGS_TF)
    on.bare()
    assert on.cpu.rflags == X86_EFLAGS_FIXED | X86_EFLAGS_IF | X86_EFLAGS_NT
    assert (on.cpu.rip, on.cpu.rsp, on.cpu.shadow) == (1, STACK_WORDS, 0)
    push_words(on, 0)
    on.cpu.rip = 0
    assert on.bare().cpu.rflags == X86_EFLAGS_FIXED


def test_popfq_without_a_word_is_a_page_fault_that_reads() -> None:
    """APM vol. 2, Page-Fault Exception."""
    on = rig(OP_POPFQ, handlers={PF_VECTOR: [OP_SPIN]}).bare()
    assert (on.delivered(), on.cpu.seen_error, on.cpu.seen_rip, on.cpu.rip) == (PF_VECTOR, 0, 0, HANDLER)


@pytest.mark.parametrize(
    ("op", "before", "after"),
    [(OP_OR_STACK, 0x11, 0x33), (OP_ANDN_STACK, 0x31, 0x11), (OP_MOV_STACK, 0x11, 0x22)],
)
def test_a_word_of_the_stack_is_changed_in_place(op: int, before: int, after: int) -> None:
    """APM vol. 3, OR; AND; MOV."""
    on = rig((op, 2 << 24 | 0x22))
    push_words(on, 7, 7, before, 7)
    on.bare()
    assert on.cpu.memory[on.cpu.rsp : on.cpu.rsp + 4] == [7, 7, after, 7]
    assert (on.cpu.rip, on.cpu.rsp, on.cpu.rflags) == (1, STACK_WORDS - 4, X86_EFLAGS_FIXED)


@pytest.mark.parametrize("op", [OP_OR_STACK, OP_ANDN_STACK, OP_MOV_STACK])
@pytest.mark.parametrize("rsp", [STACK_WORDS, PAGE_WORDS - 1, MEMORY_WORDS, MEMORY_WORDS + 5])
def test_a_word_that_is_on_no_stack_is_a_page_fault_that_writes(op: int, rsp: int) -> None:
    """APM vol. 2, Page-Fault Exception."""
    on = rig((op, 0xFF_FFFF), handlers={PF_VECTOR: [OP_SPIN]}, ist={PF_VECTOR: PAGE_DB})
    on.cpu.rsp = rsp
    on.bare()
    assert (on.delivered(), on.cpu.seen_error) == (PF_VECTOR, 2)


def test_all_24_bits_of_an_immediate_count() -> None:
    """APM vol. 3, MOV."""
    on = rig((OP_MOV_STACK, 0xFF_FFFF))
    push_words(on, 0)
    assert on.bare().cpu.memory[on.cpu.rsp] == 0xFF_FFFF


@pytest.mark.parametrize(("op", "info"), [(OP_MOV_STACK, 6), (OP_POPFQ, 4), (OP_PUSHFQ, 6), (OP_PUSH, 6)])
def test_an_access_of_a_cold_page_exits_before_it_is_made(op: int, info: int) -> None:
    """APM vol. 2, Nested Page Fault: EXITINFO1, EXITINFO2."""
    on = rig(op, cold=1 << PAGE_DB)
    on.cpu.rsp = PAGE_DB * PAGE_WORDS + 9
    before = list(on.cpu.memory)
    on.enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (SVM_EXIT_NPF, info, PAGE_DB << 12)
    assert (on.vmcb.rip, on.vmcb.rsp, on.cpu.memory) == (0, PAGE_DB * PAGE_WORDS + 9, before)
    on.cpu.cold = 0xFF & ~(1 << PAGE_DB)
    assert on.enter().guest().cpu.guest_mode


def test_add_rsp_drops_words() -> None:
    """APM vol. 3, ADD."""
    on = rig((OP_ADD_RSP, 2))
    push_words(on, 1, 2, 3)
    assert (on.bare().cpu.rsp, on.cpu.rip) == (STACK_WORDS - 1, 1)


def test_iretq_with_nt_set_is_gp() -> None:
    """APM vol. 3, IRET: in long mode there is no nested task to return to."""
    on = rig(OP_IRETQ, handlers={13: [OP_SPIN]})
    push_words(on, *return_frame(9))
    on.cpu.rflags |= X86_EFLAGS_NT
    on.cpu.nmi_masked = 1
    assert on.bare().delivered() == 13
    assert (on.cpu.rip, on.frame_behind_the_error_code()[0]) == (HANDLER, 0)
    assert on.frame_behind_the_error_code()[3] == STACK_WORDS - 5
    assert (on.cpu.nmi_masked, on.m.consulted != 0) == (1, True)


def test_code_ends_where_it_ends() -> None:
    """APM vol. 2, Page-Fault Exception: instruction fetch."""
    on = rig(OP_NOP, handlers={PF_VECTOR: [OP_SPIN]})
    on.cpu.rip = CODE_SIZE
    assert on.bare().cpu.seen_error == 0x10
