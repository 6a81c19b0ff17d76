"""`--format gcc`: every line is one that an editor can parse."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from iretrace.report.gcc import gcc_report, gcc_summary
from iretrace.report.summary import Report
from iretrace.verdict import CLine, Result, Step, Trace, Verdict
from tests.report.samples import ANY_RESULTS, LASSO, RESULTS, result

GOLDEN = Path(__file__).parent / "golden"
LINE = re.compile(r".*: (error|warning|note): .*")


def test_the_lines_read_as_reviewed() -> None:
    assert gcc_report(Report(RESULTS)) == (GOLDEN / "gcc.txt").read_text(encoding="utf-8")


def test_an_omission_is_cited_where_the_event_was_declined() -> None:
    first = gcc_report(Report([result("t", Verdict.VIOLATED, trace=LASSO)])).split("\n")[0]
    assert first.startswith("arch/x86/kvm/x86.c:10070: error: [t] the guest spins for ever")


def test_without_a_cited_line_the_last_line_of_the_trace_is_taken() -> None:
    steps = (Step("KVM", "warns", CLine("a.c", 7)), Step("guest", "spins", "spin"))
    text = gcc_report(Report([result("t", Verdict.VIOLATED, trace=Trace(steps, (), "a WARN"))]))
    assert text.startswith("a.c:7: error: [t] a WARN (")


def test_without_a_cited_line_kvms_last_one_comes_before_a_senders() -> None:
    steps = (Step("KVM", "injects", CLine("a.c", 7)), Step("outside", "kicks", CLine("b.c", 9)))
    text = gcc_report(Report([result("t", Verdict.VIOLATED, trace=Trace(steps, (), "TF shows"))]))
    assert text.startswith("a.c:7: error: [t] TF shows (")


def test_a_trace_without_any_line_of_the_tree_is_an_error_all_the_same() -> None:
    text = gcc_report(Report([result("t", Verdict.VIOLATED, reason="it lost an NMI")]))
    assert text.startswith("iretrace: error: [t] it lost an NMI (")


def test_what_holds_says_nothing() -> None:
    assert gcc_report(Report([result("t", Verdict.HOLDS)])) == ""


def test_undetermined_is_a_warning_at_the_place_that_it_names() -> None:
    text = gcc_report(Report([result("t", Verdict.UNDETERMINED, reason="a/b.c:12: f() is unknown\n[[function]]")]))
    assert text.startswith("a/b.c:12: warning: [t] undetermined: f() is unknown (")
    assert text.count("\n") == 1


def test_a_limit_is_a_warning_without_a_place() -> None:
    text = gcc_report(Report([result("t", Verdict.UNDETERMINED, reason="stopped by the limit of 3 states")]))
    assert text.startswith("iretrace: warning: [t] undetermined: stopped by")


def test_the_summary_names_each_hypervisor_and_ends_with_the_counts() -> None:
    assert gcc_summary(Report(RESULTS, reused=2)).split("\n") == [
        "iretrace: Linux 6.1.192: 3127 C statements executed from source, 10 assumptions",
        "iretrace: Linux 6.12.117: 3391 C statements executed from source, 2 assumptions",
        "iretrace: 2 of 8 reused: nothing that they used has changed",
        "iretrace: 1 new, 1 known, 3 undetermined, 3 hold",
        "",
    ]


@settings(max_examples=60)
@given(st.lists(ANY_RESULTS, max_size=3))
def test_no_foreign_text_makes_a_line_of_its_own(results: list[Result]) -> None:
    text = gcc_report(Report(results))
    assert text.isascii()
    for line in text.split("\n")[:-1]:
        assert line.isprintable()
        assert LINE.fullmatch(line)
