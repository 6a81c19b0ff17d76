"""The formats of `iretrace check` beside the text, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iretrace import __version__
from iretrace.litmus.test import Test
from iretrace.report.as_json import json_report
from iretrace.report.b4 import NOTHING, b4_refusal, b4_report
from iretrace.report.gcc import gcc_report
from iretrace.report.junit import junit_report
from iretrace.report.ktap import ktap_nothing, ktap_report
from iretrace.report.sarif import sarif_report
from iretrace.report.summary import Report

FORMATS: dict[str, Callable[[Report, Sequence[Test]], str]] = {
    "gcc": lambda report, _tests: gcc_report(report),
    "json": lambda report, _tests: json_report(report, __version__),
    "ktap": lambda report, _tests: ktap_report(report),
    "junit": lambda report, _tests: junit_report(report),
    "sarif": lambda report, tests: sarif_report(report, __version__, {test.name: test.about for test in tests}),
    "b4": lambda report, _tests: b4_report(report),
}
"""Name -> the document of a report on these tests."""


def nothing(form: str, reason: str) -> str:
    """What a format has where nothing is in scope; most have nothing."""
    return {"ktap": ktap_nothing(reason), "b4": NOTHING}.get(form, "")


def refused(form: str, reason: str) -> str:
    """What a format has for input that cannot be judged; most have nothing, and the exit status tells."""
    return b4_refusal(reason) if form == "b4" else ""
