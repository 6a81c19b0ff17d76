"""The processor's rules as they are listed."""

from __future__ import annotations

import pytest

from iretrace.cli.main import main
from iretrace.cli.rules import CONFIDENCE, rooms, rules_page, rules_text
from iretrace.subset import RULES


def test_every_rule_is_listed_once_with_source_and_confidence() -> None:
    listed = [rule for _, _, rules in rooms() for rule in rules]
    machine = {rule.name for rule in RULES.values() if rule.module.startswith("iretrace.machine.")}
    assert sorted(rule.name for rule in listed) == sorted(machine)
    for rule in listed:
        assert rule.manual and rule.section and rule.confidence in CONFIDENCE, rule.name


def test_one_rule_is_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "take_nmi"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("take_nmi\n    Deliver the latched NMI.")
    assert "    AMD64 APM vol. 2, Nonmaskable Interrupts (read)\n" in text


def test_a_rule_that_there_is_not_is_bad_input_and_the_nearest_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "take_nmis"]) == 2
    assert capsys.readouterr().err == "iretrace: no rule is called 'take_nmis'; write 'take_nmi'\n"


def test_the_page_has_every_rule_that_the_list_has() -> None:
    page = rules_page()
    assert all(f"- `{rule.name}`: " in page for _, _, rules in rooms() for rule in rules)


def test_the_list_is_grouped_by_file() -> None:
    assert rules_text([]).startswith("machine/boundary.py: ")
