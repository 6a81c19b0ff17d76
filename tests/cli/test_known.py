"""Known bugs are shown as known, and stay violations."""

from __future__ import annotations

from dataclasses import replace

from iretrace.cli.known import known_id, mark_known, shown_live
from iretrace.verdict import Assumption, Ledger, Result, Verdict


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


def test_what_is_listed_for_an_option_is_known_with_that_option_only() -> None:
    plain = Result("int3-on-cold-stack", "plain", "tickless", "Linux 6.1.192", Verdict.VIOLATED, exhausted="")
    assert known_id(plain) == ""
    for what in ("nrips: 0", "nrips: value=0"):
        ledger = Ledger(assumptions=(Assumption("option", what, "", ""),))
        assert known_id(replace(plain, ledger=ledger)) == "int3-is-lost-behind-an-nmi-without-nrips"


def test_a_live_run_shows_what_a_verdict_may_leave_open() -> None:
    assert shown_live("watch-in-movss-shadow", "6.12.117") == "nmi-window-takes-the-guests-breakpoint"
    assert shown_live("debugger-steps", "6.1.192") == "debugger-leaves-tf-in-frames"
    assert shown_live("svme-off-keeps-gif", "7.3.4") == shown_live("maybe-nmi", "6.1.192") == ""
