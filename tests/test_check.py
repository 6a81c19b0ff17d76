"""From the runs of a test, one for each value of the knobs that mattered, to its verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iretrace import check as checking
from iretrace.check import Run, check
from iretrace.litmus.parse import parse
from iretrace.machine.cpu import KNOB_IRET_FAULT_UNMASKS, KNOB_SHADOW_BLOCKS_EXIT, KNOB_TRAP_EXIT_KEEPS_SHADOW
from iretrace.verdict import Result, Trace, Verdict
from tests.world.small import Small

A, B, C = 1 << KNOB_SHADOW_BLOCKS_EXIT, 1 << KNOB_IRET_FAULT_UNMASKS, 1 << KNOB_TRAP_EXIT_KEEPS_SHADOW
TRACE = Trace((), (), "cause")
BASE = Result("t", "sev-es", "tickless", "small", Verdict.HOLDS, "all 1 states")
HOLDS = Run(BASE, 0)
VIOLATED = Run(replace(BASE, verdict=Verdict.VIOLATED, reason="cause", trace=TRACE), 0)
LIMITED = Run(replace(BASE, verdict=Verdict.UNDETERMINED, reason="stopped by the limit of 1 states"), 0)


def consulting(run: Run, knobs: int) -> Run:
    return replace(run, consulted=knobs)


def settled(monkeypatch: pytest.MonkeyPatch, runs: dict[int, Run]) -> Result:
    """The verdict if these are the runs by the value of the knobs; all of them are made, and each once."""
    made: list[int] = []

    def run(*arguments: Any) -> Run:
        made.append(arguments[4])
        return runs[arguments[4]]

    monkeypatch.setattr(checking, "_run", run)
    test = parse("test t\nabout t\nvcpu sev-es\n\nmain:\n    spin\n", "t.litmus")
    result = check(test, "sev-es", "tickless", Small())
    assert sorted(made) == sorted(runs)
    return result


def test_a_test_that_consults_no_knob_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, {0: HOLDS}).verdict is Verdict.HOLDS


def test_each_value_of_a_knob_that_was_consulted_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    result = settled(monkeypatch, {0: consulting(HOLDS, A), A: consulting(HOLDS, A)})
    assert result.verdict is Verdict.HOLDS
    assert [assumption.what for assumption in result.ledger.assumptions] == ["shadow_blocks_exit"]


def test_all_combinations_of_consulted_knobs_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    both = consulting(HOLDS, A | C)
    assert settled(monkeypatch, {0: both, A: both, C: both, A | C: both}).verdict is Verdict.HOLDS


def test_a_knob_that_is_consulted_only_with_another_one_set_is_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {0: consulting(HOLDS, A), A: consulting(HOLDS, A | B), A | B: consulting(VIOLATED, A | B)}
    result = settled(monkeypatch, runs)
    assert result.verdict is Verdict.UNDETERMINED
    reason = "holds if not iret_fault_unmasks, violated if iret_fault_unmasks (given shadow_blocks_exit)"
    assert result.reason == f"{reason}: a disputed rule of the processor"


def test_violated_for_every_value_is_violated(monkeypatch: pytest.MonkeyPatch) -> None:
    result = settled(monkeypatch, {0: consulting(VIOLATED, A), A: consulting(VIOLATED, A)})
    assert (result.verdict, result.reason) == (Verdict.VIOLATED, "cause")


@pytest.mark.parametrize(("clear", "is_set"), [(HOLDS, VIOLATED), (VIOLATED, HOLDS), (VIOLATED, LIMITED)])
def test_a_violation_for_one_value_only_is_undetermined_and_shown(
    monkeypatch: pytest.MonkeyPatch, clear: Run, is_set: Run
) -> None:
    result = settled(monkeypatch, {0: consulting(clear, A), A: consulting(is_set, A)})
    assert result.verdict is Verdict.UNDETERMINED
    verdicts = f"{clear.result.verdict} if not shadow_blocks_exit, {is_set.result.verdict} if shadow_blocks_exit"
    assert result.reason.startswith(verdicts)
    assert result.trace is TRACE


def test_a_limit_met_for_one_value_makes_the_verdict_undetermined(monkeypatch: pytest.MonkeyPatch) -> None:
    result = settled(monkeypatch, {0: consulting(HOLDS, A), A: consulting(LIMITED, A)})
    assert (result.verdict, result.reason) == (Verdict.UNDETERMINED, "stopped by the limit of 1 states")


def test_a_test_is_vacuous_only_if_no_value_shows_what_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = replace(consulting(HOLDS, A), unmet=("no state satisfies `reach: gif`",))
    shown = consulting(HOLDS, A)
    assert settled(monkeypatch, {0: nothing, A: shown}).verdict is Verdict.HOLDS
    result = settled(monkeypatch, {0: nothing, A: nothing})
    assert (result.verdict, result.reason) == (Verdict.UNDETERMINED, "vacuous: no state satisfies `reach: gif`")


def test_a_violation_counts_though_the_test_is_vacuous(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, {0: replace(VIOLATED, unmet=("nothing",))}).verdict is Verdict.VIOLATED


def test_a_hypervisor_of_another_vcpu_kind_is_no_subject_for_a_verdict() -> None:
    test = parse("test t\nabout t\nvcpu plain, sev-es\n\nmain:\n    spin\n", "t.litmus")
    with pytest.raises(ValueError, match="small was opened for sev-es, not for plain"):
        check(test, "plain", "tickless", Small())
