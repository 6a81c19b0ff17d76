"""The machine alone: QEMU's processor without KVM, held against the rules of the processor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iretrace.linux.debian import Unavailable
from iretrace.litmus.corpus import select
from iretrace.live.bare import build_firmware, run_bare
from iretrace.live.emulation import excuse
from iretrace.live.harness import workplace
from iretrace.live.qemu import qemu_version
from iretrace.live.session import Machine, Seen, run_tests
from iretrace.verdict import Outcome
from tests.live.guests import TWO_NMIS, make_test

pytestmark = [pytest.mark.live, pytest.mark.slow]

SHUTDOWN = """\
test shutdown
about The IRET of the NMI faults, and there is no handler for #GP.
vcpu  plain
outside nmi

main:
    spin
nmi:
    mov qword [rsp+8], 0
    iretq
"""

TESTS = ("two-nmis-at-once", "nmi-and-signal", "nmi-and-irq", "hlt-in-nmi-for-ever", "iret-sets-tf", "nmi-in-smm")
USER = ("user-gates", "syscall-and-nmi", "syscall-while-stepping", "user-privileged")


@pytest.fixture(scope="module")
def seen() -> Iterator[list[Seen]]:
    """All of them on one machine; skipped, saying why, where there is no QEMU or no compiler."""
    tests = [*select(TESTS), *select(USER), make_test(TWO_NMIS), make_test(SHUTDOWN)]
    try:
        version = qemu_version()
        with workplace() as directory:
            firmware = build_firmware(directory)
            session = run_tests(
                tests,
                4,
                Machine(
                    lambda guests: run_bare(firmware, guests, 1, version, directory),
                    lambda run, objection: excuse(run, objection, version, alone=True),
                ),
                lambda text: None,
            )
            assert session.broken == []
            yield session.seen
    except Unavailable as error:
        pytest.skip(f"no QEMU: {error}")


def of(seen: list[Seen], name: str) -> Seen:
    return next(one for one in seen if one.test.name == name)


def test_the_rules_explain_everything_that_the_machine_shows(seen: list[Seen]) -> None:
    assert [(one.test.name, why) for one in seen for _, why, known in one.strange if not known] == []


def test_every_guest_runs(seen: list[Seen]) -> None:
    assert [one.test.name for one in seen if one.failures or not one.outcomes] == []


def test_two_nmis_are_two(seen: list[Seen]) -> None:
    assert list(of(seen, "two-nmis-at-once").outcomes) == [Outcome(("n", "n"), "spins")]


def test_events_come_in_more_than_one_order(seen: list[Seen]) -> None:
    assert len(of(seen, "nmi-and-irq").outcomes) > 1


def test_a_masked_nmi_does_not_end_hlt(seen: list[Seen]) -> None:
    assert list(of(seen, "hlt-in-nmi-for-ever").outcomes) == [Outcome(("n",), "halted")]


def test_an_nmi_waits_for_rsm(seen: list[Seen]) -> None:
    assert list(of(seen, "nmi-in-smm").outcomes) == [Outcome(("s", "t", "n"), "spins")]


def test_a_guest_that_shuts_down_is_seen_to(seen: list[Seen]) -> None:
    assert {outcome.ending for outcome in of(seen, "shutdown").outcomes} == {"shutdown"}
