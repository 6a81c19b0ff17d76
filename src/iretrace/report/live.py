"""The text of `iretrace run`: what a real KVM has shown, in the form in which litmus7 tells what a machine shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from iretrace.report.outcomes import Clause, say_outcome
from iretrace.report.terminal import RED, YELLOW, Look, wrap
from iretrace.verdict import Outcome


@dataclass(frozen=True, slots=True)
class Strange:
    """Runs that the processor alone could not have shown. why: the first event that is wrong.

    excuse: what is known to be wrong with the machine that ran it; "" if nothing is, and what ran has a defect.
    known: the entry of docs/bugs.toml that this test shows on this kernel; "" if there is none."""

    outcome: Outcome
    why: str
    count: int
    excuse: str = ""
    known: str = ""


@dataclass(frozen=True, slots=True)
class Late:
    """Runs in which an NMI came late. spins: of the guest until then, the most. exits: of KVM meanwhile, by reason."""

    outcome: Outcome
    count: int
    spins: int
    exits: Sequence[str]


@dataclass(frozen=True, slots=True)
class Observed:
    """What one test has shown. failures: (what went wrong, how often), runs without an outcome."""

    test: str
    hash: str
    outcomes: Sequence[tuple[Outcome, int]]
    clauses: Sequence[Clause] = ()
    strange: Sequence[Strange] = ()
    failures: Sequence[tuple[str, int]] = ()
    compared: Compared | None = None
    late: Sequence[Late] = ()
    missing: int = 0
    """Runs that did not come because the whole was interrupted."""

    @property
    def defect(self) -> bool:
        """Some run is no fault of the machine, and the processor alone could not have shown it."""
        return any(not strange.excuse for strange in self.strange)

    @property
    def unclear(self) -> bool:
        """Some run has shown nothing, or something that the model of this kernel does not have."""
        return not self.outcomes or bool(self.failures) or (self.compared is not None and self.compared.unclear)


@dataclass(frozen=True, slots=True)
class Compared:
    """What the model of this kernel's source says. verdicts: one for each host, in words.

    histories: how many different ones were seen and looked for in the model. beyond: those that it does not have.
    open: those for which the search was given up. unseen: outcomes of the model, as far as they are known, that were
    not seen; that refutes nothing."""

    verdicts: Sequence[str]
    histories: int
    beyond: Sequence[Strange] = ()
    open: Sequence[Strange] = ()
    unseen: Sequence[Outcome] = ()
    lasso: bool = False
    """On a host without ticks the model waits for ever for an event that on a ticking one comes."""

    @property
    def new(self) -> bool:
        """Something was seen that neither the model has nor a known fault of the machine explains."""
        return any(not strange.excuse for strange in self.beyond)

    @property
    def unclear(self) -> bool:
        """The same, or the model was not asked to the end."""
        return self.new or any(not strange.excuse for strange in self.open)


@dataclass(frozen=True, slots=True)
class LiveReport:
    """A whole live run. where: kernel and machine. broken: what ended before it should. accused: whose defects."""

    where: str
    observed: Sequence[Observed]
    left_out: Sequence[tuple[str, str]] = ()
    broken: Sequence[str] = field(default=())
    accused: str = "KVM"
    interrupted: bool = False
    """It was ended from outside. not_run: the tests of which nothing had come by then; not_compared: those that were to
    be compared, and are not."""
    not_run: Sequence[str] = ()
    not_compared: Sequence[str] = ()
    model: str = ""
    """Whose source it is compared with; "" if it is not."""


def _times(count: int) -> str:
    """How often, in words."""
    return "once" if count == 1 else f"{count} times"


def live_report(report: LiveReport, look: Look | None = None) -> str:
    """The whole text, ending with a newline."""
    look = look or Look()
    lines = wrap(look.clean(report.where), rest="    ")
    if report.model:
        lines += wrap(look.clean(report.model), "beside the model of ", "    ")
    lines.append("")
    for observed in report.observed:
        lines += [*observed_block(observed, look, report.accused), ""]
    lines += _left_out(report.left_out, look)
    for what, times in Counter(report.broken).items():
        lines += wrap(look.clean(what), f"Broke {times} times: " if times > 1 else "Broke: ", "    ")
    for names, what in ((report.not_run, "not run"), (report.not_compared, "not compared")):
        if names:
            lines += wrap(look.clean(f"{what}: {', '.join(names)}"), "Interrupted, ", "    ")
    lines.append(_summary(report))
    return "\n".join(lines) + "\n"


def observed_block(observed: Observed, look: Look, accused: str = "KVM") -> list[str]:
    """The lines about one test."""
    lines = [*wrap(f"Test {look.clean(observed.test)}", rest="    "), f"States {len(observed.outcomes)}"]
    width = max((len(str(count)) for _, count in observed.outcomes), default=1)
    for outcome, count in observed.outcomes:
        lines += wrap(look.clean(say_outcome(outcome)), f"{count:>{width}} :> ", "    ")
    total = sum(count for _, count in observed.outcomes)
    if observed.missing:
        lines.append(f"Interrupted: {total} runs, {observed.missing} did not come")
    for quantifier, marks in observed.clauses:
        shown = sum(count for outcome, count in observed.outcomes if outcome.marks == marks)
        word = "Never" if shown == 0 else "Always" if shown == total else "Sometimes"
        lines += wrap(look.clean(f"{quantifier} {' '.join(marks) or 'nothing'}"), rest="    ")
        lines.append(f"Observation {observed.test} {word} {shown} {total - shown}")
    for what, count in observed.failures:
        lines += wrap(look.clean(f"{what} ({_times(count)})"), "Not run: ", "    ")
    for strange in observed.strange:
        lines += _strange_lines(strange, look, accused)
    for late in observed.late:
        lines += _late_lines(late, observed.compared is not None and observed.compared.lasso, look)
    if observed.compared is not None:
        lines += _compared_lines(observed.compared, look)
    return [*lines, f"Hash {observed.hash}"]


def _strange_lines(strange: Strange, look: Look, accused: str) -> list[str]:
    text = look.clean(f"{say_outcome(strange.outcome)} ({_times(strange.count)}): {strange.why}")
    if strange.excuse:
        return [*wrap(text, "Emulation: ", "    "), *wrap(look.clean(strange.excuse), "    ", "    ")]
    head = f"Confirmed defect of {accused}:"
    label, *rest = wrap(text, f"{head} ", "    ")
    known = [f"    known as {look.clean(strange.known)}"] if strange.known else []
    return [label.replace(head, look.paint(head, RED), 1), *rest, *known]


def _late_lines(late: Late, lasso: bool, look: Look) -> list[str]:
    """That it comes late is no defect by itself; that it needs an exit is what a lasso of the model is about."""
    meanwhile = ", ".join(late.exits[:-1])
    between = f"with {meanwhile} between" if meanwhile else "with no exit of KVM between"
    how = f"{between}, present after the next exit ({late.exits[-1]})" if late.exits else "late"
    text = f"{say_outcome(late.outcome)} ({_times(late.count)}): an NMI absent for {late.spins:,} spins {how}"
    one_exit = len(late.exits) == 1
    return wrap(look.clean(text), "Lasso confirmed: " if lasso and one_exit else "Late: ", "    ")


def _compared_lines(compared: Compared, look: Look) -> list[str]:
    lines: list[str] = []
    for verdict in compared.verdicts:
        lines += wrap(look.clean(verdict), "Model: ", "    ")
    known = compared.histories - len(compared.beyond) - len(compared.open)
    lines.append(f"Model has {known} of {compared.histories} histories seen")
    lines += _beside_the_model("Not in the model:", compared.beyond, look)
    lines += _beside_the_model("Not known of the model:", compared.open, look)
    if compared.unseen:
        lines += wrap(look.clean(", ".join(map(say_outcome, compared.unseen))), "In the model, not seen: ", "    ")
    return lines


def _beside_the_model(head: str, runs: Sequence[Strange], look: Look) -> list[str]:
    lines: list[str] = []
    for strange in _alike_together(runs):
        text = look.clean(f"{say_outcome(strange.outcome)} ({_times(strange.count)}): {strange.why}")
        if strange.excuse:
            text += look.clean(f"; {strange.excuse}")
        line, *rest = wrap(text, f"{head} ", "    ")
        lines += [line.replace(head, look.paint(head, YELLOW), 1), *rest]
    return lines


def _alike_together(runs: Sequence[Strange]) -> list[Strange]:
    """Histories that differ only in when events were sent are told once."""
    alike: dict[Strange, int] = {}
    for strange in runs:
        key = replace(strange, count=0)
        alike[key] = alike.get(key, 0) + strange.count
    return [replace(strange, count=count) for strange, count in alike.items()]


def _left_out(left_out: Sequence[tuple[str, str]], look: Look) -> list[str]:
    """The tests that cannot run here, by reason."""
    reasons: dict[str, list[str]] = {}
    for test, reason in left_out:
        reasons.setdefault(reason, []).append(test)
    lines: list[str] = []
    for reason, tests in reasons.items():
        lines += wrap(look.clean(f"{reason}: {', '.join(tests)}"), "Not runnable here: ", "    ")
    return [*lines, ""] if lines else []


def _summary(report: LiveReport) -> str:
    """The last line."""
    defects = sum(1 for observed in report.observed if observed.defect)
    unclear = sum(1 for observed in report.observed if not observed.outcomes)
    runs = sum(count for observed in report.observed for _, count in observed.outcomes)
    tests = f"{len(report.observed)} test{'s' * (len(report.observed) != 1)}"
    parts = [f"{tests}, {runs} runs", f"{defects} with a defect confirmed"]
    if unclear:
        parts.append(f"{unclear} without an outcome")
    compared = [observed.compared for observed in report.observed if observed.compared is not None]
    if compared:
        parts.append(f"{sum(1 for c in compared if c.new)} beyond the model")
        if unknown := sum(1 for c in compared if c.unclear and not c.new):
            parts.append(f"{unknown} not compared to the end")
    parts.append(f"{len(report.left_out)} not runnable here")
    if report.interrupted:
        parts = ["interrupted", *parts, f"{len(report.not_run)} not run"]
    return ", ".join(parts)
