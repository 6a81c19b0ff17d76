"""The command line: statuses, one-line errors, lists. The tree is played by a small hypervisor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from iretrace.cli.driver import Request, run, scoped, tasks
from iretrace.cli.main import main, one_line, status_of
from iretrace.cli.sources import integer, unreadable_is_input_error
from iretrace.linux.ctree import Pos
from iretrace.linux.cursor import ParseError
from iretrace.linux.unmodelled import Unmodelled
from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.verdict import InputError, Result, Verdict
from tests.cli.small_source import TEST, SmallSource

pytestmark = pytest.mark.usefixtures("no_earlier_results")

MAKEFILE = "VERSION = {}\nPATCHLEVEL = 1\nSUBLEVEL = 0\n"


def quiet(_text: str) -> None:
    """No progress."""


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
def test_the_demo_shows_the_bug_its_fix_and_one_line_on_all_tests(
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
        "All 1 shipped tests on the newest KVM",
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


@pytest.mark.parametrize("arguments", [["tests", "{file}"], ["check", "--test", "{file}", "--no-cache"]])
def test_what_the_terminal_cannot_show_is_escaped(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "uml\u00e4ut.litmus"
    path.write_text("test t\nabout \u00fcber\nvcpu plain\n\nmain:\n    spin\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "iretrace", *(word.format(file=path) for word in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    command = [sys.executable, "-m", "iretrace", "rules"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (2, "iretrace: standard output: No space left on device\n")


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
