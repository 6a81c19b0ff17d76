"""`iretrace check --format json`: docs/json.md explains it, iretrace.schema.json beside this file is its schema.

The same results give the same bytes: there is no time in it, and nothing depends on how many processes worked.
"""

from __future__ import annotations

import json
from typing import Any

from iretrace.report.summary import Report, assumptions, counts, result_id, statements
from iretrace.verdict import CLine, Ledger, Result, Step, Trace

SCHEMA = "iretrace/1"
"""Grows by new fields; a field that goes or changes its meaning makes it iretrace/2."""


def json_report(report: Report, version: str) -> str:
    """The whole document. version: of iretrace. Nothing but ASCII: what is foreign in it is escaped."""
    return json.dumps(document(report, version), indent=1) + "\n"


def document(report: Report, version: str) -> dict[str, Any]:
    """The top-level object."""
    number = counts(report)
    return {
        "schema": SCHEMA,
        "version": version,
        "summary": {
            "new": number.new,
            "known": number.known,
            "undetermined": number.undetermined,
            "holds": number.holds,
            "not_shown": report.hidden,
            "not_touched": report.hidden_open,
            "as_before": report.hidden_as_before,
        },
        "hypervisors": [
            {"name": name, "statements": statements(results), "assumptions": len(assumptions(results))}
            for name, results in report.by_hypervisor().items()
        ],
        "remarks": list(report.remarks),
        "results": [as_result(result) for result in report.results],
    }


def as_result(result: Result) -> dict[str, Any]:
    """One result."""
    return {
        "id": result_id(result),
        "test": result.test,
        "vcpu": result.vcpu,
        "host": result.host,
        "hypervisor": result.hypervisor,
        "verdict": str(result.verdict),
        "reason": result.reason,
        "known": result.known or None,
        "exhausted": result.exhausted,
        "states": result.states,
        "edges": result.edges,
        "outcomes": [{"marks": list(outcome.marks), "ending": outcome.ending} for outcome in result.outcomes],
        "trace": None if result.trace is None else _trace(result.trace),
        "notes": list(result.notes),
        "ledger": _ledger(result.ledger),
    }


def _trace(trace: Trace) -> dict[str, Any]:
    return {
        "cause": trace.cause,
        "cited": None if trace.cited is None else _line(trace.cited),
        "stem": [as_step(step) for step in trace.stem],
        "loop": [as_step(step) for step in trace.loop],
    }


def as_step(step: Step) -> dict[str, Any]:
    """One step of a trace."""
    in_tree = isinstance(step.where, CLine)
    return {
        "actor": step.actor,
        "what": step.what,
        "where": _line(step.where) if isinstance(step.where, CLine) else None,
        "rule": None if in_tree else step.where,
        "note": step.note,
        "changed": dict(step.changed),
        "view": dict(step.view),
        "executed": [f"{line.path}:{line.line}" for line in step.executed],
    }


def _line(line: CLine) -> dict[str, Any]:
    return {"path": line.path, "line": line.line, "function": line.function, "text": line.text}


def _ledger(ledger: Ledger) -> dict[str, Any]:
    return {
        "statements": ledger.statements,
        "assumptions": [{"kind": a.kind, "what": a.what, "where": a.where, "why": a.why} for a in ledger.assumptions],
    }
