"""A reviewer's day on real trees: series in, what is new out, and only the tests that it can concern run again."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from iretrace.cli.main import main
from iretrace.linux.tree import Tree, open_tree, with_patches
from tests.trees.edits import (
    FIX_IN_A_NEW_FUNCTION,
    FIX_ON_6_1,
    REVERT_ON_6_12,
    SEV,
    SVM,
    X86,
    Edit,
    make_patch,
)

pytestmark = [pytest.mark.trees, pytest.mark.slow]

ENVELOPE = "From mboxrd@z Thu Jan  1 00:00:00 1970\n"
ENCRYPTED, PLAIN = "nmi-complete-then-spin", "nmi-and-irq-after-iret"

NO_SINGLE_STEP = (
    Edit(
        SVM,
        "svm_enable_nmi_window",
        "if (!gif_set(svm)) {",
        "if (sev_es_guest(vcpu->kvm))\n\t\treturn;\n\n\tif (!gif_set(svm)) {",
    ),
)
"""The mail's other change: TF is not set for a guest whose RFLAGS the processor does not read."""

BACK_AGAIN = (
    Edit(
        SEV,
        "sev_handle_vmgexit",
        "vcpu->arch.hflags &= ~HF_NMI_MASK; kvm_make_request(KVM_REQ_EVENT, vcpu); ret = 1;",
        "ret = svm_invoke_exit_handler(vcpu, SVM_EXIT_IRET);",
    ),
)

LINES_ABOVE = (
    Edit(SVM, "ud_interception", "return handle_ud(vcpu);", "return (handle_ud(vcpu));", before="static int no_use;\n"),
)
"""A function that no test here calls is changed, and everything below it moves."""

FOR_ENCRYPTED = (Edit(SEV, "sev_handle_vmgexit", "SVM_EXIT_IRET);", "(SVM_EXIT_IRET));"),)
"""A function that only encrypted guests need."""


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one test has found another one may reuse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def series(root: Path, *patches: Sequence[Edit]) -> str:
    """A mailbox of patches, each on top of those before it, the last one first."""
    tree = open_tree(root)
    diffs: list[str] = []
    for edits in patches:
        patched: Tree = with_patches(tree, [("before", diff) for diff in diffs], root) if diffs else tree
        diffs.append(make_patch(patched, edits))
    mails = [
        f"{ENVELOPE}Subject: [PATCH {number}/{len(diffs)}] change {number}\n\n---\n{diff}\n"
        for number, diff in enumerate(diffs, 1)
    ]
    return "".join(reversed(mails))


def check(
    tree: Path, mails: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str, test: str = ENCRYPTED
) -> tuple[int, str, str]:
    (tmp_path / "series.mbox").write_text(mails)
    status = main(["check", str(tree), "--patch", str(tmp_path / "series.mbox"), "--test", test, *more])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_the_mails_two_changes_repair_6_1(tree_6_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tree_6_1), "--test", ENCRYPTED]) == 1
    capsys.readouterr()
    status, text, _ = check(tree_6_1, series(tree_6_1, NO_SINGLE_STEP, FIX_ON_6_1), tmp_path, capsys)
    assert status == 0
    assert f"1 test holds that failed before: {ENCRYPTED} sev-es tickless" in " ".join(text.split())
    assert text.endswith("0 new, 0 known, 0 undetermined, 1 hold\n")


