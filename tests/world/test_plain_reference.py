"""The patient reference of plain guests, rule by rule: interrupts, their priority, traps, and endings."""

from __future__ import annotations

from iretrace.machine.cpu import (
    DB_VECTOR,
    DR6_BS,
    DR6_RESET,
    UD_VECTOR,
    X86_EFLAGS_IF,
    X86_EFLAGS_TF,
)
from iretrace.machine.vectors import IRQ_VECTOR
from tests.world.test_reference import History

HEADER = "test t\nabout A test of the reference.\nvcpu plain\noutside irq, nmi, irq, signal\ninterrupts on\n"
HANDLERS = "nmi:\n    mark n\n    iretq\nirq:\n    mark i\n    iretq\n"
SPIN = f"\nmain:\n    spin\n{HANDLERS}"
MARKED = f"\nmain:\n    mark m\n    spin\n{HANDLERS}"
HELD = f"\nmain:\n    cli\n    spin\n{HANDLERS}"
OPENED = f"\nmain:\n    cli\n    mark m\n    sti\n    mark s\n    spin\n{HANDLERS}"
HALT = f"\nmain:\n    hlt\n    mark m\n    spin\n{HANDLERS}"
IN_NMI = "\nmain:\n    spin\nnmi:\n    sti\n    mark n\n    iretq\nirq:\n    mark i\n    iretq\n"
STEPPED = (
    "\nmain:\n    pushfq\n    or qword [rsp], TF\n    popfq\n    nop\n    spin\n"
    f"{HANDLERS}db:\n    mark d\n    and qword [rsp+16], ~TF\n    iretq\n"
)
SEV_ES = (
    "test t\nabout TF.\nvcpu sev-es\noutside nmi\n\nmain:\n    pushfq\n    or qword [rsp], TF\n    popfq\n    hlt\n"
    "nmi:\n    vmgexit nmi_complete\n    iretq\ndb:\n    iretq\n"
)
IRQ, NMI, SECOND_IRQ, SIGNAL = range(4)
IF = X86_EFLAGS_IF
STEP = DR6_RESET | DR6_BS


def plain(program: str) -> History:
    return History(program, HEADER)


def test_an_interrupt_is_not_seen_before_it_was_sent() -> None:
    assert not plain(SPIN).seen(IRQ_VECTOR, 0, IF).explained
    assert plain(SPIN).start(IRQ).seen(IRQ_VECTOR, 0, IF).explained


def test_an_interrupt_may_be_late_but_is_owed() -> None:
    late = plain(MARKED).sent(IRQ).mark("m")
    assert late.explained
    assert not late.ends("spins at 1")
    assert late.seen(IRQ_VECTOR, 1, IF).mark("i").ends("spins at 1")


def test_an_interrupt_in_transit_is_owed() -> None:
    assert not plain(SPIN).start(IRQ).ends("spins at 0")
    assert plain(HELD).start(IRQ).ends("spins at 1")


def test_an_interrupt_that_if_holds_is_not_owed() -> None:
    assert plain(HELD).sent(IRQ).ends("spins at 1")


def test_an_interrupt_is_not_taken_while_if_holds_it() -> None:
    held = plain(OPENED).mark("m").sent(IRQ)
    assert not held.seen(IRQ_VECTOR, 2).explained


def test_an_interrupt_is_not_taken_in_the_shadow_of_sti() -> None:
    assert plain(OPENED).mark("m").sent(IRQ).mark("s").seen(IRQ_VECTOR, 4, IF).explained
    assert not plain(OPENED).mark("m").sent(IRQ).seen(IRQ_VECTOR, 3, IF).explained


def test_a_second_interrupt_is_neither_owed_nor_taken_while_the_first_is_in_service() -> None:
    served = plain(SPIN).sent(IRQ).seen(IRQ_VECTOR, 0, IF).sent(SECOND_IRQ).mark("i")
    assert served.ends("spins at 0")
    assert not served.seen(IRQ_VECTOR, 0, IF).explained


def test_interrupts_merge() -> None:
    merged = plain(SPIN).sent(IRQ, SECOND_IRQ).seen(IRQ_VECTOR, 0, IF).mark("i")
    assert merged.ends("spins at 0")


