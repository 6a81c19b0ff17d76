"""`iretrace show` and `iretrace reproduce`: results of earlier checks, told again."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iretrace.cli.main import main, read_patch
from iretrace.cli.show import mail_of
from iretrace.linux.mail import patches_in
from iretrace.litmus.corpus import select, source_text
from iretrace.report.summary import result_id
from iretrace.verdict import Verdict
from tests.cli.small_source import SmallSource
from tests.report.samples import LASSO, result

TEST = "nmi-complete-then-spin"
PLAIN = "iret-faults"


@pytest.fixture(autouse=True)
def no_earlier_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def checked(capsys: pytest.CaptureFixture[str], test: str) -> str:
    """The id of a violation that a check of the built-in KVM has printed."""
    assert main(["check", "--revision", "v6.1", "--test", test]) == 1
    found = re.search(r"kept as ([0-9a-f]{10})", capsys.readouterr().out)
    assert found is not None
    return found[1]


def test_a_result_is_shown_again_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    identity = checked(capsys, TEST)
    (result,) = json.loads(told(capsys, "show", identity, "--format", "json"))["results"]
    assert (result["id"], result["test"], result["known"]) == (identity, TEST, "nmi-complete-defers-unmasking")
    assert "for ever" in told(capsys, "show", identity[:5])


def test_a_result_is_shown_with_the_command_that_found_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "show", checked(capsys, TEST))
    command = f"iretrace check --revision v6.1 --test {TEST} --vcpu sev-es --host tickless"
    assert text.endswith(f"\nFound by: {command}\n")


@pytest.mark.parametrize("name", ["Linux 6.1.192 with the patches", "Linux 6.1.192 + 2 of 3"])
def test_a_result_has_one_id_whatever_a_review_calls_its_tree(name: str) -> None:
    plain = result("t", Verdict.VIOLATED, trace=LASSO, hypervisor="Linux 6.1.192")
    assert result_id(replace(plain, hypervisor=name)) == result_id(plain)
    assert result_id(replace(plain, hypervisor="Linux 6.1.193")) != result_id(plain)


def test_nothing_is_run_to_show_a_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    identity = checked(capsys, TEST)
    monkeypatch.setattr("iretrace.cli.driver.check", None)
    assert identity in told(capsys, "show", TEST)


@pytest.mark.parametrize("wanted", ["0123456789", "no-such-test", "../../etc/passwd", "", "\x1b[2J"])
def test_a_result_that_there_is_not_is_one_line(wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", wanted]) == 2
    error = capsys.readouterr().err
    assert "no such result is kept" in error
    assert error.count("\n") == 1
    assert "\x1b" not in error


def test_a_changelog_has_functions_numbered_steps_manuals_by_title_and_a_reproducer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = told(capsys, "show", checked(capsys, TEST), "--format", "changelog")
    assert text.startswith("Fix a defect in which an NMI that the processor would deliver never comes")
    assert re.search(r"^  1\. KVM: ", text, re.MULTILINE)
    assert re.search(r"^  2\. NMI 1 arrives: atomic_inc\(&vcpu->arch\.nmi_queued\);$", text, re.MULTILINE)
    assert re.search(r"^  3\. the CPU: #VMEXIT", text, re.MULTILINE)  # the steps of one sender are one
    assert "svm_nmi_blocked()" in text
    assert 'AMD\'s APM volume 2, "System Programming": ' in " ".join(text.split())
    assert f"iretrace check --revision v6.1 --test {TEST} --vcpu sev-es --host tickless\n" in text
    assert all(len(line) <= 75 for line in text.splitlines() if not line.startswith("  iretrace"))


def test_a_changelog_says_what_decided_where_no_event_was_declined(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "show", checked(capsys, "irq-before-iret"), "--format", "changelog")
    assert "svm_complete_interrupts() in kvm/svm.py decides it: svm.nmi_masked = 0" in " ".join(text.split())


@pytest.mark.parametrize(("test", "cites"), [("irq-before-iret", False), (TEST, True)])
def test_a_changelog_cites_sections_on_encrypted_guests_for_these_only(
    test: str, cites: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "show", checked(capsys, test), "--format", "changelog")
    assert '"IRET Intercept"' in " ".join(text.split())
    assert ("(SEV-ES)" in text) == cites


def test_a_changelog_is_for_a_defect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--test", TEST]) == 0
    assert main(["show", TEST, "--format", "changelog"]) == 2
    assert "this result shows none" in capsys.readouterr().err


def test_the_litmus_file_is_the_one_that_was_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "reproduce", checked(capsys, TEST))
    (test,) = select([TEST])
    assert text.endswith(source_text(test).rstrip() + "\n")


def test_what_reproduce_writes_shows_the_defect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "reproduce", checked(capsys, TEST), "--output", str(tmp_path / "out"))
    assert "no C program: for sev-es, which needs an AMD host" in text
    script = tmp_path / "out" / f"{TEST}.sh"
    assert "--test nmi-complete-then-spin.litmus\n" in script.read_text()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "iretrace").write_text(f'#!/bin/sh\nexec {sys.executable} -m iretrace "$@" --no-cache\n')
    (tmp_path / "bin" / "iretrace").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", str(script)], env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = checked(capsys, TEST)
    (tmp_path / f"{TEST}.litmus").write_text("mine")
    assert main(["reproduce", identity, "--output", str(tmp_path)]) == 2
    assert (tmp_path / f"{TEST}.litmus").read_text() == "mine"


@pytest.mark.slow
def test_the_c_program_builds_without_a_warning_and_speaks_ktap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc not found")
    told(capsys, "reproduce", checked(capsys, PLAIN), "--output", str(tmp_path))
    built = tmp_path / "program"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(built), f"{tmp_path}/{PLAIN}.c"]
    subprocess.run(command, check=True)
    done = subprocess.run([str(built)], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.startswith("TAP version 13\n1..")
    assert done.returncode in (0, 1, 4), done.stdout


SERIES = """From mboxrd@z Thu Jan  1 00:00:00 1970
Subject: [PATCH 2/2] =?utf-8?q?zw=C3=B6lf?=