def test_a_series_whose_second_patch_brings_the_bug_back_is_told_apart_by_each(
    tree_6_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mails = series(tree_6_1, FIX_ON_6_1, BACK_AGAIN)
    status, text, error = check(tree_6_1, mails, tmp_path, capsys)
    assert (status, text) == (4, "")  # in the end nothing has changed
    assert error.endswith("no test judges the patches; that is no pass\n")
    status, text, _ = check(tree_6_1, mails, tmp_path, capsys, "--each", "--format", "json")
    told = [(result["hypervisor"], result["verdict"], result["known"]) for result in json.loads(text)["results"]]
    assert status == 1
    assert [(name.partition(" + ")[2], *rest) for name, *rest in told] == [
        ("1 of 2", "holds", None),
        ("2 of 2", "violated", None),
    ]


def test_a_harmless_clean_up_makes_no_difference(
    tree_6_12: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mails = series(tree_6_12, FIX_IN_A_NEW_FUNCTION)
    assert check(tree_6_12, mails, tmp_path, capsys)[0] == 0
    status, text, _ = check(tree_6_12, mails, tmp_path, capsys, "--diff")
    assert (status, text.splitlines()[-1]) == (0, "no difference on 1 of 1 tests")


def test_a_patch_against_another_version_is_refused_with_its_hunk(
    tree_6_1: Path, tree_6_12: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text, error = check(tree_6_12, series(tree_6_1, FIX_ON_6_1), tmp_path, capsys)
    assert (status, text) == (2, "")
    assert "change 1: arch/x86/kvm/svm/sev.c: hunk 1 (@@ " in error
    assert error.endswith(" does not apply; wrong version?\n")
    assert error.count("\n") == 1


def test_the_fix_changes_the_step_behind_nmi_complete(
    tree_6_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text, _ = check(tree_6_1, series(tree_6_1, FIX_ON_6_1), tmp_path, capsys, "--diff", "--format", "json")
    (test,) = json.loads(text)["tests"]
    stem = test["parting"]["stems"][0]
    functions = [{step["where"]["function"] for step in last if step["where"]} for last in test["parting"]["lasts"]]
    assert status == 1
    assert "vmgexit nmi_complete" in stem[-1]["what"]
    assert "svm_nmi_allowed" in functions[0]
    assert "svm_inject_nmi" in functions[1]


def reused(text: str) -> int:
    found = re.search(r"^(\d+) of \d+ reused", text, re.MULTILINE)
    return int(found[1]) if found else 0


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        (LINES_ABOVE, 2),
        (FOR_ENCRYPTED, 1),
        ((Edit(X86, "process_nmi", "limit = 2", "limit = 1 + 1"),), 0),
    ],
    ids=["lines that only move", "what encrypted guests use", "what every guest uses"],
)
def test_only_tests_that_used_what_a_patch_changes_run_again_and_the_answers_are_those_of_all(
    edits: Sequence[Edit], expected: int, tree_6_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--test", PLAIN, "--no-new-only", "--jobs", "2"]
    assert main(["check", str(tree_6_1), "--test", ENCRYPTED, *more[:2], "--format", "json"]) == 1
    before = json.loads(capsys.readouterr().out)["results"]  # so that there is something to reuse
    mails = series(tree_6_1, edits)
    assert reused(check(tree_6_1, mails, tmp_path, capsys, *more)[1]) == expected
    answers = [check(tree_6_1, mails, tmp_path, capsys, *more, "--format", "json", *how)[1] for how in ([], ["--all"])]
    assert json.loads(answers[0]) == json.loads(answers[1])
    if edits is LINES_ABOVE:  # what was looked at to judge the scope of the patch is no assumption
        assert [result["ledger"] for result in json.loads(answers[1])["results"]] == [one["ledger"] for one in before]


UNKNOWN_HELPER = (
    Edit(
        SEV,
        "sev_handle_vmgexit",
        "ret = svm_invoke_exit_handler(vcpu, SVM_EXIT_IRET);",
        "nmi_audit_log(vcpu);\n\t\tret = svm_invoke_exit_handler(vcpu, SVM_EXIT_IRET);",
    ),
)
ROW = '[[function]]\nname = "nmi_audit_log"\nwhat = "neutral"'


def test_a_helper_that_no_rule_knows_is_named_with_a_row_to_paste(
    tree_6_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mails = series(tree_6_1, UNKNOWN_HELPER)
    status, text, _ = check(tree_6_1, mails, tmp_path, capsys, "--test", PLAIN)
    assert status == 3
    assert ROW in text
    assert f"✓ {PLAIN}" in text  # what does not call it is judged all the same
    row = text[text.rindex("[[function]]") :].split("\n\n")[0].replace('why = "..."', 'why = "it only records"')
    (tmp_path / "rows.toml").write_text(row + "\n")
    status, text, error = check(tree_6_1, mails, tmp_path, capsys, "--rules", str(tmp_path / "rows.toml"))
    assert not error
    assert (status, text.splitlines()[-1]) == (0, "0 new, 1 known (1 not shown), 0 undetermined, 0 hold")


def test_what_a_mail_on_standard_input_brought_is_found_again_without_it(
    tree_6_12: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mails = series(tree_6_12, REVERT_ON_6_12).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(mails)))
    assert main(["check", str(tree_6_12), "--patch", "-", "--test", ENCRYPTED]) == 1
    assert main(["reproduce", ENCRYPTED, "--output", str(tmp_path)]) == 0
    capsys.readouterr()
    command = shlex.split((tmp_path / f"{ENCRYPTED}.sh").read_text().splitlines()[-1])
    monkeypatch.chdir(tmp_path)
    assert main([*command[1:], "--no-cache"]) == 1
    assert "with the patches\n" in capsys.readouterr().out
