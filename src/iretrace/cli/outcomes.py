"""What the processor alone allows a test to show, for every vCPU kind and every value of a disputed rule."""

from __future__ import annotations

from iretrace.litmus.test import Test
from iretrace.report.outcomes import outcomes_report
from iretrace.report.terminal import Look
from iretrace.verdict import Outcome
from iretrace.world.alone import allowed
from iretrace.world.knobs import UNKNOWN_KNOBS, Values


def cases(test: Test) -> list[tuple[str, tuple[Outcome, ...]]]:
    """(vCPU kind and the values of the disputed rules that matter, the outcomes)."""
    found = []
    for vcpu in test.vcpus:
        known: dict[int, tuple[Outcome, ...]] = {}
        matter = 0
        for knobs in (values := Values()):
            known[knobs], consulted = allowed(test, vcpu, knobs)
            matter |= consulted
            values.consulted(knobs, consulted)
        found += [(vcpu + _values(knobs, matter), outcomes) for knobs, outcomes in sorted(known.items())]
    return found


def _values(knobs: int, matter: int) -> str:
    """The values of the rules that matter: " if x, not y"."""
    said = [f"{'' if knobs >> n & 1 else 'not '}{name}" for n, name in UNKNOWN_KNOBS.items() if matter >> n & 1]
    return f" if {' and '.join(said)}" if said else ""


def outcomes_of(test: Test, look: Look | None = None) -> str:
    """The text of `iretrace tests --outcomes` for one test."""
    clauses = [(clause.quantifier, clause.marks) for clause in test.clauses]
    return outcomes_report(test.name, cases(test), clauses, look)
