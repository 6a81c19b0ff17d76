"""`iretrace diff` and `check --diff`: what two hypervisors do differently, and where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from iretrace.cli.main import main
from iretrace.world.agreement import Difference

TEST = "nmi-complete-then-spin"


@pytest.fixture(autouse=True)
def no_earlier_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def diff(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["diff", *arguments])
    return status, capsys.readouterr().out


def test_the_first_different_step_is_told_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = diff(capsys, "v6.1", "v6.12", "--test", TEST)
    assert status == 1
    assert "verdict: A violated, B holds" in text
    stem, _, columns = text.partition("A goes on")
    assert "vmgexit nmi_complete" in stem
    assert "nmi_singlestep" not in stem
    left, right = zip(*(line.split("|") for line in columns.splitlines()[2:] if line.count("|") == 1), strict=True)
    assert any("VMRUN, nothing injected" in cell for cell in left)
    assert any("VMRUN, injects an NMI" in cell for cell in right)
    assert all(len(line) <= 80 for line in text.splitlines())


def test_what_differs_is_told_of_a_and_b_in_this_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "v6.1", "v6.12", "--test", "nmi-complete-then-spin"]) == 1
    text = capsys.readouterr().out
    told = "they part: A has cpu.event_inj=0, vmcb.event_inj=0; B has cpu.event_inj=0x80000200, vmcb.event_inj="
    assert told in " ".join(text.split())
    assert text.endswith("no difference on 0 of 1 tests; 1 test differs\n")
    second = Difference((), "", (("same", 1), ("a", 2)), (("same", 1), ("a", 16)), side=1)
    assert second.side_by_side(("A", "B")) == "A has a=0x10; B has a=2"
    assert replace(second, other=None).side_by_side(("A", "B")) == "only B can do this: same 1, a 2"


def test_both_runs_begin_alike(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = diff(capsys, "v6.1", "v6.12", "--test", TEST, "--format", "json")
    (test,) = json.loads(text)["tests"]
    stems = [[step["what"] for step in stem] for stem in test["parting"]["stems"]]
    assert stems[0] == stems[1]


def test_outcomes_are_gained_and_lost(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = diff(capsys, "v6.1", "v6.12", "--test", TEST, "--format", "json")
    (test,) = json.loads(text)["tests"]
    assert test["outcomes_lost"] == [{"marks": ["n"], "ending": "spins"}]
    assert test["outcomes_gained"] == []


def test_no_difference_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = diff(capsys, "v6.12", "v7.3", "--test", TEST, "--test", "nmi-at-hlt")
    assert status == 0
    assert text.endswith("\nno difference on 2 of 2 tests\n")


def test_a_hypervisor_does_not_differ_from_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert diff(capsys, "v6.1", "v6.1", "--test", TEST)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["v6.1", "no/such/tree"], "no/such/tree: no such directory or archive"),
        (["v6.1", "v6.13"], "v6.13: no tree, and no revision of the built-in KVM; these are v6.1, v6.12, v7.3"),
        (["v6.1"], "required: B"),
        (["v6.1", "v6.12", "--rules", "x"], "--rules are for trees"),
    ],
)
def test_what_is_no_hypervisor_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
