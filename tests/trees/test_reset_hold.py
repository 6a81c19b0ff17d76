"""AP reset hold and the wait for a SIPI: what a small edit of a tree does to the verdicts of their tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.litmus.corpus import select
from iretrace.verdict import Result, Verdict
from tests.trees.edits import QUEUED_NMIS_ARE_NO_EVENT, SEV, X86, Edit, patched

pytestmark = [pytest.mark.trees, pytest.mark.slow]

SIPI_IS_NOT_TOLD = (Edit(SEV, "sev_vcpu_deliver_sipi_vector", "ghcb_set_sw_exit_info_2(svm->sev_es.ghcb, 1);", ";"),)
HOLD_IS_UNKNOWN = (Edit(X86, "vcpu_block", "case KVM_MP_STATE_AP_RESET_HOLD:", ""),)
EVENT_ENDS_THE_WAIT = (
    Edit(X86, "vcpu_block", "case KVM_MP_STATE_INIT_RECEIVED: break;", ""),
    Edit(X86, "vcpu_block", "case KVM_MP_STATE_HALTED:", "case KVM_MP_STATE_HALTED: case KVM_MP_STATE_INIT_RECEIVED:"),
)
SIPI_IS_OVERLOOKED = (
    Edit(
        X86,
        "vcpu_block",
        "if (kvm_apic_accept_events(vcpu) < 0)",
        "if (!kvm_test_request(KVM_REQ_NMI, vcpu) && kvm_apic_accept_events(vcpu) < 0)",
    ),
)


def judge(root: Path, changes: tuple[Edit, ...], name: str, kind: str) -> Result:
    (test,) = select([name])
    return check(test, kind, "tickless", TreeHypervisor(patched(root, "mutant.patch", list(changes)), vcpu=kind))


@pytest.mark.parametrize(
    ("changes", "name", "kind", "says"),
    [
        (SIPI_IS_NOT_TOLD, "reset-hold-ends-by-sipi", "sev-es", "waits for a SIPI for ever"),
        (QUEUED_NMIS_ARE_NO_EVENT, "nmi-in-reset-hold", "sev-es", "never comes"),
        (HOLD_IS_UNKNOWN, "nmi-in-reset-hold", "sev-es", "WARN"),
        (EVENT_ENDS_THE_WAIT, "nmi-and-no-sipi", "plain", "an NMI at init"),
        (SIPI_IS_OVERLOOKED, "nmi-while-it-waits-for-sipi", "plain", "waits for a SIPI for ever"),
    ],
)
def test_a_defect_put_into_the_tree_is_convicted(
    tree_6_1: Path, changes: tuple[Edit, ...], name: str, kind: str, says: str
) -> None:
    result = judge(tree_6_1, changes, name, kind)
    assert result.verdict is Verdict.VIOLATED
    assert says in result.reason


def test_a_hold_that_is_begun_whatever_waits_does_not_lose_the_sipi(tree_7_3: Path) -> None:
    """What docs/bugs.toml calls init-pending-ends-reset-hold is the look that __kvm_emulate_halt() takes."""
    look = "if (kvm_vcpu_has_events(vcpu) || vcpu->arch.pv.pv_unhalted)"
    only_halted = "if (state == KVM_MP_STATE_HALTED && (kvm_vcpu_has_events(vcpu) || vcpu->arch.pv.pv_unhalted))"
    change = (Edit(X86, "__kvm_emulate_halt", look, only_halted),)
    assert judge(tree_7_3, change, "reset-hold-ends-by-sipi", "sev-es").verdict is Verdict.HOLDS
