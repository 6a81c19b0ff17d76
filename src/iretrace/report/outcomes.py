"""`iretrace tests --outcomes`: what the patient reference allows, told as herd7 does.

The reference is the processor alone, free to be late: an interrupt whose window has closed again may come never.
"""

from __future__ import annotations

from collections.abc import Sequence

from iretrace.report.terminal import Look, wrap
from iretrace.verdict import Outcome

Clause = tuple[str, tuple[str, ...]]
"""(always, sometimes or never; marks)."""


def outcomes_report(
    test: str, cases: Sequence[tuple[str, Sequence[Outcome]]], clauses: Sequence[Clause], look: Look | None = None
) -> str:
    """The text for one test. cases: (vCPU kind and what else it depends on, the outcomes); equal ones are told once."""
    look = look or Look()
    together: dict[tuple[Outcome, ...], list[str]] = {}
    for case, outcomes in cases:
        together.setdefault(tuple(outcomes), []).append(case)
    lines: list[str] = []
    for told, names in together.items():
        lines += wrap(f"Test {test} Allowed", rest="    ")
        lines += wrap(look.clean(", ".join(names)), "vcpu ", "    ")
        lines.append(f"States {len(told)}")
        for outcome in told:
            lines += wrap(look.clean(say_outcome(outcome)), rest="    ")
        for clause in clauses:
            lines += _observation(test, clause, told, look)
        lines.append("")
    return "\n".join(lines)


def say_outcome(outcome: Outcome) -> str:
    """The marks in order and how it ends."""
    return f"{' '.join(outcome.marks) or 'no mark'}; {outcome.ending}"


def _observation(test: str, clause: Clause, outcomes: Sequence[Outcome], look: Look) -> list[str]:
    """The clause, whether the processor meets it, and how many outcomes show its marks and how many do not."""
    quantifier, marks = clause
    shown = sum(1 for outcome in outcomes if outcome.marks == marks)
    word = "Never" if shown == 0 else "Always" if shown == len(outcomes) else "Sometimes"
    met = {"always": word == "Always", "never": word == "Never"}.get(quantifier, word != "Never")
    said = f"{quantifier} {' '.join(marks) or 'nothing'}"
    counts = f"Observation {test} {word} {shown} {len(outcomes) - shown}"
    return [*wrap(look.clean(f"{'Ok' if met else 'No'} {said}"), rest="    "), *wrap(counts, rest="    ")]
