"""Interrupts: the device's on the machine alone, and the virtual one of a guest."""

from __future__ import annotations

import pytest

from iretrace.machine.boundary import irq_due, latch_irq
from iretrace.machine.cpu import (
    NMI_VECTOR,
    OP_HLT,
    OP_IRETQ,
    OP_NOP,
    OP_SPIN,
    OP_STI,
    SHADOW_MOV_SS,
    X86_EFLAGS_FIXED,
)
from iretrace.machine.svm import virtual_intr_due
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import (
    INTERCEPT_VINTR,
    SVM_EVTINJ_VALID,
    SVM_EXIT_INTR,
    SVM_EXIT_NPF,
    SVM_EXIT_VINTR,
    V_GIF_ENABLE_MASK,
    V_GIF_MASK,
    V_IGN_TPR_MASK,
    V_INTR_PRIO_MASK,
    V_IRQ_MASK,
)
from tests.machine.rig import HANDLER, INJECT_NMI, Rig, rig

VALID = SVM_EVTINJ_VALID
PRIO_1 = 1 << 16

# The device's interrupt on the machine alone. -------------------------------------------------------------------

IRQ = {IRQ_VECTOR: [OP_NOP, OP_IRETQ], NMI_VECTOR: [OP_NOP, OP_IRETQ]}


def with_irq(*main: int, interrupts: bool = True) -> Rig:
    on = rig(*main, handlers=IRQ, interrupts=interrupts)
    latch_irq(on.cpu)
    return on


def test_an_interrupt_is_taken_between_two_instructions_and_clears_if() -> None:
    """APM vol. 2, Maskable External Interrupts."""
    on = with_irq(OP_NOP).bare()
    assert (on.delivered(), on.frame()[0], on.cpu.rflags) == (IRQ_VECTOR, 0, X86_EFLAGS_FIXED)
    assert (on.cpu.irr, on.cpu.isr, on.cpu.seen_error) == (0, 1, 0)


def test_an_interrupt_waits_for_if() -> None:
    """APM vol. 2, Maskable External Interrupts."""
    on = with_irq(OP_NOP, OP_NOP, interrupts=False).bare()
    assert (on.delivered(), on.cpu.rip, on.cpu.irr) == (-1, 1, 1)


def test_an_interrupt_waits_for_the_end_of_a_shadow() -> None:
    """APM vol. 2, Interrupt Shadows."""
    on = with_irq(OP_STI, OP_NOP, OP_NOP, interrupts=False).bare(3)
    assert (on.delivered(), on.frame()[0]) == (IRQ_VECTOR, 2)
    on = with_irq(OP_NOP)
    on.cpu.shadow = SHADOW_MOV_SS
    assert not irq_due(on.cpu)


def test_an_nmi_goes_before_an_interrupt_and_the_interrupt_after_its_iret() -> None:
    """APM vol. 2, Priorities of simultaneous interrupts."""
    on = with_irq(OP_NOP).nmi().bare()
    assert on.delivered() == NMI_VECTOR
    assert on.bare(3).delivered() == IRQ_VECTOR


def test_an_nmi_is_not_held_by_an_interrupt_in_service() -> None:
    """APM vol. 2, Nonmaskable Interrupts."""
    assert with_irq(OP_NOP).bare().nmi().bare().delivered() == NMI_VECTOR


def test_a_second_interrupt_of_the_class_in_service_waits_for_ever() -> None:
    """APM vol. 2, Local APIC: no guest sends EOI."""
    on = with_irq(OP_NOP, OP_SPIN).bare()
    latch_irq(on.cpu)
    assert on.bare(5).cpu.irr
    assert on.cpu.rip == 1


def test_interrupts_merge() -> None:
    """APM vol. 2, Local APIC: one bit per vector."""
    on = with_irq(OP_NOP)
    latch_irq(on.cpu)
    assert on.cpu.irr == 1
    assert on.bare().cpu.irr == 0


def test_an_interrupt_ends_hlt() -> None:
    """APM vol. 2, Halt."""
    on = with_irq(OP_STI, OP_HLT, OP_SPIN, interrupts=False).bare(3)
    assert (on.delivered(), on.frame()[0], on.cpu.halted) == (IRQ_VECTOR, 2, 0)


def test_nothing_is_due_without_an_interrupt() -> None:
    """APM vol. 2, Maskable External Interrupts."""
    assert not irq_due(rig(OP_NOP, interrupts=True).cpu)


# Virtual interrupts. --------------------------------------------------------------------------------------------


