"""Makes docs/verdicts.md from docs/verdicts.toml. With --check it only compares: exit status 1 if it is not current."""

from __future__ import annotations

import sys
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs" / "verdicts.toml"
TARGET = ROOT / "docs" / "verdicts.md"

KEYS = {"test", "trees", "hosts", "verdict", "argument", "refute"}
VERDICTS = {"holds", "violated", "undetermined"}

HEAD = """\
# Verdicts, argued

Generated from verdicts.toml; change that file, then run `python tools/verdicts.py`. One entry for each shipped test on
each real tree: the verdict, why it is right, and what would refute it. `tests/trees/test_verdicts.py` holds the
verdicts against the trees. The vCPU kind is the one that the test names. An argument is about the model and the C; what
was held against a real KVM is in [bugs](bugs.md) and [live runs](live.md).
"""

TREES = ("6.1", "6.12", "7.3")


class Malformed(Exception):
    """verdicts.toml is not as it should be; the message names the entry and the mistake."""


def load(text: str, bug_ids: set[str]) -> list[dict[str, Any]]:
    """The entries, checked. bug_ids: the ids of docs/bugs.toml."""
    entries: list[dict[str, Any]] = tomllib.loads(text).get("verdict", [])
    seen: set[tuple[str, str, str]] = set()
    for entry in entries:
        where = f"docs/verdicts.toml: {entry.get('test')} on {entry.get('trees')}"
        if set(entry) - {"bug"} != KEYS or entry["verdict"] not in VERDICTS:
            raise Malformed(f"{where}: the keys are {', '.join(sorted(KEYS))}, and bug for a violation")
        if (entry["verdict"] == "violated") != ("bug" in entry) or entry.get("bug", "") not in {"", *bug_ids}:
            raise Malformed(f"{where}: a violation, and only a violation, names its entry of bugs.toml")
        for tree, host in product(entry["trees"], entry["hosts"]):
            key = (entry["test"], tree, host)
            if key in seen:
                raise Malformed(f"{where}: {key} is argued twice")
            seen.add(key)
    return entries


def bug_ids() -> set[str]:
    """The ids of docs/bugs.toml."""
    return {bug["id"] for bug in tomllib.loads((ROOT / "docs" / "bugs.toml").read_text(encoding="utf-8"))["bug"]}


def table(entries: list[dict[str, Any]]) -> list[str]:
    """The verdicts, a line for each test and host."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        told = f"[{entry['verdict']}](bugs.md#{entry['bug']})" if "bug" in entry else str(entry["verdict"])
        for tree, host in product(entry["trees"], entry["hosts"]):
            rows.setdefault((entry["test"], host), {})[tree] = told
    head = ["| test | host | " + " | ".join(TREES) + " |", "|---" * (2 + len(TREES)) + "|"]
    cells = [(name, host, *(found.get(tree, "-") for tree in TREES)) for (name, host), found in rows.items()]
    return head + ["| " + " | ".join(row) + " |" for row in cells]


def render(entries: list[dict[str, Any]]) -> str:
    """verdicts.md."""
    parts = [HEAD, *table(entries)]
    for entry in entries:
        where = f"{' and '.join(entry['trees'])}, {' and '.join(entry['hosts'])}"
        parts.append(f"\n## {entry['test']}, {where}: {entry['verdict']}\n")
        parts.append(f"{entry['argument'].strip()}\n\n*Refuted by*: {entry['refute'].strip()}")
    return "\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check docs/verdicts.md."""
    try:
        made = render(load(SOURCE.read_text(encoding="utf-8"), bug_ids()))
    except Malformed as error:
        print(error, file=sys.stderr)
        return 1
    if "--check" not in arguments:
        TARGET.write_text(made, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == made:
        return 0
    print("docs/verdicts.md is not current; run python tools/verdicts.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
