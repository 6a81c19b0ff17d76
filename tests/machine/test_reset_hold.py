"""AP reset hold: what the guest does about an answer, and how INIT, SIPI and NMIs are taken in it."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import (
    KNOB_INIT_KEEPS_NMI_MASK,
    KNOB_INIT_WAITS_FOR_RESET_HOLD,
    NMI_VECTOR,
    OP_IRETQ,
    OP_LOOK_AT_HOLD,
    OP_NOP,
    OP_SPIN,
    OP_VMGEXIT,
    X86_EFLAGS_IF,
)
from iretrace.machine.ghcb import GHCB_MSR_AP_RESET_HOLD_REQ as REQUEST
from iretrace.machine.ghcb import GHCB_MSR_AP_RESET_HOLD_RESP as RESPONSE
from iretrace.machine.ghcb import SVM_VMGEXIT_AP_HLT_LOOP
from iretrace.machine.ghcb import VALID_SW_EXIT_INFO_2_HI as VALID
from iretrace.machine.reset_hold import (
    ASKS_AGAIN,
    HELD,
    begin_reset_hold,
    init_may_stray,
    lose_init,
    move_in_reset_hold,
    stop_for_init,
)
from iretrace.machine.smm import init_due, latch_init, latch_sipi, take_init
from iretrace.machine.vmcb import SVM_EXIT_VMGEXIT
from tests.machine.rig import HANDLER, Rig, rig

LOOK = 1
BEHIND = 2


def bench(sev_es: bool = True, knobs: int = 0, request: int = SVM_VMGEXIT_AP_HLT_LOOP) -> Rig:
    """An encrypted guest's application processor: the request, the look at its answer, and what comes behind."""
    program = ((OP_VMGEXIT, request), (OP_LOOK_AT_HOLD, request), OP_SPIN)
    made = rig(*program, handlers={NMI_VECTOR: [OP_NOP, OP_IRETQ]}, sev_es=sev_es, knobs=knobs)
    made.m.ap = 1
    return made


def held(knobs: int = 0) -> Rig:
    """The same in the hold."""
    on = bench(knobs=knobs)
    on.cpu.rip = LOOK
    begin_reset_hold(on.cpu)
    return on


def test_who_is_held_executes_nothing() -> None:
    on = held()
    on.cpu.rip = HANDLER
    assert on.bare().cpu.rip == HANDLER


@pytest.mark.parametrize(
    ("valid", "answer", "to"),
    [(VALID, 1, BEHIND), (VALID, 0, 0), (0, 1, 0), (~VALID, 1, 0)],
)
def test_the_guest_asks_again_unless_the_answer_is_valid_and_not_0(valid: int, answer: int, to: int) -> None:
    on = bench().enter()
    on.cpu.rip, on.cpu.rflags = LOOK, on.cpu.rflags | 1 << 16
    on.ghcb.valid_bitmap_hi, on.ghcb.sw_exit_info_2 = valid & (1 << 64) - 1, answer
    on.guest()
    assert (on.cpu.rip, on.cpu.held, on.cpu.rflags >> 16) == (to, 0, 0)


