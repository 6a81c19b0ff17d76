"""What the processor alone makes of the shipped tests."""

from __future__ import annotations

from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.machine.cpu import PAGE_DF, PAGE_WORDS, STACK_WORDS
from iretrace.verdict import Outcome
from iretrace.world.alone import outcomes
from iretrace.world.guest import make_cpu


def alone(name: str) -> tuple[Outcome, ...]:
    (test,) = select([name])
    return outcomes(test, "sev-es")


def test_both_nmis_are_delivered_once_the_guest_has_said_nmi_complete() -> None:
    assert alone("nmi-complete-then-spin") == (Outcome(("n", "n"), "spins"),)


def test_a_third_nmi_may_merge_with_the_second() -> None:
    assert {len(outcome.marks) for outcome in alone("three-nmis")} == {2, 3}


def test_an_nmi_that_may_come_need_not() -> None:
    test = parse(
        "test t\nabout An NMI may come.\nvcpu sev-es\noutside maybe nmi\n\n"
        "main:\n    spin\nnmi:\n    mark n\n    iretq\n",
        "t.litmus",
    )
    assert outcomes(test, "sev-es") == (Outcome((), "spins"), Outcome(("n",), "spins"))


def test_an_nmi_placed_at_an_instruction_comes_before_it() -> None:
    assert alone("nmi-in-sti-shadow") == (Outcome(("n",), "spins"),)


def test_a_frame_that_was_there_before_main_is_what_iretq_pops() -> None:
    test = parse(
        "test t\nabout RSP is moved to the frame that lies on another stack.\nvcpu plain\noutside at here: nmi\n"
        "ist nmi, df\nframe df: back\n\nmain:\n    here: spin\n    back: mark b\n    spin\n"
        "nmi:\n    add rsp, 248\n    add rsp, 248\n    add rsp, 16\n    iretq\ndf:\n    spin\n",
        "t.litmus",
    )
    assert outcomes(test, "plain") == (Outcome(("b",), "spins"),)
    top = PAGE_DF * PAGE_WORDS + STACK_WORDS
    assert make_cpu(test).memory[top - 5 : top] == [test.main + 1, 0x10, 0x2, STACK_WORDS, 0x18]
