"""The text of `iretrace check`: verdicts, counterexamples and what they rest on, in 80 columns, fit for a mail."""

from __future__ import annotations

from collections.abc import Sequence

from iretrace.report.steps import step_table
from iretrace.report.summary import Report, assumptions, executed, result_id, reuse, summary
from iretrace.report.terminal import GREEN, RED, WIDTH, YELLOW, Look, shorten, wrap
from iretrace.verdict import Assumption, Result, Verdict

KINDS = ("stub", "model", "initial", "option", "config", "knob", "limit", "note")
"""Kinds of assumptions in the order of the ledger."""

SHORT_KINDS = ("stub", "model", "initial", "option", "config")
"""Kinds that fill pages: one line each, unless verbose."""

NAME_WIDTH, VCPU_WIDTH, HOST_WIDTH = 36, 17, 8
"""Columns of the verdict table are at most this wide; with the longest verdict they leave room in 80."""

ADVICE = (
    ("stopped by", "Raise --max-states or --timeout, or give the test fewer events."),
    ("limit", "Raise --max-states or --timeout, or give the test fewer events."),
    ("vacuous", "Nothing was learnt: change the test's arrivals, reach or clauses, or the host."),
    ("disputed rule", "Manuals and emulators disagree here; a measurement on the processor decides."),
    (".c:", "Describe what is missing with a rule row (--rules FILE); --dry lists all that the tree lacks."),
    (".h:", "Describe what is missing with a rule row (--rules FILE); --dry lists all that the tree lacks."),
)
"""What to do about an undetermined verdict, by a word of its reason."""

ADVICE_ELSE = "Take it as not checked: what the reason names is not modelled yet."


def check_report(report: Report, look: Look | None = None, detail: bool = False) -> str:
    """The whole text, ending with a newline. detail: tests that simply hold are shown with their outcomes, too."""
    look = look or Look()
    lines: list[str] = []
    for results in report.by_hypervisor().values():
        lines += hypervisor_report(results, look, detail, report.kept)
        lines.append("")
    for remark in report.remarks:
        lines += wrap(look.clean(remark), rest="    ")
    if report.rows:
        lines += ["", "Rows to complete and to give with --rules FILE:", ""]
        lines += [look.clean(line) for row in report.rows for line in row.split("\n")]
    lines += [line for line in (reuse(report), summary(report)) if line]
    return "\n".join(lines) + "\n"


def short_report(report: Report, look: Look) -> str:
    """A line for each result that does not hold, and the counts."""
    lines = [line for group in report.by_hypervisor().values() for line in _not_holding(group, look)]
    return "\n".join([*lines, summary(report)]) + "\n"


def _not_holding(results: Sequence[Result], look: Look) -> list[str]:
    found = [result for result in results if result.verdict is not Verdict.HOLDS]
    return verdict_table(found, look) if found else []


def hypervisor_report(results: Sequence[Result], look: Look, detail: bool = False, kept: bool = False) -> list[str]:
    """The lines about one hypervisor: table, counterexamples, what is open, ledger.

    Of results that show the same known defect the first one stands for all, unless detail is wanted."""
    lines = [*wrap(look.clean(results[0].hypervisor), rest="    "), *verdict_table(results, look)]
    told: set[str] = set()
    alike = 0
    for result in results:
        if detail or result.notes or (result.verdict is not Verdict.HOLDS and result.known not in told):
            lines += ["", *result_block(result, look, kept)]
            told.update({result.known} - {""})
        else:
            alike += result.verdict is Verdict.VIOLATED
    if alike:
        lines += ["", *wrap(f"{alike} more show a known defect that is told above; --all tells each.")]
    return [*lines, "", *ledger(results, look)]


def verdict_table(results: Sequence[Result], look: Look) -> list[str]:
    """One line per result: symbol, test, vcpu, host, verdict, and what was exhausted (below it where it is long)."""
    names = [shorten(look.clean(result.test), NAME_WIDTH) for result in results]
    vcpus = [shorten(look.clean(result.vcpu), VCPU_WIDTH) for result in results]
    hosts = [shorten(look.clean(result.host), HOST_WIDTH) for result in results]
    name_width, vcpu_width, host_width = (max(map(len, column)) for column in (names, vcpus, hosts))
    word_width = max(len(result.verdict) for result in results)
    extents = [look.clean(_extent(result)) for result in results]
    room = WIDTH - (2 + name_width + vcpu_width + host_width + word_width) - max(map(len, extents))
    gap = " " if room < 2 * 4 else "  "
    lines: list[str] = []
    for result, name, vcpu, host, extent in zip(results, names, vcpus, hosts, extents, strict=True):
        symbol, colour = _symbol(result, look)
        cells = [f"{name:<{name_width}}", f"{vcpu:<{vcpu_width}}", f"{host:<{host_width}}"]
        line = f"{look.paint(symbol, colour)} {gap.join(cells)}{gap}{look.paint(result.verdict, colour)}"
        padding = " " * (word_width - len(result.verdict))
        if 2 + sum(map(len, cells)) + word_width + len(extent) + len(gap) * 4 <= WIDTH:
            lines.append(f"{line}{padding}{gap}{extent}".rstrip())
        else:
            lines += [line, *wrap(extent, "      ", "      ")]
    return lines


