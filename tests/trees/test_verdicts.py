"""docs/verdicts.toml argues a verdict for every shipped test on both trees; here they are held against the trees."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.litmus.corpus import shipped
from tools.verdicts import SOURCE, bug_ids, load

ENTRIES = load(SOURCE.read_text(encoding="utf-8"), bug_ids())


def argued(tree: str) -> dict[tuple[str, str], str]:
    """(test, host) -> verdict, as argued for a tree."""
    return {(e["test"], e["host"]): e["verdict"] for e in ENTRIES if tree in e["trees"]}


@pytest.mark.parametrize("tree", ["6.1", "6.12"])
def test_every_shipped_test_is_argued(tree: str) -> None:
    wanted = {(test.name, host) for test in shipped() for host in test.hosts}
    assert wanted <= set(argued(tree))


@pytest.mark.trees
@pytest.mark.parametrize("tree", ["6.1", "6.12"])
def test_the_trees_give_the_argued_verdicts(tree: str, request: pytest.FixtureRequest) -> None:
    hypervisor: TreeHypervisor = request.getfixturevalue(f"linux_{tree.replace('.', '_')}")
    tests = {test.name: test for test in shipped()}
    wanted = argued(tree)
    found = {(name, host): str(check(tests[name], "sev-es", host, hypervisor).verdict) for name, host in wanted}
    assert found == wanted
