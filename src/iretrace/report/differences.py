"""The text and the JSON of `iretrace diff`: what two hypervisors do differently, test by test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from iretrace.report.as_json import as_result, as_step
from iretrace.report.outcomes import say_outcome
from iretrace.report.steps import say_field, step_table
from iretrace.report.terminal import GREEN, WIDTH, YELLOW, Look, wrap
from iretrace.verdict import CLine, Outcome, Result, Step, Trace, Verdict

SCHEMA = "iretrace-diff/1"
COLUMN = (WIDTH - 3) // 2

COMPARED = (
    "Compared at every VMRUN, sleep and return to userspace: the processor, the fields of the VMCB that events are"
    " made of, debug registers, mp_state. Not compared: intercepts (but exits), pending requests, nmi_queued, what"
    " KVM_GET_VCPU_EVENTS says."
)


@dataclass(frozen=True, slots=True)
class Parting:
    """The first difference of two runs. what: in words. stems: the steps that lead there, on either side; lasts: what
    each does then (empty: nothing that comes close)."""

    what: str
    stems: tuple[tuple[Step, ...], tuple[Step, ...]]
    lasts: tuple[tuple[Step, ...], tuple[Step, ...]]


@dataclass(frozen=True, slots=True)
class Compared:
    """One test on both hypervisors. parting: where they part, if they do. open: why not all was compared."""

    before: Result
    after: Result
    parting: Parting | None = None
    open: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """No difference, and everything was looked at."""
        return self.parting is None and not self.open and not self.turned

    @property
    def turned(self) -> bool:
        """The verdict is another one."""
        return self.before.verdict is not self.after.verdict

    @property
    def name(self) -> str:
        """Test, vCPU kind and host."""
        return f"{self.before.test} {self.before.vcpu} {self.before.host}"

    def outcomes(self) -> tuple[list[Outcome], list[Outcome]]:
        """Those that are gained and those that are lost; none where one side has not been looked at to the end."""
        if not self.before.outcomes or not self.after.outcomes:
            return [], []
        gained = [outcome for outcome in self.after.outcomes if outcome not in self.before.outcomes]
        return gained, [outcome for outcome in self.before.outcomes if outcome not in self.after.outcomes]


@dataclass(frozen=True, slots=True)
class Differences:
    """Everything that was compared. names: of A and B. remarks: on patches; they hold foreign text."""

    names: tuple[str, str]
    tests: Sequence[Compared]
    remarks: Sequence[str] = ()


def differences_text(found: Differences, look: Look) -> str:
    """The whole text."""
    lines = [f"A  {look.clean(found.names[0])}", f"B  {look.clean(found.names[1])}", *wrap(COMPARED)]
    for remark in found.remarks:
        lines += wrap(look.clean(remark), rest="    ")
    lines.append("")
    for test in found.tests:
        if not test.same:
            lines += [*_test(test, look), ""]
    return "\n".join([*lines, *wrap(_summary(found))]) + "\n"


def _summary(found: Differences) -> str:
    same = sum(test.same for test in found.tests)
    differ = sum(test.parting is not None or test.turned for test in found.tests)
    unclear = len(found.tests) - same - differ
    said = [f"{differ} test{'s differ' if differ > 1 else ' differs'}"] if differ else []
    said += [f"{unclear} not compared to the end"] if unclear else []
    return "; ".join([f"no difference on {same} of {len(found.tests)} tests", *said])


def _test(test: Compared, look: Look) -> list[str]:
    lines = [look.paint(f"Test {look.clean(test.name)}", YELLOW)]
    if test.turned:
        lines.append(f"  verdict: A {test.before.verdict}, B {test.after.verdict}")
    for sign, one in (("lost", test.before), ("gained", test.after)):
        if one.verdict is Verdict.VIOLATED and (test.turned or test.before.reason != test.after.reason):
            lines += wrap(look.clean(f"defect {sign}: {one.reason}"), "  ", "    ")
    gained, lost = test.outcomes()
    for sign, outcomes in (("gained", gained), ("lost", lost)):
        lines += [line for one in outcomes for line in wrap(look.clean(f"outcome {sign}: {say_outcome(one)}"), "  ")]
    for reason in test.open:
        lines += wrap(look.clean(f"not compared: {reason}"), "  ", "    ")
    if test.parting is not None:
        lines += _parting(test.parting, look)
    return lines


def _parting(parting: Parting, look: Look) -> list[str]:
    lines = wrap(look.clean(f"they part: {parting.what}"), "  ", "    ")
    stem = parting.stems[0] or parting.stems[1]
    if stem:
        lines += ["", *step_table(Trace(stem, (), ""), look)]
    lines += ["", f"{'A goes on':<{COLUMN}} | B goes on", f"{'-' * COLUMN} | {'-' * COLUMN}"]
    left, right = ([_cell(step, look) for step in steps] or [["nothing that comes close"]] for steps in parting.lasts)
    for one, two in _aligned(left, right):
        same = one == two
        for a, b in zip_longest(one, two, fillvalue=""):
            row = f"{a:<{COLUMN}} | {b}".rstrip()
            lines.append(row if same else look.paint(row, GREEN))
    return lines


def _cell(step: Step, look: Look) -> list[str]:
    """A step in a column."""
    what = look.clean(step.what)
    if isinstance(step.where, CLine):
        what = f"{look.clean(step.where.path).rsplit('/', 1)[-1]}:{step.where.line} {what}"
    changed = " ".join(say_field(name, value) for name, value in step.changed)
    lines = wrap(what, rest="  ", width=COLUMN, limit=4)
    return [*lines, *(wrap(look.clean(f"=> {changed}"), "  ", "  ", width=COLUMN, limit=3) if changed else [])]


def _aligned(left: list[list[str]], right: list[list[str]]) -> list[tuple[list[str], list[str]]]:
    """The cells of both columns, equal ones beside each other."""
    one, two = ["\n".join(cell) for cell in left], ["\n".join(cell) for cell in right]
    rows: list[tuple[list[str], list[str]]] = []
    for _, a, b, c, d in SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        rows += zip_longest(left[a:b], right[c:d], fillvalue=[])
    return rows


def differences_json(found: Differences, version: str) -> str:
    """The same as a document; docs/json.md explains it. Only ASCII."""
    document = {
        "schema": SCHEMA,
        "version": version,
        "names": list(found.names),
        "remarks": list(found.remarks),
        "summary": _summary(found),
        "tests": [_as_json(test) for test in found.tests],
    }
    return json.dumps(document, indent=1) + "\n"


def _as_json(test: Compared) -> dict[str, Any]:
    gained, lost = ([{"marks": list(one.marks), "ending": one.ending} for one in side] for side in test.outcomes())
    parting = test.parting
    return {
        "test": test.before.test,
        "vcpu": test.before.vcpu,
        "host": test.before.host,
        "same": test.same,
        "open": list(test.open),
        "before": as_result(test.before),
        "after": as_result(test.after),
        "outcomes_gained": gained,
        "outcomes_lost": lost,
        "parting": None
        if parting is None
        else {
            "what": parting.what,
            "stems": [[as_step(step) for step in steps] for steps in parting.stems],
            "lasts": [[as_step(step) for step in steps] for steps in parting.lasts],
        },
    }
