"""What VMRUN and #VMEXIT do to DR0-3, the masks and DEBUGCTL."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import (
    DB_VECTOR,
    DR6_BS,
    DR6_RESET,
    DR7_RESET,
    OP_JMP,
    OP_NOP,
    OP_SPIN,
    X86_EFLAGS_TF,
)
from iretrace.machine.swap import DebugState, lbr_virtualized, swap_in, swap_out
from tests.machine.rig import Rig, rig

GUESTS, HOSTS, AREAS = (11, 12, 13, 14), (21, 22, 23, 24), (31, 32, 33, 34)


def debug_state(base: tuple[int, ...], masks: int) -> DebugState:
    return DebugState(base[0], base[1], base[2], base[3], masks, masks + 1, masks + 2, masks + 3, 0x4AA, 0xFFFF_0FF1, 2)


def registers(on: Rig) -> tuple[int, ...]:
    return (on.cpu.dr0, on.cpu.dr1, on.cpu.dr2, on.cpu.dr3)


def addresses(state: DebugState) -> tuple[int, ...]:
    return (state.dr0, state.dr1, state.dr2, state.dr3)


def masks(state: DebugState) -> tuple[int, ...]:
    return (state.mask0, state.mask1, state.mask2, state.mask3)


@pytest.mark.parametrize("swapped", [False, True])
def test_vmrun_leaves_the_breakpoint_addresses_unless_they_are_swapped(swapped: bool) -> None:
    on = rig()
    on.cpu.dr0, on.cpu.dr1, on.cpu.dr2, on.cpu.dr3 = GUESTS
    on.cpu.debug_swap = int(swapped)
    swap_in(on.cpu, debug_state(HOSTS, 1), False)
    assert registers(on) == (GUESTS if swapped else HOSTS)


@pytest.mark.parametrize("sev_es", [False, True])
def test_without_debug_swap_the_guests_addresses_stay_in_the_processor(sev_es: bool) -> None:
    on = rig(sev_es=sev_es)
    on.cpu.dr0, on.cpu.dr1, on.cpu.dr2, on.cpu.dr3 = GUESTS
    physical = debug_state(HOSTS, 1)
    swap_out(on.m, on.cpu, physical, debug_state(AREAS, 5), False)
    assert (addresses(physical), masks(physical), registers(on)) == (GUESTS, (1, 2, 3, 4), (0, 0, 0, 0))
    assert physical.dr7 == (0x4AA if sev_es else DR7_RESET)
    assert physical.dr6 == (0xFFFF_0FF1 if sev_es else DR6_RESET)


def test_with_debug_swap_the_save_area_is_loaded_and_the_guest_keeps_its_own() -> None:
    on = rig(sev_es=True)
    on.cpu.dr0, on.cpu.dr1, on.cpu.dr2, on.cpu.dr3 = GUESTS
    on.cpu.debug_swap = 1
    physical = debug_state(HOSTS, 1)
    swap_out(on.m, on.cpu, physical, debug_state(AREAS, 5), False)
    assert (addresses(physical), masks(physical), registers(on)) == (AREAS, (5, 6, 7, 8), GUESTS)
    assert physical.dr7 == 0x4AA


def test_debugctl_is_the_hosts_unless_lbr_virtualization_switches_it() -> None:
    """APM vol. 2, Last Branch Record Virtualization."""
    on = rig()
    assert not lbr_virtualized(on.vmcb)
    on.vmcb.virt_ext = 3
    assert lbr_virtualized(on.vmcb)
    for switched in (False, True):
        physical = debug_state(HOSTS, 1)
        swap_in(on.cpu, physical, switched)
        assert on.cpu.debugctl == (0 if switched else 2)
        on.cpu.debugctl = 1
        swap_out(on.m, on.cpu, physical, debug_state(AREAS, 5), switched)
        assert (physical.debugctl, on.cpu.debugctl) == (2 if switched else 1, 0)


@pytest.mark.parametrize(("op", "traps"), [(OP_NOP, False), (OP_SPIN, True), ((OP_JMP, 5), True)])
def test_with_btf_only_branches_are_single_stepped(op: int | tuple[int, int], traps: bool) -> None:
    """APM vol. 2, Control-Transfer Breakpoint Feature."""
    on = rig(op)
    on.cpu.rflags |= X86_EFLAGS_TF
    on.cpu.debugctl = 2
    assert on.bare().cpu.trap == (DR6_BS if traps else 0)
    on = rig(op)
    on.cpu.rflags |= X86_EFLAGS_TF
    on.cpu.debugctl = 1
    assert on.bare().cpu.trap == DR6_BS
    on = rig(op)
    on.cpu.debugctl = 2
    assert on.bare().cpu.trap == 0


def test_a_debug_exception_ends_btf() -> None:
    """APM vol. 2, Control-Transfer Breakpoint Feature."""
    on = rig(OP_SPIN, handlers={DB_VECTOR: [OP_NOP]})
    on.cpu.rflags |= X86_EFLAGS_TF
    on.cpu.debugctl = 3
    assert on.bare(2).cpu.debugctl == 1
