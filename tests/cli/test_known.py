"""Known bugs are shown as known, and stay violations."""

from __future__ import annotations

from iretrace.cli.known import known_id, mark_known
from iretrace.verdict import Result, Verdict


def result(host: str = "tickless", hypervisor: str = "Linux 6.1.192") -> Result:
    return Result("nmi-complete-then-spin", "sev-es", host, hypervisor, Verdict.VIOLATED, exhausted="")


def test_a_listed_violation_is_known_and_still_violated() -> None:
    marked = mark_known([result()])[0]
    assert marked.known == "nmi-complete-defers-unmasking"
    assert marked.verdict is Verdict.VIOLATED


def test_the_same_test_is_new_on_a_series_that_has_the_fix() -> None:
    assert known_id(result(hypervisor="Linux 6.12.117")) == ""


def test_another_point_release_of_the_series_has_the_bug_too() -> None:
    assert known_id(result(hypervisor="Linux 6.1.170")) != ""


def test_the_same_test_is_new_on_a_host_that_is_not_listed() -> None:
    assert known_id(result(host="ticking")) == ""
