"""`iretrace mail`: the mail's claims, asked of a tree or of the built-in KVM (mail_page.py makes a page of it)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from iretrace.cli.sources import TreeSource
from iretrace.kvm.differences import SINCE_NO_POINTLESS_SINGLE_STEP
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.revisions import DIFFERENCES, REVISIONS, find
from iretrace.mail import CLAIMS, VCPU, Answer, Claim, Subject, ask
from iretrace.report.steps import step_table
from iretrace.report.terminal import Look, wrap
from iretrace.verdict import Trace
from iretrace.world.protocol import Hypervisor

HEAD = """\
In June 2023 KVM's x86 maintainer answered a patch for data breakpoints in encrypted guests, and found a bug on the way.
This is what he and the patch's author say of KVM, claim by claim, and what a search of every run says to it.
"""

Progress = Callable[[str], None]
Answers = Sequence[tuple[Claim, Answer]]


def builtin_subject(name: str) -> Subject:
    """A revision of the built-in KVM."""
    revision = find(name)
    step = next(known for known in DIFFERENCES if known.number == SINCE_NO_POINTLESS_SINGLE_STEP)

    def without() -> Hypervisor | None:
        return BuiltinHypervisor(revision.flipped(step), VCPU)

    return Subject(f"built-in {name}", BuiltinHypervisor(revision, VCPU), without)


def tree_subject(path: Path, progress: Progress) -> Subject:
    """A Linux tree. InputError as for `check`."""
    source = TreeSource(path, progress=progress)
    progress(f"reading {source.name}")
    source.read()

    def without() -> Hypervisor | None:
        from iretrace.linux.edits import SVM, Edit, make_patch

        keep_away = "if (sev_es_guest(vcpu->kvm))\n\t\treturn;\n\tsvm->nmi_singlestep = true;"
        try:
            patch = make_patch(
                source.tree, [Edit(SVM, "svm_enable_nmi_window", "svm->nmi_singlestep = true;", keep_away)]
            )
        except LookupError:
            return None
        patched = source.patched([("no single-step", patch)])
        patched.read()
        return patched.open(VCPU)

    return Subject(source.name, source.open(VCPU), without)


def subjects(tree: Path | None, progress: Progress) -> list[Subject]:
    """The tree, or every revision of the built-in KVM."""
    return [tree_subject(tree, progress)] if tree is not None else [builtin_subject(name) for name in REVISIONS]


def mail_text(tree: Path | None, look: Look, progress: Progress, verbose: bool = False) -> str:
    """Every claim with its answers, and the runs behind them. verbose: every run; else the last claim's alone."""
    told = [(subject.name, ask(subject, progress)) for subject in subjects(tree, progress)]
    lines = wrap(" ".join(HEAD.split()))
    for number, claim in enumerate(CLAIMS):
        lines += ["", *wrap(f"{number + 1}. {claim.says}  ({claim.by})", rest="   ")]
        for name, answers in told:
            lines += _answer(name, answers[number][1], look)
    for number, claim in enumerate(CLAIMS):
        shown = [(name, answers[number][1]) for name, answers in told if answers[number][1].steps]
        for name, answer in shown[:1]:
            if verbose or answer.loop:
                lines += ["", *wrap(f"{number + 1}. {claim.says} In {name}:"), "", *run_of(answer, look)]
    return "\n".join(lines) + "\n"


def run_of(answer: Answer, look: Look) -> list[str]:
    """The run behind an answer, as a table."""
    return step_table(Trace(answer.steps, answer.loop, answer.because, answer.cited), look)


def _answer(name: str, answer: Answer, look: Look) -> list[str]:
    because = f"{answer.because} ({answer.exhausted})" if answer.exhausted else answer.because
    lines = wrap(look.clean(f"{name}: {answer.word.upper()}: {because}"), "   ", "      ")
    if answer.cited is not None:
        cited = answer.cited
        lines += wrap(look.clean(f"{cited.path}:{cited.line}: {cited.function}()"), "      ", "        ")
    return lines
