"""The command line: statuses, one-line errors, and what goes where. The tree is played by a small hypervisor."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import iretrace.cli.demo  # noqa: F401  (bound to the real sources before a test puts others in their place)
from iretrace.cli.driver import Request, run, scoped, tasks
from iretrace.cli.main import main, one_line, read_patch, status_of
from iretrace.cli.sources import AboutPatches, integer, unreadable_is_input_error
from iretrace.linux.ctree import Pos
from iretrace.linux.cursor import ParseError
from iretrace.linux.unmodelled import Unmodelled
from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.verdict import InputError, Result, Verdict
from tests.cli.small_source import SmallSource
from tests.linux.mini import SVM, write_tree

TEST = "nmi-complete-then-spin"
MAKEFILE = "VERSION = {}\nPATCHLEVEL = 1\nSUBLEVEL = 0\n"


def quiet(_text: str) -> None:
    """No progress."""


@pytest.fixture(autouse=True)
def no_earlier_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test begins with an empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes every tree behave like the small hypervisor with a mistake."""

    def play(mistake: str) -> None:
        monkeypatch.setattr("iretrace.cli.driver.source_of", lambda _request, _progress: SmallSource(mistake))
        monkeypatch.setattr("iretrace.cli.demo.source_of", lambda _request, _progress: SmallSource(mistake))

    return play


def result(verdict: Verdict) -> Result:
    return Result("t", "sev-es", "tickless", "small", verdict, "all 3 states")


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([Verdict.HOLDS, Verdict.HOLDS], 0),
        ([Verdict.HOLDS, Verdict.VIOLATED, Verdict.UNDETERMINED], 1),
        ([Verdict.HOLDS, Verdict.UNDETERMINED], 3),
        ([], 4),
    ],
)
def test_the_exit_status_is_that_of_the_worst_verdict(verdicts: list[Verdict], status: int) -> None:
    assert status_of([result(verdict) for verdict in verdicts]) == status


def test_a_hypervisor_that_is_right_ends_with_0(
    tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree("")
    assert main(["check", ".", "--test", TEST]) == 0
    assert "holds" in capsys.readouterr().out


def test_a_counterexample_ends_with_1(tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST, "--color", "never"]) == 1
    output = capsys.readouterr()
    assert "violated" in output.out
    assert output.err == ""


def test_the_host_can_be_chosen(tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST, "--host", "ticking"]) == 0


