"""EFER.SVME and the global interrupt flag, on the machine alone and in a guest."""

from __future__ import annotations

import pytest

from iretrace.machine.boundary import latch_irq
from iretrace.machine.cpu import (
    DB_VECTOR,
    DR6_B_MASK,
    DR6_BS,
    EFER_BOOTED,
    EFER_LMA,
    EFER_LME,
    EFER_SCE,
    GP_VECTOR,
    KNOB_EFER_LMA_IS_CHECKED,
    KNOB_SEV_ES_GUEST_READS_SVME,
    KNOB_VGIF_DISCARDS_BREAKPOINTS,
    NMI_VECTOR,
    OP_CLGI,
    OP_IRETQ,
    OP_MOV_RAX,
    OP_NOP,
    OP_PUSH,
    OP_RDMSR,
    OP_SPIN,
    OP_STGI,
    OP_UD2,
    OP_VMRUN,
    OP_WRMSR,
    STACK_WORDS,
    UD_VECTOR,
    VC_VECTOR,
    X86_EFLAGS_TF,
)
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_MSR_PROT,
    SVM_EXIT_EFER_WRITE_TRAP,
    SVM_EXIT_MSR,
    SVM_EXIT_VMRUN,
    TRAP_EFER_WRITE,
    V_GIF_ENABLE_MASK,
    V_GIF_MASK,
)
from tests.machine.rig import HANDLER, Handlers, Rig, rig

EVENTS: Handlers = {NMI_VECTOR: [OP_IRETQ], IRQ_VECTOR: [OP_IRETQ], DB_VECTOR: [OP_IRETQ], UD_VECTOR: [OP_SPIN]}
WATCH_WRITES = 1 | 0x9 << 16
"""DR7: breakpoint 0, on writes of 8 bytes."""


def with_svm(*main: int | tuple[int, int], knobs: int = 0) -> Rig:
    """A machine whose EFER.SVME is set, with interrupts on."""
    on = rig(*main, handlers=EVENTS, interrupts=True, knobs=knobs)
    on.cpu.efer |= EFER_SVME
    return on


# GIF on the machine alone. -----------------------------------------------------------------------------------------


def test_clgi_holds_an_nmi_until_stgi() -> None:
    """APM vol. 2, Global Interrupt Flag."""
    on = with_svm(OP_CLGI, OP_NOP, OP_STGI, OP_SPIN).bare()
    on.nmi().bare()
    assert (on.delivered(), on.cpu.rip) == (-1, 2)
    on.bare(2)
    assert (on.delivered(), on.frame()[0], on.cpu.gif) == (NMI_VECTOR, 3, 1)


def test_clgi_holds_an_interrupt_until_stgi() -> None:
    """APM vol. 2, Global Interrupt Flag."""
    on = with_svm(OP_CLGI, OP_NOP, OP_STGI, OP_SPIN).bare()
    latch_irq(on.cpu)
    assert on.bare().delivered() == -1
    assert on.bare(2).delivered() == IRQ_VECTOR


def test_behind_stgi_the_nmi_goes_first() -> None:
    """APM vol. 2, Priorities: what was held is taken in order of priority, not of arrival."""
    on = with_svm(OP_CLGI, OP_STGI, OP_SPIN).bare()
    latch_irq(on.cpu)
    on.nmi().bare(2)
    assert (on.delivered(), on.frame()[0]) == (NMI_VECTOR, 2)
    assert on.bare(2).delivered() == IRQ_VECTOR


@pytest.mark.parametrize("op", [OP_CLGI, OP_STGI])
def test_gif_instructions_are_ud_without_svme(op: int) -> None:
    """APM vol. 2, Enabling SVM. (STGI would work with SKINIT, which no guest here has.)"""
    on = rig(op, handlers=EVENTS).bare()
    assert (on.delivered(), on.cpu.gif) == (UD_VECTOR, 1)


def test_vmrun_is_ud_without_svme() -> None:
    """APM vol. 2, Enabling SVM."""
    on = rig(OP_NOP, OP_VMRUN, handlers=EVENTS).bare(2)
    assert (on.delivered(), on.frame()[0], on.cpu.seen_error, on.cpu.door) == (UD_VECTOR, 1, 0, 0)


def test_vmrun_with_svme_is_a_door_and_does_nothing() -> None:
    """APM vol. 2, VMRUN Instruction: the guest that it would enter is not modelled."""
    on = with_svm(OP_NOP, OP_VMRUN, OP_SPIN).bare(2)
    assert (on.delivered(), on.cpu.rip, on.cpu.door) == (-1, 1, SVM_EXIT_VMRUN)


