"""What every format of `iretrace check` says at its end: how many, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from iretrace.verdict import Assumption, Result, Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """The results to show. hidden: known defects that --new-only leaves out. reused: results of an earlier run.

    remarks: sentences on the patches that were applied; they hold foreign names."""

    results: Sequence[Result]
    hidden: int = 0
    reused: int = 0
    remarks: Sequence[str] = ()

    def without_known(self) -> Report:
        """The same, known defects not shown."""
        shown = [result for result in self.results if not result.known]
        return replace(self, results=shown, hidden=self.hidden + len(self.results) - len(shown))

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
    return Counts(len(violated) - known, known + report.hidden, undetermined, holds)


def summary(report: Report) -> str:
    """The last line: how many defects are new and how many known, how many verdicts are open, how many hold."""
    number = counts(report)
    hidden = f" ({report.hidden} not shown)" if report.hidden else ""
    return f"{number.new} new, {number.known} known{hidden}, {number.undetermined} undetermined, {number.holds} hold"


def reuse(report: Report) -> str:
    """Which results come from an earlier run, and why they may; "" if none does."""
    if not report.reused:
        return ""
    return f"{report.reused} of {len(report.results) + report.hidden} reused: nothing that they read has changed"


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
