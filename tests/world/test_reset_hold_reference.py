"""The patient reference about AP reset hold."""

from __future__ import annotations

from tests.world.test_reference import History

OUTSIDE = "in hold: init, in hold: sipi, nmi"
HEADER = f"test t\nabout A test of the reference.\nvcpu sev-es\nprocessor ap\noutside {OUTSIDE}\n"
HELD = "\nmain:\n    mark m\n    hold: vmgexit ap_reset_hold\n    mark s\n    spin\n"
NMI = "nmi:\n    mark n\n    vmgexit nmi_complete\n    iretq\n"
INIT, SIPI, EVENT = range(3)
WAITS = "waits for a SIPI"


def held() -> History:
    return History(HELD + NMI, HEADER).mark("m")


def test_the_hold_goes_on_until_a_sipi_comes_behind_an_init() -> None:
    assert held().ends(WAITS)
    assert held().sent(INIT).ends(WAITS)
    assert held().sent(SIPI).ends(WAITS)
    assert not held().sent(INIT).mark("s").explained
    assert not held().sent(SIPI, INIT).mark("s").explained


def test_an_init_and_a_sipi_in_the_hold_are_owed() -> None:
    started = held().sent(INIT, SIPI)
    assert not started.ends(WAITS)
    assert started.mark("s").ends("spins at 4")


def test_an_init_cannot_begin_where_the_guest_is_not_held() -> None:
    assert not History(HELD + NMI, HEADER).start(INIT).mark("m").explained


def test_an_nmi_finds_the_guest_at_its_request_or_behind_it() -> None:
    for rip in (1, 2):
        assert held().sent(EVENT).nmi(rip).mark("n").ends(WAITS)
    assert not held().sent(EVENT).ends(WAITS)
    assert not held().sent(EVENT).nmi(3).explained


def test_of_an_init_that_the_guest_gets_in_a_handler_the_reference_may_make_anything() -> None:
    handled = held().start(INIT, SIPI).sent(EVENT).nmi(2).end(INIT, SIPI)
    assert handled.mark("n").ends(WAITS)
    assert handled.mark("s").ends("spins at 4")


def test_a_guest_may_be_stopped_in_a_handler_for_an_init() -> None:
    assert held().start(INIT).sent(EVENT).nmi(2).end(INIT).ends(WAITS)
