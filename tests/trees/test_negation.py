"""Every condition that KVM decides in the mail's test matters to what the run shows, or a reason says why not.

This is what tells an execution of KVM from a drawing of it: a condition that can be negated unnoticed was not needed.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from iretrace.linux.answers import ConditionId
from tests.trees.negation import Negations, Shown

trees = pytest.mark.trees

REASONS = Path(__file__).with_name("negation_reasons.toml")


def load_reasons(text: str) -> dict[str, str]:
    """Entry -> why. ValueError for an entry that is listed twice or without a reason."""
    reasons: dict[str, str] = {}
    for row in tomllib.loads(text)["reason"]:
        why = str(row["why"]).strip()
        for entry in row["conditions"]:
            if entry in reasons or len(why) < 20:
                raise ValueError(f"{entry}: listed twice, or without a reason")
            reasons[entry] = why
    return reasons


def find(entry: str, by_function: Mapping[str, list[tuple[ConditionId, str]]]) -> ConditionId | None:
    """The one condition that an entry names; None if there is none, or if it is not clear which of several."""
    function, _, rest = entry.partition(": ")
    token, _, number = rest.partition(" #")
    found = [condition for condition, text in by_function.get(function, []) if token in text]
    if number:
        return found[int(number) - 1] if int(number) <= len(found) else None
    return found[0] if len(found) == 1 else None


def complaints(texts: Mapping[ConditionId, str], survivors: Iterable[ConditionId], reasons: Iterable[str]) -> list[str]:
    """What is wrong: survivors that no entry names, and entries that name no survivor."""
    by_function: dict[str, list[tuple[ConditionId, str]]] = defaultdict(list)
    for condition in sorted(texts):
        by_function[condition.function].append((condition, texts[condition]))
    unexplained = set(survivors)
    wrong = []
    for entry in reasons:
        named = find(entry, by_function)
        if named in unexplained:
            unexplained.discard(named)
        else:
            wrong.append(f"not needed: {entry}")
    for condition in sorted(unexplained):
        place = f"{condition.path}:{condition.line} ({condition.ordinal})"
        wrong.append(f"unnoticed: {condition.function}: {texts[condition]}  at {place}")
    return wrong


@trees
@pytest.mark.slow
def test_the_negation_of_every_condition_is_noticed_or_explained(tree_6_1: Path) -> None:
    negations = Negations(tree_6_1)
    shown: Shown = negations.shown
    assert (shown.verdict, len(shown.conditions) > 300) == ("violated", True)
    survivors = [condition for condition, how in negations.run(sorted(shown.conditions)) if not how]
    texts = {condition: negations.text(condition) for condition in shown.conditions}
    assert complaints(texts, survivors, load_reasons(REASONS.read_text(encoding="utf-8"))) == []


A = ConditionId("a.c", 3, 0, "f")
B = ConditionId("a.c", 7, 0, "f")
TEXTS = {A: "if (x)", B: "if (x && y)"}


def test_an_entry_names_one_condition_by_function_and_token() -> None:
    assert complaints(TEXTS, [B], ["f: y"]) == []
    assert complaints(TEXTS, [B], ["f: x #2"]) == []


def test_a_condition_that_nobody_notices_is_named_with_its_line() -> None:
    assert complaints(TEXTS, [A, B], ["f: y"]) == ["unnoticed: f: if (x)  at a.c:3 (0)"]


@pytest.mark.parametrize("entry", ["f: x", "f: x #3", "f: z", "g: x #1", "f: x #1"])
def test_an_entry_that_names_no_survivor_or_several_is_not_needed(entry: str) -> None:
    assert complaints(TEXTS, [B], ["f: y", entry]) == [f"not needed: {entry}"]


def test_every_reason_is_given_once() -> None:
    assert len(load_reasons(REASONS.read_text(encoding="utf-8"))) > 100
    with pytest.raises(ValueError, match="listed twice"):
        load_reasons('[[reason]]\nwhy = "because it does not matter"\nconditions = ["f: x", "f: x"]\n')
