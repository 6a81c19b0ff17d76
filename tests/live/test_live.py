"""A small selection on a real KVM: what the docs say can be seen is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from iretrace.linux.debian import Unavailable
from iretrace.litmus.corpus import select
from iretrace.live.emulation import excuse
from iretrace.live.guests import pack
from iretrace.live.harness import build_harness, workplace
from iretrace.live.packages import find_kernel
from iretrace.live.qemu import boot, qemu_version
from iretrace.live.session import Machine, Seen, Session, run_tests

pytestmark = [pytest.mark.live, pytest.mark.slow]

TESTS = (
    "iret-faults",
    "iret-sets-tf",
    "hlt-in-nmi-for-ever",
    "two-nmis-at-once",
    "irq-at-sti",
    "nmi-redone-on-cold-stack",
    "init-in-smm",
    "smi-at-iret",
)


@dataclass(frozen=True, slots=True)
class Live:
    """A session on Debian's 6.1."""

    session: Session

    def seen(self, name: str) -> Seen:
        return next(seen for seen in self.session.seen if seen.test.name == name)

    def defects(self, name: str) -> list[str]:
        return [why for _, why, known in self.seen(name).strange if not known]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """All of them in one virtual machine; skipped, saying why, where there is no QEMU, no compiler or no kernel."""
    try:
        version = qemu_version()
        kernel = find_kernel("6.1", lambda text: None)
        with workplace() as directory:
            harness = build_harness(directory)
            session = run_tests(
                select(TESTS),
                4,
                Machine(
                    lambda guests: boot(kernel, harness, pack(guests, 1), directory),
                    lambda run, objection: excuse(run, objection, version),
                ),
                lambda text: None,
            )
            yield Live(session)
    except Unavailable as error:
        pytest.skip(f"no live KVM: {error}")


def test_every_test_shows_something(live: Live) -> None:
    assert {seen.test.name: seen.failures for seen in live.session.seen if not seen.outcomes or seen.failures} == {}


def test_two_nmis_at_once_are_both_delivered(live: Live) -> None:
    assert [outcome.marks for outcome in live.seen("two-nmis-at-once").outcomes] == [("n", "n")]
    assert live.defects("two-nmis-at-once") == []


def test_an_nmi_whose_stack_is_cold_is_redone(live: Live) -> None:
    assert [outcome.marks for outcome in live.seen("nmi-redone-on-cold-stack").outcomes] == [("n", "n")]
    assert live.defects("nmi-redone-on-cold-stack") == []


def test_a_faulting_iret_shows_the_hypervisors_tf(live: Live) -> None:
    assert any("gp at `iretq` with TF pushed" in why for why in live.defects("iret-faults"))


def test_an_iret_that_sets_tf_loses_its_trap(live: Live) -> None:
    assert any("nmi at `spin`, cannot come here" in why for why in live.defects("iret-sets-tf"))


def test_a_masked_nmi_ends_hlt(live: Live) -> None:
    assert any("mark woken, cannot come here" in why for why in live.defects("hlt-in-nmi-for-ever"))


def test_what_is_not_known_of_qemu_is_no_defect_of_an_interrupt(live: Live) -> None:
    assert live.defects("irq-at-sti") == []


def test_an_init_waits_for_the_end_of_smm(live: Live) -> None:
    assert [outcome.marks for outcome in live.seen("init-in-smm").outcomes] == [("s", "t", "i")]
    assert live.defects("init-in-smm") == []


def test_an_smi_before_an_intercepted_iret_lets_an_nmi_into_smm(live: Live) -> None:
    assert any("the guest shutdown" in why for why in live.defects("smi-at-iret"))
