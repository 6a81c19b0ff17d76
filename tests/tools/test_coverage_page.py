"""The page about what the tests exercise."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from tools.coverage_page import FEW, OFTEN, REASONS, lacking, load, reason_for, render

RULES = {"seldom": ["a", "b", "c", "d"], "never": [], "often": ["t"] * OFTEN}
TREES = {
    "6.1": {("arch/x86/kvm/svm/svm.c", "whole"): (5, 5), ("arch/x86/kvm/svm/svm.c", "half"): (50, 25)},
    "7.3": {("arch/x86/kvm/svm/svm.c", "half"): (60, 60), ("include/linux/x.h", "nested_x"): (2, 0)},
}
REASON = [("No guests of guests", ["nested_*"])]


@pytest.fixture(scope="module")
def page() -> str:
    return render(RULES, TREES, REASON, 7)


def test_rules_are_listed_from_those_that_are_exercised_least(page: str) -> None:
    assert page.index("| 0 | never |") < page.index("| 4 | seldom | a, b, c ... |")
    assert f"1 rules are exercised by {OFTEN} tests and more: often." in page


def test_statements_are_counted_by_file_and_in_all(page: str) -> None:
    assert "| arch/x86/kvm/svm/svm.c | 30/55 | 60/60 |" in page
    assert "| 1 others | 0/0 | 0/2 |" in page
    assert "| **all** | 30/55 | 60/62 |" in page


def test_a_function_that_lacks_statements_on_one_tree_is_listed_with_all(page: str) -> None:
    assert "Of 1 of 3 functions every statement is executed." in page
    assert "| half | 25/50 | 60/60 |" in page
    assert "whole" not in page


def test_functions_come_under_their_reason(page: str) -> None:
    assert page.index("**No guests of guests.**") < page.index("never entered: nested_x")
    assert page.index("never entered: nested_x") < page.index("**No reason is given for these.**")
    assert page.index("**No reason is given for these.**") < page.index("| half")


def test_what_lacks_little_is_named_only() -> None:
    text = render({}, {"6.1": {("f.c", "nearly"): (9, 9 - FEW + 1)}}, [], 1)
    assert f"lacking fewer than {FEW} statements: nearly" in text


def test_of_several_trees_the_one_that_lacks_most_counts() -> None:
    assert lacking({"6.1": (1, 5), "7.3": (5, 5)}) == 4


def test_the_first_reason_that_fits_counts() -> None:
    assert reason_for("nested_svm_vmrun", [("a", ["svm_*"]), ("b", ["nested_svm_vmrun"]), ("c", ["*"])]) == "b"
    assert reason_for("other", [("a", ["svm_*"])]) == ""


def test_no_pattern_speaks_for_the_functions_that_this_is_about() -> None:
    """Their statements have to be executed, or to be named."""
    reasons = load(REASONS.read_text(encoding="utf-8"))
    inner = ["kvm_check_and_inject_events", "process_nmi", "iret_interception", "db_interception", "svm_inject_nmi"]
    inner += ["svm_enable_nmi_window", "svm_complete_interrupts", "svm_cancel_injection"]
    patterns = [pattern for _, names in reasons for pattern in names if pattern not in inner]
    assert [name for name in inner if any(fnmatchcase(name, pattern) for pattern in patterns)] == []
