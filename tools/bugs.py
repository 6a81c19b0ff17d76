"""Makes docs/bugs.md from docs/bugs.toml. With --check it only compares: exit status 1 if bugs.md is not current."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs" / "bugs.toml"
TARGET = ROOT / "docs" / "bugs.md"
CORPUS = ROOT / "src" / "iretrace" / "litmus" / "corpus"

KEYS = {"id", "title", "trees", "description", "shown_by", "introduced", "fixed"}
OPTIONAL_KEYS = {"runs", "cannot_run", "shown_live", "objection", "upstream"}
TREE_KEYS = {"tree", "version", "state", "note"}
RUN_KEYS = {"kernel", "machine", "state", "command"}
RUN_STATES = {"confirmed", "absent", "refuted", "not seen"}
STATES = {"affected", "fixed", "not in scope"}
COMMIT_KEYS = {"commit", "subject", "version"}

HEAD = """\
# Bugs that Iretrace shows

Generated from bugs.toml; change that file, then run `python tools/bugs.py`. Each is a deviation of a real kernel
from the processor that it imitates. A listed bug stays a violation: `iretrace check` still ends with status 1.

Listed is not the same as important. Each entry names the strongest objection to it that is known here, and what
upstream has said of it where that is known: what is left as it is on purpose, or harms nobody, is listed as what it
is, because the guest can tell.
"""


class Malformed(Exception):
    """bugs.toml is not as it should be; the message names the entry and the mistake."""


def require(condition: bool, where: str, message: str) -> None:
    """Refuse an entry."""
    if not condition:
        raise Malformed(f"docs/bugs.toml: {where}: {message}")


def check_bug(bug: dict[str, Any], tests: set[str]) -> None:
    """Refuse an entry with missing or unknown keys, or that names a test that is not shipped."""
    where = str(bug.get("id", "an entry without id"))
    require(set(bug) - OPTIONAL_KEYS == KEYS, where, f"the keys are {', '.join(sorted(KEYS))}")
    require("runs" not in bug or "cannot_run" not in bug, where, "runs, and cannot_run: one of the two")
    for run in bug.get("runs", []):
        require(set(run) == RUN_KEYS, where, f"a run's keys are {', '.join(sorted(RUN_KEYS))}")
        require(run["state"] in RUN_STATES, where, f"a run's state is one of {', '.join(sorted(RUN_STATES))}")
        shown = [by["test"] for by in bug["shown_by"]] + bug.get("shown_live", [])
        require(
            any(run["command"].startswith(f"iretrace run {test} ") for test in shown),
            where,
            "a run's command is iretrace run TEST, TEST showing the bug",
        )
    require(bool(bug["trees"]), where, "no trees")
    for tree in bug["trees"]:
        require(set(tree) == TREE_KEYS, where, f"a tree's keys are {', '.join(sorted(TREE_KEYS))}")
        require(tree["state"] in STATES, where, f"a tree's state is one of {', '.join(sorted(STATES))}")
    for key in ("introduced", "fixed"):
        require(set(bug[key]) in (set(), COMMIT_KEYS), where, f"{key} has commit, subject and version, or nothing")
    require(bool(bug["shown_by"]), where, "no test shows it")
    for shown in bug["shown_by"]:
        require(set(shown) - {"option"} == {"test", "vcpu", "host"}, where, "shown_by has test, vcpu and host")
        require(shown["test"] in tests, where, f"{shown['test']} is no shipped test")


def load(text: str, tests: set[str]) -> list[dict[str, Any]]:
    """The entries, checked. tests: names of the shipped litmus tests."""
    bugs: list[dict[str, Any]] = tomllib.loads(text).get("bug", [])
    for bug in bugs:
        check_bug(bug, tests)
    ids = [bug["id"] for bug in bugs]
    for twice in {name for name in ids if ids.count(name) > 1}:
        raise Malformed(f"docs/bugs.toml: {twice}: listed twice")
    return bugs


def commit(entry: dict[str, str], otherwise: str) -> str:
    """A commit in one line, or what to say where none is listed."""
    return f'{entry["commit"]} ("{entry["subject"]}", {entry["version"]})' if entry else otherwise


def real(bug: dict[str, Any]) -> list[str]:
    """What `iretrace run` has made of it."""
    if "cannot_run" in bug:
        return [f"\nOn a real KVM: cannot be run here, {bug['cannot_run']}.\n"]
    if "runs" not in bug:
        return ["\nOn a real KVM: not run yet.\n"]
    rows = [f"| {r['kernel']} | {r['machine']} | {r['state']} | `{r['command']}` |\n" for r in bug["runs"]]
    return ["\n| real KVM of | on | | |\n|---|---|---|---|\n", *rows]


def seen(bug: dict[str, Any]) -> str:
    """What running it has shown, in a word."""
    states = {run["state"] for run in bug.get("runs", [])}
    return next((state for state in ("confirmed", "refuted", "not seen") if state in states), "not run")


def said(bug: dict[str, Any]) -> str:
    """Whether upstream knows of it, in a word."""
    if bug["fixed"]:
        return f"fixed in {bug['fixed']['version']}"
    if any(tree["state"] == "fixed" for tree in bug["trees"]):
        return "fixed"
    return "see below" if "upstream" in bug else ""


def index(bugs: list[dict[str, Any]]) -> str:
    """All entries as a table."""
    rows = ["\n| bug | affected | real KVM | upstream |\n|---|---|---|---|\n"]
    for bug in bugs:
        affected = [".".join(t["version"].split(".")[:2]) for t in bug["trees"] if t["state"] == "affected"]
        rows.append(f"| [{bug['id']}](#{bug['id']}) | {', '.join(affected)} | {seen(bug)} | {said(bug)} |\n")
    return "".join(rows)


def text(bug: dict[str, Any]) -> str:
    """The description, the objection and its answer, and what upstream has said."""
    told = str(bug["description"]).strip() + "\n"
    if "objection" in bug:
        told += f"\n**What speaks against it.** {bug['objection'].strip()}\n"
    if "upstream" in bug:
        told += f"\n**Upstream.** {bug['upstream'].strip()}\n"
    return told


def render(bugs: list[dict[str, Any]]) -> str:
    """The page."""
    parts = [HEAD, index(bugs)]
    for bug in bugs:
        parts.append(f'\n<a id="{bug["id"]}"></a>\n\n## {bug["title"]}\n\n`{bug["id"]}`\n\n{text(bug)}')
        fixed = any(tree["state"] == "fixed" for tree in bug["trees"])
        parts.append(f"\n- introduced: {commit(bug['introduced'], 'the commit is not known here')}\n")
        otherwise = "yes, the commit is not known here" if fixed else "not in the trees below"
        parts.append(f"- fixed upstream: {commit(bug['fixed'], otherwise)}\n")
        parts.append("\n| tree | version | | |\n|---|---|---|---|\n")
        parts += [f"| {t['tree']} | {t['version']} | {t['state']} | {t['note']} |\n" for t in bug["trees"]]
        parts += real(bug)
        parts.append("\nShown by:\n\n")
        parts += [
            f"    iretrace check TREE --test {s['test']} --vcpu {s['vcpu']} --host {s['host']}"
            + (f" --option {s['option']}\n" if "option" in s else "\n")
            for s in bug["shown_by"]
        ]
    return "".join(parts)


def main() -> int:
    """Command line entry."""
    try:
        page = render(load(SOURCE.read_text(encoding="utf-8"), {path.stem for path in CORPUS.glob("*.litmus")}))
    except (Malformed, tomllib.TOMLDecodeError) as error:
        print(error, file=sys.stderr)
        return 1
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(page, encoding="utf-8")
        return 0
    if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != page:
        print("docs/bugs.md is not what docs/bugs.toml makes it; run python tools/bugs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
