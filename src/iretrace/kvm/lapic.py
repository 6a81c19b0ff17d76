"""The local APIC as far as one edge-triggered device needs it: a bit of IRR and one of ISR, TPR 0 (lapic.c).

kvm_lapic.irr_pending is left out: it says only whether IRR is worth a look.
"""

from __future__ import annotations

from iretrace.kvm.kvm_host import CELL_IRR, CELL_PENDING_EVENTS, READ, WRITE, Vcpu
from iretrace.kvm.svm_h import gif_set
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.subset import shared, u8, wrap8


def kvm_apic_has_interrupt(vcpu: Vcpu) -> bool:
    """Whether an interrupt waits whose priority class is above that of the one in service."""
    shared(vcpu.thread, CELL_IRR, 1, READ)
    return vcpu.irr != 0 and vcpu.isr == 0


def kvm_get_apic_interrupt(vcpu: Vcpu) -> u8:
    """Acknowledge the interrupt: from IRR to ISR. It has to be delivered from here on, whatever comes. (Before v6.12
    this is one function; there it is kvm_apic_ack_interrupt().)"""
    shared(vcpu.thread, CELL_IRR, 1, WRITE)
    vcpu.irr = 0
    vcpu.isr = 1
    return IRQ_VECTOR


def kvm_apic_has_pending_init_or_sipi(vcpu: Vcpu) -> bool:
    """Whether an INIT or a SIPI waits (lapic.h)."""
    shared(vcpu.thread, CELL_PENDING_EVENTS, 3, READ)
    return vcpu.pending_events != 0


def test_and_clear_pending(vcpu: Vcpu, event: u8) -> bool:
    """test_and_clear_bit(event, &apic->pending_events)"""
    shared(vcpu.thread, CELL_PENDING_EVENTS, 3, WRITE)
    was: bool = (vcpu.pending_events >> (event & 7)) & 1 != 0
    vcpu.pending_events = wrap8(vcpu.pending_events & ~(1 << (event & 7)))
    return was


def kvm_apic_init_sipi_allowed(vcpu: Vcpu) -> bool:
    """Whether the processor would take an INIT or a SIPI here: SMM and GIF hold it (lapic.h,
    svm_apic_init_signal_blocked())."""
    return vcpu.smm == 0 and gif_set(vcpu)
