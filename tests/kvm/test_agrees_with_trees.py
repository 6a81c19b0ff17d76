"""Our KVM and the tree of the same version hand over the same VMCB at every VMRUN and sleep of every shipped test."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.revisions import REVISIONS
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.tree import open_tree
from iretrace.litmus.corpus import shipped
from tests.kvm.lockstep import difference

KINDS = ("sev-es", "plain")
"""No processor with DebugSwap lacks virtual GIF."""


def differences(kind: str, kvm: BuiltinHypervisor, tree: TreeHypervisor) -> dict[str, str]:
    found = {test.name: difference(test, kind, kvm, tree) for test in shipped() if kind in test.vcpus}
    return {name: what for name, what in found.items() if what}


@pytest.mark.trees
@pytest.mark.slow
@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_hand_over_is_the_same_on_a_machine_without_vgif_and_nrips(
    revision: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """With both, tests/trees/test_agreement.py does more."""
    options = {"vgif": 0, "nrips": 0}
    root: Path = request.getfixturevalue("tree_" + revision.removeprefix("v").replace(".", "_"))
    tree = TreeHypervisor(open_tree(root), options=options, vcpu=kind)
    found = differences(kind, BuiltinHypervisor(revision, kind, options), tree)
    assert found == {}


def test_the_comparison_finds_what_two_revisions_do_differently() -> None:
    kinds = {"sev-es": ("v6.1", "v6.12"), "plain": ("v6.12", "v7.3")}
    for kind, (older, newer) in kinds.items():
        found = (
            difference(test, kind, BuiltinHypervisor(older, kind), BuiltinHypervisor(newer, kind))
            for test in shipped()
            if kind in test.vcpus
        )
        assert any(found)
