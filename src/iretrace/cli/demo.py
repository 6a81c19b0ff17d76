"""`iretrace demo`: one test, what the processor alone makes of it, what KVM makes of it, and what to type next."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from iretrace.cli.driver import Request, run, source_of
from iretrace.litmus.corpus import select, shipped, source_text
from iretrace.litmus.test import Test
from iretrace.report.summary import Report, executed, summary
from iretrace.report.terminal import Look
from iretrace.report.text import check_report, result_block, verdict_table
from iretrace.verdict import Outcome, Verdict
from iretrace.world.alone import outcomes

DEMO_TEST = "nmi-complete-then-spin"
DEMO_VCPU = "sev-es"
JOBS = os.cpu_count() or 1
HOSTS = ("tickless", "ticking")
BEFORE, AFTER = "v6.1", "v6.12"
"""Revisions of the built-in KVM with and without the bug."""

NEXT_WITHOUT_TREE = """\
What to type next
  iretrace tests                       what there is, one sentence each
  iretrace revisions                   what the built-in KVM's revisions changed
  iretrace check ~/src/linux           the same on a Linux source tree, executed
                                       from its C source; make demo TREE=DIR
"""

NEXT = """\
What to type next
  iretrace tests                               what there is, one sentence each
  iretrace check {tree}
                                               every test on this tree
  iretrace check {tree} --patch FIX
                                               the same with your patch, applied in memory
"""

Progress = Callable[[str], None]


def demonstrate(tree: Path | None, look: Look, progress: Progress) -> str:
    """The text of the demo, on a tree or on the built-in KVM. InputError as for `check`."""
    (test,) = select([DEMO_TEST])
    parts = [_the_test(test), _alone(test)]
    if tree is not None:
        report = _run(Request(tree, [test], vcpus=[DEMO_VCPU], hosts=HOSTS, jobs=JOBS), progress)
        name = look.clean(report.results[0].hypervisor)
        parts.append(f"What {name} makes of it, executed from its C source\n\n{check_report(report, look)}")
        parts.append(NEXT.format(tree=tree))
        return "\n".join(parts)
    for revision in (BEFORE, AFTER):
        report = _run(Request(None, [test], revision, vcpus=[DEMO_VCPU], hosts=HOSTS, jobs=JOBS), progress)
        parts.append(f"What KVM as of Linux {revision} makes of it (the built-in KVM)\n\n{_brief(report, look)}")
    return "\n".join([*parts, _corpus(progress), NEXT_WITHOUT_TREE])


def _run(request: Request, progress: Progress) -> Report:
    return run(request, source_of(request, progress), progress)


def _the_test(test: Test) -> str:
    return f"A litmus test: a guest, and the events that arrive from outside at any moment\n\n{source_text(test)}"


def _alone(test: Test) -> str:
    return f"What the processor alone does\n  {say_alone(outcomes(test, DEMO_VCPU))}\n"


def _brief(report: Report, look: Look) -> str:
    """The table and the counterexamples, without the assumptions."""
    lines = verdict_table(report.results, look)
    for result in report.results:
        if result.verdict is not Verdict.HOLDS:
            lines += ["", *result_block(result, look), ""]
    return "\n".join([*lines, executed(report.results), ""])


def _corpus(progress: Progress) -> str:
    """One line on the shipped tests."""
    tests = [replace(test, vcpus=test.vcpus[:1]) for test in shipped()]
    report = _run(Request(None, tests, jobs=JOBS), progress)
    return (
        f"All {len(tests)} shipped tests on the newest KVM, {report.results[0].hypervisor}, each on one kind of vCPU"
        f"\n  {summary(report)}\n"
    )


def say_outcome(outcome: Outcome) -> str:
    """An outcome in words."""
    marks = f"marks {' '.join(outcome.marks)}" if outcome.marks else "no mark"
    return f"{marks}, then it {outcome.ending}" if outcome.ending == "spins" else f"{marks}, then {outcome.ending}"


def say_alone(found: Sequence[Outcome]) -> str:
    """What the processor allows, in words."""
    if len(found) == 1:
        return f"every run: {say_outcome(found[0])}"
    return "\n  ".join(f"some run: {say_outcome(outcome)}" for outcome in found)
