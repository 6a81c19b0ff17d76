"""Layouts against what real trees assert about their own structs: BUILD_BUG_ON(e) says that e is 0."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from iretrace.linux import ctree
from iretrace.linux.index import Index
from iretrace.linux.layout import Layout
from iretrace.linux.models.table import MODELS
from iretrace.linux.rules import load_rules
from iretrace.linux.text import text_of
from iretrace.linux.tree import open_tree
from iretrace.linux.unmodelled import Unmodelled
from iretrace.linux.walk import nodes

FILES = (
    "arch/x86/include/asm/svm.h", "arch/x86/kvm/svm/svm.c", "arch/x86/kvm/svm/sev.c", "arch/x86/kvm/svm/nested.c",
    "arch/x86/kvm/x86.c", "arch/x86/kvm/xen.c", "arch/x86/kvm/hyperv.c", "arch/x86/kvm/emulate.c",
    "arch/x86/kvm/smm.c", "virt/kvm/kvm_main.c",
)  # fmt: skip

SIZES = ("vmcb_save_area", "ghcb_save_area", "sev_es_save_area", "vmcb_control_area", "ghcb")
"""Structs whose size svm.h asserts."""

pytestmark = pytest.mark.trees


@dataclass(frozen=True)
class Assertion:
    """A BUILD_BUG_ON: where, the expression as text, and its value (None where it needs variables of its function)."""

    where: str
    text: str
    value: int | None


def assertions(layout: Layout, index: Index) -> Iterator[Assertion]:
    """What the functions of FILES assert."""
    for path in FILES:
        for name in index.functions_in(path):
            try:
                function = layout.function(name, path)
            except Unmodelled:
                continue
            for node in nodes(function):
                if isinstance(node, ctree.Call) and text_of(node.function) == "BUILD_BUG_ON":
                    yield Assertion(str(node.pos), text_of(node.args[0]), value_of(layout, node.args[0], path))


def value_of(layout: Layout, expr: ctree.Expr, path: str) -> int | None:
    """The value of a constant expression; None if it is none outside its function."""
    try:
        return layout.constant(expr, path)
    except Unmodelled:
        return None


@cache
def opened(path: Path) -> tuple[Layout, Index]:
    """The types of a tree, with BUILD_BUG_ON left as a call."""
    tree = open_tree(path)
    rules = load_rules(tree.version, [], MODELS)
    config = rules.config | {"CONFIG_KVM_XEN": "y", "CONFIG_KVM_HYPERV": "y", "CONFIG_KVM_SMM": "y"}
    index = Index(tree, config, {"BUILD_BUG_ON"})
    return Layout(index, rules.opaque_structs), index


def check(path: Path, least: int) -> None:
    """No assertion of a tree fails, and at least so many could be evaluated."""
    layout, index = opened(path)
    found = list(assertions(layout, index))
    assert not [a for a in found if a.value], "BUILD_BUG_ON holds an expression that must be 0"
    assert len([a for a in found if a.value == 0]) >= least


def test_what_6_1_asserts_about_its_structs_holds(tree_6_1: Path) -> None:
    check(tree_6_1, 150)


def test_what_6_12_asserts_about_its_structs_holds(tree_6_12: Path) -> None:
    check(tree_6_12, 160)


@pytest.mark.parametrize("tag", SIZES)
def test_areas_of_the_vmcb_have_the_size_that_6_12_expects(tree_6_12: Path, tag: str) -> None:
    sizes_are_as_expected(tree_6_12, tag)


@pytest.mark.parametrize("tag", SIZES)
def test_areas_of_the_vmcb_have_the_size_that_6_1_expects(tree_6_1: Path, tag: str) -> None:
    sizes_are_as_expected(tree_6_1, tag)


def test_what_7_3_asserts_about_its_structs_holds(tree_7_3: Path) -> None:
    check(tree_7_3, 160)


@pytest.mark.parametrize("tag", SIZES)
def test_areas_of_the_vmcb_have_the_size_that_7_3_expects(tree_7_3: Path, tag: str) -> None:
    sizes_are_as_expected(tree_7_3, tag)


def sizes_are_as_expected(path: Path, tag: str) -> None:
    """svm.h asserts the size of a struct, and it is the one that we compute; a size off by one would be noticed."""
    layout, _ = opened(path)
    function = layout.function("__unused_size_checks", FILES[0])
    comparisons = [n for n in nodes(function) if isinstance(n, ctree.Binary) and n.op == "!="]
    size = layout.struct_named("struct", tag).body.size
    expected = [layout.constant(c.right, FILES[0]) for c in comparisons if layout.constant(c.left, FILES[0]) == size]
    assert expected, f"no assertion about struct {tag}"
    assert set(expected) == {size}


def test_the_vcpu_is_the_first_member_of_vcpu_svm(tree_6_12: Path) -> None:
    layout, _ = opened(tree_6_12)
    assert layout.offset(layout.struct_named("struct", "vcpu_svm"), "vcpu") == 0


def test_reserved_members_of_the_save_areas_lie_where_their_names_say(tree_6_12: Path) -> None:
    layout, index = opened(tree_6_12)
    text = index.tree.text(FILES[0]) or ""
    named = re.findall(r"^\s*BUILD_BUG_RESERVED_OFFSET\((\w+), (0x\w+)\);", text, re.MULTILINE)
    assert len(named) > 20
    for tag, offset in named:
        assert layout.offset(layout.struct_named("struct", tag), f"reserved_{offset}") == int(offset, 16)
