"""`iretrace check --format b4`: what b4's review checks read, a JSON array of {tool, status, summary, url, details}.

A violation fails, what is undetermined warns; `[]` means that there is nothing to say.
"""

from __future__ import annotations

import json

from iretrace.report.gcc import gcc_lines
from iretrace.report.summary import Report, executed, summary
from iretrace.report.terminal import Look
from iretrace.verdict import Result, Verdict

NOTHING = "[]\n"


def b4_report(report: Report) -> str:
    """One entry for each violation, one for all that is undetermined; if there is neither, one that passes."""
    look = Look(ascii_only=True)
    remarks = [*map(look.clean, report.remarks)]
    remarks += [f"{look.clean(name)}: {executed(results)}" for name, results in report.by_hypervisor().items()]
    entries = [_violation(result, remarks) for result in report.results if result.verdict is Verdict.VIOLATED]
    unclear = [result for result in report.results if result.verdict is Verdict.UNDETERMINED]
    if unclear:
        lines = [line for result in unclear for line in gcc_lines(result)]
        what = "test is" if len(unclear) == 1 else "tests are"
        entries.append(_entry("warn", f"{len(unclear)} {what} undetermined", [*lines, *remarks]))
    if not entries and report.results:
        entries.append(_entry("pass", summary(report), remarks))
    return json.dumps(entries, indent=1) + "\n"


def b4_refusal(reason: str) -> str:
    """The array when nothing could be judged, e.g. because the patch does not apply: that is no failure of it."""
    return json.dumps([_entry("warn", f"not judged: {Look(ascii_only=True).clean(reason)}", [])], indent=1) + "\n"


def _violation(result: Result, remarks: list[str]) -> dict[str, str]:
    lines = list(gcc_lines(result))
    return _entry("fail", lines[0], [*lines[1:], *remarks])


def _entry(status: str, summary_line: str, details: list[str]) -> dict[str, str]:
    return {"tool": "iretrace", "status": status, "summary": summary_line, "url": "", "details": "\n".join(details)}
