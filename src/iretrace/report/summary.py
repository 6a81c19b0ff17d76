"""What every format of `iretrace check` says at its end: how many, and what it rests on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from iretrace.verdict import Assumption, Result, Verdict, field_names

ID_DIGITS = 10

WITH_PATCHES = " with the patches"
"""Behind the name of a tree, where patches were applied to it."""

_WITH_SOME = re.compile(rf"(?:{WITH_PATCHES}| \+ \d+ of \d+)$")


def result_id(result: Result) -> str:
    """What `iretrace show` knows a result by: of everything in it, but for the time, whether it is known, and how a
    review calls its tree."""
    told = replace(result, seconds=0.0, known="", hypervisor=_WITH_SOME.sub("", result.hypervisor))
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=record).encode()).hexdigest()[:ID_DIGITS]


def record(value: Any) -> dict[str, Any]:
    """A dataclass as json.dumps() wants it (its `default`): one level of what dataclasses.asdict makes of it."""
    kind: Any = type(value)
    return {name: getattr(value, name) for name in field_names(kind)}


@dataclass(frozen=True, slots=True)
class Report:
    """The results to show. hidden: known defects that --new-only leaves out. reused: results of an earlier run.

    remarks: sentences on the patches that were applied; they hold foreign names. untouched: the results that are
    undetermined and rest on nothing that the patches change; hidden_open: how many of them are left out. as_before:
    those that are undetermined in just the same way without the patches, which change what they use, while other tests
    judge the patches; hidden_as_before: how many of them are left out. kept: whether `iretrace show` knows the results.
    rows: rule rows to add, each of several lines. judges: whether a test used what the patches change, if there are
    any."""

    results: Sequence[Result]
    hidden: int = 0
    reused: int = 0
    remarks: Sequence[str] = ()
    untouched: Sequence[Result] = ()
    hidden_open: int = 0
    as_before: Sequence[Result] = ()
    hidden_as_before: int = 0
    kept: bool = False
    rows: Sequence[str] = ()
    judges: bool = True

    def without_known(self) -> Report:
        """The same, without known defects and what is as open as before the patches."""
        unknown = [result for result in self.results if not result.known]
        touched = [result for result in unknown if result not in self.untouched]
        news = [result for result in touched if result not in self.as_before]
        return replace(
            self,
            results=news,
            hidden=self.hidden + len(self.results) - len(unknown),
            hidden_open=self.hidden_open + len(unknown) - len(touched),
            hidden_as_before=self.hidden_as_before + len(touched) - len(news),
        )

    @property
    def total(self) -> int:
        """How many results there are, shown or not."""
        return len(self.results) + self.hidden + self.hidden_open + self.hidden_as_before

    def by_hypervisor(self) -> dict[str, list[Result]]:
        """The results of each hypervisor, in the order of first use."""
        groups: dict[str, list[Result]] = {}
        for result in self.results:
            groups.setdefault(result.hypervisor, []).append(result)
        return groups


@dataclass(frozen=True, slots=True)
class Counts:
    """How many verdicts are what. known counts hidden ones too."""

    new: int
    known: int
    undetermined: int
    holds: int


def counts(report: Report) -> Counts:
    """The counts of the last line."""
    violated = [result for result in report.results if result.verdict is Verdict.VIOLATED]
    known = sum(1 for result in violated if result.known)
    undetermined = sum(1 for result in report.results if result.verdict is Verdict.UNDETERMINED)
    holds = len(report.results) - len(violated) - undetermined
    left_open = undetermined + report.hidden_open + report.hidden_as_before
    return Counts(len(violated) - known, known + report.hidden, left_open, holds)


def summary(report: Report) -> str:
    """The last line: how many defects are new and how many known, how many verdicts are open, how many hold."""
    number = counts(report)
    hidden = f" ({report.hidden} not shown)" if report.hidden else ""
    left_out = [
        *([f"{report.hidden_open} not touched by the patches"] if report.hidden_open else []),
        *([f"{report.hidden_as_before} as before them"] if report.hidden_as_before else []),
    ]
    undetermined = f"{number.undetermined} undetermined" + (f" ({', '.join(left_out)})" if left_out else "")
    return f"{number.new} new, {number.known} known{hidden}, {undetermined}, {number.holds} hold"


def reuse(report: Report) -> str:
    """Which results come from an earlier run, and why they may; "" if none does."""
    if not report.reused:
        return ""
    return f"{report.reused} of {report.total} reused: nothing that they used has changed"


def assumptions(results: Sequence[Result]) -> tuple[Assumption, ...]:
    """The assumptions of several results, each once."""
    return tuple(dict.fromkeys(a for result in results for a in result.ledger.assumptions))


def statements(results: Sequence[Result]) -> int:
    """How many C statements were executed for several results on one hypervisor, as far as their ledgers tell."""
    return max((result.ledger.statements for result in results), default=0)


def executed(results: Sequence[Result]) -> str:
    """What results on one hypervisor rest on, in one line."""
    what = "lines of the built-in KVM executed" if _built_in(results) else "C statements executed from source"
    return f"{statements(results)} {what}, {len(assumptions(results))} assumptions"


def _built_in(results: Sequence[Result]) -> bool:
    return all(result.hypervisor.startswith("built-in ") for result in results)
