"""Known bugs: a violation that docs/bugs.toml lists for this kernel series stays a violation and is shown as known."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from iretrace.verdict import Result, Verdict

PLACES = (Path(__file__).parents[1] / "bugs.toml", Path(__file__).parents[3] / "docs" / "bugs.toml")
"""Where the list lies: in an installed package, and in a checkout."""


@cache
def bugs() -> tuple[dict[str, Any], ...]:
    """The entries of bugs.toml."""
    for place in PLACES:
        if place.is_file():
            return tuple(tomllib.loads(place.read_text(encoding="utf-8"))["bug"])
    return ()


def known_id(result: Result) -> str:
    """The id of the entry that names this test, vCPU kind and host as showing the bug on this series; "" if none."""
    options = frozenset(
        assumption.what.replace(": value=", "=").replace(": ", "=")
        for assumption in result.ledger.assumptions
        if assumption.kind == "option"
    )
    return listed(result.test, result.vcpu, result.host, result.hypervisor.split()[-1], options)


def listed(test: str, vcpu: str, host: str, version: str, options: frozenset[str] = frozenset()) -> str:
    """The same, for a version such as 6.1.192 or v6.1, and options such as nrips=0."""
    for bug in bugs():
        here = (by for by in bug["shown_by"] if "option" not in by or by["option"] in options)
        shown = {(by["test"], by["vcpu"], by["host"]) for by in here}
        if (test, vcpu, host) in shown and _affects(bug, version):
            return str(bug["id"])
    return ""


def shown_live(test: str, version: str) -> str:
    """The id of the entry that a live run of this test shows on this series; "" if none. A verdict may rest on a rule
    of the processor that is disputed, where a run does not."""
    affected = (bug for bug in bugs() if test in bug.get("shown_live", []) and _affects(bug, version))
    entries = [listed(test, "plain", host, version) for host in ("tickless", "ticking")]
    return max(entries) or str(next((bug["id"] for bug in affected), ""))


def mark_known(results: Iterable[Result]) -> list[Result]:
    """The results, violations that are listed carrying their entry's id."""
    return [
        replace(result, known=known_id(result)) if result.verdict is Verdict.VIOLATED else result for result in results
    ]


def _affects(bug: dict[str, Any], version: str) -> bool:
    return _series(version) in {_series(tree["version"]) for tree in bug["trees"] if tree["state"] == "affected"}


def _series(version: str) -> str:
    """6.1 of 6.1.192, and of the built-in v6.1."""
    return ".".join(version.removeprefix("v").split(".")[:2])
