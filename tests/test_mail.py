"""The mail's claims are answered by searches and verdicts, on hypervisors that are known to do the one or the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iretrace.cli import mail
from iretrace.cli.mail import builtin_subject, mail_text
from iretrace.cli.mail_page import HEAD, answer_lines, run_lines
from iretrace.cli.main import main
from iretrace.explore.graph import Limits
from iretrace.litmus.corpus import select
from iretrace.mail import CLAIMS, SPIN, VCPU, Answer, Claim, Subject, ask
from iretrace.report.terminal import Look
from iretrace.seek import Glimpse, seek
from iretrace.verdict import CLine
from iretrace.world.core import Phase
from tests.world.small import Small

NAMES = [claim.name for claim in CLAIMS]


def none(_text: str) -> None:
    """No progress."""


Asked = list[tuple[Claim, Answer]]


@pytest.fixture(scope="module")
def asked() -> dict[str, Asked]:
    """What the built-in KVM before and after the fix says to every claim."""
    return {subject.name: ask(subject) for subject in map(builtin_subject, ("v6.1", "v7.3"))}


def answers(asked: dict[str, Asked], revision: str) -> dict[str, Answer]:
    return {claim.name: answer for claim, answer in asked[f"built-in {revision}"]}


@pytest.fixture
def old(asked: dict[str, Asked]) -> dict[str, Answer]:
    return answers(asked, "v6.1")


@pytest.mark.slow
def test_before_the_fix_every_claim_about_nmi_complete_is_true(old: dict[str, Answer]) -> None:
    assert {name: answer.word for name, answer in old.items()} == {
        "single-step": "true",
        "benign": "true",
        "svme-dropped": "true",
        "svme-reads-as-zero": "true only if the processor hides the bit",
        "intercepted": "false",
        "gif": "true only if no guest executes CLGI",
        "emulates-iret": "true",
        "next-exit": "true",
        "never": "true only if the host is tickless and the guest busy-waits",
    }


@pytest.mark.slow
def test_an_answer_cites_the_statement_that_shows_it(old: dict[str, Answer]) -> None:
    cited = {name: answer.cited.function for name, answer in old.items() if answer.cited}
    assert cited["single-step"] == "svm_enable_nmi_window"
    assert cited["emulates-iret"] == "iret_interception"
    assert cited["never"] == "svm_nmi_blocked"


@pytest.mark.slow
def test_a_guest_that_closes_its_gif_is_shown_to_wait_for_ever(old: dict[str, Answer]) -> None:
    assert "gif=0" in old["gif"].because
    assert [step.what for step in old["gif"].loop] == ["spins at main+2"]
    assert "clgi (main)" in [" ".join(step.what.split()) for step in old["gif"].steps]


@pytest.mark.slow
def test_the_last_answer_is_a_lasso(old: dict[str, Answer]) -> None:
    assert [step.what for step in old["never"].loop] == ["spins at main"]


@pytest.mark.slow
def test_since_the_fix_the_claims_are_history(asked: dict[str, Asked]) -> None:
    words = {name: answer.word for name, answer in answers(asked, "v7.3").items()}
    assert {words[name] for name in ("single-step", "emulates-iret", "next-exit", "never")} == {"false"}
    assert words["benign"] == "does not arise"
    assert (words["gif"], words["intercepted"]) == ("true", "true")


def test_what_is_sought_is_told_with_the_shortest_way_to_it() -> None:
    (test,) = select([SPIN])
    found = seek(test, VCPU, "tickless", Small(), lambda state: state.vmcb.event_inj != 0)
    assert found.met
    assert "injects an NMI" in found.steps[-1].what
    assert sum("injects" in step.what for step in found.steps) == 1


def test_what_is_nowhere_was_looked_for_everywhere() -> None:
    (test,) = select([SPIN])
    found = seek(test, VCPU, "tickless", Small(), lambda _state: False)
    assert (found.met, found.open, found.steps) == (0, "", ())
    assert found.states > 20


def test_a_search_that_is_cut_short_does_not_say_never() -> None:
    (test,) = select([SPIN])
    found = seek(test, VCPU, "tickless", Small(), lambda _state: False, Limits(max_states=5))
    assert "limit of 5 states" in found.open


def test_a_search_goes_on_behind_a_defect() -> None:
    """An NMI inside its own handler is a defect; what comes after it can still be asked for."""
    (test,) = select([SPIN])
    seen: set[int] = set()

    def note(state: Glimpse) -> bool:
        seen.add(state.phase)
        return False

    found = seek(test, VCPU, "tickless", Small("nest"), note)
    assert {Phase.GUEST, Phase.HOST} <= seen
    assert found.states > 20


def test_what_cannot_be_searched_is_undetermined_not_false() -> None:
    subject = Subject("small", Small("deaf"), lambda: None)
    claims = {claim.name: claim for claim in CLAIMS}
    cut = replace(subject.arms, open="a limit", met=0)
    subject.__dict__["arms"] = cut
    assert claims["single-step"].ask(subject).word == "undetermined"
    assert claims["benign"].ask(subject) == Answer("undetermined", "a limit")


def test_a_line_of_the_page_names_no_line_number() -> None:
    answer = Answer("true", "it does", CLine("arch/x86/kvm/svm/svm.c", 12, "f", "x();"))
    assert answer_lines("Linux 6.1", [(CLAIMS[0], answer)]) == ["- Linux 6.1: **true**. It does (`f()`)"]


def test_the_page_has_its_head_and_every_claim(request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "docs" / "the-mail.md").read_text(encoding="utf-8")
    assert text.startswith(HEAD)
    for number, claim in enumerate(CLAIMS):
        assert f"\n## {number + 1}. {claim.says}\n" in text


@pytest.mark.slow
def test_the_page_says_what_the_builtin_kvm_says(asked: dict[str, Asked], request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "docs" / "the-mail.md").read_text(encoding="utf-8").splitlines()
    name = "built-in v6.1"
    assert [line for line in answer_lines(name, asked[name]) if line not in text] == []
    runs = [run_lines(answer) for _, answer in reversed(asked[name]) if answer.loop]
    assert [line for run in runs for line in run if line not in text] == []


@pytest.mark.slow
def test_the_text_fits_80_columns_and_ends_with_the_lasso(
    asked: dict[str, Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail, "ask", lambda subject, _progress: asked[subject.name])
    monkeypatch.setattr(mail, "subjects", lambda _tree, _progress: [builtin_subject("v6.1"), builtin_subject("v7.3")])
    lines = mail_text(None, Look(), none).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("∞") and "spins at main" in line for line in lines)


def test_the_command_needs_no_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("iretrace.cli.mail.mail_text", lambda tree, look, progress, verbose: f"{tree} {verbose}\n")
    assert main(["mail"]) == 0
    assert capsys.readouterr().out == "None False\n"
