"""A point release that nobody looked at while this was made is read and judged without a change to the code.

Every fourth test, and with IRETRACE_FULL=1 in the environment all.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iretrace.cli.driver import Request, run, source_of
from iretrace.linux.tree import tree_version
from iretrace.litmus.corpus import shipped
from iretrace.verdict import InputError
from tests.turns import turn
from tools.verdicts import SOURCE, bug_ids, load

SLOW = {"three-nmis", "three-nmis-one-latch"}
"""Judged on the newest trees only (test_verdicts.py)."""


def oldest(series: str, newest: Path) -> Path:
    """The oldest tree of a series in IRETRACE_TREES that is not the newest; skip if there is none."""
    trees = Path(os.environ["IRETRACE_TREES"])
    found: dict[int, Path] = {}
    for path in trees.iterdir():
        try:
            version = tree_version(path)
        except InputError:
            continue
        if version.startswith(series + ".") and path != newest:
            found[int(version.rpartition(".")[2])] = path
    if not found:
        pytest.skip(f"no second Linux {series} in {trees}")
    return found[min(found)]


@pytest.mark.trees
@pytest.mark.slow
@pytest.mark.parametrize("host", ["tickless", "ticking"])
def test_an_older_6_1_gets_the_verdicts_of_the_newest(tree_6_1: Path, host: str) -> None:
    entries = load(SOURCE.read_text(encoding="utf-8"), bug_ids())
    entries = [e for e in entries if "6.1" in e["trees"] and e["test"] not in SLOW]
    argued = {(e["test"], host): e["verdict"] for e in entries for host in e["hosts"]}
    tests = turn([test for test in shipped() if (test.name, host) in argued], 0, 4)
    argued = {(test.name, host): argued[test.name, host] for test in tests}
    wanted = Request(oldest("6.1", tree_6_1), tests, hosts=[host], jobs=2)
    found = {(r.test, r.host): str(r.verdict) for r in run(wanted, source_of(wanted), lambda _text: None).results}
    assert found == argued