def with_virq(*main: int, control: int = V_IRQ_MASK | PRIO_1, interrupts: bool = True, exits: bool = True) -> Rig:
    """A guest with a virtual interrupt, intercepted or not."""
    on = rig(*main, handlers=IRQ, interrupts=interrupts, intercepts=(INTERCEPT_VINTR,) if exits else ())
    on.vmcb.int_ctl |= control
    on.vmcb.int_vector = IRQ_VECTOR
    return on.enter()


def test_the_vintr_intercept_exits_where_the_interrupt_would_be_taken_and_consumes_nothing() -> None:
    """APM vol. 2, VINTR Intercept."""
    on = with_virq(OP_NOP).guest()
    assert (on.vmcb.exit_code, on.vmcb.rip, on.vmcb.next_rip, on.delivered()) == (SVM_EXIT_VINTR, 0, 0, -1)
    assert (on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (0, 0)
    assert on.vmcb.int_ctl & V_IRQ_MASK


def test_a_virtual_interrupt_that_is_not_intercepted_is_delivered_once() -> None:
    """APM vol. 2, Injecting Virtual (INTR) Interrupts."""
    on = with_virq(OP_NOP, OP_SPIN, exits=False)
    others = on.vmcb.int_ctl & ~V_IRQ_MASK
    assert on.guest().delivered() == IRQ_VECTOR
    assert (on.vmcb.int_ctl, on.frame()[0], on.cpu.seen_error) == (others, 0, 0)
    assert on.guest(4).delivered() == -1


def test_v_irq_is_clear_when_the_delivery_is_cut_off() -> None:
    """APM vol. 2, Injecting Virtual (INTR) Interrupts: cleared before the IDT is read."""
    on = with_virq(OP_NOP, exits=False)
    on.cpu.cold = 1
    on.guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_int_info) == (SVM_EXIT_NPF, VALID | IRQ_VECTOR)
    assert not on.vmcb.int_ctl & V_IRQ_MASK


@pytest.mark.parametrize(
    ("control", "due"),
    [
        (V_IRQ_MASK | PRIO_1, True),
        (PRIO_1, False),
        (V_IRQ_MASK, False),
        (V_IRQ_MASK | V_IGN_TPR_MASK, True),
        (V_IRQ_MASK | PRIO_1 | 1, False),
        (V_IRQ_MASK | V_INTR_PRIO_MASK | 14, True),
        (V_IRQ_MASK | V_INTR_PRIO_MASK | 15, False),
        (V_IRQ_MASK | PRIO_1 | V_GIF_ENABLE_MASK, False),
        (V_IRQ_MASK | PRIO_1 | V_GIF_ENABLE_MASK | V_GIF_MASK, True),
        (V_IRQ_MASK | PRIO_1 | V_GIF_MASK, True),
    ],
)
def test_a_virtual_interrupt_needs_v_irq_a_priority_above_v_tpr_and_virtual_gif(control: int, due: bool) -> None:
    """APM vol. 2, Injecting Virtual (INTR) Interrupts; Virtual GIF."""
    on = with_virq(OP_NOP, control=control)
    assert virtual_intr_due(on.cpu, on.vmcb) == due


def test_a_virtual_interrupt_waits_for_if_and_for_the_end_of_a_shadow() -> None:
    """APM vol. 2, Injecting Virtual (INTR) Interrupts."""
    on = with_virq(OP_STI, OP_NOP, OP_NOP, interrupts=False).guest(3)
    assert (on.vmcb.exit_code, on.vmcb.rip) == (SVM_EXIT_VINTR, 2)


def test_a_physical_interrupt_goes_before_a_virtual_one() -> None:
    """APM vol. 2, Injecting Virtual (INTR) Interrupts."""
    on = with_virq(OP_NOP)
    on.cpu.intr_pending = 1
    assert on.guest().vmcb.exit_code == SVM_EXIT_INTR


def test_an_injected_event_goes_before_a_virtual_interrupt_which_if_then_holds() -> None:
    """APM vol. 2, Event Injection."""
    on = with_virq(OP_NOP)
    on.cpu.event_inj = INJECT_NMI
    assert on.guest().delivered() == NMI_VECTOR
    assert on.guest().cpu.rip == HANDLER + 3


def test_a_virtual_interrupt_ends_hlt() -> None:
    """APM vol. 2, Halt."""
    on = with_virq(OP_STI, OP_HLT, interrupts=False).guest(3)
    assert (on.vmcb.exit_code, on.vmcb.rip) == (SVM_EXIT_VINTR, 2)
