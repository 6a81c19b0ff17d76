"""Kernels at both ends: 5.10 has nothing that is checked here, and a series that touches more than KVM applies."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.cli.main import Status, main
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.tree import NothingInScope, open_tree
from tests.trees.edits import SVM, Edit, patched

GUARDS = """\
	guard(mutex)(&vcpu->kvm->lock);
	guard(raw_spinlock_irqsave)(&svm->ir_list_lock);
	guard(srcu)(&vcpu->kvm->srcu);
	void *page __free(kfree) = kzalloc(8, GFP_KERNEL);
	scoped_guard(rcu) {
		if (!page)
			return;
	}
"""
FIRST = "svm_set_intercept(svm, INTERCEPT_CR0_READ);"

pytestmark = pytest.mark.trees


def test_5_10_is_out_of_scope_and_no_pass(tree_5_10: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tree_5_10)]) == Status.NOTHING_IN_SCOPE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"iretrace: {tree_5_10}: Linux 5.10.")
    assert shown.err.endswith("cannot host SEV-ES guests (5.11 and later can)\n")


def test_a_patch_does_not_bring_5_10_into_scope(tree_5_10: Path) -> None:
    comment = "--- /dev/null\n+++ b/arch/x86/kvm/svm/new.h\n@@ -0,0 +1 @@\n+/* nothing */\n"
    with pytest.raises(NothingInScope):
        open_tree(tree_5_10, [("a.patch", comment)])


def test_7_3_runs_to_its_first_vmrun(linux_7_3: TreeHypervisor) -> None:
    pause = linux_7_3.start()
    assert pause.unmodelled == ""
    assert pause.defects == ()
    assert linux_7_3.name.startswith("Linux 7.3.")


@pytest.mark.parametrize("series", ["tree_6_12", "tree_7_3"])
def test_guards_run_as_the_tree_defines_them(series: str, request: pytest.FixtureRequest) -> None:
    """Constructors and destructors come out of macros; they run from source, down to locks that rules answer."""
    edit = Edit(SVM, "init_vmcb", FIRST, GUARDS + FIRST)
    hypervisor = TreeHypervisor(patched(request.getfixturevalue(series), "guards.patch", (edit,)))
    assert hypervisor.start().unmodelled == ""
    used = {assumption.what.partition(":")[0] for assumption in hypervisor.assumptions()}
    assert {"mutex_unlock", "_raw_spin_unlock_irqrestore", "srcu_read_unlock", "kfree", "rcu_read_unlock"} <= used
