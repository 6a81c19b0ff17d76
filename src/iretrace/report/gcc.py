"""`iretrace check --format gcc`: lines that editors and CI systems understand as a compiler's.

A violation is an error at the line that it cites, with its steps as notes; what is undetermined is a warning; what
holds says nothing. A line that belongs to no place in the tree begins with `iretrace:`, as gcc's do with `cc1:`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from iretrace.report.steps import say_field
from iretrace.report.summary import Report, executed, reuse, summary
from iretrace.report.terminal import Look
from iretrace.verdict import CLine, Result, Step, Trace, Verdict

NOWHERE = "iretrace"

PLACE_IN_REASON = re.compile(r"([\w./+-]+\.[ch]:\d+): (.+)")
"""What is not modelled says where: "arch/x86/kvm/x86.c:12: what"."""


def gcc_report(report: Report) -> str:
    """The lines for standard output; empty if everything holds."""
    return "".join(f"{line}\n" for result in report.results for line in gcc_lines(result))


def gcc_summary(report: Report) -> str:
    """The lines for standard error: what it rests on, and how many."""
    look = Look(ascii_only=True)
    lines = [f"{look.clean(name)}: {executed(results)}" for name, results in report.by_hypervisor().items()]
    return "".join(
        f"iretrace: {line}\n"
        for line in (*lines, *map(look.clean, report.remarks), reuse(report), summary(report))
        if line
    )


def gcc_lines(result: Result) -> Iterator[str]:
    """The lines about one result; none if it holds."""
    if result.verdict is Verdict.VIOLATED:
        trace = result.trace or Trace((), (), result.reason)
        cause = trace.cause or result.reason or "no cause was given"
        known = f", known as {result.known}" if result.known else ""
        yield _line(_cited(trace), "error", _tagged(result, cause) + _where_it_ran(result, known))
        yield from _notes(trace)
    elif result.verdict is Verdict.UNDETERMINED:
        reason = (result.reason or "no reason was given").partition("\n")[0]
        place = PLACE_IN_REASON.fullmatch(reason)
        where, what = (place[1], place[2]) if place else (NOWHERE, reason)
        yield _line(where, "warning", _tagged(result, f"undetermined: {what}") + _where_it_ran(result, ""))


def _tagged(result: Result, sentence: str) -> str:
    return f"[{result.test}] {sentence}"


def _where_it_ran(result: Result, known: str) -> str:
    return f" ({result.hypervisor}, {result.vcpu}, {result.host}{known})"


def _cited(trace: Trace) -> str:
    """The line that the trace cites, else the last one that KVM is told to have executed, else the last of anybody."""
    if trace.cited is not None:
        return _place(trace.cited)
    steps = [step for step in (*trace.stem, *trace.loop) if _step_place(step) != NOWHERE]
    steps = [step for step in steps if step.actor == "KVM"] or steps
    return _step_place(steps[-1]) if steps else NOWHERE


def _notes(trace: Trace) -> Iterator[str]:
    for number, step in enumerate((*trace.stem, *trace.loop), 1):
        for_ever = ", for ever" if number > len(trace.stem) else ""
        note = f" ({step.note})" if step.note else ""
        changed = "".join(f" {say_field(name, value)}" for name, value in step.changed if number > 1 or value)
        text = f"step {number}{for_ever}: {step.actor}: {step.what}{_rule(step)}"
        yield _line(_step_place(step), "note", text + (f" =>{changed}" if changed else "") + note)


def _rule(step: Step) -> str:
    """The rule of a step that the tree has no line for."""
    return f" [{step.where}]" if isinstance(step.where, str) and step.where else ""


def _step_place(step: Step) -> str:
    return _place(step.where) if isinstance(step.where, CLine) else NOWHERE


def _place(line: CLine) -> str:
    return f"{line.path}:{line.line}"


def _line(place: str, severity: str, text: str) -> str:
    look = Look(ascii_only=True)
    return f"{look.clean(place)}: {severity}: {look.clean(text)}"
