"""The step table of a counterexample: who did what, and which fields of the view changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iretrace.report.terminal import WIDTH, Look, shorten, wrap
from iretrace.verdict import CLine, Step, Trace

COLUMNS = {"nmi_pending": "pend", "nmi_masked": "mask", "nmi_injected": "inj"}
"""Fields of the view with a column of their own, and its heading."""

HEX_FIELDS = ("event_inj",)

STEP_WIDTH = 4
WHO_WIDTH = 7
INDENT = STEP_WIDTH + 2 + WHO_WIDTH + 2
WHAT_WIDTH = WIDTH - INDENT - sum(1 + len(heading) for heading in COLUMNS.values())

WHAT_LINES = 3
"""A longer description is cut: C statements can be long."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a step, or several guest steps that change nothing folded into one."""

    number: int
    """Of the first step, counted from 1."""
    steps: tuple[Step, ...]
    in_loop: bool


def say_field(name: str, value: int) -> str:
    """A field of the view with its value, as it reads best."""
    return f"{name}={hex(value) if name in HEX_FIELDS else value}"


def step_table(trace: Trace, look: Look) -> list[str]:
    """The table in 80 columns, the loop's steps marked."""
    heading = f"{'step':>{STEP_WIDTH}}  {'who':<{WHO_WIDTH}}  {'what':<{WHAT_WIDTH}}"
    lines = [heading + "".join(f" {name}" for name in COLUMNS.values())]
    for row in _rows(trace, look):
        lines += _row_lines(row, look)
    if trace.loop:
        lines.append(f"{look.symbol('∞', 'oo')}: these steps repeat for ever")
    return lines


def _rows(trace: Trace, look: Look) -> list[Row]:
    rows: list[Row] = []
    number = 1
    for part, in_loop in ((trace.stem, False), (trace.loop, True)):
        for steps in _fold(part, look):
            rows.append(Row(number, steps, in_loop))
            number += len(steps)
    return rows


def _fold(steps: Sequence[Step], look: Look) -> list[tuple[Step, ...]]:
    """The steps, a run of guest steps that change nothing as one group, any other step as a group of its own."""
    groups: list[tuple[Step, ...]] = []
    for step in steps:
        if groups and not look.verbose and _dull(step) and _dull(groups[-1][-1]):
            groups[-1] = (*groups[-1], step)
        else:
            groups.append((step,))
    return groups


def _dull(step: Step) -> bool:
    """A guest step that leaves the hypervisor's view as it was, and of which there is nothing to say."""
    return step.actor == "guest" and not step.changed and not step.note


def _row_lines(row: Row, look: Look) -> list[str]:
    step = row.steps[0]
    number = str(row.number)
    if row.in_loop:
        mark = look.symbol("∞", "oo")
        number = mark + number.rjust(STEP_WIDTH - len(mark))
    start = number.rjust(STEP_WIDTH).ljust(STEP_WIDTH + 2)
    who = shorten(look.clean(step.actor), WHO_WIDTH)
    what = _what_lines(row, look)
    changed = dict(step.changed)
    columns = "".join(f" {_value(name, changed, heading)}" for name, heading in COLUMNS.items())
    margin = " " * INDENT
    lines = [f"{start}{who:<{WHO_WIDTH}}  {what[0]:<{WHAT_WIDTH}}{columns}"]
    lines += [margin + line for line in what[1:]]
    if step.note:
        lines += wrap(look.clean(step.note), margin + "<- ", margin + "   ")
    return lines


def _what_lines(row: Row, look: Look) -> list[str]:
    """What happened, then its rule and the changed fields without a column: behind it if there is room, else below."""
    lines = wrap(_what(row, look), width=WHAT_WIDTH, limit=WHAT_LINES)
    for rest in (_rule(row, look), _others(row, look)):
        if rest and len(lines[-1]) + 2 + len(rest) <= WHAT_WIDTH:
            lines[-1] += f"  {rest}"
        elif rest:
            lines += wrap(rest, "  ", "  ", width=WHAT_WIDTH, limit=WHAT_LINES)
    return lines


def _what(row: Row, look: Look) -> str:
    """What happened, behind its C line if it has one. Of folded steps as many as fit on a line."""
    step = row.steps[0]
    what = look.clean(step.what)
    if isinstance(step.where, CLine):
        file = look.clean(step.where.path).rsplit("/", 1)[-1]
        what = f"{shorten(file, WHAT_WIDTH // 2)}:{step.where.line} {what}"
    for shown, other in enumerate(row.steps[1:], 1):
        left = len(row.steps) - shown - 1
        longer = f"{what}; {look.clean(other.what)}"
        if len(longer) + (len(f" ... {left} more") if left else 0) > WHAT_WIDTH:
            return f"{what} ... {left + 1} more"
        what = longer
    return what


def _rule(row: Row, look: Look) -> str:
    """The machine rule of a step in brackets, unless the text names it already. Folded guest steps have none."""
    step = row.steps[0]
    if isinstance(step.where, CLine) or len(row.steps) > 1:
        return ""
    rule = look.clean(step.where)
    return f"[{rule}]" if rule and rule.lower() not in look.clean(step.what).lower() else ""


def _others(row: Row, look: Look) -> str:
    """The changed fields without a column. At the start everything is new: what is 0 there is left out."""
    said = [
        look.clean(say_field(name, value))
        for name, value in row.steps[0].changed
        if name not in COLUMNS and not (row.number == 1 and value == 0)
    ]
    return f"=> {' '.join(said)}" if said else ""


def _value(name: str, changed: dict[str, int], heading: str) -> str:
    """A cell: the new value, or a dot for "as before"."""
    return shorten(str(changed[name]) if name in changed else ".", len(heading)).rjust(len(heading))
