"""`iretrace check --format b4`: what b4's review checks read, a JSON array of {tool, status, summary, url, details}.

A violation fails, what is undetermined warns; `[]` means that there is nothing to say. b4 keeps and shows one entry for
each tool and mail (of several the last), so there is never more than one.
"""

from __future__ import annotations

import json

from iretrace.report.gcc import gcc_lines
from iretrace.report.summary import Report, executed, summary
from iretrace.report.terminal import Look
from iretrace.verdict import Verdict

NOTHING = "[]\n"


def b4_report(report: Report) -> str:
    """One entry: with any violation it fails, else with anything undetermined it warns, else it passes."""
    look = Look(ascii_only=True)
    remarks = [*map(look.clean, report.remarks)]
    remarks += [f"{look.clean(name)}: {executed(results)}" for name, results in report.by_hypervisor().items()]
    wrong = [result for result in report.results if result.verdict is Verdict.VIOLATED]
    unclear = [result for result in report.results if result.verdict is Verdict.UNDETERMINED]
    lines = [line for result in (*wrong, *unclear) for line in gcc_lines(result)]
    details = [*lines, *remarks, summary(report)]
    if not report.results and not report.total:
        return NOTHING
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return _document("fail", lines[0] + more, details)
    if unclear:
        tests = "test is" if len(unclear) == 1 else "tests are"
        return _document("warn", f"{len(unclear)} {tests} undetermined", details)
    return _document("pass", summary(report), remarks)


def b4_refusal(reason: str) -> str:
    """The array when nothing could be judged, e.g. because the patch does not apply: that is no failure of it."""
    return _document("warn", f"not judged: {Look(ascii_only=True).clean(reason)}", [])


def _document(status: str, summary_line: str, details: list[str]) -> str:
    entry = {"tool": "iretrace", "status": status, "summary": summary_line, "url": "", "details": "\n".join(details)}
    return json.dumps([entry], indent=1) + "\n"
