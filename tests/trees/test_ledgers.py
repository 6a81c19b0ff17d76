"""What a verdict rests on does not depend on what its hypervisor has been asked before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iretrace.check import check
from iretrace.cli.sources import TreeSource
from iretrace.litmus.corpus import select

pytestmark = [pytest.mark.trees, pytest.mark.slow]

TESTS = {
    "sev-es": ("nmi-at-hlt", "three-nmis", "sev-es-irq-on-cold-stack", "debugger-is-refused"),
    "plain": ("smi-and-nmi", "debugger-steps", "nmi-ends-hlt", "syscall-and-nmi", "init-in-smm", "ud2-and-nmi"),
}


def verdicts(root: Path, vcpu: str, names: Sequence[str]) -> dict[str, Any]:
    """Of one hypervisor, in this order: the result, and the definitions that it used."""
    source = TreeSource(root)
    source.read()
    hypervisor = source.open(vcpu)
    found = {}
    for name in names:
        (test,) = select([name])
        result = check(test, vcpu, "tickless", hypervisor)
        used = {query: found for part in source.used_by(hypervisor) for query, found in part.items()}
        found[name] = replace(result, seconds=0), used
    return found


@pytest.mark.parametrize("vcpu", sorted(TESTS))
def test_a_verdict_is_the_same_alone_and_behind_others_with_all_that_it_rests_on(vcpu: str, tree_6_12: Path) -> None:
    together = verdicts(tree_6_12, vcpu, TESTS[vcpu])
    backwards = verdicts(tree_6_12, vcpu, TESTS[vcpu][::-1])
    assert backwards == together
    for name in TESTS[vcpu]:
        assert verdicts(tree_6_12, vcpu, [name]) == {name: together[name]}
