"""Debug registers of a tree at the protocol: who has them when, guest debugging, DebugSwap."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.tree import NothingInScope, open_tree
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import SVM_EXIT_EXCP_BASE, SVM_EXIT_INTR, Vmcb
from iretrace.subset import unpack
from iretrace.world.protocol import HOST_DEBUG, NO_SENDER, Cause, Debug, GuestDebug, Pause, PauseKind

pytestmark = pytest.mark.trees

Kvm = TreeHypervisor | BuiltinHypervisor

SERIES = ("tree_6_1", "tree_6_12", "tree_7_3")
SVM_EXIT_WRITE_DR0 = 0x30
ALL_DR = 0xFF00FF
"""What set_dr_intercepts() sets."""

GUESTS = Debug((0x11, 0x12, 0x13, 0x14), HOST_DEBUG.masks, 0x400)
DB_INTERCEPT = 1 << 1
SINGLE_STEP = GuestDebug(1 | 2)
EINTR, EINVAL = 4, 22
X86_EFLAGS_TF = 0x100
KVM_EXIT_DEBUG = 4


@cache
def _read(root: Path, vcpu: str) -> TreeHypervisor:
    return TreeHypervisor(open_tree(root), vcpu=vcpu)


def hypervisor(request: pytest.FixtureRequest, series: str, vcpu: str) -> TreeHypervisor:
    root: Path = request.getfixturevalue(series)
    return _read(root, vcpu)


def exits(kvm: Kvm, pause: Pause, code: int, debug: Debug, **fields: int) -> Pause:
    """The guest leaves with an exit code, and these registers in the CPU."""
    vmcb = unpack(Vmcb, pause.vmcb)
    vmcb.exit_code = code
    for name, value in fields.items():
        setattr(vmcb, name, value)
    after = kvm.step(pause.private, vmcb, unpack(Ghcb, pause.ghcb), Cause.VMEXIT, (), (), debug)
    assert after.unmodelled == ""
    return after


def in_userspace(kvm: Kvm) -> Pause:
    """KVM_RUN has returned because of a signal."""
    start = kvm.start()
    private, sender = start.private, kvm.sender("signal")
    while sender is not NO_SENDER:
        sent = kvm.send(private, sender)
        private, sender = sent.private, sent.sender
    vmcb = unpack(Vmcb, start.vmcb)
    vmcb.exit_code = SVM_EXIT_INTR
    after = kvm.step(private, vmcb, unpack(Ghcb, start.ghcb), Cause.VMEXIT, (), (), start.debug)
    assert (after.kind, after.exit_reason) == (PauseKind.USERSPACE, -EINTR)
    return after


def debugged(kvm: Kvm, at: Pause, wanted: GuestDebug) -> Pause:
    """KVM_SET_GUEST_DEBUG."""
    return kvm.set_guest_debug(at.private, unpack(Vmcb, at.vmcb), unpack(Ghcb, at.ghcb), wanted, at.debug)


def runs_again(kvm: Kvm, at: Pause) -> Pause:
    return kvm.step(at.private, unpack(Vmcb, at.vmcb), unpack(Ghcb, at.ghcb), Cause.RERUN, (), (), at.debug)


@pytest.mark.parametrize("series", SERIES)
def test_a_guest_gets_its_debug_registers_for_one_stay_in_guest_mode(
    request: pytest.FixtureRequest, series: str
) -> None:
    kvm = hypervisor(request, series, "plain")
    start = kvm.start()
    assert unpack(Vmcb, start.vmcb).intercept_dr == ALL_DR
    given = exits(kvm, start, SVM_EXIT_WRITE_DR0, start.debug._replace(dr7=0x400))
    assert unpack(Vmcb, given.vmcb).intercept_dr == 0
    assert given.debug.dr == (0, 0, 0, 0)  # the guest's, which it has not written yet
    assert given.host == HOST_DEBUG
    used = exits(kvm, given, SVM_EXIT_INTR, GUESTS, dr7=0x402)
    assert unpack(Vmcb, used.vmcb).intercept_dr == ALL_DR
    assert used.debug.dr == GUESTS.dr  # its breakpoint is enabled, so they are loaded again
    assert used.host == HOST_DEBUG


@pytest.mark.parametrize("series", SERIES)
def test_a_debugger_steps_a_guest_and_leaves(request: pytest.FixtureRequest, series: str) -> None:
    kvm = hypervisor(request, series, "plain")
    attached = debugged(kvm, in_userspace(kvm), SINGLE_STEP)
    assert (attached.exit_reason, unpack(Vmcb, attached.vmcb).rflags & X86_EFLAGS_TF) == (0, X86_EFLAGS_TF)
    stepping = runs_again(kvm, attached)
    assert (stepping.kind, kvm.view(stepping.private).guest_debug) == (PauseKind.ENTER, 3)
    stepped = exits(kvm, stepping, SVM_EXIT_EXCP_BASE + 1, stepping.debug, dr6=0xFFFF4FF0)
    assert (stepped.kind, stepped.exit_reason) == (PauseKind.USERSPACE, KVM_EXIT_DEBUG)
    left = debugged(kvm, stepped, GuestDebug(0))
    assert (left.exit_reason, unpack(Vmcb, left.vmcb).rflags & X86_EFLAGS_TF) == (0, 0)


@pytest.mark.parametrize("series", SERIES)
def test_a_debuggers_breakpoints_are_loaded_in_place_of_the_guests(request: pytest.FixtureRequest, series: str) -> None:
    kvm = hypervisor(request, series, "plain")
    entered = runs_again(kvm, debugged(kvm, in_userspace(kvm), GuestDebug(1 | 0x20000, (3, 0, 0, 0), 0x402)))
    assert (entered.debug.dr[0], unpack(Vmcb, entered.vmcb).dr7) == (3, 0x402)


@pytest.mark.parametrize("series", SERIES)
def test_a_protected_guest_is_not_debugged(request: pytest.FixtureRequest, series: str) -> None:
    kvm = hypervisor(request, series, "sev-es")
    refused = debugged(kvm, in_userspace(kvm), SINGLE_STEP)
    assert refused.exit_reason == -EINVAL
    assert kvm.view(refused.private).guest_debug == 0


@pytest.mark.parametrize(("series", "saved"), [("tree_6_12", HOST_DEBUG.dr), ("tree_7_3", (0, 0, 0, 0))])
def test_debug_swap_is_on_and_the_host_save_area_is_prepared(
    request: pytest.FixtureRequest, series: str, saved: tuple[int, int, int, int]
) -> None:
    """6.12 has the CPU restore the host's DR0-3, 7.3 restores them itself; the masks are the CPU's to restore."""
    start = hypervisor(request, series, "sev-es-debugswap").start()
    vmcb = unpack(Vmcb, start.vmcb)
    assert start.sev_features == 0x20
    assert (vmcb.intercept_dr, vmcb.intercept_exception & DB_INTERCEPT) == (0, 0)
    assert start.host_area == Debug(saved, HOST_DEBUG.masks, 0x400)


@pytest.mark.parametrize("series", ["tree_6_12", "tree_7_3"])
def test_debug_swap_is_refused_where_data_breakpoints_nest(request: pytest.FixtureRequest, series: str) -> None:
    with pytest.raises(NothingInScope, match="DebugSwap"):
        TreeHypervisor(
            open_tree(request.getfixturevalue(series)),
            options={"X86_FEATURE_NO_NESTED_DATA_BP": 0},
            vcpu="sev-es-debugswap",
        )


def test_linux_6_1_has_no_debug_swap(tree_6_1: Path) -> None:
    with pytest.raises(NothingInScope, match=r"6\.10"):
        TreeHypervisor(open_tree(tree_6_1), vcpu="sev-es-debugswap")


def test_allowed_sev_features_hold_the_guest_to_what_the_vmm_asked_for(tree_7_3: Path) -> None:
    options = {"X86_FEATURE_ALLOWED_SEV_FEATURES": 1}
    for vcpu, features in (("sev-es", 0), ("sev-es-debugswap", 0x20)):
        start = TreeHypervisor(open_tree(tree_7_3), options=options, vcpu=vcpu).start()
        assert unpack(Vmcb, start.vmcb).allowed_sev_features == 1 << 63 | features


# The built-in KVM does the same. -------------------------------------------------------------------------------------

REVISIONS = {"tree_6_1": "v6.1", "tree_6_12": "v6.12", "tree_7_3": "v7.3"}
BREAKPOINTS = GuestDebug(1 | 0x20000, (3, 4, 0, 0), 0x40A)
SVM_EXIT_READ_DR7, SVM_EXIT_WRITE_DR6 = 0x27, 0x36
SVM_EXIT_CPUID, SVM_EXIT_HLT = 0x72, 0x78
EXITS: tuple[tuple[int, dict[str, int]], ...] = (
    (SVM_EXIT_EXCP_BASE + 1, {"dr6": 0xFFFF4FF1}),
    (SVM_EXIT_WRITE_DR0, {"rax": 0x55}),
    (SVM_EXIT_WRITE_DR6, {"rax": 0x1_0000_0000}),
    (SVM_EXIT_READ_DR7, {}),
    (SVM_EXIT_CPUID, {"rax": 0}),
    (SVM_EXIT_CPUID, {"rflags": 0x102}),
    (SVM_EXIT_HLT, {"rflags": 0x302}),
    (SVM_EXIT_INTR, {"dr7": 0x2402, "dr6": 0xFFFF0FF1}),
)
"""Exit codes, and what else the guest leaves with."""


def after_each(kvm: Kvm, entered: Pause) -> list[Pause]:
    """What KVM does about every exit, and about every other one behind a first access of a debug register."""
    given = exits(kvm, entered, SVM_EXIT_WRITE_DR0, entered.debug, rip=7, next_rip=8, rax=3)
    pauses = [given]
    for start in (entered, given) if given.kind == PauseKind.ENTER else (entered,):
        for code, fields in EXITS:
            registers = GUESTS if start is given else entered.debug._replace(dr7=0x400)
            pauses.append(exits(kvm, start, code, registers, rip=7, next_rip=8, **fields))
    return pauses


def told(kvm: Kvm, pause: Pause) -> object:
    """What both sides must agree about, at a hand-over."""
    vmcb = unpack(Vmcb, pause.vmcb)
    fields = ("intercept_dr", "intercept_exception", "event_inj", "event_inj_err", "dr6", "dr7", "rflags", "rip", "rax")
    entered = pause.kind == PauseKind.ENTER
    view = kvm.view(pause.private)
    return (
        pause.kind,
        pause.exit_reason,
        pause.unmodelled,
        [(name, hex(getattr(vmcb, name))) for name in fields if entered],
        pause.debug,
        pause.host_area,
        pause.host,
        (view.guest_debug, view.switch_db_regs, view.dr6_active, view.exception_pending),
    )


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("wanted", [GuestDebug(0), SINGLE_STEP, BREAKPOINTS, GuestDebug(3 | 0x20000, (9, 0, 0, 0), 1)])
def test_the_builtin_kvm_has_the_same_debug_registers(
    request: pytest.FixtureRequest, series: str, wanted: GuestDebug
) -> None:
    both: list[list[object]] = []
    for kvm in (hypervisor(request, series, "plain"), BuiltinHypervisor(REVISIONS[series], "plain")):
        attached = debugged(kvm, in_userspace(kvm), wanted)
        entered = runs_again(kvm, attached)
        pauses = [attached, entered, *after_each(kvm, entered)]
        pauses += [debugged(kvm, pause, GuestDebug(0)) for pause in pauses if pause.kind == PauseKind.USERSPACE]
        both.append([told(kvm, pause) for pause in pauses])
    for mine, theirs in zip(*both, strict=True):
        assert mine == theirs


@pytest.mark.parametrize("series", SERIES[1:])
def test_the_builtin_kvm_prepares_the_host_save_area_alike(request: pytest.FixtureRequest, series: str) -> None:
    tree, builtin = (
        kvm.start()
        for kvm in (
            hypervisor(request, series, "sev-es-debugswap"),
            BuiltinHypervisor(REVISIONS[series], "sev-es-debugswap"),
        )
    )
    assert (tree.debug, tree.host_area, tree.sev_features) == (builtin.debug, builtin.host_area, builtin.sev_features)
