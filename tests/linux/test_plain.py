"""A real tree that runs a plain guest: windows, interrupts, signals, exceptions; both kinds side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.machine import Machine
from iretrace.linux.tree import open_tree
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_IRET,
    INTERCEPT_STGI,
    INTERCEPT_VINTR,
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_TYPE_SOFT,
    SVM_EVTINJ_VALID,
    SVM_EXIT_CPUID,
    SVM_EXIT_EXCP_BASE,
    SVM_EXIT_HLT,
    SVM_EXIT_INTR,
    SVM_EXIT_IRET,
    SVM_EXIT_MSR,
    SVM_EXIT_NPF,
    SVM_EXIT_STGI,
    SVM_EXIT_VINTR,
    V_IRQ_MASK,
    Vmcb,
)
from iretrace.subset import unpack
from iretrace.verdict import InputError
from iretrace.world.protocol import NO_SENDER, Cause, Landing, Pause, PauseKind, SenderState, View

pytestmark = pytest.mark.trees

NMI = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_NMI
IRQ = SVM_EVTINJ_VALID | 0x30
TF, IF, RF = 0x100, 0x200, 0x10000
EINTR = 4
DB_VECTOR, UD_VECTOR = 1, 6


@dataclass
class Guest:
    """A guest on a tree: it exits by hand."""

    linux: TreeHypervisor
    pause: Pause

    @property
    def vmcb(self) -> Vmcb:
        """The VMCB at the last hand-over."""
        return unpack(Vmcb, self.pause.vmcb)

    @property
    def view(self) -> View:
        """The hypervisor's view at the last hand-over."""
        return self.linux.view(self.pause.private)

    def intercepts(self, number: int) -> bool:
        """Whether an instruction or event is intercepted."""
        words = (self.vmcb.intercept_word3, self.vmcb.intercept_word4)
        return bool(words[number // 32 - 3] >> number % 32 & 1)

    def send(self, kind: str) -> None:
        """An event arrives while the guest runs, sleeps, or is in userspace."""
        sender = self.linux.sender(kind)
        private = self.pause.private
        while sender is not NO_SENDER:
            sent = self.linux.send(private, sender)
            assert not sent.unmodelled
            private, sender = sent.private, sent.sender
        self.pause = self.pause._replace(private=private)

    def exits(self, code: int, cause: Cause = Cause.VMEXIT, **fields: int) -> Pause:
        """The guest leaves guest mode with `fields` in the VMCB, and KVM runs."""
        vmcb = self.vmcb
        vmcb.exit_code, vmcb.event_inj, vmcb.exit_int_info, vmcb.next_rip = code, 0, 0, 0
        for name, value in fields.items():
            setattr(vmcb, name, value)
        self.pause = self.linux.step(self.pause.private, vmcb, unpack(Ghcb, self.pause.ghcb), cause, (), ())
        assert not self.pause.unmodelled and not self.pause.defects
        return self.pause


@pytest.fixture(scope="module")
def plain_6_1(tree_6_1: Path) -> TreeHypervisor:
    return TreeHypervisor(open_tree(tree_6_1), vcpu="plain")


@pytest.fixture(scope="module")
def plain_6_12(tree_6_12: Path) -> TreeHypervisor:
    return TreeHypervisor(open_tree(tree_6_12), vcpu="plain")


@pytest.fixture(params=["6_1", "6_12"])
def guest(request: pytest.FixtureRequest) -> Guest:
    """A guest that has been entered once: at rip 1, interrupts enabled."""
    linux: TreeHypervisor = request.getfixturevalue(f"plain_{request.param}")
    made = Guest(linux, linux.start())
    made.exits(SVM_EXIT_INTR, rip=1, rsp=20, rflags=0x2 | IF)
    return made


def test_the_first_hand_over_enters_a_long_mode_guest_without_sev(guest: Guest) -> None:
    vmcb = unpack(Vmcb, guest.linux.start().vmcb)
    assert guest.linux.start().kind == PauseKind.ENTER
    assert vmcb.efer == EFER_SVME | 0xD01
    assert vmcb.vmsa_pa == 0 and vmcb.asid != 0


def test_registers_go_through_the_exit_unchanged(guest: Guest) -> None:
    assert (guest.vmcb.rip, guest.vmcb.rsp, guest.vmcb.rflags) == (1, 20, 0x2 | IF)


def test_an_injected_nmi_arms_the_iret_intercept(guest: Guest) -> None:
    guest.send("nmi")
    guest.exits(SVM_EXIT_INTR)
    assert guest.vmcb.event_inj & ~0xFF == NMI
    assert guest.view.nmi_masked and guest.intercepts(INTERCEPT_IRET)


def in_nmi_with_another_pending(guest: Guest) -> None:
    guest.send("nmi")
    guest.exits(SVM_EXIT_INTR)
    guest.send("nmi")
    guest.exits(SVM_EXIT_INTR, rip=40, rflags=0x2)


def test_iret_is_stepped_over_for_a_pending_nmi_and_the_debug_exception_injects_it(guest: Guest) -> None:
    in_nmi_with_another_pending(guest)
    guest.exits(SVM_EXIT_IRET, rip=41, next_rip=42)
    assert guest.vmcb.event_inj == 0 and guest.vmcb.rflags & TF and not guest.intercepts(INTERCEPT_IRET)
    guest.exits(SVM_EXIT_EXCP_BASE + DB_VECTOR, rip=1, rflags=0x2 | IF | TF | RF, dr6=0xFFFF4FF0)
    assert guest.vmcb.event_inj & ~0xFF == NMI
    assert guest.vmcb.rflags & (TF | RF) == 0


def test_an_irq_is_injected_once_and_stays_in_service(guest: Guest) -> None:
    guest.send("irq")
    guest.exits(SVM_EXIT_INTR)
    assert guest.vmcb.event_inj == IRQ
    guest.send("irq")
    guest.exits(SVM_EXIT_INTR, rip=50, rflags=0x2 | IF)
    assert guest.vmcb.event_inj == 0
    assert guest.view.irq_pending


def test_an_irq_waits_for_its_window_while_interrupts_are_disabled(guest: Guest) -> None:
    guest.send("irq")
    guest.exits(SVM_EXIT_INTR, rflags=0x2)
    assert guest.vmcb.event_inj == 0
    assert guest.intercepts(INTERCEPT_VINTR) and guest.vmcb.int_ctl & V_IRQ_MASK
    guest.exits(SVM_EXIT_VINTR, rflags=0x2 | IF)
    assert guest.vmcb.event_inj == IRQ
    assert not guest.intercepts(INTERCEPT_VINTR)


def test_a_signal_ends_kvm_run_once(guest: Guest) -> None:
    guest.send("signal")
    pause = guest.exits(SVM_EXIT_INTR)
    assert (pause.kind, pause.exit_reason) == (PauseKind.USERSPACE, -EINTR)
    assert guest.exits(SVM_EXIT_INTR, Cause.RERUN).kind == PauseKind.ENTER


def test_a_signal_wakes_a_halted_vcpu_which_halts_again(guest: Guest) -> None:
    assert guest.exits(SVM_EXIT_HLT, next_rip=2).kind == PauseKind.BLOCK
    assert not guest.linux.runnable(guest.pause.private)
    guest.send("signal")
    assert guest.linux.runnable(guest.pause.private)
    pause = guest.exits(SVM_EXIT_HLT, Cause.WAKE)
    assert (pause.kind, pause.exit_reason) == (PauseKind.USERSPACE, -EINTR)
    assert guest.exits(SVM_EXIT_HLT, Cause.RERUN).kind == PauseKind.BLOCK


def test_cpuid_is_skipped(guest: Guest) -> None:
    guest.exits(SVM_EXIT_CPUID, rip=3, next_rip=4)
    assert guest.vmcb.rip == 4


@pytest.mark.parametrize("code", [SVM_EXIT_STGI, SVM_EXIT_EXCP_BASE + UD_VECTOR])
def test_a_guest_without_svm_gets_ud(guest: Guest, code: int) -> None:
    guest.exits(code, rip=3, next_rip=4)
    assert guest.vmcb.event_inj == SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | UD_VECTOR
    assert guest.vmcb.rip == 3


def test_the_guests_own_debug_exception_is_given_back_with_its_dr6(guest: Guest) -> None:
    guest.exits(SVM_EXIT_EXCP_BASE + DB_VECTOR, rip=3, rflags=0x2 | TF, dr6=0xFFFF4FF0)
    assert guest.vmcb.event_inj == SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | DB_VECTOR
    assert guest.view.dr6_active == 0x4000


def test_a_software_interrupt_cut_off_by_a_page_fault_is_done_again_behind_its_instruction(guest: Guest) -> None:
    soft = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_SOFT | 0x20
    guest.exits(SVM_EXIT_NPF, rip=5, exit_info_1=6, exit_info_2=0x1000, exit_int_info=soft)
    assert guest.vmcb.event_inj == soft
    assert (guest.vmcb.rip, guest.vmcb.next_rip) == (5, 6)


def test_the_comparison_is_what_kvm_get_vcpu_events_says(guest: Guest) -> None:
    in_nmi_with_another_pending(guest)
    compared = guest.linux.compare(guest.pause.private)
    assert {("nmi.pending", 1), ("nmi.masked", 1)} <= set(compared.events)
    guest.send("nmi")
    assert guest.linux.compare(guest.pause.private).requests == {"NMI"}
    assert guest.linux.compare(guest.pause.private).nmi_queued == 1


def test_an_irq_can_land_where_kvm_searches_the_irr(guest: Guest) -> None:
    """Its first step is a look whether the local APIC is enabled, the second one sets the bit."""
    guest.send("irq")
    senders = (guest.linux.sender("irq"),)
    openings = step(guest, senders).openings
    assert {steps for _, _, steps in openings} >= {2, 3}


def step(guest: Guest, senders: tuple[SenderState, ...], schedule: tuple[Landing, ...] = ()) -> Pause:
    vmcb = guest.vmcb
    vmcb.exit_code, vmcb.event_inj = SVM_EXIT_INTR, 0
    return guest.linux.step(guest.pause.private, vmcb, Ghcb(), Cause.VMEXIT, senders, schedule)


def test_without_next_rip_instructions_are_decoded(tree_6_1: Path) -> None:
    linux = TreeHypervisor(open_tree(tree_6_1), options={"nrips": 0}, vcpu="plain")
    guest = Guest(linux, linux.start())
    guest.exits(SVM_EXIT_CPUID, rip=3, next_rip=4)
    assert guest.vmcb.rip == 4


def test_without_virtual_gif_stgi_is_intercepted(tree_6_1: Path) -> None:
    tree = open_tree(tree_6_1)
    without = TreeHypervisor(tree, options={"X86_FEATURE_VGIF": 0}, vcpu="plain")
    assert Guest(without, without.start()).intercepts(INTERCEPT_STGI)
    assert ("option", "X86_FEATURE_VGIF: 0") in [(a.kind, a.what) for a in without.assumptions()]


def test_both_kinds_share_a_machine_and_nothing_else(tree_6_1: Path) -> None:
    tree = open_tree(tree_6_1)
    machine = Machine(tree)
    alone = TreeHypervisor(tree, vcpu="plain").start()
    encrypted = TreeHypervisor(tree, machine=machine)
    before = encrypted.start().vmcb
    plain = TreeHypervisor(tree, machine=machine, vcpu="plain")
    assert plain.start().vmcb == alone.vmcb
    assert encrypted.start().vmcb == before
    assert not any("sev_info" in assumption.what for assumption in plain.assumptions())


def test_a_kind_without_a_first_state_is_refused(tree_6_1: Path) -> None:
    with pytest.raises(InputError, match="nested"):
        TreeHypervisor(open_tree(tree_6_1), vcpu="nested")


@pytest.mark.parametrize(("vcpu", "passes"), [("plain", 0), ("sev-es", 3)])
def test_the_permission_map_says_who_reaches_efer_without_an_exit(tree_6_12: Path, vcpu: str, passes: int) -> None:
    """sev_es_init_vmcb() lets an encrypted guest through; another one's accesses exit."""
    assert TreeHypervisor(open_tree(tree_6_12), vcpu=vcpu).start().efer_passes == passes


@pytest.mark.parametrize(("svm", "vector"), [(1, 0), (0, 13)])
def test_a_guest_may_set_svme_if_its_cpuid_has_svm(tree_6_12: Path, svm: int, vector: int) -> None:
    linux = TreeHypervisor(open_tree(tree_6_12), options={"guest_svm": svm}, vcpu="plain")
    guest = Guest(linux, linux.start())
    guest.exits(SVM_EXIT_MSR, rip=3, next_rip=4, exit_info_1=1, rax=0x1D01)
    assert (linux.view(guest.pause.private).svme, guest.vmcb.event_inj & 0xFF) == (svm, vector)
    assert linux.processor.guest_svm == bool(svm)


def test_the_permission_map_may_be_written_with_what_it_holds(tree_7_3: Path) -> None:
    """svm_recalc_msr_intercepts(), which a change of SVME has called, writes all of it again."""
    linux = TreeHypervisor(open_tree(tree_7_3), vcpu="plain")
    guest = Guest(linux, linux.start())
    guest.exits(SVM_EXIT_MSR, rip=3, next_rip=4, exit_info_1=1, rax=0x1D01)
    assert (guest.pause.unmodelled, guest.pause.efer_passes) == ("", 0)
    assert not guest.intercepts(INTERCEPT_STGI)


# Application processors. ----------------------------------------------------------------------------------------


def waiting_ap(linux: TreeHypervisor) -> Guest:
    """A vCPU that has taken an INIT and waits for a SIPI."""
    guest = Guest(linux, linux.start_ap())
    guest.send("init")
    guest.exits(SVM_EXIT_INTR)
    assert (guest.pause.kind, guest.view.mp_state) == (PauseKind.BLOCK, 2)
    return guest


def test_a_sipi_starts_an_application_processor_where_it_says(guest: Guest) -> None:
    guest = waiting_ap(guest.linux)
    guest.send("sipi")
    guest.exits(0, Cause.WAKE)
    assert (guest.pause.kind, guest.vmcb.rip, guest.pause.code_base) == (PauseKind.ENTER, 0, 0x9A000)
    guest.exits(SVM_EXIT_INTR)
    assert (guest.pause.kind, guest.pause.code_base) == (PauseKind.ENTER, 0)


def test_an_init_starts_the_bootstrap_processor_at_once(guest: Guest) -> None:
    guest = Guest(guest.linux, guest.linux.start())
    guest.send("init")
    guest.exits(SVM_EXIT_INTR)
    assert (guest.pause.kind, guest.vmcb.rip, guest.pause.code_base) == (PauseKind.ENTER, 0xFFF0, 0xFFFF_0000)


def test_a_thread_that_an_nmi_keeps_awake_goes_in_a_circle_until_a_sipi_comes(guest: Guest) -> None:
    guest = waiting_ap(guest.linux)
    guest.send("nmi")
    around: tuple[tuple[SenderState, ...], ...] = ((), (guest.linux.sender("sipi"),))
    pauses = [guest.linux.step(guest.pause.private, guest.vmcb, Ghcb(), Cause.WAKE, senders, ()) for senders in around]
    assert [(pause.kind, guest.linux.view(pause.private).mp_state) for pause in pauses] == [(PauseKind.LOOP, 2)] * 2
    openings = pauses[1].openings
    after = [
        guest.linux.step(guest.pause.private, guest.vmcb, Ghcb(), Cause.WAKE, around[1], (landing,))
        for landing in openings
        if landing[2] == max(opening[2] for opening in openings)
    ]
    assert after and all(pause.kind == PauseKind.ENTER and pause.code_base == 0x9A000 for pause in after)
