"""A blocked vCPU looks whether something waits, before it sleeps and whenever it is woken. Trees without that are
convicted."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.litmus.corpus import select
from iretrace.verdict import Result, Verdict
from tests.trees import edits
from tests.trees.edits import Edit, patched

pytestmark = pytest.mark.trees

NEVER = "an NMI that the processor would deliver never comes: the guest sleeps for ever"


def judged(root: Path, name: str, change: tuple[Edit, ...]) -> Result:
    (test,) = select([name])
    return check(test, "plain", "tickless", TreeHypervisor(patched(root, "recheck.patch", change), vcpu="plain"))


@pytest.mark.parametrize("series", ["tree_6_1", "tree_7_3"])
@pytest.mark.parametrize("change", [edits.LOOK_BEFORE_TASK_STATE, edits.SLEEP_BEFORE_THE_FIRST_LOOK])
def test_a_wake_up_that_is_lost_between_the_look_and_the_sleep_is_convicted(
    series: str, change: tuple[Edit, ...], request: pytest.FixtureRequest
) -> None:
    result = judged(request.getfixturevalue(series), "nmi-at-sleep", change)
    assert result.verdict is Verdict.VIOLATED
    assert result.reason.startswith(NEVER)


def test_a_look_that_does_not_see_queued_nmis_is_convicted(tree_7_3: Path) -> None:
    result = judged(tree_7_3, "nmi-at-sleep", edits.QUEUED_NMIS_ARE_NO_EVENT)
    assert result.verdict is Verdict.VIOLATED
    assert result.reason.startswith(NEVER)


def test_a_masked_nmi_that_counts_as_an_event_is_convicted(tree_7_3: Path) -> None:
    assert judged(tree_7_3, "masked-nmi-at-sleep", edits.MASKED_NMIS_ARE_EVENTS).verdict is Verdict.VIOLATED


def test_an_interrupt_that_the_look_behind_hlt_does_not_see_is_convicted(tree_7_3: Path) -> None:
    result = judged(tree_7_3, "shadow-at-sleep", edits.INTERRUPTS_ARE_NO_EVENT)
    assert result.verdict is Verdict.VIOLATED