@pytest.mark.parametrize(
    ("answer", "to"), [(REQUEST, 0), (RESPONSE, 0), (RESPONSE | 1 << 12, BEHIND), (REQUEST | 1 << 12, 0)]
)
def test_a_guest_without_a_ghcb_asks_by_the_msr_and_looks_there(answer: int, to: int) -> None:
    on = bench(request=REQUEST).enter()
    on.vmcb.ghcb_gpa, on.ghcb.sw_exit_code, on.ghcb.sw_exit_info_2 = 0, 1, 1
    on.ghcb.valid_bitmap_hi = VALID
    on.guest()
    assert (on.cpu.guest_mode, on.vmcb.exit_code, on.vmcb.ghcb_gpa) == (0, SVM_EXIT_VMGEXIT, REQUEST)
    assert (on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (0, 0)
    assert (on.cpu.rip, on.ghcb.sw_exit_code) == (LOOK, 1)
    on.enter()
    on.vmcb.ghcb_gpa = answer
    assert on.guest().cpu.rip == to


def test_a_held_processor_executes_nothing_and_takes_no_sipi_without_an_init() -> None:
    on = held()
    latch_sipi(on.m, on.cpu)
    on.bare(3)
    assert (on.cpu.rip, on.cpu.held, on.cpu.sipi_latched, on.cpu.waits_for_sipi) == (LOOK, HELD, 0, 0)


def test_init_and_sipi_end_the_hold_and_leave_the_guest_as_it_is() -> None:
    on = held()
    on.cpu.rsp, on.cpu.rax, on.cpu.rflags, on.cpu.irr, on.cpu.isr = 20, 5, X86_EFLAGS_IF | 2, 1, 1
    latch_init(on.cpu)
    assert init_due(on.m, on.cpu)
    on.bare(2)
    assert (on.cpu.init_latched, on.cpu.waits_for_sipi, on.cpu.held, on.cpu.rip) == (0, 1, HELD, LOOK)
    latch_sipi(on.m, on.cpu)
    on.bare()
    assert (on.cpu.held, on.cpu.started, on.cpu.waits_for_sipi, on.cpu.rip) == (0, 1, 0, LOOK)
    on.bare()
    assert (on.cpu.started, on.cpu.rip) == (0, BEHIND)
    assert (on.cpu.rsp, on.cpu.rax, on.cpu.rflags, on.cpu.irr, on.cpu.isr) == (20, 5, X86_EFLAGS_IF | 2, 0, 0)


def test_an_nmi_takes_the_processor_out_of_the_hold_and_its_iret_back() -> None:
    on = held()
    on.cpu.nmi_latched = 1
    on.bare()
    assert (on.cpu.seen_vector, on.cpu.seen_rip, on.cpu.held, on.cpu.rip) == (NMI_VECTOR, LOOK, 0, HANDLER)
    on.bare(2)
    assert (on.cpu.rip, on.cpu.held) == (LOOK, 0)
    on.bare()
    assert (on.cpu.rip, on.cpu.held) == (LOOK, HELD)


def test_an_nmi_waits_while_the_processor_waits_for_the_sipi() -> None:
    on = held()
    latch_init(on.cpu)
    on.bare()
    on.cpu.nmi_latched = 1
    assert on.bare(2).cpu.nmi_latched == 1


def test_the_guest_may_be_found_between_two_requests_where_an_init_waits_for_the_second() -> None:
    on = held()
    move_in_reset_hold(on.cpu)
    assert (on.cpu.rip, on.cpu.held) == (0, ASKS_AGAIN)
    latch_init(on.cpu)
    assert init_due(on.m, on.cpu)
    take_init(on.m, on.cpu, on.vmcb)
    assert (on.cpu.rip, on.cpu.held, on.cpu.waits_for_sipi) == (LOOK, HELD, 1)
    move_in_reset_hold(on.cpu)
    move_in_reset_hold(on.cpu)
    assert (on.cpu.rip, on.cpu.held) == (LOOK, HELD)


@pytest.mark.parametrize("kept", [0, 1])
def test_init_keeps_nmis_masked_or_unmasks_them(kept: int) -> None:
    on = held(kept << KNOB_INIT_KEEPS_NMI_MASK)
    on.cpu.nmi_masked = 1
    latch_init(on.cpu)
    assert on.bare().cpu.nmi_masked == kept


def test_an_init_and_its_sipi_wait_for_the_hold() -> None:
    on = bench()
    latch_init(on.cpu)
    latch_sipi(on.m, on.cpu)
    assert not init_due(on.m, on.cpu)
    assert (on.cpu.init_latched, on.cpu.sipi_latched) == (1, 1)
    on.cpu.rip = LOOK
    on.bare(4)
    assert (on.cpu.rip, on.cpu.started, on.cpu.held) == (BEHIND, 0, 0)


def test_an_init_elsewhere_may_be_lost_or_stop_the_guest_unless_it_waits_for_the_hold() -> None:
    for on in (bench(), held(), bench(False), bench(knobs=1 << KNOB_INIT_WAITS_FOR_RESET_HOLD)):
        assert not init_may_stray(on.m, on.cpu)
        latch_init(on.cpu)
    on = bench()
    latch_init(on.cpu)
    assert init_may_stray(on.m, on.cpu)
    on.m.knobs = 1 << KNOB_INIT_WAITS_FOR_RESET_HOLD
    assert not init_may_stray(on.m, on.cpu)
    on.m.knobs = 0
    on.cpu.waits_for_sipi = 1
    assert not init_may_stray(on.m, on.cpu)
    on = held()
    latch_init(on.cpu)
    assert not init_may_stray(on.m, on.cpu)
    on = bench(False)
    latch_init(on.cpu)
    assert not init_may_stray(on.m, on.cpu)


def test_a_lost_init_takes_its_sipi_along() -> None:
    on = bench()
    latch_init(on.cpu)
    latch_sipi(on.m, on.cpu)
    lose_init(on.cpu)
    assert (on.cpu.init_latched, on.cpu.sipi_latched, on.cpu.waits_for_sipi) == (0, 0, 0)


def test_a_guest_that_an_init_has_stopped_goes_on_where_it_was() -> None:
    on = bench()
    latch_init(on.cpu)
    latch_sipi(on.m, on.cpu)
    stop_for_init(on.cpu)
    assert (on.cpu.init_latched, on.cpu.waits_for_sipi) == (0, 1)
    on.bare()
    assert (on.cpu.waits_for_sipi, on.cpu.held, on.cpu.started, on.cpu.rip) == (0, 0, 0, 0)
