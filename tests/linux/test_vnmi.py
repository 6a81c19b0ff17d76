"""Virtual NMIs on real trees: which have them, and what the first state and the view are."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.tree import NothingInScope, open_tree
from iretrace.linux.vm import lacks
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import (
    SVM_EXIT_INTR,
    V_NMI_BLOCKING_MASK,
    V_NMI_ENABLE_MASK,
    V_NMI_PENDING_MASK,
    Vmcb,
)
from iretrace.subset import unpack
from iretrace.world.protocol import NO_SENDER, Cause, PauseKind

pytestmark = pytest.mark.trees

KINDS = ("vnmi", "sev-es-vnmi")


@pytest.fixture(scope="module", params=KINDS)
def kvm(request: pytest.FixtureRequest, tree_6_12: Path) -> TreeHypervisor:
    return TreeHypervisor(open_tree(tree_6_12), vcpu=request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_linux_6_1_has_no_virtual_nmis(tree_6_1: Path, kind: str) -> None:
    with pytest.raises(NothingInScope, match=r"6\.4"):
        TreeHypervisor(open_tree(tree_6_1), vcpu=kind)


def test_which_versions_have_them_is_known_without_a_tree() -> None:
    assert {kind: (lacks("6.3", kind) != "", lacks("6.4", kind)) for kind in KINDS} == dict.fromkeys(KINDS, (True, ""))
    assert lacks("6.1", "plain") == ""


@pytest.mark.parametrize("option", ["vgif", "X86_FEATURE_VGIF", "X86_FEATURE_VNMI"])
def test_kvm_turns_them_off_without_what_they_need(tree_6_12: Path, option: str) -> None:
    with pytest.raises(NothingInScope, match="KVM turns virtual NMIs off"):
        TreeHypervisor(open_tree(tree_6_12), options={option: 0}, vcpu="vnmi")


def test_init_vmcb_turns_them_on(kvm: TreeHypervisor) -> None:
    assert unpack(Vmcb, kvm.start().vmcb).int_ctl & V_NMI_ENABLE_MASK


@pytest.mark.parametrize("kind", ["plain", "sev-es"])
def test_other_kinds_have_none(tree_6_12: Path, kind: str) -> None:
    assert not unpack(Vmcb, TreeHypervisor(open_tree(tree_6_12), vcpu=kind).start().vmcb).int_ctl & V_NMI_ENABLE_MASK


def test_an_nmi_goes_to_the_vmcb_and_the_view_counts_it_there(kvm: TreeHypervisor) -> None:
    start = kvm.start()
    private, sender = start.private, kvm.sender("nmi")
    while sender is not NO_SENDER:
        sent = kvm.send(private, sender)
        private, sender = sent.private, sent.sender
    vmcb = unpack(Vmcb, start.vmcb)
    vmcb.exit_code = SVM_EXIT_INTR
    pause = kvm.step(private, vmcb, unpack(Ghcb, start.ghcb), Cause.VMEXIT, (), ())
    entered = unpack(Vmcb, pause.vmcb)
    assert (pause.kind, entered.event_inj) == (PauseKind.ENTER, 0)
    assert entered.int_ctl & (V_NMI_PENDING_MASK | V_NMI_BLOCKING_MASK) == V_NMI_PENDING_MASK
    view = kvm.view(pause.private)
    assert (view.nmi_pending, view.nmi_masked) == (1, 0)
    assert dict(kvm.compare(pause.private).events)["nmi.pending"] == 1
