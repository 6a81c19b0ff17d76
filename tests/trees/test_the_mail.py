"""The bug of the mail of June 2023: there, fixed, and put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.litmus.corpus import select
from iretrace.verdict import CLine, Result, Step, Trace, Verdict
from iretrace.world.protocol import Hypervisor
from tests.trees.edits import FIX_ON_6_1, REVERT_ON_6_12, patched

pytestmark = pytest.mark.trees

DECLINING = {"svm_nmi_allowed", "svm_nmi_blocked", "kvm_check_and_inject_events"}
"""Where KVM examines a waiting NMI."""


def judge(hypervisor: Hypervisor, host: str) -> Result:
    (test,) = select(["nmi-complete-then-spin"])
    return check(test, "sev-es", host, hypervisor)


def trace_of(result: Result) -> Trace:
    assert result.verdict is Verdict.VIOLATED, result.reason
    assert result.trace is not None
    return result.trace


@pytest.fixture(scope="module")
def lasso(linux_6_1: TreeHypervisor) -> Trace:
    return trace_of(judge(linux_6_1, "tickless"))


@pytest.fixture(scope="module")
def reverted(tree_6_12: Path) -> TreeHypervisor:
    return TreeHypervisor(patched(tree_6_12, "revert.patch", REVERT_ON_6_12))


def completing(trace: Trace) -> list[CLine]:
    """The C lines that KVM executes from the last NMI_COMPLETE to the entry after it."""
    steps = trace.stem
    last = max(n for n, step in enumerate(steps) if step.actor == "guest" and "nmi_complete" in step.what)
    entry = next(n for n in range(last, len(steps)) if "VMRUN" in steps[n].what)
    return [line for step in steps[last : entry + 1] for line in step.executed]


def test_the_guest_spins_for_ever_while_kvm_holds_the_second_nmi(lasso: Trace) -> None:
    assert [(step.actor, step.what) for step in lasso.loop] == [("guest", "spins at main")]
    view = dict(lasso.loop[-1].view)
    assert (view["nmi_pending"], view["nmi_masked"], view["requests"], view["event_inj"]) == (1, 1, 0, 0)


def test_nmi_complete_is_handled_in_sev_c(lasso: Trace) -> None:
    lines = [line for line in completing(lasso) if line.function == "sev_handle_vmgexit"]
    assert any("SVM_EXIT_IRET" in line.text for line in lines)
    assert {line.path for line in lines} == {"arch/x86/kvm/svm/sev.c"}


def test_the_masked_nmi_is_examined_and_declined(lasso: Trace) -> None:
    assert lasso.cited is not None
    assert lasso.cited.path.endswith(".c")
    assert lasso.cited.function in DECLINING
    assert lasso.cited in completing(lasso)


def test_the_declining_comes_after_nmi_complete(lasso: Trace) -> None:
    functions = [line.function for line in completing(lasso)]
    assert functions.index("sev_handle_vmgexit") < functions.index("svm_nmi_allowed")


def test_a_ticking_host_delivers_the_nmi_late_but_delivers_it(linux_6_1: TreeHypervisor) -> None:
    assert judge(linux_6_1, "ticking").verdict is Verdict.HOLDS


@pytest.mark.parametrize("host", ["tickless", "ticking"])
def test_6_12_has_the_fix(linux_6_12: TreeHypervisor, host: str) -> None:
    assert judge(linux_6_12, host).verdict is Verdict.HOLDS


@pytest.fixture(scope="module")
def fixed(tree_6_1: Path) -> TreeHypervisor:
    return TreeHypervisor(patched(tree_6_1, "fix.patch", FIX_ON_6_1))


@pytest.mark.parametrize("host", ["tickless", "ticking"])
def test_the_fix_as_a_patch_repairs_6_1(fixed: TreeHypervisor, host: str) -> None:
    assert judge(fixed, host).verdict is Verdict.HOLDS


def test_6_12_with_the_fix_reverted_shows_the_same_lasso(reverted: TreeHypervisor, lasso: Trace) -> None:
    other = trace_of(judge(reverted, "tickless"))
    # KVM's own statements read differently in the two trees; what everybody else does is the same, step by step.
    assert [told(step) for step in other.stem if step.actor != "KVM"] == [
        told(step) for step in lasso.stem if step.actor != "KVM"
    ]
    assert [told(step) for step in other.loop] == [told(step) for step in lasso.loop]


def test_6_12_with_the_fix_reverted_holds_on_a_ticking_host(reverted: TreeHypervisor) -> None:
    assert judge(reverted, "ticking").verdict is Verdict.HOLDS


def told(step: Step) -> tuple[str, str]:
    """A step without C text, which differs from tree to tree."""
    if isinstance(step.where, CLine):
        return step.actor, step.what.partition(":")[0]
    return step.actor, step.what
