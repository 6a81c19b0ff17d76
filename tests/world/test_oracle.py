"""The oracle itself: small hypervisors made by hand, right ones acquitted, each mistake convicted."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.litmus.parse import parse
from iretrace.verdict import Result, Verdict
from tests.world.small import Small

SPIN = """test {name}
about A test of the oracle.
vcpu sev-es
outside {outside}

main:
    nop
    spin
nmi:
    {handler}
    iretq
"""

COMPLETE_FIRST = "vmgexit nmi_complete\n    mark n"
COMPLETE_LAST = "mark n\n    vmgexit nmi_complete"
NEVER = "mark n"


def judged(mistake: str, outside: str, handler: str = COMPLETE_LAST, host: str = "tickless") -> Result:
    test = parse(SPIN.format(name="oracle", outside=outside, handler=handler), "oracle.litmus")
    return check(test, "sev-es", host, Small(mistake))


@pytest.mark.parametrize("outside", ["nmi", "nmi, nmi", "nmi, maybe nmi"])
@pytest.mark.parametrize("handler", [COMPLETE_FIRST, COMPLETE_LAST, NEVER])
@pytest.mark.parametrize("host", ["tickless", "ticking"])
def test_a_right_hypervisor_is_acquitted(outside: str, handler: str, host: str) -> None:
    assert judged("", outside, handler, host).verdict is Verdict.HOLDS


def test_a_right_hypervisor_is_acquitted_with_three_nmis() -> None:
    assert judged("", "nmi, nmi, nmi").verdict is Verdict.HOLDS


def test_unmasking_at_the_next_exit_is_convicted_on_a_tickless_host() -> None:
    result = judged("defer", "nmi, nmi", COMPLETE_FIRST)
    assert result.verdict is Verdict.VIOLATED
    assert result.trace is not None and result.trace.loop


def test_unmasking_at_the_next_exit_is_acquitted_on_a_ticking_host() -> None:
    assert judged("defer", "nmi, nmi", COMPLETE_FIRST, "ticking").verdict is Verdict.HOLDS


def test_unmasking_at_the_next_exit_is_acquitted_with_one_nmi() -> None:
    assert judged("defer", "nmi", COMPLETE_FIRST).verdict is Verdict.HOLDS


def test_a_queue_limit_of_always_one_is_convicted_with_two_nmis() -> None:
    assert judged("one", "nmi").verdict is Verdict.HOLDS
    assert judged("one", "nmi, nmi").verdict is Verdict.VIOLATED


def test_a_queue_limit_of_always_two_is_convicted_with_three_nmis() -> None:
    assert judged("two", "nmi, nmi").verdict is Verdict.HOLDS
    assert judged("two", "nmi, nmi, nmi").verdict is Verdict.VIOLATED


@pytest.mark.parametrize("mistake", ["lose", "double", "invent", "warn", "refuse"])
def test_a_mistake_is_convicted_with_one_nmi(mistake: str) -> None:
    assert judged(mistake, "nmi").verdict is Verdict.VIOLATED


def test_an_nmi_before_nmi_complete_is_convicted() -> None:
    assert judged("nest", "nmi, nmi").verdict is Verdict.VIOLATED


@pytest.mark.parametrize("outside", ["nmi", "nmi, nmi"])
def test_a_merely_late_hypervisor_is_acquitted(outside: str) -> None:
    assert judged("late", outside).verdict is Verdict.HOLDS
