"""`iretrace check --format ktap`: KTAP version 1, as the kernel's own tests write it.

One subtest for each hypervisor, two columns further in. Undetermined is `not ok`: nothing but a test that holds passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iretrace.report.gcc import gcc_lines
from iretrace.report.summary import Report, executed, reuse, summary
from iretrace.report.terminal import Look
from iretrace.verdict import Result, Verdict

LOOK = Look(ascii_only=True)


def ktap_report(report: Report) -> str:
    """The whole text, ending with a newline. Only ASCII."""
    groups = report.by_hypervisor()
    lines = ["KTAP version 1", f"1..{len(groups)}"]
    for number, (name, results) in enumerate(groups.items(), 1):
        lines += [f"  {line}" for line in _subtest(name, results)]
        lines.append(f"{_ok(results)} {number} {_name(name)}")
    remarks = (*map(LOOK.clean, report.remarks), reuse(report), summary(report))
    return "".join(f"{line}\n" for line in (*lines, *(f"# {remark}" for remark in remarks if remark)))


def ktap_nothing(reason: str) -> str:
    """The text when nothing is in scope."""
    return f"KTAP version 1\n1..0 # SKIP {LOOK.clean(reason)}\n"


def _subtest(name: str, results: Sequence[Result]) -> Iterator[str]:
    yield "KTAP version 1"
    yield f"# Subtest: {LOOK.clean(name)}"
    yield f"1..{len(results)}"
    for number, result in enumerate(results, 1):
        yield from (f"# {line}" for line in gcc_lines(result))
        title = _name(f"{result.test}.{result.vcpu}.{result.host}")
        yield f"{_ok([result])} {number} {title}{_why(result)}"
    yield f"# {executed(results)}"


def _ok(results: Sequence[Result]) -> str:
    return "ok" if all(result.verdict is Verdict.HOLDS for result in results) else "not ok"


def _why(result: Result) -> str:
    if result.verdict is Verdict.UNDETERMINED:
        return " # undetermined"
    return f" # known as {_name(result.known)}" if result.known else ""


def _name(text: str) -> str:
    """Foreign text as a name: a # would begin a directive."""
    return LOOK.clean(text).replace("#", "_") or "-"
