"""What counts of what is undetermined with and without patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from iretrace.cli.driver import Ran
from iretrace.cli.main import Status, status_of
from iretrace.cli.review import Stage, compared
from iretrace.report.summary import Report, summary
from iretrace.verdict import Outcome, Result, Trace, Verdict
from tests.cli.small_source import SmallSource
from tests.report.samples import result

SOURCE = SmallSource("")
DISPUTED = "holds if not k, violated if k: a disputed rule of the processor"


def unclear(reason: str = DISPUTED, cause: str = "an NMI is lost; the hypervisor holds nmi_pending=1") -> Result:
    trace = Trace((), (), cause) if reason == DISPUTED else None
    return result("unclear", Verdict.UNDETERMINED, reason=reason, trace=trace)


HOLDS = result("other", Verdict.HOLDS)


def report(before: Sequence[Result], after: Sequence[Result], same: str) -> Report:
    """What `check --patch` shows. same: for each test an s if it used nothing that the patches change, else a dot."""
    old = Ran(list(before), 0, ["1" for _ in before])
    new = Ran(list(after), 0, ["1" if mark == "s" else "2" for mark in same])
    return compared([Stage("", SOURCE, old), Stage("Linux", SOURCE, new)]).without_known()


def status(of: Report) -> int:
    return status_of(of.results) if of.results else Status.HOLDS


def test_what_the_patches_do_not_touch_does_not_count() -> None:
    found = report([unclear(), HOLDS], [unclear(), HOLDS], "s.")
    assert status(found) == Status.HOLDS
    assert summary(found) == "0 new, 0 known, 1 undetermined (1 not touched by the patches), 1 hold"


def test_what_is_as_undetermined_as_before_does_not_hide_that_the_others_hold() -> None:
    after = unclear(cause="an NMI is lost; the hypervisor holds nmi_pending=2")
    found = report([unclear(), HOLDS], [after, HOLDS], "..")
    assert (status(found), summary(found)) == (0, "0 new, 0 known, 1 undetermined (1 as before them), 1 hold")
    assert found.remarks == [
        "Linux: 1 test is as undetermined as without the patches, and does not count: unclear sev-es tickless"
    ]


def test_what_is_as_undetermined_as_before_is_no_pass_where_nothing_else_judges_the_patches() -> None:
    assert status(report([unclear()], [unclear()], ".")) == Status.UNDETERMINED
    assert status(report([unclear(), HOLDS], [unclear(), HOLDS], ".s")) == Status.UNDETERMINED


def test_a_line_that_moved_makes_no_other_reason() -> None:
    before, after = (unclear(f"a/b.c:{line}: f() is not modelled") for line in (1, 9))
    assert status(report([before, HOLDS], [after, HOLDS], "..")) == Status.HOLDS


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HOLDS, unclear()),
        (unclear(), unclear(cause="an NMI comes twice")),
        (unclear(), unclear("violated if not k, holds if k: a disputed rule of the processor")),
        (unclear("a.c:1: f() is not modelled"), unclear("a.c:1: g() is not modelled")),
        (unclear("stopped by --max-states"), unclear("stopped by --max-states")),
        (unclear(), replace(unclear(), outcomes=(Outcome(("n",), "spins"),))),
    ],
    ids=["it held", "another defect", "for the other value", "another reason", "a limit", "other outcomes"],
)
def test_anything_else_that_is_undetermined_counts(before: Result, after: Result) -> None:
    found = report([before, HOLDS], [after, HOLDS], "..")
    assert status(found) == Status.UNDETERMINED
    assert after in [replace(one, hypervisor=after.hypervisor) for one in found.results]


def test_where_no_test_uses_what_the_patches_change_nothing_is_judged() -> None:
    found = report([unclear(), HOLDS], [unclear(), HOLDS], "ss")
    assert not found.judges
    assert found.remarks == ["Linux: none of these tests uses what the patches change"]
    assert report([HOLDS, HOLDS], [HOLDS, HOLDS], "s.").judges
