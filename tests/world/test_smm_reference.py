"""The patient reference about SMIs and INITs, rule by rule."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import SEEN_SMI, X86_EFLAGS_IF
from iretrace.machine.vectors import IRQ_VECTOR
from tests.world.test_reference import History

HEADER = "test t\nabout A test of the reference.\nvcpu plain\noutside smi, nmi, nmi, smi\n"
SECTIONS = "nmi:\n    mark n\n    iretq\nsmi:\n    mark s\n    rsm\n"
SPIN = f"\nmain:\n    spin\n{SECTIONS}"
MARKED = f"\nmain:\n    mark m\n    spin\n{SECTIONS}"
HALT = f"\nmain:\n    hlt\n    mark m\n    spin\n{SECTIONS}"
SHADOW = f"\nmain:\n    sti\n    mark m\n    spin\n{SECTIONS}irq:\n    mark i\n    iretq\n"
INIT = "test t\nabout A test of the reference.\nvcpu plain\noutside init, smi\n"
FIRMWARE = "\nmain:\n    mark m\n    spin\nsmi:\n    mark s\n    rsm\ninit:\n    mark i\n    spin\n"
SMI, NMI, SECOND_NMI, SECOND_SMI = range(4)
IRQ = 4


def plain(program: str) -> History:
    return History(program, HEADER)


def smi(history: History, rip: int, rflags: int = 0) -> History:
    """An SMI comes at an instruction."""
    return history._see((SEEN_SMI, 0, rip, rflags, 0))


def test_an_smi_is_not_seen_before_it_was_sent() -> None:
    assert not smi(plain(SPIN), 0).explained
    assert smi(plain(SPIN).start(SMI), 0).explained


def test_an_smi_may_be_late_but_is_owed() -> None:
    late = plain(MARKED).sent(SMI).mark("m")
    assert late.explained
    assert not late.ends("spins at 1")
    assert smi(late, 1).mark("s").ends("spins at 1")


def test_an_smi_goes_before_an_nmi() -> None:
    assert not plain(SPIN).sent(SMI, NMI).nmi(0).explained
    both = smi(plain(SPIN).sent(NMI, SMI), 0).mark("s")
    assert both.nmi(0).mark("n").ends("spins at 0")


def test_an_nmi_whose_delivery_has_begun_comes_first() -> None:
    begun = plain(SPIN).sent(NMI).sent(SMI)
    assert begun.nmi(0).explained
    assert smi(begun, 1).mark("s").mark("n").ends("spins at 0")


def test_an_smi_that_is_sent_while_another_is_under_way_may_merge_or_come_too() -> None:
    once = smi(plain(SPIN).sent(SMI, SECOND_SMI), 0).mark("s")
    assert once.ends("spins at 0")
    assert smi(once, 0).mark("s").ends("spins at 0")


def test_two_nmis_that_an_smi_overtakes_may_both_come() -> None:
    both = smi(plain(SPIN).sent(NMI, SECOND_NMI).sent(SMI), 0).mark("s")
    assert both.nmi(0).mark("n").ends("spins at 0")
    assert both.nmi(0).mark("n").ends("spins at 0")


def test_halted_before_an_smi_is_halted_behind_it() -> None:
    behind = smi(plain(HALT).sent(SMI), 1).mark("s")
    assert behind.ends("halted at 1")
    assert not behind.mark("m").explained


def test_an_smi_in_a_shadow_does_not_end_it() -> None:
    header = HEADER.replace("nmi, nmi, smi", "nmi, nmi, smi, irq")

    def waits() -> History:
        return smi(History(SHADOW, header).sent(IRQ).sent(SMI), 1, X86_EFLAGS_IF).mark("s")

    assert not waits().seen(IRQ_VECTOR, 1, X86_EFLAGS_IF).explained
    assert waits().mark("m").seen(IRQ_VECTOR, 2, X86_EFLAGS_IF).explained


def test_an_smi_can_be_held_for_the_length_of_a_shadow() -> None:
    assert smi(History(SHADOW, HEADER).sent(SMI).mark("m"), 2, X86_EFLAGS_IF).explained


def test_an_init_is_owed_and_not_shown() -> None:
    late = History(FIRMWARE, INIT).sent(0)
    assert not late.ends("spins at 1")
    assert late.mark("i").ends("spins at 5")
    assert not History(FIRMWARE, INIT).mark("i").explained


@pytest.mark.parametrize("first", ["smi", "init"])
def test_smi_and_init_may_come_in_either_order(first: str) -> None:
    both = History(FIRMWARE, INIT).sent(0, 1)
    if first == "smi":
        assert smi(both, 0).mark("s").mark("i").ends("spins at 5")
    else:
        assert both.mark("i").ends("spins at 5")


def test_an_encrypted_guest_knows_of_no_smi() -> None:
    header = "test t\nabout No SMM.\nvcpu sev-es\noutside smi\n"
    assert History("\nmain:\n    spin\n", header).sent(0).ends("spins at 0")


AP = "test t\nabout A test of the reference.\nvcpu plain\nprocessor ap\noutside init, sipi, nmi\n"
STARTED = "\nmain:\n    spin\nnmi:\n    mark n\n    iretq\ninit:\n    mark i\n    spin\n"
WAITS = "waits for a SIPI"


def test_an_ap_waits_for_ever_without_a_sipi() -> None:
    assert History(STARTED, AP).sent(0).ends(WAITS)
    assert not History(STARTED, AP).sent(0).mark("i").explained
    assert History(STARTED, AP).sent(1, 0).ends(WAITS)


def test_a_sipi_behind_the_init_is_owed() -> None:
    started = History(STARTED, AP).sent(0, 1)
    assert not started.ends(WAITS)
    assert started.mark("i").ends("spins at 4")


def test_an_nmi_to_a_processor_that_waits_is_held_or_lost() -> None:
    started = History(STARTED, AP).sent(0, 2, 1).mark("i")
    assert started.ends("spins at 4")
    assert started.nmi(4).explained
    assert History(STARTED, AP).sent(0, 2).ends(WAITS)