def test_hlt_ends_by_taking_an_interrupt_only() -> None:
    assert not plain(HALT).sent(IRQ).mark("m").explained
    assert plain(HALT).sent(IRQ).seen(IRQ_VECTOR, 1, IF).mark("i").mark("m").explained


# Priority. ------------------------------------------------------------------------------------------------------------


def test_an_nmi_goes_before_an_interrupt_where_both_wait() -> None:
    both = plain(SPIN).start(IRQ, NMI).end(IRQ, NMI)
    assert both.seen(2, 0, IF).mark("n").seen(IRQ_VECTOR, 0, IF).explained


def test_an_interrupt_does_not_begin_while_an_nmi_waits() -> None:
    assert not plain(SPIN).sent(NMI).start(IRQ).seen(IRQ_VECTOR, 0, IF).explained


def test_an_interrupt_that_could_begin_before_the_nmis_sender_was_done_may_come_first() -> None:
    begun = plain(SPIN).start(NMI).sent(IRQ).end(NMI).seen(IRQ_VECTOR, 0, IF)
    assert begun.explained
    assert begun.seen(2, 3).explained


def test_nothing_comes_between_the_beginning_of_an_interrupt_and_its_showing() -> None:
    """It has begun at main, so it is not seen at a later instruction after an NMI that it came before."""
    assert not plain(MARKED).start(NMI).sent(IRQ).end(NMI).mark("m").seen(IRQ_VECTOR, 1, IF).explained


def test_an_interrupt_may_come_while_an_nmi_is_masked() -> None:
    assert plain(IN_NMI).sent(NMI).seen(2, 0, IF).sent(IRQ).mark("n").seen(IRQ_VECTOR, 3, IF).explained


def test_an_nmi_is_taken_behind_the_interrupt_at_the_first_instruction_of_its_handler() -> None:
    assert plain(SPIN).sent(IRQ).seen(IRQ_VECTOR, 0, IF).sent(NMI).seen(2, 3).explained


# Traps. ---------------------------------------------------------------------------------------------------------------


def stepped() -> History:
    return plain(STEPPED).flags(0, IF)


def test_a_trap_is_never_late_and_shows_dr6() -> None:
    assert stepped().seen(DB_VECTOR, 4, IF | X86_EFLAGS_TF, STEP).mark("d").ends("spins at 4")
    assert not stepped().seen(DB_VECTOR, 4, IF | X86_EFLAGS_TF, DR6_RESET).explained
    assert not stepped().seen(DB_VECTOR, 4, IF, STEP).explained
    assert not stepped().ends("spins at 4")


def test_a_trap_comes_before_an_nmi() -> None:
    before = stepped().seen(2, 3, IF | X86_EFLAGS_TF)
    assert not before.explained
    before = stepped().sent(NMI).seen(2, 3, IF | X86_EFLAGS_TF)
    assert before.explained
    assert not stepped().sent(NMI).seen(2, 4, IF | X86_EFLAGS_TF).explained
    assert stepped().sent(NMI).seen(DB_VECTOR, 4, IF | X86_EFLAGS_TF, STEP).seen(2, 9).explained


def test_a_guest_that_spins_stepped_does_not_go_on_so() -> None:
    history = plain(
        "\nmain:\n    pushfq\n    or qword [rsp], TF\n    popfq\n    spin\n" + HANDLERS + "db:\n    iretq\n"
    )
    assert not history.flags(0, IF).ends("spins at 3")


def test_pushfq_shows_tf_and_if_as_they_are() -> None:
    assert not plain(STEPPED).flags(0, IF | X86_EFLAGS_TF).explained
    assert not plain(STEPPED).flags(0, 0).explained


def test_clgi_is_ud() -> None:
    history = plain(f"\nmain:\n    clgi\n    spin\n{HANDLERS}ud:\n    mark u\n    spin\n")
    assert history.seen(UD_VECTOR, 0, IF).mark("u").ends("spins at 7")


def test_single_stepping_an_automatic_exit_has_no_contract() -> None:
    history = History(SEV_ES, "")
    history.flags(0, 0)
    assert "single step" in history.reference.bare.without_contract


# Signals. -------------------------------------------------------------------------------------------------------------


def test_a_signal_is_not_in_the_history() -> None:
    assert plain(SPIN).sent(SIGNAL).ends("spins at 0")
    assert plain(SPIN).start(SIGNAL).ends("spins at 0")
