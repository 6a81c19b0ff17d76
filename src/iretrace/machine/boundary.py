"""The instruction boundary: which event is due, and the step that a processor takes."""

from __future__ import annotations

from iretrace.machine.cpu import (
    KNOB_MOVSS_BLOCKS_NMI,
    KNOB_STI_BLOCKS_NMI,
    NMI_VECTOR,
    SHADOW_MOV_SS,
    SHADOW_STI,
    Cpu,
    Machine,
    knob,
    see_nothing,
)
from iretrace.machine.delivery import deliver
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.guest import execute
from iretrace.machine.svm import intr_exit_due, take_intr_exit
from iretrace.machine.vmcb import SVM_EVTINJ_VEC_MASK, Vmcb
from iretrace.subset import rule, u8, u32, wrap8


@rule("AMD64 APM vol. 2", "Nonmaskable Interrupts; VNMI: the latch holds one", "read")
def latch_nmi(cpu: Cpu) -> None:
    """The NMI latch is one deep and does not look at IF: an NMI that finds it full merges into the one held."""
    cpu.nmi_latched = 1


@rule("AMD64 APM vol. 2", "Interrupt Shadows: NMIs may be held for one instruction")
def shadow_blocks_nmi(m: Machine, cpu: Cpu) -> bool:
    """Whether the shadow of STI or MOV SS holds NMIs off is up to the implementation (knobs)."""
    if cpu.shadow == SHADOW_STI:
        return knob(m, KNOB_STI_BLOCKS_NMI)
    if cpu.shadow == SHADOW_MOV_SS:
        return knob(m, KNOB_MOVSS_BLOCKS_NMI)
    return False


def nmi_due(m: Machine, cpu: Cpu) -> bool:
    """An NMI is latched and nothing holds it."""
    return cpu.nmi_latched != 0 and cpu.nmi_masked == 0 and not shadow_blocks_nmi(m, cpu)


@rule("AMD64 APM vol. 2", "Nonmaskable Interrupts")
def take_nmi(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """Deliver the latched NMI. The mask goes up before the IDT is read, so a fault on the way runs with NMIs masked."""
    cpu.nmi_latched = 0
    cpu.nmi_masked = 1
    deliver(m, cpu, vmcb, NMI_VECTOR, 0)


@rule("AMD64 APM vol. 2", "Event Injection")
def take_injected(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """EVENTINJ is delivered before the guest's first instruction, whatever IF, shadow and masks say; an injected NMI
    masks nothing."""
    vector: u8 = wrap8(cpu.event_inj & SVM_EVTINJ_VEC_MASK)
    error: u32 = cpu.event_inj_err
    if is_nmi(cpu.event_inj):
        vector = NMI_VECTOR
        error = 0
    cpu.event_inj = 0
    cpu.event_inj_err = 0
    deliver(m, cpu, vmcb, vector, error)


def is_nmi(event_inj: u32) -> bool:
    """Type 2: the vector field is ignored."""
    return (event_inj >> 8) & 7 == 2


def guest_step(m: Machine, cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb) -> None:
    """One step of a guest: the injected event, else a physical event that exits, else the next instruction."""
    see_nothing(cpu)
    if cpu.event_inj != 0:
        take_injected(m, cpu, vmcb)
    elif intr_exit_due(m, cpu, vmcb):
        take_intr_exit(m, cpu, vmcb)
    elif cpu.halted == 0:
        execute(m, cpu, vmcb, ghcb)


def bare_step(m: Machine, cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb) -> None:
    """One step of the machine alone: the NMI that is due, else the next instruction. Shut down it waits for a reset."""
    see_nothing(cpu)
    if cpu.shutdown:
        return
    if nmi_due(m, cpu):
        take_nmi(m, cpu, vmcb)
    elif cpu.halted == 0:
        execute(m, cpu, vmcb, ghcb)
