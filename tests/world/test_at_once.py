"""Senders that take all their steps at once lose no verdict, and senders that get in each other's way do not."""

from __future__ import annotations

from functools import cache

import pytest

from iretrace.check import check
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.litmus.corpus import select, shipped
from iretrace.litmus.test import Test as LitmusTest
from iretrace.verdict import Result, Verdict
from iretrace.world.commuting import commute
from iretrace.world.protocol import NO_SENDER, Hypervisor, Private, SenderState, Sent
from tests.turns import turn
from tests.world.small import HERE, MISTAKES, Small

CASES = [
    (test, kind, host)
    for test in shipped()
    for kind in test.vcpus
    for host in ("tickless", "ticking")
    if kind != "sev-es-debugswap" and test.outside
]


@cache
def builtin(kind: str) -> BuiltinHypervisor:
    return BuiltinHypervisor("v6.1" if kind in ("plain", "sev-es") else "v7.3", kind)


def told(result: Result) -> tuple[object, ...]:
    """What a verdict comes to. Which of several defects is nearest depends on what counts as one step."""
    reason = result.reason if result.verdict is Verdict.UNDETERMINED else ""
    return result.verdict, reason, result.outcomes


def both(test: LitmusTest, kind: str, host: str, hypervisor: Hypervisor) -> list[Result]:
    return [check(test, kind, host, hypervisor, at_once=at_once) for at_once in (True, False)]


@pytest.mark.slow
@pytest.mark.parametrize(("test", "kind", "host"), turn(CASES, 0, 6), ids=lambda value: getattr(value, "name", value))
def test_the_built_in_kvm_is_judged_the_same(test: LitmusTest, kind: str, host: str) -> None:
    at_once, each = both(test, kind, host, builtin(kind))
    assert told(at_once) == told(each)
    assert at_once.states <= each.states or at_once.verdict is Verdict.VIOLATED


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", ["nmi-complete-then-spin", "nmi-at-hlt"])
def test_mistakes_are_convicted_all_the_same(name: str, mistake: str) -> None:
    (test,) = select([name])
    at_once, each = both(test, "sev-es", "tickless", Small(mistake))
    assert told(at_once) == told(each)


def test_most_states_are_of_senders_that_are_half_way() -> None:
    (test,) = select(["three-nmis"])
    at_once, each = both(test, "sev-es", "tickless", builtin("sev-es"))
    assert at_once.states < 0.8 * each.states


def send(private: Private, sender: SenderState) -> Sent:
    """Senders on a state of two words. ("add", n, left) and ("set", n, left) change the first one, ("kick", n, left)
    sends the IPI if the second one is 0, and sets it; each so many times."""
    assert isinstance(private, tuple) and isinstance(sender, tuple)
    what, number, left = sender
    first, second = private
    ipi = what == "kick" and second == 0
    if what == "kick":
        second = 1
    else:
        first = first + number if what == "add" else number
    after = (what, number, left - 1) if left > 1 else NO_SENDER
    return Sent((first, second), after, ipi, "", HERE, "unknown" if number == 13 else "")


def in_any_order(one: SenderState, other: SenderState) -> bool:
    assert commute(send, (0, 0), one, other) == commute(send, (0, 0), other, one)
    return commute(send, (0, 0), one, other)


def test_additions_commute() -> None:
    assert in_any_order(("add", 1, 3), ("add", 2, 2))


def test_an_assignment_and_an_addition_do_not_nor_two_assignments() -> None:
    assert not in_any_order(("set", 1, 1), ("add", 1, 1))
    assert not in_any_order(("set", 1, 1), ("set", 2, 1))


def test_it_does_not_matter_which_of_two_kicks_sends_the_ipi() -> None:
    assert in_any_order(("kick", 0, 1), ("kick", 0, 1))


def test_what_is_not_modelled_does_not_commute() -> None:
    assert not in_any_order(("add", 13, 1), ("add", 1, 1))


def test_a_difference_half_way_counts() -> None:
    """In the end the first word is 5 either way."""
    assert not in_any_order(("set", 5, 2), ("add", 1, 1))
    assert commute(send, (5, 0), ("set", 5, 1), ("set", 5, 1))
