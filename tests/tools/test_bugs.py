"""The list of bugs: what an entry must have, and that the page follows it."""

from __future__ import annotations

import pytest

from tools.bugs import CORPUS, SOURCE, TARGET, Malformed, load, render

TESTS = {path.stem for path in CORPUS.glob("*.litmus")}
TEXT = SOURCE.read_text(encoding="utf-8")


def test_the_page_is_what_the_list_makes_it() -> None:
    assert TARGET.read_text(encoding="utf-8") == render(load(TEXT, TESTS))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "', 'name = "', "the keys are"),
        ('state = "affected"', 'state = "perhaps"', "a tree's state is one of"),
        ('test = "nmi-complete-then-spin"', 'test = "no-such-test"', "no-such-test is no shipped test"),
        (', host = "tickless"', "", "shown_by has test, vcpu and host"),
        ('state = "confirmed"', 'state = "seen"', "a run's state is one of"),
        ('"iretrace run iret-sets-tf --on', '"iretrace run iret-faults --on', "TEST showing the bug"),
        ('cannot_run = "', 'runs = []\ncannot_run = "', "one of the two"),
        ('fixed = { commit = "389fbbec261b", ', "fixed = { ", "fixed has commit, subject and version, or nothing"),
    ],
)
def test_an_entry_that_is_not_complete_is_refused(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(Malformed, match=message):
        load(TEXT.replace(old, new), TESTS)


def test_an_entry_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(Malformed, match="listed twice"):
        load(TEXT + TEXT[TEXT.index("[[bug]]\nid") :], TESTS)


def test_a_bug_that_is_not_fixed_upstream_says_so() -> None:
    (bug, *_) = load(TEXT, TESTS)
    affected = [{**tree, "state": "affected"} for tree in bug["trees"]]
    assert "fixed upstream: not in the trees below" in render([{**bug, "fixed": {}, "trees": affected}])


def test_a_bug_that_nobody_has_run_says_so() -> None:
    (bug, *_) = load(TEXT, TESTS)
    without = {key: value for key, value in bug.items() if key != "cannot_run"}
    assert "On a real KVM: not run yet." in render([without])


def test_each_bug_names_what_speaks_against_it() -> None:
    """A reader who doubts an entry finds that doubt, and its answer, in the entry."""
    bugs = load(TEXT, TESTS)
    assert [bug["id"] for bug in bugs if not bug.get("objection", "").strip()] == []
    (bug, *_) = bugs
    assert f"**What speaks against it.** {bug['objection'].strip()}" in render([bug])


def test_the_table_says_what_is_known_of_a_bug() -> None:
    (bug, *_) = load(TEXT, TESTS)
    run = {"kernel": "6.1.192", "machine": "QEMU", "state": "confirmed", "command": ""}
    affected = [{**tree, "state": "affected"} for tree in bug["trees"]]
    ran = {**bug, "runs": [run], "fixed": {}, "trees": affected, "upstream": "Left as it is."}
    assert "| 6.1, 6.12, 7.3 | confirmed | see below |\n" in render([ran])
    assert "**Upstream.** Left as it is.\n" in render([ran])
    assert "| 6.1 | not run | fixed in v6.6 |\n" in render([bug])
