"""The built-in KVM and the tree whose revision it is do the same, on every shipped test, whatever arrives when.

Each test is compared on one of the three pairs, in turns; with IRETRACE_FULL=1 in the environment on all three.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.tree import open_tree
from iretrace.linux.vm import lacks
from iretrace.litmus import test as litmus_test
from iretrace.litmus.corpus import select, shipped
from iretrace.world.agreement import agree
from iretrace.world.protocol import ComparableHypervisor
from tests.turns import turn

pytestmark = [pytest.mark.trees, pytest.mark.slow]

PAIRS = {"v6.1": "6_1", "v6.12": "6_12", "v7.3": "7_3"}
KINDS = ("sev-es", "sev-es-vnmi", "sev-es-debugswap", "plain", "vnmi")

_ONE = None


def _told(
    kind: str, builtin: ComparableHypervisor, tree: ComparableHypervisor, test: litmus_test.Test
) -> tuple[str, str, int]:
    """(test, what differs or could not be compared, pairs of states looked at)."""
    found = agree(test, kind, test.hosts[0], builtin, tree)
    problems = [*map(str, found.differences), *_not_common(found.unmodelled)]
    problems += ["too many states"] if found.gave_up else []
    return test.name, "; ".join(problems), found.pairs


def _not_common(unmodelled: list[str]) -> list[str]:
    """What could not be compared, but for what has no contract on either side. Each says first which side it is."""
    reasons = [said.partition(": ")[2] for said in unmodelled]
    return [
        said
        for said, reason in zip(unmodelled, reasons, strict=True)
        if reasons.count(reason) < 2 or not reason.startswith("no contract: ")
    ]


def _work(test: litmus_test.Test) -> tuple[str, str, int]:
    assert _ONE is not None
    return _ONE(test)


def _turn(revision: str, kind: str) -> Sequence[litmus_test.Test]:
    """The tests of a kind whose turn it is on this pair, among those that have such vCPUs."""
    tests = [test for test in shipped() if kind in test.vcpus]
    pairs = [name for name in PAIRS if not lacks(name.removeprefix("v"), kind)]
    return turn(tests, pairs.index(revision), len(pairs))


def _differences(root: Path, revision: str, kind: str, tests: Sequence[litmus_test.Test]) -> dict[str, str]:
    """Tests that show a difference, and which. Workers inherit the tree that was read."""
    global _ONE
    _ONE = partial(_told, kind, BuiltinHypervisor(revision, kind), TreeHypervisor(open_tree(root), vcpu=kind))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        told = pool.map(_work, tests, chunksize=1)
    return {name: problem or f"only {pairs} states" for name, problem, pairs in told if problem or pairs < 4}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("revision", PAIRS)
def test_the_builtin_kvm_and_its_tree_agree(revision: str, kind: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(f"tree_{PAIRS[revision]}")
    if lacks(open_tree(root).version, kind):
        pytest.skip(f"{revision} has no {kind}")
    assert _differences(root, revision, kind, _turn(revision, kind)) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_every_test_has_its_turn(kind: str) -> None:
    having = [revision for revision in PAIRS if not lacks(revision.removeprefix("v"), kind)]
    turns = {test.name for revision in having for test in _turn(revision, kind)}
    assert turns == {test.name for test in shipped() if kind in test.vcpus}


def test_a_revision_does_not_agree_with_another_ones_tree(tree_6_12: Path) -> None:
    """6.1's built-in KVM against 6.12's tree: the search is able to see a difference."""
    tests = select(["nmi-complete-then-spin"])
    assert "nmi-complete-then-spin" in _differences(tree_6_12, "v6.1", "sev-es", tests)