@pytest.mark.parametrize("svme", [0, EFER_SVME])
def test_vmrun_exits_in_any_guest(svme: int) -> None:
    """APM vol. 2, VMRUN Instruction: a VMCB without the intercept of VMRUN is not legal; the processor has SVME set."""
    on = rig(OP_NOP, OP_VMRUN, OP_SPIN, handlers=EVENTS)
    on.cpu.efer |= svme
    on.enter().guest(2)
    assert (on.vmcb.exit_code, on.vmcb.rip, on.vmcb.next_rip) == (SVM_EXIT_VMRUN, 1, 2)
    assert (on.cpu.guest_mode, on.cpu.door, on.delivered()) == (0, 0, -1)


@pytest.mark.parametrize("guest", [False, True])
def test_an_encrypted_guests_vmrun_is_vc(guest: bool) -> None:
    """APM vol. 2, Types of Exits (SEV-ES): not an automatic exit."""
    on = rig(OP_VMRUN, handlers={VC_VECTOR: [OP_SPIN]}, sev_es=True)
    on = on.enter().guest() if guest else on.bare()
    assert (on.cpu.rip, on.cpu.memory[on.cpu.rsp], on.cpu.door) == (HANDLER, SVM_EXIT_VMRUN, 0)


def test_gif_does_not_hold_a_single_step() -> None:
    """APM vol. 2, Global Interrupt Flag: trace traps are not affected."""
    on = with_svm(OP_CLGI, OP_NOP, OP_SPIN)
    on.cpu.rflags |= X86_EFLAGS_TF
    on.bare()
    assert on.cpu.trap == DR6_BS
    assert on.bare().delivered() == DB_VECTOR


@pytest.mark.parametrize(("first", "bits"), [(OP_NOP, 1), (OP_CLGI, 0)])
def test_gif_discards_the_trap_of_a_data_breakpoint(first: int, bits: int) -> None:
    """APM vol. 2, Global Interrupt Flag: #DB of a breakpoint register is discarded, not held."""
    on = with_svm(first, OP_PUSH, OP_STGI, OP_SPIN)
    on.cpu.dr0, on.cpu.dr7 = STACK_WORDS - 1, WATCH_WRITES
    on.bare(2)
    assert on.cpu.trap == bits
    if not bits:
        assert on.bare(2).delivered() == -1


@pytest.mark.parametrize(("first", "vector"), [(OP_NOP, DB_VECTOR), (OP_CLGI, -1)])
def test_gif_discards_an_instruction_breakpoint(first: int, vector: int) -> None:
    """APM vol. 2, Global Interrupt Flag."""
    on = with_svm(first, OP_NOP, OP_SPIN)
    on.cpu.dr0, on.cpu.dr7 = 1, 1
    assert on.bare(2).delivered() == vector
    assert on.cpu.rip == (2 if vector < 0 else on.m.idt[DB_VECTOR] - 1)


@pytest.mark.parametrize(("first", "bits"), [(OP_NOP, 1), (OP_CLGI, 0)])
def test_gif_discards_a_breakpoint_on_a_frame(first: int, bits: int) -> None:
    """APM vol. 2, Global Interrupt Flag: an exception is delivered with GIF=0, and its frame is watched."""
    on = with_svm(first, OP_UD2, OP_SPIN)
    on.cpu.dr0, on.cpu.dr7 = STACK_WORDS - 1, WATCH_WRITES
    on.bare(2)
    assert (on.delivered(), on.cpu.trap) == (UD_VECTOR, bits)


def test_gif_discards_a_breakpoint_on_the_frame_of_a_step() -> None:
    """APM vol. 2, Global Interrupt Flag: the step's #DB comes, and what it writes is not watched."""
    on = with_svm(OP_CLGI, OP_NOP, OP_SPIN)
    on.cpu.rflags |= X86_EFLAGS_TF
    on.cpu.dr0, on.cpu.dr7 = STACK_WORDS - 1, WATCH_WRITES
    on.bare(2)
    assert (on.delivered(), on.cpu.trap) == (DB_VECTOR, 0)


# Virtual GIF. ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discards", [0, 1])
@pytest.mark.parametrize("gif", [0, V_GIF_MASK])
def test_whether_virtual_gif_discards_breakpoints_is_open(discards: int, gif: int) -> None:
    """APM vol. 2, Virtual GIF, does not say (knob)."""
    on = with_svm(OP_PUSH, OP_SPIN, knobs=discards << KNOB_VGIF_DISCARDS_BREAKPOINTS)
    on.cpu.dr0, on.cpu.dr7 = STACK_WORDS - 1, WATCH_WRITES
    on.vmcb.int_ctl |= V_GIF_ENABLE_MASK | gif
    on.enter().guest()
    lost = discards and not gif
    assert (on.cpu.trap & DR6_B_MASK, on.m.consulted >> KNOB_VGIF_DISCARDS_BREAKPOINTS & 1) == (not lost, gif == 0)


