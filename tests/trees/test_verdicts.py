"""docs/verdicts.toml argues a verdict for every shipped test on each tree; here they are held against the trees.

On a ticking host each test is run on one of the three trees, in turns; with IRETRACE_FULL=1 in the environment on all.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.cli.driver import Request, run, source_of
from iretrace.litmus.corpus import shipped
from tests.turns import turn
from tools.verdicts import SOURCE, TARGET, Malformed, bug_ids, load, render

HOSTS = ("tickless", "ticking")
TREES = ("6.1", "6.12", "7.3")

LACKS = {"6.1": ("sev-es-debugswap", "sev-es-vnmi", "vnmi")}
"""Series -> vCPU kinds that it does not have."""

TEXT = SOURCE.read_text(encoding="utf-8")
ENTRIES = load(TEXT, bug_ids())

NUMBERS = {test.name: number for number, test in enumerate(shipped())}

Argued = dict[tuple[str, str], tuple[str, str]]
"""(test, host) -> (verdict, entry of bugs.toml for a violation)."""


def argued(tree: str) -> Argued:
    entries = [e for e in ENTRIES if tree in e["trees"]]
    return {(e["test"], host): (e["verdict"], e.get("bug", "")) for e in entries for host in e["hosts"]}


def due(tree: str, host: str) -> Argued:
    """What is argued of a tree and a host, as far as it is its turn."""
    of_host = {key: value for key, value in argued(tree).items() if key[1] == host}
    if host == "tickless":
        return of_host
    found = {}
    for key, value in of_host.items():
        having = [other for other in TREES if key in argued(other)]
        if tree in turn(having, NUMBERS[key[0]] % len(having), len(having)):
            found[key] = value
    return found


@pytest.mark.parametrize("tree", TREES)
def test_every_shipped_test_is_argued_for_its_hosts(tree: str) -> None:
    tests = [test for test in shipped() if set(test.vcpus) - set(LACKS.get(tree, ()))]
    assert set(argued(tree)) >= {(test.name, host) for test in tests for host in test.hosts}
    assert {name for name, _host in argued(tree)} == {test.name for test in tests}


@pytest.mark.trees
@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("tree", TREES)
def test_the_trees_give_the_argued_verdicts(tree: str, host: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(f"tree_{tree.replace('.', '_')}")
    expected = due(tree, host)
    tests = [test for test in shipped() if (test.name, host) in expected]
    wanted = Request(root, tests, hosts=[host], jobs=2)
    results = run(wanted, source_of(wanted), lambda _text: None).results
    assert {(r.test, r.host): (str(r.verdict), r.known) for r in results} == expected


def test_every_verdict_on_a_ticking_host_has_its_turn() -> None:
    wanted = {key for tree in TREES for key in argued(tree) if key[1] == "ticking"}
    assert {key for tree in TREES for key in due(tree, "ticking")} == wanted


def test_the_page_is_what_the_list_makes_it() -> None:
    assert TARGET.read_text(encoding="utf-8") == render(ENTRIES)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('bug = "nmi-complete-defers-unmasking"\n', "", "only a violation, names"),
        ('bug = "nmi-complete-defers-unmasking"', 'bug = "no-such-bug"', "names its entry"),
        ('verdict = "holds"', 'verdict = "passes"', "the keys are"),
        ('hosts = ["ticking"]', 'hosts = ["tickless"]', "argued twice"),
        ("refute = ", "refutation = ", "the keys are"),
    ],
)
def test_an_entry_that_is_not_complete_is_refused(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(Malformed, match=message):
        load(TEXT.replace(old, new, 1), bug_ids())
