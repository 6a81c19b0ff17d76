"""A guest with SVM that executes VMRUN: the tree's C runs up to where it would enter an L2, and is named there."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.tree import open_tree
from iretrace.litmus.parse import parse
from iretrace.verdict import Verdict
from tests.trees.edits import SVM
from tests.world.test_vmrun import ENTERS

pytestmark = pytest.mark.trees


@pytest.mark.parametrize(
    ("series", "kind"),
    [("tree_6_1", "plain"), ("tree_6_12", "plain"), ("tree_6_12", "vnmi"), ("tree_7_3", "plain"), ("tree_7_3", "vnmi")],
)
def test_an_l2_is_undetermined_and_the_call_that_leads_to_it_is_named(
    series: str, kind: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(series)
    tree = open_tree(path)
    lines = (tree.text(SVM) or "").split("\n")
    call = lines.index("\treturn nested_svm_vmrun(vcpu);") + 1
    result = check(parse(ENTERS, "t.litmus"), kind, "tickless", TreeHypervisor(tree, vcpu=kind))
    assert result.verdict is Verdict.UNDETERMINED
    assert result.reason.startswith(f"{SVM}:{call}: nested_svm_vmrun() is reached, which is outside of")
