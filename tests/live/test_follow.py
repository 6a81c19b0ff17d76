"""A history is looked for in the model of the KVM that has shown it, here the one that is built in."""

from __future__ import annotations

import pytest

from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.live.follow import Follower
from iretrace.live.guests import directed, make_guests
from iretrace.live.observed import MORE, Run
from iretrace.live.walk import Delivery, Event, Mark
from iretrace.live.witness import may_be, places
from iretrace.verdict import Outcome
from tests.live.guests import first_guest, make_test

ONE_OF_EACH = """\
test one-of-each
about An NMI and an interrupt come while main spins.
vcpu  plain
outside nmi, irq
interrupts on

main:
    spin
nmi:
    mark    n
    iretq
irq:
    mark    i
    mark    j
    iretq
"""

IF = 0x200
NMI, IRQ = 2, 0x30
N, FIRST, SECOND = Mark(0), Mark(1), Mark(2)


@pytest.fixture(scope="module")
def follower() -> Follower:
    return Follower(make_test(ONE_OF_EACH), BuiltinHypervisor("v6.12", "plain"))


def run(*history: Event, after: tuple[int, ...] = (0, 0)) -> Run:
    return Run(first_guest(ONE_OF_EACH), 0, history, True, "spins", 0, after)


@pytest.mark.slow
def test_the_model_has_what_it_can_show(follower: Follower) -> None:
    assert follower.objection(run(Delivery(IRQ, 0, IF, 0), FIRST, Delivery(NMI, 4, 0, 0), N, SECOND)).why == ""


@pytest.mark.slow
def test_the_model_has_no_interrupt_inside_an_nmi(follower: Follower) -> None:
    objection = follower.objection(run(Delivery(NMI, 0, IF, 0), Delivery(IRQ, 1, 0, 0), FIRST, SECOND, N))
    assert objection.why == "event 2, irq at `mark n`, does not come in the model"


@pytest.mark.slow
def test_the_model_loses_no_interrupt(follower: Follower) -> None:
    objection = follower.objection(run(Delivery(NMI, 0, IF, 0), N))
    assert objection.why == "in the model it is not the end that the guest spins"


def test_an_event_does_not_show_before_it_was_sent(follower: Follower) -> None:
    history = (Delivery(NMI, 0, IF, 0), N, Delivery(IRQ, 0, IF, 0), FIRST, SECOND)
    assert follower.objection(run(*history, after=(0, 2))).why == ""
    assert "does not come in the model" in follower.objection(run(*history, after=(1, 0))).why


@pytest.mark.slow
def test_the_model_tells_where_an_event_comes_for_an_outcome_that_was_not_seen() -> None:
    test = make_test(ONE_OF_EACH)
    hypervisor = BuiltinHypervisor("v6.12", "plain")
    wanted = places(test, hypervisor, Outcome(("i", "n", "j"), "spins"), first_guest(ONE_OF_EACH))
    assert test.code[wanted[0]].text == "mark j"


def test_one_event_in_each_section_is_placed_and_the_others_come_at_any_time() -> None:
    test = make_test(ONE_OF_EACH)
    assert directed(test, (4, 0), 5, 0).cuts == (4, 0)
    assert directed(test, (4, 3), 5, 0).cuts == (4, -1)


def test_each_test_has_a_guest_at_random_moments() -> None:
    assert make_guests(make_test(ONE_OF_EACH), 10, 0)[0].cuts == (-1, -1)


@pytest.mark.parametrize(
    ("marks", "ending", "modelled", "is_it"),
    [
        ("n i j", "spins", "n i", True),
        ("n j", "spins", "n i", False),
        ("n i", "halted", "n i", False),
        ("n ...", "shutdown", "n i", False),
        ("n ...", "spins", "n i", True),
        ("i ...", "spins", "n i", False),
        ("...", "spins", "n", True),
    ],
)
def test_what_came_is_an_outcome_of_the_model_as_far_as_both_keep_marks(
    marks: str, ending: str, modelled: str, is_it: bool
) -> None:
    test = make_test(ONE_OF_EACH + "\nnever n\n")
    assert may_be(test, Outcome(tuple(marks.split()), ending), Outcome(tuple(modelled.split()), "spins")) == is_it


def test_a_guest_that_overwrites_its_log_may_be_held_in_delivery() -> None:
    test = make_test(ONE_OF_EACH)
    assert may_be(test, Outcome((MORE,), "loops"), Outcome((), "held"))
    assert not may_be(test, Outcome((), "loops"), Outcome((), "held"))
