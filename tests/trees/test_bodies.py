"""Of a patch that changes functions only, few definitions are looked at again: the answer is as if all were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.cli.sources import AboutPatches, TreeSource
from iretrace.cli.stored import Stored, Used
from iretrace.linux.bodies import changed_bodies
from iretrace.linux.edits import SVM, Edit, make_patch
from iretrace.linux.tree import open_tree
from iretrace.litmus.corpus import select
from tests.trees.edits import (
    A_STRUCT,
    FIX_IN_A_NEW_FUNCTION,
    MORE_LINES,
    POINTLESS_SINGLE_STEP,
    QUEUE_OF_ONE,
    REQUEST_IF_PENDING,
)

pytestmark = [pytest.mark.trees, pytest.mark.slow]

UNUSED = (Edit(SVM, "svm_set_gif", "if (value)", "if (!!value)"),)


@pytest.fixture(scope="module")
def used(tree_6_12: Path) -> Sequence[Used]:
    """The definitions that three verdicts used, in parts."""
    source = TreeSource(tree_6_12)
    source.read()
    hypervisor = source.open("sev-es")
    parts: list[Used] = []
    for test in select(["nmi-complete-then-spin", "nmi-at-hlt", "vc-inside-nmi"]):
        check(test, "sev-es", "tickless", hypervisor)
        parts += source.used_by(hypervisor)
    return list({id(part): part for part in parts}.values())


@pytest.mark.parametrize(
    "edits", [REQUEST_IF_PENDING, POINTLESS_SINGLE_STEP, QUEUE_OF_ONE, FIX_IN_A_NEW_FUNCTION, MORE_LINES, UNUSED]
)
def test_few_definitions_tell_as_much_as_all(edits: Sequence[Edit], used: Sequence[Used], tree_6_12: Path) -> None:
    patch = "a.patch", make_patch(open_tree(tree_6_12), edits)
    looked: list[int] = []
    told = []
    for before in (False, True):
        source = TreeSource(tree_6_12).patched([patch])
        source.read()
        told.append([source.still_uses(part, before) for part in used])
        assert source._machine is not None
        looked.append(len(source._machine.index._parsed))
    assert told[0] == told[1]
    assert looked[1] < looked[0] / 3
    assert None in told[0] or edits in (MORE_LINES, UNUSED)


def test_a_header_that_comes_or_goes_has_all_looked_at(tree_6_12: Path) -> None:
    new = "--- /dev/null\n+++ b/arch/x86/kvm/svm/more.h\n@@ -0,0 +1 @@\n+extern int more;\n"
    assert changed_bodies(open_tree(tree_6_12, [("a.patch", new)])) is None


def test_what_was_known_of_another_tree_is_not_taken_for_this_one(used: Sequence[Used], tree_6_12: Path) -> None:
    """`before` is for definitions that the tree without patches has; a digest that is none of its own shows."""
    source = TreeSource(tree_6_12)
    assert not source.read_before({"Makefile": "0"})
    patched = source.patched([("a.patch", make_patch(open_tree(tree_6_12), UNUSED))])
    assert not patched.read_before({"Makefile": "0"})
    assert patched.read_before(source.tree.read_so_far())


NEW_CALL = (Edit(SVM, "nmi_interception", "return 1;", "kvm_make_request(KVM_REQ_EVENT, vcpu);\n\treturn 1;"),)
FEWER_CALLS = (Edit(SVM, "iret_interception", "svm_clr_iret_intercept(svm);", "(void)svm;"),)
NO_SUCH_CALL = (Edit(SVM, "nmi_interception", "return 1;", "kvm_make_no_request(vcpu);\n\treturn 1;"),)
"""What it calls has no definition."""


@pytest.fixture(scope="module")
def stored(tree_6_12: Path, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Where a patch that changes another function has left what the event path reaches."""
    stored = Stored(tmp_path_factory.mktemp("stored"))
    look(tree_6_12, UNUSED, stored)
    return stored


def test_the_tree_alone_leaves_as_much_behind(tree_6_12: Path, tmp_path: Path) -> None:
    tree = TreeSource(tree_6_12)
    tree.read()
    tree.look_ahead(Stored(tmp_path))
    patched, _ = look(tree_6_12, UNUSED, None)
    assert patched.is_quick(Stored(tmp_path))


def look(path: Path, edits: Sequence[Edit], stored: Stored | None) -> tuple[TreeSource, AboutPatches]:
    """A patched tree, and what is said of its patch."""
    source = TreeSource(path).patched([("a.patch", make_patch(open_tree(path), edits))])
    source.read()
    return source, source.about_patches(lambda _text: None, stored=stored)


@pytest.mark.parametrize(
    "edits",
    [
        REQUEST_IF_PENDING,
        POINTLESS_SINGLE_STEP,
        QUEUE_OF_ONE,
        FIX_IN_A_NEW_FUNCTION,
        MORE_LINES,
        UNUSED,
        NEW_CALL,
        FEWER_CALLS,
        NO_SUCH_CALL,
    ],
)
def test_what_is_known_of_the_tree_without_patches_tells_as_much_as_looking(
    edits: Sequence[Edit], stored: Stored, tree_6_12: Path
) -> None:
    (quick, told), (slow, told_anew) = (look(tree_6_12, edits, where) for where in (stored, None))
    assert quick.is_quick(stored)
    assert told == told_anew
    assert quick._closure(stored).functions == slow._closure(None).functions
    assert (told.rows != ()) == (edits is NO_SUCH_CALL)


def test_few_functions_are_looked_up_again(stored: Stored, tree_6_12: Path) -> None:
    looked = [look(tree_6_12, QUEUE_OF_ONE, where)[0]._machine for where in (stored, None)]
    few, all_of_them = (len(machine.index._functions) for machine in looked if machine is not None)
    assert few < all_of_them / 5


def test_a_patch_that_changes_more_than_functions_is_looked_at_as_a_whole(stored: Stored, tree_6_12: Path) -> None:
    source, about = look(tree_6_12, A_STRUCT, stored)
    assert not source.is_quick(stored)
    assert about.in_scope
