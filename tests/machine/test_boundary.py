"""Instruction boundaries: which event is taken, when, and what it does to masks and latches."""

from __future__ import annotations

import pytest

from iretrace.machine.boundary import nmi_due
from iretrace.machine.cpu import (
    KNOB_MOVSS_BLOCKS_NMI,
    KNOB_STI_BLOCKS_NMI,
    NMI_VECTOR,
    OP_CPUID,
    OP_HLT,
    OP_IRETQ,
    OP_MOV_SS,
    OP_NOP,
    OP_SPIN,
    OP_STI,
    SHADOW_MOV_SS,
    SHADOW_NONE,
    SHADOW_STI,
    STACK_WORDS,
    VC_VECTOR,
    X86_EFLAGS_IF,
)
from iretrace.machine.vmcb import SVM_EXIT_INTR
from tests.machine.rig import HANDLER, INJECT_NMI, Rig, push_words, return_frame, rig

NMI = {NMI_VECTOR: [OP_NOP, OP_IRETQ]}
BLOCKS = 1 << KNOB_STI_BLOCKS_NMI | 1 << KNOB_MOVSS_BLOCKS_NMI


def test_the_nmi_latch_holds_one_so_further_nmis_merge() -> None:
    """APM vol. 2, VNMI: the latch holds one."""
    on = rig(OP_SPIN, handlers=NMI).nmi().nmi().bare()
    assert on.delivered() == NMI_VECTOR
    assert not on.cpu.nmi_latched


def test_an_nmi_does_not_look_at_if() -> None:
    """APM vol. 2, Nonmaskable Interrupts."""
    assert rig(OP_SPIN, handlers=NMI, interrupts=False).nmi().bare().delivered() == NMI_VECTOR


def test_a_second_nmi_waits_for_the_iret_of_the_first() -> None:
    """APM vol. 2, Nonmaskable Interrupts."""
    on = rig(OP_SPIN, handlers=NMI).nmi().bare().nmi()
    assert on.bare().delivered() == -1
    assert on.bare().cpu.rip == 0  # the IRETQ
    assert on.bare().delivered() == NMI_VECTOR
    assert on.cpu.seen_rip == 0


def test_the_mask_is_up_before_the_idt_is_read() -> None:
    """APM vol. 2, Nonmaskable Interrupts: the fault of a delivery that fails runs with NMIs masked."""
    on = rig(OP_SPIN, handlers={8: [OP_SPIN]}).nmi().bare()
    assert on.delivered() == 8
    assert on.cpu.nmi_masked


def test_a_fault_while_an_nmi_is_delivered_consumes_the_nmi() -> None:
    """APM vol. 2, Nonmaskable Interrupts."""
    on = rig(OP_SPIN, handlers={8: [OP_SPIN]}).nmi().bare()
    assert not on.cpu.nmi_latched


@pytest.mark.parametrize(("op", "shadow"), [(OP_STI, SHADOW_STI), (OP_MOV_SS, SHADOW_MOV_SS)])
def test_a_shadow_holds_an_nmi_for_one_instruction_if_the_knob_says_so(op: int, shadow: int) -> None:
    """APM vol. 2, Interrupt Shadows: NMIs may be held."""
    on = rig(op, OP_NOP, OP_SPIN, handlers=NMI, knobs=BLOCKS).bare().nmi()
    assert on.cpu.shadow == shadow
    assert on.bare().delivered() == -1
    assert on.bare().delivered() == NMI_VECTOR
    assert on.cpu.seen_rip == 2


@pytest.mark.parametrize("op", [OP_STI, OP_MOV_SS])
def test_a_shadow_does_not_hold_an_nmi_if_the_knob_says_so(op: int) -> None:
    """APM vol. 2, Interrupt Shadows: NMIs may be held."""
    on = rig(op, OP_NOP, OP_SPIN, handlers=NMI).bare().nmi().bare()
    assert on.delivered() == NMI_VECTOR
    assert on.cpu.seen_rip == 1


