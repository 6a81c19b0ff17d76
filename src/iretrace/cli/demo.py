"""`iretrace demo`: one test, what the processor alone makes of it, what the tree makes of it, and what to type next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from iretrace.cli.driver import Request, run, source_of
from iretrace.litmus.corpus import select
from iretrace.litmus.test import Test
from iretrace.report.terminal import Look
from iretrace.report.text import check_report
from iretrace.verdict import Outcome
from iretrace.world.alone import outcomes

DEMO_TEST = "nmi-complete-then-spin"
DEMO_VCPU = "sev-es"
HOSTS = ("tickless", "ticking")

NEXT = """\
What to type next
  iretrace tests                               what there is, one sentence each
  iretrace check {tree}
                                               every test on this tree
  iretrace check {tree} --patch FIX
                                               the same with your patch, applied in memory
"""


def test_source(test: Test) -> str:
    """The text of a shipped test, as its author wrote it."""
    corpus = resources.files("iretrace.litmus") / "corpus"
    return (corpus / Path(test.path).name).read_text(encoding="utf-8")


def say_outcome(outcome: Outcome) -> str:
    """An outcome in words."""
    marks = f"marks {' '.join(outcome.marks)}" if outcome.marks else "no mark"
    return f"{marks}, then it {outcome.ending}" if outcome.ending == "spins" else f"{marks}, then {outcome.ending}"


def say_alone(found: Sequence[Outcome]) -> str:
    """What the processor allows, in words."""
    if len(found) == 1:
        return f"every run: {say_outcome(found[0])}"
    return "\n  ".join(f"some run: {say_outcome(outcome)}" for outcome in found)


def demonstrate(tree: Path, look: Look, progress: Callable[[str], None]) -> str:
    """The text of the demo. InputError as for `check`."""
    tests = select([DEMO_TEST])
    request = Request(tree=tree, tests=tests, vcpus=[DEMO_VCPU], hosts=HOSTS)
    report = run(request, source_of(request, progress), progress)
    source = "\n".join(f"  {line}".rstrip() for line in test_source(tests[0]).splitlines())
    return (
        f"A litmus test: a guest, and the events that arrive from outside at any moment\n\n{source}\n\n"
        f"What the processor alone does\n  {say_alone(outcomes(tests[0], DEMO_VCPU))}\n\n"
        f"What {report.results[0].hypervisor} makes of it, executed from its C source\n\n"
        f"{check_report(report, look)}\n{NEXT.format(tree=tree)}"
    )
