"""check --patch: what a patch brings, what was there before, and what is no pass."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from iretrace.cli.main import main, read_patch
from iretrace.cli.sources import AboutPatches
from iretrace.verdict import InputError
from tests.cli.small_source import TEST, SmallSource
from tests.linux.mini import SVM, write_tree

pytestmark = pytest.mark.usefixtures("no_earlier_results")


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """A small tree that is read from source."""
    return write_tree(tmp_path / "linux", {SVM: "int of_no_use;\n"})


def test_a_patch_comes_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("diff é".encode("latin-1"))))
    assert read_patch("-") == [("<stdin>", "diff é")]


def test_a_patch_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iretrace.cli.main.MAX_PATCH_BYTES", 1 << 10)
    with pytest.raises(InputError, match="larger than"):
        read_patch("/dev/zero")


@pytest.mark.parametrize("path", [SVM, "Documentation/virt/evil\x1b[2Jname.rst"])
def test_a_patch_that_changes_nothing_modelled_is_no_pass(
    path: str, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.patch").write_text(
        f"Subject: [PATCH] \x1b[31mred\n\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-int of_no_use;\n+int of_none;\n"
    )
    assert main(["check", str(mini), "--patch", str(tmp_path / "a.patch")]) == 4
    output = capsys.readouterr()
    assert output.out == ""
    remark, end = output.err.splitlines()
    assert remark.startswith(f"iretrace: {tmp_path}/a.patch: [PATCH] [31mred: ")
    assert remark.endswith(": hunk 1 not looked at: not modelled")
    assert end == "iretrace: the patches change nothing that is modelled; no test was run"
    assert "\x1b" not in output.err


def test_remarks_on_patches_are_part_of_the_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SmallSource("")
    source.after = SmallSource("", {"a.c": "2"})
    source.after.about = AboutPatches(
        True, ("a.patch: a.c: hunk 1 applied 2 lines further down", "\x1b[2J: not looked at")
    )
    monkeypatch.setattr("iretrace.cli.driver.source_of", lambda _request, _progress: source)
    (tmp_path / "a.patch").write_text("")
    assert main(["check", ".", "--test", TEST, "--patch", str(tmp_path / "a.patch")]) == 0
    assert capsys.readouterr().out.endswith(
        "\na.patch: a.c: hunk 1 applied 2 lines further down\n\\x1b[2J: not looked at\n"
        "0 new, 0 known, 0 undetermined, 1 hold\n"
    )


def patched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str, after: str) -> list[str]:
    """The tree behaves so before a patch and so after it; the arguments that check it."""
    source = SmallSource(before, {"a.c": "1"})
    source.after = SmallSource(after, {"a.c": "2"})
    monkeypatch.setattr("iretrace.cli.driver.source_of", lambda _request, _progress: source)
    (tmp_path / "a.patch").write_text("")
    return ["check", ".", "--test", TEST, "--patch", str(tmp_path / "a.patch"), "--color", "never"]


def test_a_defect_that_a_patch_brings_is_new(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(patched(monkeypatch, tmp_path, "", "defer")) == 1
    assert "violated" in (output := capsys.readouterr().out)
    assert output.endswith("1 new, 0 known, 0 undetermined, 0 hold\n")


def test_a_defect_that_the_tree_had_before_the_patch_is_counted_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(patched(monkeypatch, tmp_path, "defer", "defer")) == 0
    assert capsys.readouterr().out.endswith("0 new, 1 known (1 not shown), 0 undetermined, 0 hold\n")


@pytest.mark.parametrize("switch", ["--all", "--no-new-only"])
def test_old_defects_are_shown_and_fail_when_asked_for(
    switch: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*patched(monkeypatch, tmp_path, "defer", "defer"), switch]) == 1
    assert "known as in-the-tree-before" in capsys.readouterr().out


def test_a_defect_that_a_patch_repairs_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(patched(monkeypatch, tmp_path, "defer", "")) == 0
    assert f"small: 1 test holds that failed before: {TEST} sev-es tickless\n" in capsys.readouterr().out


def test_another_defect_of_the_same_test_is_new(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert main(patched(monkeypatch, tmp_path, "defer", "error")) == 1


@pytest.mark.parametrize("switch", ["--diff", "--each"])
def test_what_is_about_patches_needs_one(switch: str, mini: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(mini), switch]) == 2
    assert "give --patch" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--max-states", "2"]], ids=["holds", "undetermined"])
def test_patches_of_which_no_test_uses_anything_are_no_pass(
    more: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*patched(monkeypatch, tmp_path, "", ""), *more, "--no-cache"]
    assert main(command) == (3 if more else 0)  # the patch changes the file that the test has read
    capsys.readouterr()
    monkeypatch.setattr("tests.cli.small_source.SmallSource.used", lambda self: {"fact": ("1", "", ())})
    assert main(command) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "iretrace: small: none of these tests uses what the patches change\n"
        "iretrace: no test judges the patches; that is no pass\n"
    )
    assert main([*command, "--format", "b4"]) == 4
    assert capsys.readouterr().out == "[]\n"
    assert main([*command, "--no-new-only"]) == (3 if more else 0)


def test_a_patch_that_does_not_apply_is_one_line_without_escapes(
    mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.patch").write_text(f"--- a/{SVM}\n+++ b/{SVM}\n@@ -1 +1 @@\n-\x1b[2J\n+b\n")
    assert main(["check", str(mini), "--patch", str(tmp_path / "a.patch")]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"a.patch: {SVM}: hunk 1 (@@ -1 +1 @@) does not apply; wrong version?\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("mail", "status", "out"),
    [
        ("Subject: [PATCH 0/2] cover\n\nNo diff.\n", 4, "[]\n"),
        (f"Subject: [PATCH] x\n\n--- a/{SVM}\n+++ b/{SVM}\n@@ -1 +1 @@\n-int of_no_use;\n+int b;\n", 4, "[]\n"),
        (f"Subject: [PATCH] x\n\n--- a/{SVM}\n+++ b/{SVM}\n@@ -1 +1 @@\n-other\n+b\n", 2, None),
    ],
)
def test_b4_gets_an_answer_to_every_mail(
    mail: str, status: int, out: str | None, mini: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(mail.encode())))
    assert main(["check", str(mini), "--patch", "-", "--format", "b4"]) == status
    written = capsys.readouterr().out
    if out is not None:
        assert written == out
    else:
        (entry,) = json.loads(written)
        assert entry["status"] == "warn"
        assert "does not apply" in entry["summary"]