@pytest.mark.parametrize(("op", "number"), [(OP_STI, KNOB_STI_BLOCKS_NMI), (OP_MOV_SS, KNOB_MOVSS_BLOCKS_NMI)])
def test_only_the_knob_of_the_shadow_at_hand_is_consulted(op: int, number: int) -> None:
    on = rig(op, OP_NOP, handlers=NMI).bare().nmi().bare()
    assert on.m.consulted == 1 << number


def test_no_knob_is_consulted_without_an_nmi() -> None:
    assert rig(OP_STI, OP_NOP, handlers=NMI).bare(2).m.consulted == 0


def test_taking_an_nmi_ends_a_shadow() -> None:
    """Bochs, cpu/exception.cc: delivery clears the inhibition."""
    on = rig(OP_STI, OP_NOP, handlers=NMI).bare().nmi().bare()
    assert on.cpu.shadow == SHADOW_NONE


def test_an_nmi_ends_hlt_and_the_saved_rip_is_behind_it() -> None:
    """APM vol. 3, HLT."""
    on = rig(OP_HLT, OP_SPIN, handlers=NMI).bare()
    assert on.cpu.halted
    on.nmi().bare()
    assert not on.cpu.halted
    assert on.cpu.seen_rip == 1


def test_a_masked_nmi_does_not_end_hlt() -> None:
    """APM vol. 3, HLT; vol. 2, Nonmaskable Interrupts."""
    on = rig(OP_SPIN, handlers={NMI_VECTOR: [OP_HLT, OP_IRETQ]}).nmi().bare(2).nmi()
    before = on.cpu.rip
    assert on.cpu.halted
    on.bare()
    assert on.cpu.halted
    assert on.cpu.rip == before


def test_a_halted_processor_executes_nothing() -> None:
    """APM vol. 3, HLT."""
    on = rig(OP_HLT, OP_NOP, OP_NOP).bare(3)
    assert on.cpu.rip == 1


def test_a_processor_that_shut_down_does_nothing_more() -> None:
    """APM vol. 2, Shutdown."""
    on = rig(OP_NOP, OP_NOP).nmi().bare()
    assert on.cpu.shutdown
    on.m.idt[NMI_VECTOR] = HANDLER + 1
    on.cpu.nmi_masked = 0
    on.nmi().bare(2)
    assert (on.cpu.rip, on.delivered()) == (0, -1)


def test_an_nmi_is_due_only_when_latched_and_not_masked() -> None:
    """APM vol. 2, Nonmaskable Interrupts."""
    on = rig(OP_NOP)
    assert not nmi_due(on.m, on.cpu)
    on.nmi()
    assert nmi_due(on.m, on.cpu)
    on.cpu.nmi_masked = 1
    assert not nmi_due(on.m, on.cpu)


# Guests: EVENTINJ and physical interrupts. ---------------------------------------------------------------------------


def test_an_injected_event_is_delivered_before_a_pending_interrupt_exits() -> None:
    """KVM, svm_vcpu_run(): the self-IPI that forces an exit right after the injection relies on it."""
    on = rig(OP_SPIN, handlers=NMI).enter(INJECT_NMI)
    on.cpu.intr_pending = 1
    assert on.guest().delivered() == NMI_VECTOR
    assert on.cpu.guest_mode
    on.guest()
    assert not on.cpu.guest_mode
    assert on.vmcb.exit_code == SVM_EXIT_INTR


def test_the_exit_after_an_injection_comes_before_the_handlers_first_instruction_and_cuts_nothing_off() -> None:
    """APM vol. 2, Exit During IDT Vectoring: only an exit in the middle of a delivery sets EXITINTINFO."""
    on = rig(OP_SPIN, handlers=NMI).enter(INJECT_NMI)
    on.cpu.intr_pending = 1
    on.guest(2)
    assert on.cpu.rip == HANDLER
    assert on.vmcb.exit_int_info == 0