def _symbol(result: Result, look: Look) -> tuple[str, str]:
    """The symbol beside the verdict, and its colour."""
    if result.verdict is Verdict.HOLDS:
        return look.symbol("✓", "+"), GREEN
    if result.verdict is Verdict.UNDETERMINED:
        return "?", YELLOW
    return look.symbol("✗", "x"), YELLOW if result.known else RED


def _extent(result: Result) -> str:
    """What was exhausted, without the host, which has a column; for a known defect its entry first."""
    exhausted = result.exhausted.removesuffix(f", {result.host}")
    return f"known: {result.known}; {exhausted}" if result.known else exhausted


def result_block(result: Result, look: Look, kept: bool = False) -> list[str]:
    """The lines about one result that does not simply hold: what was seen, the steps, why, and what to do.

    kept: whether it can be asked for by its id."""
    named = f", kept as {result_id(result)} (iretrace show, iretrace reproduce)" if kept else ""
    lines = wrap(f"Test {look.clean(result.test)}{named}", rest="    ")
    lines += wrap(
        look.clean(f"{result.hypervisor}, vcpu {result.vcpu}, host {result.host}: {_word(result)}"), rest="    "
    )
    lines += _outcomes(result, look)
    if result.trace is not None:
        lines += ["", *step_table(result.trace, look), ""]
    lines += _why(result, look)
    for note in result.notes:
        lines += wrap(look.clean(note), "Note: ", "    ")
    return lines


def _word(result: Result) -> str:
    """The verdict, and whether a violation is new."""
    if result.verdict is not Verdict.VIOLATED:
        return str(result.verdict)
    return f"violated, known as {result.known}" if result.known else "violated"


def _outcomes(result: Result, look: Look) -> list[str]:
    """How the runs that were seen end, as herd7 and litmus7 list final states."""
    if not result.outcomes:
        return []
    lines = [f"States {len(result.outcomes)}"]
    for outcome in result.outcomes:
        marks = " ".join(outcome.marks) or "no mark"
        lines += wrap(look.clean(f"{marks}; {outcome.ending}"), rest="    ")
    return lines


def _why(result: Result, look: Look) -> list[str]:
    """One sentence of cause and the C line that it cites, or the reason why nothing is known and what to do.

    Further lines of a reason are rule rows to paste, so they stay lines.
    """
    if result.verdict is Verdict.HOLDS:
        return []
    trace = result.trace
    if result.verdict is Verdict.UNDETERMINED:
        reason, *rows = (result.reason or "no reason was given").split("\n")
        lines = wrap(look.clean(reason), "Undetermined: ", "    ")
        for row in rows:
            lines += wrap(look.clean(row), "    ", "    ")
        return [*lines, *wrap(advice(result.reason), "What to do: ", "    ")]
    cause = trace.cause if trace is not None else result.reason
    lines = wrap(look.clean(cause or result.reason or "no cause was given"), "Why: ", "    ")
    if trace is None or trace.cited is None:
        return lines
    cited = trace.cited
    function = f" {cited.function}()" if cited.function else ""
    lines += wrap(look.clean(f"{cited.path}:{cited.line}:{function}"), "Cited: ", "    ")
    if cited.text:
        lines += wrap(look.clean(cited.text), "        ", "        ", limit=2)
    return lines


def advice(reason: str) -> str:
    """What the user can do about an undetermined verdict with this reason."""
    return next((what for word, what in ADVICE if word in reason.lower()), ADVICE_ELSE)


def ledger(results: Sequence[Result], look: Look) -> list[str]:
    """What the verdicts on one hypervisor rest on: assumptions by kind, and how much of its source was executed."""
    taken = assumptions(results)
    lines: list[str] = []
    for kind in dict.fromkeys((*KINDS, *sorted({a.kind for a in taken}))):
        of_kind = [a for a in taken if a.kind == kind]
        if of_kind:
            lines += _kind_lines(kind, of_kind, look)
    if lines:
        hint = "" if look.verbose else " (--verbose: each with its reason)"
        lines.insert(0, f"Assumptions on the explored paths{hint}")
    return [*lines, executed(results)]


def _kind_lines(kind: str, of_kind: Sequence[Assumption], look: Look) -> list[str]:
    """The assumptions of one kind: a line each, or one line for all where they are many and routine."""
    label = shorten(look.clean(kind), 10)
    if kind in SHORT_KINDS and not look.verbose:
        names = [look.clean(a.what).split(":")[0] for a in of_kind]
        return [_in_one_line(f"  {label} {len(names)}: ", list(dict.fromkeys(names)))]
    lines: list[str] = []
    for a in of_kind:
        because = f" - {a.why}" if a.why else ""
        where = f" ({a.where})" if a.where else ""
        lines += wrap(look.clean(f"{a.what}{where}{because}"), f"  {label}: ", "      ")
    return lines


def _in_one_line(start: str, names: list[str]) -> str:
    """As many names as fit on a line, and how many more there are."""
    line = start + ", ".join(names)
    shown = len(names)
    while len(line) > WIDTH and shown > 0:
        shown -= 1
        line = f"{start}{', '.join(names[:shown])}, ... {len(names) - shown} more"
    if shown == 0 and len(names) > 1:  # sentences: the beginning of one
        rest = f", ... {len(names) - 1} more"
        line = f"{start}{shorten(names[0], WIDTH - len(start) - len(rest))}{rest}"
    return shorten(line, WIDTH)
