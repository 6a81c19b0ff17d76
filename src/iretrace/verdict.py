"""What a check says: verdicts, traces and ledgers as plain data. Knows nothing of CPUs, trees or terminals."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from operator import attrgetter
from typing import Any


@cache
def field_names(kind: Any) -> tuple[str, ...]:
    """The fields of a kind of dataclass, worked out once; none of anything else."""
    return tuple(part.name for part in fields(kind)) if is_dataclass(kind) else ()


@cache
def reader_of(kind: Any) -> Callable[[Any], tuple[Any, ...]]:
    """What reads the fields of such a value, all at once; there are at least two."""
    return attrgetter(*field_names(kind))


class Verdict(StrEnum):
    """Three verdicts. Undetermined is never a pass."""

    HOLDS = "holds"
    VIOLATED = "violated"
    UNDETERMINED = "undetermined"


class InputError(Exception):
    """Bad input: one clear line for the user, exit status 2. The message says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class CLine:
    """A statement of the tree: path from the tree's root, line, enclosing function, source text of the line."""

    path: str
    line: int
    function: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a counterexample.

    actor: guest, cpu, KVM, outside, host or VMM. where: a C line, or the name and source of the machine rule.
    changed: the view's fields whose value this step changed, after the step. executed: the C statements that the
    step executed, in order (KVM's steps only). note: why the step matters, if it does.
    """

    actor: str
    what: str
    where: CLine | str
    changed: tuple[tuple[str, int], ...] = ()
    view: tuple[tuple[str, int], ...] = ()
    executed: tuple[CLine, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """A counterexample: a stem, and a loop that repeats for ever (empty when the last step is itself the defect)."""

    stem: tuple[Step, ...]
    loop: tuple[Step, ...]
    cause: str
    cited: CLine | None = None
    """For an omission the statement that declined the event last, else the one that decided (world.cited)."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """Something taken for granted on an explored path.

    kind: stub, model, initial, option, config, knob, limit or note. where: file:line of the use, or of the rule row.
    """

    kind: str
    what: str
    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a verdict rests on: how many C statements ran from source, and which assumptions were used."""

    statements: int = 0
    assumptions: tuple[Assumption, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """One infinite outcome that was seen: marks in order, and the ending (spins, halted, shutdown, loops)."""

    marks: tuple[str, ...]
    ending: str


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict of one (test, vcpu kind, host, hypervisor)."""

    test: str
    vcpu: str
    host: str
    hypervisor: str
    verdict: Verdict
    exhausted: str
    """What was exhausted, e.g. "all 2,114 states, 2 NMIs, tickless"; for undetermined, how far it got."""
    reason: str = ""
    """Why undetermined (limit, construct, knob, vacuous), or the one-sentence cause when violated."""
    trace: Trace | None = None
    ledger: Ledger = field(default_factory=Ledger)
    outcomes: tuple[Outcome, ...] = ()
    known: str = ""
    """The id of the docs/bugs.toml entry when this violation is a known one."""
    notes: tuple[str, ...] = ()
    """Remarks that are no verdict, e.g. lateness that needed an unrelated exit, or misuse by the VMM."""
    states: int = 0
    edges: int = 0
    seconds: float = 0.0


def _reduced(value: Any) -> tuple[Any, tuple[Any, ...]]:
    kind: Any = type(value)
    return kind, reader_of(kind)(value)


for _kind in (CLine, Step, Assumption):
    copyreg.pickle(_kind, _reduced)  # most of a result; dataclasses would look for their fields each time
