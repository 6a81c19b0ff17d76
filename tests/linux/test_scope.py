"""Which hunks change what is modelled: a small tree whose event path is one function and what it calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.linux.closure import Closure
from iretrace.linux.index import Index
from iretrace.linux.rules import load_rules
from iretrace.linux.scope import Scope, not_looked_at
from iretrace.linux.tree import open_tree
from tests.linux.mini import SVM, SVM_H, write_tree
from tests.linux.test_patch import make_diff

HEADER = """\
/* About it. */
#define MASK (BIT_OF_IT << 1)
#define BIT_OF_IT 4
#define SOMETHING_ELSE 5
enum { FIRST_OF_THEM,
       SECOND_OF_THEM };
struct vcpu {
	int pending;
	int unused;
};
"""

SOURCE = """\
#include "svm.h"
static int helper(struct vcpu *vcpu)
{
	return vcpu->pending & MASK;
}

int other(struct vcpu *vcpu)
{
	return vcpu->unused;
}

static int
root(struct vcpu *vcpu)
{
	return helper(vcpu) + SECOND_OF_THEM;
}

struct table ops = {
	.root = root,
};
"""

FILES = {SVM: SOURCE, SVM_H: HEADER, "arch/x86/kvm/vmx/vmx.c": "int pending;\n"}


def told(tmp_path: Path, path: str, old: str, new: str) -> list[str]:
    """What is said of a patch that replaces a text by another one."""
    root = write_tree(tmp_path, FILES)
    patch = make_diff(path, FILES[path], FILES[path].replace(old, new))
    tree = open_tree(root, [("a.patch", patch)])
    closure = Closure(Index(tree, {}), load_rules("6.1.0", [], {}), {}, ["root"])
    return not_looked_at(tree.record.touches, Scope(tree, closure))


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (SVM, "vcpu->pending &", "vcpu->pending |"),
        (SVM, "return helper(vcpu)", "return other(vcpu)"),
        (SVM, "	return helper(vcpu) + SECOND_OF_THEM;\n", "	return 1;\n"),
        (SVM, ".root = root", ".root = other"),
        (SVM_H, "BIT_OF_IT << 1", "BIT_OF_IT << 2"),
        (SVM_H, "BIT_OF_IT 4", "BIT_OF_IT 5"),
        (SVM_H, "FIRST_OF_THEM,", "FIRST_OF_THEM, NEW_ONE,"),
        (SVM_H, "int pending;", "bool pending;"),
    ],
)
def test_what_the_event_path_is_made_of_is_looked_at(tmp_path: Path, path: str, old: str, new: str) -> None:
    assert told(tmp_path, path, old, new) == []


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (SVM, "return vcpu->unused", "return vcpu->pending"),
        (SVM, "int other(", "int third(struct vcpu *vcpu)\n{\n	return vcpu->pending;\n}\n\nint other("),
        (SVM, "int other(struct vcpu *vcpu)\n{\n	return vcpu->unused;\n}\n\n", ""),
        (SVM, '#include "svm.h"', '#include "svm.h"\n#include "pending.h"'),
        (SVM_H, "SOMETHING_ELSE 5", "SOMETHING_ELSE 6"),
        (SVM_H, "About it", "About pending"),
        (SVM_H, "int unused;", "int unused;\n	int unused_too;"),
        ("arch/x86/kvm/vmx/vmx.c", "int pending", "long pending"),
    ],
)
def test_what_it_does_not_use_is_told_as_not_looked_at(tmp_path: Path, path: str, old: str, new: str) -> None:
    assert told(tmp_path, path, old, new) == [f"a.patch: {path}: hunk 1 not looked at: not modelled"]


def test_a_file_that_is_not_read_at_all_is_told(tmp_path: Path) -> None:
    patch = "".join(f"@@ -{line} +{line} @@\n-a\n+b\n" for line in (1, 9))
    root = write_tree(tmp_path, FILES)
    tree = open_tree(root, [("a.patch", f"--- a/Documentation/x.rst\n+++ b/Documentation/x.rst\n{patch}")])
    closure = Closure(Index(tree, {}), load_rules("6.1.0", [], {}), {}, ["root"])
    assert not_looked_at(tree.record.touches, Scope(tree, closure)) == [
        "a.patch: Documentation/x.rst: hunks 1, 2 not looked at: not modelled"
    ]