def test_what_virtual_gif_discards_is_not_asked_where_there_is_nothing_to_discard() -> None:
    """A knob that does not matter is not consulted."""
    on = with_svm(OP_PUSH, OP_UD2, OP_SPIN)
    on.vmcb.int_ctl |= V_GIF_ENABLE_MASK
    on.enter().guest(2)
    assert (on.delivered(), on.m.consulted) == (UD_VECTOR, 0)


def test_without_virtual_gif_nothing_of_a_guests_is_discarded() -> None:
    """APM vol. 2, VMRUN sets GIF; the hypervisor keeps the guest's."""
    on = with_svm(OP_PUSH, OP_SPIN, knobs=1 << KNOB_VGIF_DISCARDS_BREAKPOINTS)
    on.cpu.dr0, on.cpu.dr7 = STACK_WORDS - 1, WATCH_WRITES
    assert on.enter().guest().cpu.trap == 1


# EFER. -------------------------------------------------------------------------------------------------------------


def test_efer_reads_back() -> None:
    """APM vol. 2, Extended Feature Enable Register (EFER)."""
    on = rig((OP_MOV_RAX, EFER_BOOTED | EFER_SVME), OP_WRMSR, (OP_MOV_RAX, 0), OP_RDMSR).bare(4)
    assert (on.cpu.rax, on.cpu.rip) == (EFER_BOOTED | EFER_SVME, 4)


@pytest.mark.parametrize("checked", [0, 1])
def test_lma_cannot_be_changed(checked: int) -> None:
    """APM vol. 2, Extended Feature Enable Register (EFER): #GP today, read-only in older editions (knob)."""
    knobs = checked << KNOB_EFER_LMA_IS_CHECKED
    on = rig((OP_MOV_RAX, EFER_LME), OP_WRMSR, handlers={GP_VECTOR: [OP_SPIN]}, knobs=knobs).bare(2)
    found = (on.delivered(), on.cpu.efer)
    assert found == ((GP_VECTOR, EFER_BOOTED) if checked else (-1, EFER_LME | EFER_LMA))


def test_a_write_that_leaves_lma_asks_nobody_about_it() -> None:
    """The knob is consulted where it makes a difference only."""
    on = rig((OP_MOV_RAX, EFER_BOOTED | EFER_SVME), OP_WRMSR, knobs=1 << KNOB_EFER_LMA_IS_CHECKED).bare(2)
    assert (on.delivered(), on.m.consulted) == (-1, 0)


def test_lme_cannot_be_changed_while_paging_is_on() -> None:
    """APM vol. 2, Extended Feature Enable Register (EFER)."""
    on = rig((OP_MOV_RAX, EFER_SCE), OP_WRMSR, handlers={GP_VECTOR: [OP_SPIN]}).bare(2)
    assert (on.delivered(), on.frame_behind_the_error_code()[0], on.cpu.efer) == (GP_VECTOR, 1, EFER_BOOTED)


@pytest.mark.parametrize(("svm", "svme", "vector"), [(0, EFER_SVME, GP_VECTOR), (1, EFER_SVME, -1), (0, 0, -1)])
def test_svme_wants_svm_in_cpuid(svm: int, svme: int, vector: int) -> None:
    """APM vol. 2, Enabling SVM."""
    on = rig((OP_MOV_RAX, EFER_BOOTED | svme), OP_WRMSR, handlers={GP_VECTOR: [OP_SPIN]})
    on.m.svm = svm
    assert on.bare(2).delivered() == vector


def test_clearing_svme_does_not_set_gif() -> None:
    """APM vol. 2, Enabling SVM; KVM's comment in svm_set_nested_state()."""
    on = with_svm(OP_CLGI, (OP_MOV_RAX, EFER_BOOTED), OP_WRMSR, OP_SPIN).bare(3)
    assert (on.cpu.efer, on.cpu.gif) == (EFER_BOOTED, 0)
    assert on.nmi().bare().delivered() == -1


def test_the_machine_alone_has_no_intercepts() -> None:
    """What a VMCB says is about its guest."""
    on = rig(OP_RDMSR, OP_WRMSR, intercepts=(INTERCEPT_MSR_PROT,))
    on.vmcb.intercept_word4 |= 1 << TRAP_EFER_WRITE - 128
    on.bare(2)
    assert (on.cpu.rax, on.cpu.rip, on.vmcb.exit_code) == (EFER_BOOTED, 2, 0)


