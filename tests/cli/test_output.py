"""What goes to standard output and what to standard error, in each format."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from iretrace.cli.main import main
from tests.cli.small_source import TEST

pytestmark = pytest.mark.usefixtures("no_earlier_results")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every violation is listed."""
    monkeypatch.setattr("iretrace.cli.known.known_id", lambda _result: "listed")


def test_quiet_tells_only_what_does_not_hold(tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    tree("defer")
    assert main(["check", ".", "--test", TEST, "--test", "nmi-never-completed", "--quiet", "--color", "never"]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert TEST in first
    assert last == "1 new, 0 known, 0 undetermined, 1 hold"


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


def test_ktap_skips_what_is_not_in_scope(tree: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    tree("")
    assert main(["check", ".", "--test", TEST, "--vcpu", "plain", "--format", "ktap"]) == 4
    assert capsys.readouterr().out.startswith("KTAP version 1\n1..0 # SKIP no test is about")