def test_an_injected_nmi_ignores_if_shadow_and_mask_and_masks_nothing() -> None:
    """APM vol. 2, Event Injection."""
    on = rig(OP_SPIN, handlers=NMI, interrupts=False)
    on.cpu.nmi_masked = 1
    on.enter(INJECT_NMI, shadow=True).guest()
    assert on.delivered() == NMI_VECTOR
    on.cpu.nmi_masked = 0
    assert not on.enter(INJECT_NMI).guest().cpu.nmi_masked


def test_two_injections_back_to_back_nest() -> None:
    """APM vol. 2, Event Injection: an injected NMI does not block NMIs."""
    on = rig(OP_SPIN, handlers=NMI).enter(INJECT_NMI).guest()
    on.enter(INJECT_NMI).guest()
    assert on.cpu.seen_rip == HANDLER


def test_an_injected_event_is_delivered_once() -> None:
    """APM vol. 2, Event Injection."""
    on = rig(OP_SPIN, handlers=NMI).enter(INJECT_NMI).guest()
    assert on.guest().delivered() == -1


def test_the_vector_field_of_an_injected_nmi_is_ignored() -> None:
    """APM vol. 2, Event Injection: type 2."""
    on = rig(OP_SPIN, handlers=NMI).enter(INJECT_NMI & ~0xFF | 13).guest()
    assert on.delivered() == NMI_VECTOR


def test_an_injected_exception_pushes_the_error_code_given() -> None:
    """APM vol. 2, Event Injection."""
    on = rig(OP_SPIN, handlers={13: [OP_SPIN]}).enter(1 << 31 | 1 << 11 | 3 << 8 | 13, error=0x28).guest()
    assert on.delivered() == 13
    assert on.cpu.memory[on.cpu.rsp] == 0x28


@pytest.mark.parametrize("vector", [0x20, 0x30, 0x40, 0xFF])
def test_an_injected_vector_without_a_gate_faults(vector: int) -> None:
    """APM vol. 2, Interrupt Descriptor Table: a vector that no litmus test has a gate for."""
    on = rig(OP_SPIN, handlers={8: [OP_SPIN], 11: [OP_SPIN]}).enter(1 << 31 | vector).guest()
    assert on.delivered() == 11
    assert on.cpu.seen_error == vector * 8 + 3


