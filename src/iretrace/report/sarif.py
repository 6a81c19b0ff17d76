"""`iretrace check --format sarif`: SARIF 2.1.0. A violation is an error, what is undetermined a warning.

A counterexample is one code flow with a thread flow for each actor; executionOrder tells how they interleave. What
holds is no result: SARIF lists findings.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from iretrace.report.gcc import PLACE_IN_REASON
from iretrace.report.summary import Report, executed, summary
from iretrace.report.terminal import Look
from iretrace.verdict import CLine, Result, Step, Trace, Verdict

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
ROOT = "SRCROOT"
"""The base of all paths: the top of the kernel tree."""

FINGERPRINT = "iretrace/v1"
"""Over test, vCPU kind, host, verdict, file and function: lines may move and kernels differ."""

_NUMBERS = re.compile(r"\d+")


def sarif_report(report: Report, version: str, abouts: Mapping[str, str]) -> str:
    """The whole document, ASCII. version: of iretrace. abouts: what each test is about, by name, as far as known."""
    return json.dumps(document(report, version, abouts), indent=1) + "\n"


def document(report: Report, version: str, abouts: Mapping[str, str]) -> dict[str, Any]:
    """The top-level object."""
    found = [result for result in report.results if result.verdict is not Verdict.HOLDS]
    ids = list(dict.fromkeys(result.test for result in found))
    rules = [{"id": name, "shortDescription": _text(abouts.get(name) or name)} for name in ids]
    said = [*report.remarks, *(f"{name}: {executed(group)}" for name, group in report.by_hypervisor().items())]
    notes = [{"level": "note", "message": _text(text)} for text in (*said, summary(report))]
    run = {
        "tool": {"driver": {"name": "iretrace", "version": version, "rules": rules}},
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notes}],
        "originalUriBaseIds": {ROOT: {"description": _text("The top of the Linux source tree.")}},
        "results": [_result(result, ids.index(result.test)) for result in found],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(result: Result, rule: int) -> dict[str, Any]:
    trace = result.trace
    place, sentence = _finding(result)
    made: dict[str, Any] = {
        "ruleId": result.test,
        "ruleIndex": rule,
        "level": "error" if result.verdict is Verdict.VIOLATED else "warning",
        "message": _text(f"{sentence} ({result.hypervisor}, {result.vcpu}, {result.host})"),
        "locations": [_location(place)] if place else [],
        "partialFingerprints": {FINGERPRINT: _fingerprint(result, place)},
        "properties": {
            "verdict": str(result.verdict),
            "vcpu": result.vcpu,
            "host": result.host,
            "hypervisor": result.hypervisor,
            "known": result.known or None,
        },
    }
    if trace is not None and (trace.stem or trace.loop):
        made["codeFlows"] = [_code_flow(trace)]
    return made


def _finding(result: Result) -> tuple[CLine | None, str]:
    """The line that a finding is about, and what is found."""
    reason = (result.reason or "no reason was given").partition("\n")[0]
    if result.verdict is Verdict.UNDETERMINED:
        at = PLACE_IN_REASON.fullmatch(reason)
        if at is None:
            return None, f"undetermined: {reason}"
        path, _, line = at[1].rpartition(":")
        return CLine(path, int(line)), f"undetermined: {at[2]}"
    trace = result.trace or Trace((), (), reason)
    lines = [step.where for step in (*trace.stem, *trace.loop) if isinstance(step.where, CLine)]
    return trace.cited or (lines[-1] if lines else None), trace.cause or reason


def _fingerprint(result: Result, place: CLine | None) -> str:
    where = [place.path, place.function] if place else []
    what = "" if result.verdict is Verdict.VIOLATED else _NUMBERS.sub("N", result.reason.partition("\n")[0])
    parts = [result.test, result.vcpu, result.host, str(result.verdict), what, *where]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code_flow(trace: Trace) -> dict[str, Any]:
    flows: dict[str, list[dict[str, Any]]] = {}
    for order, step in enumerate((*trace.stem, *trace.loop), 1):
        flows.setdefault(step.actor, []).append(_flow_step(step, order, order > len(trace.stem)))
    threads = [{"id": actor, "message": _text(actor), "locations": steps} for actor, steps in flows.items()]
    return {"message": _text(trace.cause or "a counterexample"), "threadFlows": threads}


def _flow_step(step: Step, order: int, for_ever: bool) -> dict[str, Any]:
    rule = f" [{step.where}]" if isinstance(step.where, str) and step.where else ""
    note = f" ({step.note})" if step.note else ""
    what = f"step {order}{', for ever' if for_ever else ''}: {step.what}{rule}{note}"
    location = _location(step.where) if isinstance(step.where, CLine) else {}
    return {
        "location": {**location, "message": _text(what)},
        "executionOrder": order,
        "importance": "essential" if step.note or step.changed else "important",
        "state": {name: {"text": str(value)} for name, value in step.changed},
    }


def _location(line: CLine) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": {"uri": quote(line.path, errors="replace"), "uriBaseId": ROOT}}
    if line.line > 0:
        physical["region"] = {"startLine": line.line}
    made: dict[str, Any] = {"physicalLocation": physical}
    if line.function:
        made["logicalLocations"] = [{"name": line.function, "kind": "function"}]
    return made


def _text(text: str) -> dict[str, str]:
    """A message: one line, harmless; SARIF wants some text."""
    return {"text": Look(ascii_only=True).clean(text) or "-"}
