"""What the processor allows each shipped test to show, against lists reviewed by hand (outcomes/)."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.cli.outcomes import outcomes_of
from iretrace.litmus.corpus import shipped
from iretrace.litmus.parse import parse
from iretrace.litmus.test import Test as LitmusTest
from iretrace.world.knobs import UNKNOWN_KNOBS

REVIEWED = Path(__file__).parent / "outcomes"


@pytest.mark.parametrize("test", shipped(), ids=lambda test: test.name)
def test_the_processor_allows_just_what_was_reviewed(test: LitmusTest) -> None:
    assert outcomes_of(test) == (REVIEWED / f"{test.name}.txt").read_text("utf-8")


def test_every_reviewed_list_belongs_to_a_test() -> None:
    assert {path.stem for path in REVIEWED.glob("*.txt")} == {test.name for test in shipped()}


@pytest.mark.parametrize("test", shipped(), ids=lambda test: test.name)
def test_no_clause_of_a_shipped_test_asks_for_what_the_processor_does_not_do(test: LitmusTest) -> None:
    """The list is what is worked out: the test above says so."""
    reviewed = (REVIEWED / f"{test.name}.txt").read_text("utf-8")
    assert not any(line.startswith("No ") for line in reviewed.splitlines())


def test_a_clause_that_the_processor_does_not_meet_is_said_aloud() -> None:
    text = (
        "test t\nabout A.\nvcpu sev-es\noutside maybe nmi\n\nmain:\n    spin\nnmi:\n    mark n\n    iretq\n\nalways n\n"
    )
    assert "No always n\nObservation t Sometimes 1 1\n" in outcomes_of(parse(text, "t.litmus"))


def test_a_disputed_rule_that_matters_is_told_for_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def allowed(_test: LitmusTest, _vcpu: str, knobs: int) -> tuple[tuple[object, ...], int]:
        return (), 1 << 31

    monkeypatch.setitem(UNKNOWN_KNOBS, 31, "disputed")
    monkeypatch.setattr("iretrace.cli.outcomes.allowed", allowed)
    (test,) = [test for test in shipped() if test.name == "nmi-complete-then-spin"]
    assert "vcpu sev-es if not disputed, sev-es if disputed\nStates 0\n" in outcomes_of(test)