def test_a_limit_ends_with_3(tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    tree("")
    assert main(["check", ".", "--test", TEST, "--max-states", "2"]) == 3


def test_a_kind_that_no_test_is_about_ends_with_4(
    tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree("")
    assert main(["check", ".", "--test", TEST, "--vcpu", "plain"]) == 4
    assert capsys.readouterr().err.count("\n") == 1


def test_several_jobs_give_the_same_results() -> None:
    few = select([TEST, "nmi-never-completed", "simultaneous-nmis"])
    alone = run(Request(Path(), few), SmallSource("defer"), quiet).results
    shared = run(Request(Path(), few, jobs=2), SmallSource("defer"), quiet).results
    assert [(r.test, r.verdict, r.states) for r in alone] == [(r.test, r.verdict, r.states) for r in shared]


def test_every_test_runs_on_its_own_hosts_unless_one_is_chosen() -> None:
    (test,) = select([TEST])
    assert [str(task) for task in tasks(Request(Path(), [test]))] == [f"{TEST} sev-es tickless"]
    assert [task.host for task in tasks(Request(Path(), [test], hosts=["ticking"]))] == ["ticking"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["check", "--bogus"],
        ["check", ".", "--test", "no-such-test"],
        ["check", ".", "--test", "no/such/file.litmus"],
        ["check", ".", "--vcpu", "no-such-kind"],
        ["check", ".", "--host", "never"],
        ["check", ".", "--patch", "no/such.patch"],
        ["check", ".", "--patch", "."],
        ["check", ".", "--patch", "-", "--patch", "-"],
        ["check", ".", "--option", "nothing"],
        ["check", ".", "--jobs", "0"],
        ["check", ".", "--max-states", "many"],
        ["check", ".", "--timeout", "-1"],
        ["check", ".", "--format", "poem"],
        ["chec", "."],
    ],
)
def test_bad_usage_is_one_line_and_ends_with_2(
    arguments: list[str], tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree("")
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("iretrace: ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("content", [{}, {"Makefile": "all:\n"}, {"Makefile": MAKEFILE.format(6)}])
def test_a_directory_that_is_no_complete_linux_is_one_line(
    content: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    assert main(["check", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"iretrace: {tmp_path}")
    assert error.count("\n") == 1


def test_a_kernel_that_cannot_host_sev_es_is_out_of_scope(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE.format(5))
    for directory in ("arch/x86/kvm/svm", "include/linux", "virt/kvm"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "Kbuild").write_text("")
    (tmp_path / "arch/x86/kvm/svm/svm.c").write_text("int svm;\n")
    assert main(["check", str(tmp_path)]) == 4


def test_a_damaged_archive_is_one_line_and_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "linux.tar.xz").write_bytes(b"\xfd7zXZ\0 and no more")
    assert main(["check", str(tmp_path / "linux.tar.xz")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"iretrace: {tmp_path}/linux.tar.xz: cannot be unpacked")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        Unmodelled("who() is called and nobody answers it", Pos("a.c", 3), '[[function]]\nname = "who"'),
        ParseError(Pos("a.c", 3), "a construct"),
    ],
)
def test_c_that_every_run_needs_and_that_is_not_known_is_bad_input(error: Exception) -> None:
    with pytest.raises(InputError, match="a.c:3"), unreadable_is_input_error():
        raise error


@pytest.mark.parametrize(("value", "number"), [("1", 1), ("0x10", 16), ("y", 1), ("n", 0)])
def test_an_option_is_a_number_or_yes_or_no(value: str, number: int) -> None:
    assert integer("CONFIG_X", value) == number


def test_an_option_that_is_neither_is_refused() -> None:
    with pytest.raises(InputError, match="--option CONFIG_X=maybe: write a number, y or n"):
        integer("CONFIG_X", "maybe")


def test_a_mistake_of_ours_is_one_line_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("IRETRACE_DEBUG", raising=False)
    monkeypatch.setattr("iretrace.cli.driver.source_of", lambda _request, _progress: 1 // 0)
    assert main(["check", ".", "--test", TEST]) == 2
    assert capsys.readouterr().err == (
        "iretrace: ZeroDivisionError: integer division or modulo by zero; this is a bug of iretrace "
        "(IRETRACE_DEBUG=1 shows where)\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--revision", "v0.1"],
        ["--patch", "some.patch"],
        ["--rules", "some.toml"],
        ["--option", "no_such_option=1"],
        [".", "--revision", "v6.1"],
    ],
)
def test_what_the_built_in_kvm_or_a_tree_cannot_be_given_is_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("some.patch", "some.toml"):
        (tmp_path / name).write_text("")
    assert main(["check", "--test", TEST, *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("iretrace: ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(("revision", "status"), [("v6.1", 1), ("v6.12", 0), ("", 0)])
def test_without_a_tree_the_built_in_kvm_is_checked(
    revision: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--revision", revision, "--test", TEST]) == status
    assert " lines of the built-in KVM executed, " in capsys.readouterr().out


def test_revisions_are_told_oldest_first_each_difference_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["revisions"]) == 0
    text = capsys.readouterr().out
    assert text.index("\nv6.1\n") < text.index("SINCE_NMI_COMPLETE_UNMASKS_AT_ONCE (v6.6, commit 389fbbec261b)")
    assert max(map(len, text.splitlines())) <= 80


def test_a_second_check_reuses_what_has_not_changed(
    tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST]) == 1
    first = capsys.readouterr().out
    assert "reused" not in first
    assert main(["check", ".", "--test", TEST]) == 1
    second = capsys.readouterr().out
    assert second.replace("1 of 1 reused: nothing that they used has changed\n", "") == first != second


def test_a_check_without_cache_neither_reuses_nor_keeps(
    tree: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree("defer")
    main(["check", ".", "--test", TEST, "--no-cache"])
    assert not (tmp_path / "cache").exists()


def test_a_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("IRETRACE_DEBUG", "1")
    monkeypatch.setattr("iretrace.cli.driver.source_of", lambda _request, _progress: 1 // 0)
    assert main(["check", ".", "--test", TEST]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_request: Request, _progress: Callable[[str], None]) -> SmallSource:
        raise KeyboardInterrupt

    monkeypatch.setattr("iretrace.cli.driver.source_of", interrupted)
    assert main(["check", ".", "--test", TEST]) == 130
    assert capsys.readouterr().err == "iretrace: interrupted\n"


def test_text_from_a_tree_cannot_move_the_cursor() -> None:
    assert one_line("a\x1b[2Jb\nc") == "a [2Jb c"


def test_a_patch_comes_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("diff é".encode("latin-1"))))
    assert read_patch("-") == [("<stdin>", "diff é")]


def test_a_patch_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iretrace.cli.main.MAX_PATCH_BYTES", 1 << 10)
    with pytest.raises(InputError, match="larger than"):
        read_patch("/dev/zero")


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """A small tree that is read from source."""
    return write_tree(tmp_path / "linux", {SVM: "int of_no_use;\n"})


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
    source.after.patches = AboutPatches(
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


def test_quiet_tells_only_what_does_not_hold(tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST, "--test", "nmi-never-completed", "--quiet", "--color", "never"]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert TEST in first
    assert last == "1 new, 0 known, 0 undetermined, 1 hold"


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
    monkeypatch.setattr("tests.cli.small_source.SmallSource.used_so_far", lambda self: {"fact": ("1", "", ())})
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


def test_tests_are_listed_with_one_sentence_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tests", TEST]) == 0
    assert capsys.readouterr().out.startswith(f"{TEST}  (sev-es; tickless)\n    A second NMI waits")


def test_rules_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    assert "take_nmi\n    Deliver the latched NMI." in capsys.readouterr().out


def test_lists_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    main(["tests"])
    main(["rules"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.slow
def test_the_demo_shows_the_bug_its_fix_and_one_line_on_the_quick_tests(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("iretrace.cli.demo.shipped", lambda: select([TEST]))
    assert main(["demo"]) == 0
    output = capsys.readouterr().out
    parts = [
        "vmgexit nmi_complete",
        "every run: marks n n, then it spins",
        "What KVM as of Linux v6.1 makes of it",
        "violated",
        "these steps repeat for ever",
        "Why: an NMI that the processor would deliver never comes",
        "What KVM as of Linux v6.12 makes of it",
        "sev-es  tickless  holds",
        "1 shipped tests on the newest KVM",
        "(0 with more events take longer",
        "0 new, 0 known, 0 undetermined, 1 hold",
        "What to type next",
    ]
    positions = [output.index(part) for part in parts]
    assert positions == sorted(positions)
    assert max(map(len, output.splitlines())) <= 80


def test_the_demo_shows_test_processor_tree_and_what_to_type(
    tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree("defer")
    assert main(["demo", "linux"]) == 0
    output = capsys.readouterr().out
    parts = ["vmgexit nmi_complete", "every run: marks n n, then it spins", "violated", "iretrace check linux --patch"]
    positions = [output.index(part) for part in parts]
    assert positions == sorted(positions)


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m iretrace rules | head -1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every violation is listed."""
    monkeypatch.setattr("iretrace.cli.known.known_id", lambda _result: "listed")


def test_a_known_defect_is_still_a_counterexample(
    tree: Callable[[str], None], known: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST]) == 1
    assert capsys.readouterr().out.endswith("\n0 new, 1 known, 0 undetermined, 0 hold\n")


def test_new_only_leaves_known_defects_out_of_output_and_status(
    tree: Callable[[str], None], known: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST, "--new-only"]) == 0
    assert capsys.readouterr().out == "0 new, 1 known (1 not shown), 0 undetermined, 0 hold\n"


def test_new_only_keeps_what_is_new(tree: Callable[[str], None]) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST, "--new-only"]) == 1


def test_all_shows_the_outcomes_of_tests_that_hold(
    tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree("")
    main(["check", ".", "--test", TEST])
    assert "States 1" not in capsys.readouterr().out
    main(["check", ".", "--test", TEST, "--all"])
    assert "States 1\nn n; spins\n" in capsys.readouterr().out


def test_json_is_all_that_there_is_on_standard_output(
    tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST, "--format", "json"]) == 1
    assert [result["verdict"] for result in json.loads(capsys.readouterr().out)["results"]] == ["violated"]


def test_gcc_writes_its_summary_to_standard_error(
    tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST, "--format", "gcc"]) == 1
    output = capsys.readouterr()
    assert f"error: [{TEST}] " in output.out
    assert output.err.endswith("iretrace: 1 new, 0 known, 0 undetermined, 0 hold\n")


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("ktap", "KTAP version 1\n1..1\n"),
        ("junit", '<?xml version="1.0" '),
        ("sarif", '{\n "$schema": '),
        ("b4", '[\n {\n  "tool": "iretrace",\n  "status": "fail"'),
    ],
)
def test_a_format_is_all_that_there_is_on_standard_output(
    form: str, start: str, tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST, "--format", form]) == 1
    output = capsys.readouterr()
    assert output.out.startswith(start)
    assert output.err == ""


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


def test_ktap_skips_what_is_not_in_scope(tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    tree("")
    assert main(["check", ".", "--test", TEST, "--vcpu", "plain", "--format", "ktap"]) == 4
    assert capsys.readouterr().out.startswith("KTAP version 1\n1..0 # SKIP no test is about")


@pytest.mark.parametrize(
    ("mistake", "arguments", "status"),
    [
        ("", [], 0),
        ("defer", [], 1),
        ("", ["--max-states", "2"], 125),
        ("", ["--vcpu", "plain"], 125),
        ("", ["--patch", "no/such.patch"], 125),
    ],
)
def test_git_bisect_is_told_good_bad_or_to_skip(
    mistake: str, arguments: list[str], status: int, tree: Callable[[str], None]
) -> None:
    tree(mistake)
    assert main(["check", ".", "--test", TEST, "--bisect", *arguments]) == status


def test_a_mistake_in_the_command_line_stops_a_bisection(tree: Callable[[str], None]) -> None:
    tree("")
    assert main(["check", ".", "--bisect", "--bogus"]) == 128


def test_a_mistake_of_ours_is_skipped_by_a_bisection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iretrace.cli.driver.source_of", lambda _request, _progress: 1 // 0)
    assert main(["check", ".", "--test", TEST, "--bisect"]) == 125


TWO_KINDS = "test two-kinds\nabout Both.\nvcpu plain, sev-es-debugswap\nmain:\n    spin\n"


def test_a_kind_that_the_hypervisor_does_not_have_is_left_out_and_told_of() -> None:
    source = SmallSource("")
    source.without = ["sev-es-debugswap"]
    request, remarks = scoped(Request(Path(), [parse(TWO_KINDS, "t.litmus")]), source)
    assert [task.vcpu for task in tasks(request)] == ["plain"]
    assert remarks == ["small: sev-es-debugswap is not in scope: it is too small"]


def test_where_every_kind_is_left_out_nothing_is_in_scope() -> None:
    source = SmallSource("")
    source.without = ["plain", "sev-es-debugswap"]
    request, remarks = scoped(Request(Path(), [parse(TWO_KINDS, "t.litmus")]), source)
    assert (tasks(request), len(remarks)) == ([], 2)


def test_a_request_stays_as_it_is_where_nothing_is_missing() -> None:
    request = Request(Path(), [parse(TWO_KINDS, "t.litmus")])
    assert scoped(request, SmallSource("")) == (request, [])