# EFER in a guest. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "info"), [(OP_RDMSR, 0), (OP_WRMSR, 1)])
def test_an_access_of_efer_exits_before_it_has_done_anything(op: int, info: int) -> None:
    """APM vol. 2, MSR Intercepts; State Saved on Exit: nRIP."""
    on = rig(op, intercepts=(INTERCEPT_MSR_PROT,)).enter().guest()
    found = (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_info_2, on.vmcb.rip, on.vmcb.next_rip)
    assert found == (SVM_EXIT_MSR, info, 0, 0, 1)
    assert (on.vmcb.efer, on.vmcb.rax, on.cpu.rip, on.cpu.rax) == (EFER_BOOTED | EFER_SVME, 0, 0, 0)


@pytest.mark.parametrize(("op", "passes"), [(OP_RDMSR, 1), (OP_WRMSR, 2)])
def test_the_permission_map_has_a_bit_for_reads_and_one_for_writes(op: int, passes: int) -> None:
    """APM vol. 2, MSR Intercepts: MSR Permissions Map."""
    for allowed in (1, 2):
        on = rig((OP_MOV_RAX, EFER_BOOTED | EFER_SVME), op, intercepts=(INTERCEPT_MSR_PROT,))
        on.m.efer_passes = allowed
        on.enter().guest(2)
        assert on.cpu.guest_mode == (allowed == passes)


def test_without_the_intercept_the_map_is_not_asked() -> None:
    """APM vol. 2, MSR Intercepts: the guest reaches hardware's EFER."""
    on = rig(OP_RDMSR).enter().guest()
    assert (on.cpu.rax, on.cpu.rip) == (EFER_BOOTED | EFER_SVME, 1)


def test_an_encrypted_guests_intercepted_access_is_vc() -> None:
    """APM vol. 2, Types of Exits (SEV-ES)."""
    on = rig(OP_RDMSR, handlers={VC_VECTOR: [OP_SPIN]}, sev_es=True, intercepts=(INTERCEPT_MSR_PROT,))
    on.enter().guest()
    assert (on.cpu.memory[on.cpu.rsp], on.cpu.rip, on.cpu.rax) == (SVM_EXIT_MSR, HANDLER, 0)


@pytest.mark.parametrize("shown", [0, 1])
@pytest.mark.parametrize("wanted", [0, EFER_SVME])
def test_hardware_ignores_what_an_encrypted_guest_writes_to_svme(wanted: int, shown: int) -> None:
    """APM vol. 2, Encrypted State; whether a read shows SVME is open (knob)."""
    knobs = shown << KNOB_SEV_ES_GUEST_READS_SVME
    on = rig((OP_MOV_RAX, EFER_BOOTED | wanted), OP_WRMSR, OP_RDMSR, sev_es=True, knobs=knobs)
    on.m.svm = 0
    on.enter().guest(3)
    assert on.cpu.efer == EFER_BOOTED | EFER_SVME
    assert on.cpu.rax == EFER_BOOTED | (EFER_SVME if shown else 0)


def test_a_write_of_efer_traps_behind_the_instruction() -> None:
    """APM vol. 2, EFER Write Trap; KVM drops SVME from EXITINFO1 in efer_trap()."""
    on = rig((OP_MOV_RAX, EFER_LME), OP_WRMSR, sev_es=True)
    on.vmcb.intercept_word4 |= 1 << TRAP_EFER_WRITE - 128
    on.enter().guest(2)
    found = (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_info_2, on.cpu.rip)
    assert found == (SVM_EXIT_EFER_WRITE_TRAP, EFER_LME | EFER_LMA | EFER_SVME, 0, 2)


def test_a_read_of_efer_does_not_trap() -> None:
    """APM vol. 2, EFER Write Trap."""
    on = rig(OP_RDMSR, sev_es=True)
    on.vmcb.intercept_word4 |= 1 << TRAP_EFER_WRITE - 128
    assert on.enter().guest().cpu.guest_mode == 1


def test_an_encrypted_guests_gif_instruction_is_vc_on_the_machine_alone() -> None:
    """It stands for the ideal hypervisor, which intercepts what must not execute."""
    on = rig(OP_CLGI, handlers={VC_VECTOR: [OP_SPIN]}, sev_es=True).bare()
    assert (on.cpu.memory[on.cpu.rsp], on.cpu.gif) == (0x85, 1)
