"""The text of `iretrace check`: against texts reviewed by eye (golden/), and for any result at all."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iretrace.report.summary import Report, summary
from iretrace.report.terminal import Look, shorten, wrap
from iretrace.report.text import advice, check_report
from iretrace.verdict import Assumption, CLine, Ledger, Outcome, Result, Step, Trace, Verdict
from tests.report.samples import ANY_RESULTS, HOSTILE, LASSO, LEDGER, RESULTS, TEXTS, result

GOLDEN = Path(__file__).parent / "golden"
SGR = re.compile(r"\x1b\[[0-9]+m")


@pytest.mark.parametrize(
    ("name", "look"),
    [("plain", Look()), ("ascii", Look(ascii_only=True)), ("verbose", Look(verbose=True))],
)
def test_the_text_reads_as_reviewed(name: str, look: Look) -> None:
    assert check_report(Report(RESULTS), look) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_colour_adds_nothing_but_colour() -> None:
    coloured = check_report(Report(RESULTS), Look(colour=True))
    assert SGR.sub("", coloured) == check_report(Report(RESULTS))
    assert "\x1b[31m✗\x1b[0m" in coloured


def test_a_known_violation_does_not_look_like_a_new_one() -> None:
    known = check_report(Report([result("t", Verdict.VIOLATED, known="H01")]), Look(colour=True))
    assert "known: H01" in known
    assert "\x1b[31m" not in known


def test_a_known_defect_that_several_tests_show_is_told_once() -> None:
    results = [result(name, Verdict.VIOLATED, known="listed", trace=LASSO) for name in ("first", "second", "third")]
    text = check_report(Report(results))
    assert text.count("Why: ") == 1
    assert "\nTest first\n" in text
    assert "\n2 more show a known defect that is told above; --all tells each.\n" in text
    assert check_report(Report(results), detail=True).count("Why: ") == 3


def test_new_defects_are_told_each() -> None:
    results = [result(name, Verdict.VIOLATED, trace=LASSO) for name in ("first", "second")]
    assert check_report(Report(results)).count("Why: ") == 2


def test_the_summary_counts_undetermined_apart_from_holds() -> None:
    assert summary(Report(RESULTS)) == "1 new, 1 known, 3 undetermined, 3 hold"


def test_no_result_at_all_is_summed_up_too() -> None:
    assert check_report(Report([])) == "0 new, 0 known, 0 undetermined, 0 hold\n"


def test_every_hypervisor_ends_with_what_was_executed() -> None:
    lines = check_report(Report(RESULTS)).split("\n")
    assert "3127 C statements executed from source, 10 assumptions" in lines
    assert "3391 C statements executed from source, 2 assumptions" in lines


def test_an_assumption_of_two_results_is_counted_once() -> None:
    text = check_report(Report([result("a", Verdict.HOLDS), result("b", Verdict.HOLDS)]))
    assert f"{len(LEDGER.assumptions)} assumptions" in text


def test_assumptions_that_are_sentences_are_not_only_counted() -> None:
    sentences = tuple(Assumption("model", f"{name} stays so {'and ' * 40}", "x", "y") for name in "ab")
    text = check_report(Report([result("a", Verdict.HOLDS, ledger=Ledger(1, sentences))]))
    (line,) = (line for line in text.split("\n") if line.startswith("  model 2: "))
    assert line.startswith("  model 2: a stays so and")
    assert line.endswith(", ... 1 more")


def test_the_host_is_not_said_twice() -> None:
    assert "2 NMIs, tickless" not in check_report(Report([result("t", Verdict.HOLDS)]))


def test_a_violation_without_a_trace_still_says_why() -> None:
    assert "Why: it lost an NMI" in check_report(Report([result("t", Verdict.VIOLATED, reason="it lost an NMI")]))


def test_rule_rows_in_a_reason_stay_lines() -> None:
    reason = "svm.c:9: struct foo is unknown; add a row:\n[[struct]]\nname = 'foo'"
    text = check_report(Report([result("t", Verdict.UNDETERMINED, reason=reason)]))
    assert "\n    [[struct]]\n    name = 'foo'\nWhat to do: Describe what is missing with a rule row" in text


@pytest.mark.parametrize(
    ("reason", "begin"),
    [
        ("stopped by the limit of 200,000 states", "Raise"),
        ("vacuous: no state satisfies `reach: gif`", "Nothing was learnt"),
        ("holds if not x, violated if x: a disputed rule of the processor", "Manuals"),
        ("arch/x86/kvm/x86.c:1: f() is unknown", "Describe"),
        ("", "Take it as not checked"),
    ],
)
def test_an_undetermined_verdict_says_what_to_do(reason: str, begin: str) -> None:
    assert advice(reason).startswith(begin)


def test_folded_guest_steps_are_named_while_there_is_room() -> None:
    steps = tuple(Step("guest", f"mark m{n}  (main+{n})", "mark") for n in range(9))
    text = check_report(Report([result("t", Verdict.VIOLATED, trace=Trace(steps, (), "cause"))]))
    assert "mark m0 (main); " not in text
    assert "mark m0 (main+0); mark m1 (main+1) ... 7 more" in text


def test_verbose_folds_nothing() -> None:
    text = check_report(Report([result("t", Verdict.VIOLATED, trace=LASSO)]), Look(verbose=True))
    assert "  11  guest    mark n (nmi+1)" in text


def test_a_step_that_changes_the_view_or_has_a_note_is_never_folded() -> None:
    steps = (
        Step("guest", "one", "rule"),
        Step("guest", "two", "rule", (("nmi_masked", 0),)),
        Step("guest", "three", "rule", note="look here"),
    )
    text = check_report(Report([result("t", Verdict.VIOLATED, trace=Trace(steps, (), "cause"))]))
    assert all(f"   {number}  guest    {word}" in text for number, word in enumerate(("one", "two", "three"), 1))


def hostile_result() -> Result:
    line = CLine(HOSTILE, 7, HOSTILE, HOSTILE)
    step = Step(HOSTILE, HOSTILE, HOSTILE, ((HOSTILE, 1),), (), (line,), HOSTILE)
    return Result(
        HOSTILE,
        HOSTILE,
        HOSTILE,
        HOSTILE,
        Verdict.VIOLATED,
        HOSTILE,
        HOSTILE,
        Trace((step, replace(step, where=line)), (step,), HOSTILE, line),
        Ledger(1, (Assumption(HOSTILE, HOSTILE, HOSTILE, HOSTILE),)),
        (Outcome((HOSTILE,), HOSTILE),),
        HOSTILE,
        (HOSTILE,),
    )


@pytest.mark.parametrize("verdict", list(Verdict))
def test_control_characters_of_hostile_names_never_reach_the_terminal(verdict: Verdict) -> None:
    text = check_report(Report([replace(hostile_result(), verdict=verdict)]))
    assert all(char == "\n" or char.isprintable() for char in text)
    assert "\u4e2d" not in text
    assert "\u0301" not in text
    assert "\\x1b[2J" in text


def test_ascii_only_means_ascii_only() -> None:
    assert check_report(Report([*RESULTS, hostile_result()]), Look(ascii_only=True)).isascii()


@settings(max_examples=60)
@given(st.lists(ANY_RESULTS, max_size=3), st.booleans(), st.booleans())
def test_no_line_exceeds_80_columns_and_nothing_but_print_comes_out(
    results: list[Result], ascii_only: bool, verbose: bool
) -> None:
    for line in check_report(Report(results), Look(ascii_only=ascii_only, verbose=verbose)).split("\n"):
        assert len(line) <= 80, line
        assert line.isprintable()


@given(TEXTS, st.integers(0, 12))
def test_shorten_keeps_to_its_width(text: str, width: int) -> None:
    assert len(shorten(text, width)) <= width


def test_wrap_marks_where_it_cuts() -> None:
    assert wrap("one two three four five", width=9, limit=2) == ["one two", "three ..."]