Fixes: 123456789abc ("one")
This was wrong, é.
---
--- a/a.c
+++ b/a.c
@@ -1 +1 @@
-two
+three
From mboxrd@z Thu Jan  1 00:00:00 1970
Subject: [PATCH 1/2] one

--- a/a.c
+++ b/a.c
@@ -1 +1 @@
-one
+two
"""


def patched_from_stdin(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Check a tree with SERIES on standard input, which makes it violate TEST."""
    source = SmallSource("")
    source.after = SmallSource("defer", {"a.c": "2"})
    monkeypatch.setattr("iretrace.cli.driver.source_of", lambda _request, _progress: source)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SERIES.encode())))
    assert main(["check", ".", "--test", TEST, "--patch", "-", *more]) == 1


def test_patches_from_standard_input_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patched_from_stdin(monkeypatch)
    capsys.readouterr()
    shown = told(capsys, "show", TEST)
    assert shown.startswith("small with the patches\n")
    assert re.search(r"\nWith patches that are kept: iretrace reproduce \w{10} --output DIR writes them\n$", shown)
    told(capsys, "reproduce", TEST, "--output", str(tmp_path / "out"))
    command = (tmp_path / "out" / f"{TEST}.sh").read_text().splitlines()[-1]
    assert command.endswith(f"--test {TEST}.litmus --patch {TEST}.1.patch --patch {TEST}.2.patch")
    again = [read_patch(str(tmp_path / "out" / f"{TEST}.{number}.patch")) for number in (1, 2)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SERIES.encode())))
    for ((name, text),), (name_then, text_then) in zip(again, read_patch("-"), strict=True):
        assert (name.partition(": ")[2], text) == (name_then.partition(": ")[2], text_then)


DIFF = "--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n-one\n+two\n"
HALF_ENDS = re.compile(r"\r+(\n|\Z)")
ENVELOPE = "From x Thu Jan  1 00:00:00 1970"
LINES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).map(lambda text: HALF_ENDS.sub(r"\1", text))


@given(st.lists(LINES | st.just(ENVELOPE), max_size=4), st.sampled_from(["", "f\u00fcnf", "[PATCH] x"]))
def test_a_patch_that_is_written_is_read_as_it_was(lines: list[str], subject: str) -> None:
    text = "\n".join([*lines, DIFF])
    ((name, read),) = patches_in(mail_of(f"file: {subject}" if subject else "file", text).encode(), "file")
    assert (name.removeprefix("file").removeprefix(": "), read) == (subject, text)


def test_no_patch_is_kept_without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patched_from_stdin(monkeypatch, "--no-cache")
    assert not (tmp_path / "cache").exists()


def test_a_result_in_the_midst_of_a_series_has_the_patches_up_to_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patched_from_stdin(monkeypatch, "--each")
    capsys.readouterr()
    told(capsys, "reproduce", TEST, "--output", str(tmp_path / "out"))
    assert [file.name for file in sorted((tmp_path / "out").glob("*.patch"))] == [f"{TEST}.1.patch"]
    assert "--each" not in (tmp_path / "out" / f"{TEST}.sh").read_text()
    assert "Found by: iretrace check small --each --test" in told(capsys, "show", TEST)