def test_a_physical_interrupt_exits_with_rip_where_it_was() -> None:
    """APM vol. 2, INTR Intercept."""
    on = rig(OP_NOP, OP_NOP).enter().guest()
    on.cpu.intr_pending = 1
    on.guest()
    assert (on.cpu.rip, on.vmcb.exit_code) == (1, SVM_EXIT_INTR)
    assert (on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (0, 0)


def test_a_physical_interrupt_stays_pending_for_the_host() -> None:
    """APM vol. 2, INTR Intercept."""
    on = rig(OP_NOP).enter()
    on.cpu.intr_pending = 1
    assert on.guest().cpu.intr_pending


def test_a_physical_interrupt_that_is_not_intercepted_does_not_exit() -> None:
    """APM vol. 2, INTR Intercept."""
    on = rig(OP_NOP)
    on.vmcb.intercept_word3 &= ~1
    on.enter().cpu.intr_pending = 1
    assert on.guest().cpu.guest_mode


@pytest.mark.parametrize(("interrupts", "exits"), [(True, True), (False, False)])
def test_without_v_intr_masking_the_guests_if_gates_physical_interrupts(interrupts: bool, exits: bool) -> None:
    """APM vol. 2, Virtualizing APIC.TPR and RFLAGS.IF."""
    on = rig(OP_NOP, interrupts=interrupts)
    on.vmcb.int_ctl = 0
    on.enter().cpu.intr_pending = 1
    assert (not on.guest().cpu.guest_mode) is exits


def in_a_shadow(knobs: int) -> Rig:
    on = rig(OP_NOP, knobs=knobs).enter(shadow=True)
    on.cpu.intr_pending = 1
    return on.guest()


def test_the_guests_shadow_does_not_delay_an_exit() -> None:
    """KVM, svm_interrupt_blocked(); QEMU agrees."""
    assert not in_a_shadow(0).cpu.guest_mode


def test_the_guests_shadow_delays_an_exit_by_one_instruction_if_the_knob_says_so() -> None:
    """Bochs."""
    on = in_a_shadow(1)
    assert on.cpu.guest_mode
    assert on.m.consulted == 1
    assert on.guest().cpu.rip == 1
    assert not on.cpu.guest_mode


def test_a_halted_guest_leaves_on_a_physical_interrupt_and_is_halted_no_more() -> None:
    """APM vol. 2, VMCB layout: no field says that the guest was halted."""
    on = rig(OP_HLT, OP_NOP).enter().guest()
    assert on.cpu.halted
    on.cpu.intr_pending = 1
    on.guest().enter()
    on.cpu.intr_pending = 0
    assert on.guest().cpu.rip == 2


def test_an_iret_of_a_handler_within_the_nmi_handler_unmasks_too() -> None:
    """Linux, entry_64.S:asm_exc_nmi: the processor keeps no nesting count."""
    on = rig(OP_SPIN, handlers={NMI_VECTOR: [OP_CPUID, OP_NOP]}).nmi().bare()
    push_words(on, *return_frame(5, rsp=on.cpu.rsp))
    on.m.ops[on.cpu.rip] = OP_IRETQ
    on.nmi().bare()
    assert not on.cpu.nmi_masked
    assert on.bare().delivered() == NMI_VECTOR
    assert on.cpu.seen_rip == 5


def test_iret_casts_no_shadow() -> None:
    """Bochs, cpu/ctrl_xfer64.cc; kvm-unit-tests x86/eventinj.c."""
    on = rig(OP_NOP, handlers=NMI, interrupts=False)
    push_words(on, *return_frame(3, rflags=2 | X86_EFLAGS_IF, rsp=STACK_WORDS))
    on.m.ops[0] = OP_IRETQ
    on.nmi()
    on.cpu.nmi_masked = 1
    on.bare(2)
    assert on.cpu.seen_rip == 3


def test_vc_is_not_seen() -> None:
    """docs/design.md, History: #VC is between the guest and its hypervisor."""
    assert rig(OP_CPUID, handlers={VC_VECTOR: [OP_SPIN]}, sev_es=True).bare().delivered() == -1


def test_a_step_forgets_what_the_last_one_showed() -> None:
    """docs/design.md, History."""
    on = rig(OP_NOP, OP_NOP, handlers={13: [OP_NOP]}, interrupts=True).bare()
    on.enter(1 << 31 | 1 << 11 | 3 << 8 | 13, error=0x28).guest()
    assert (on.cpu.seen_vector, on.cpu.seen_rip, on.cpu.seen_rflags, on.cpu.seen_error) == (13, 1, X86_EFLAGS_IF, 0x28)
    on.guest()
    assert (on.cpu.seen_vector, on.cpu.seen_rip, on.cpu.seen_rflags, on.cpu.seen_error) == (0, 0, 0, 0)


def test_the_latch_and_the_mask_are_bits() -> None:
    """Equal states must be equal tuples."""
    on = rig(OP_SPIN, handlers=NMI).nmi()
    assert on.cpu.nmi_latched == 1
    on.bare()
    assert (on.cpu.nmi_latched, on.cpu.nmi_masked, on.cpu.halted, on.cpu.seen_error) == (0, 1, 0, 0)


def test_an_injected_nmi_has_no_error_code_and_leaves_nothing_behind() -> None:
    """APM vol. 2, Event Injection."""
    on = rig(OP_SPIN, handlers=NMI).enter(INJECT_NMI, error=5).guest()
    assert on.cpu.seen_error == 0
    assert (on.cpu.event_inj, on.cpu.event_inj_err) == (0, 0)
