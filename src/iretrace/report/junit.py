"""`iretrace check --format junit`: JUnit XML for CI services. A violation is a failure, what is undetermined an error.

There is no time in it, so that the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from iretrace.report.gcc import gcc_lines
from iretrace.report.summary import Report, counts, executed, summary
from iretrace.report.terminal import Look
from iretrace.verdict import Result, Verdict

ELEMENTS = {Verdict.VIOLATED: "failure", Verdict.UNDETERMINED: "error"}


def junit_report(report: Report) -> str:
    """The whole document. Only ASCII."""
    number = counts(report)
    violated = sum(result.verdict is Verdict.VIOLATED for result in report.results)
    root = Element("testsuites", {"name": "iretrace"} | _totals(report.results, violated, number.undetermined))
    for name, results in report.by_hypervisor().items():
        _add_suite(root, name, results)
    remarks = "\n".join((*map(_clean, report.remarks), summary(report)))
    if len(root):
        SubElement(root[-1], "system-out").text = remarks
    ElementTree.indent(root, " ")
    return f'<?xml version="1.0" encoding="US-ASCII"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _totals(results: Sequence[Result], failures: int, errors: int) -> dict[str, str]:
    return {"tests": str(len(results)), "failures": str(failures), "errors": str(errors)}


def _add_suite(root: Element, name: str, results: Sequence[Result]) -> None:
    verdicts = [result.verdict for result in results]
    totals = _totals(results, verdicts.count(Verdict.VIOLATED), verdicts.count(Verdict.UNDETERMINED))
    suite = SubElement(root, "testsuite", {"name": _clean(name)} | totals)
    properties = SubElement(suite, "properties")
    SubElement(properties, "property", name="executed", value=_clean(executed(results)))
    for result in results:
        place = f"{_clean(result.hypervisor).replace('.', '_')}.{_clean(result.vcpu)}.{_clean(result.host)}"
        case = SubElement(suite, "testcase", classname=place, name=_clean(result.test))
        if result.verdict in ELEMENTS:
            lines = list(gcc_lines(result))
            kind = f"known as {_clean(result.known)}" if result.known else str(result.verdict)
            SubElement(case, ELEMENTS[result.verdict], type=kind, message=lines[0]).text = "\n".join(lines)


def _clean(text: str) -> str:
    return Look(ascii_only=True).clean(text)
