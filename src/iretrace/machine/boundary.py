"""The instruction boundary: which event is due, and the step that a processor takes."""

from __future__ import annotations

from iretrace.machine.breakpoints import breakpoints_are_lost, code_breakpoint, report
from iretrace.machine.cpu import (
    BP_VECTOR,
    DB_VECTOR,
    DR6_B_MASK,
    KNOB_MOVSS_BLOCKS_NMI,
    KNOB_STI_BLOCKS_NMI,
    NMI_VECTOR,
    OF_VECTOR,
    SHADOW_MOV_SS,
    SHADOW_NONE,
    SHADOW_STI,
    X86_EFLAGS_IF,
    Cpu,
    Machine,
    knob,
    see_nothing,
)
from iretrace.machine.delivery import INTR, NMI, SOFT, TRAP, deliver, raise_exception
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.guest import execute
from iretrace.machine.smm import (
    delivery_at_smm_entry,
    find_itself_in_smm,
    init_due,
    sipi_due,
    smi_due,
    take_init,
    take_sipi,
    take_smi,
)
from iretrace.machine.svm import intr_exit_due, take_intr_exit, vintr_exits, virtual_gif_holds, virtual_intr_due
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import (
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_TYPE_MASK,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_TYPE_SOFT,
    SVM_EVTINJ_VEC_MASK,
    V_IRQ_MASK,
    Vmcb,
)
from iretrace.machine.vnmi import mask_for_injected_nmi, mask_of_cut_off_injection
from iretrace.subset import rule, u8, u16, u32, wrap8, wrap16


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


@rule("AMD64 APM vol. 2", "Nonmaskable Interrupts; Global Interrupt Flag: NMIs are held until GIF is set", "read")
def nmi_due(m: Machine, cpu: Cpu) -> bool:
    """An NMI is latched and nothing holds it: not the one in service, not GIF, not a shadow."""
    held: bool = cpu.nmi_masked != 0 or cpu.gif == 0 or cpu.waits_for_sipi != 0
    return cpu.nmi_latched != 0 and not held and not shadow_blocks_nmi(m, cpu)


@rule("AMD64 APM vol. 2", "Nonmaskable Interrupts")
def take_nmi(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """Deliver the latched NMI. The mask goes up before the IDT is read, so a fault on the way runs with NMIs masked."""
    cpu.nmi_latched = 0
    cpu.nmi_masked = 1
    deliver(m, cpu, vmcb, NMI, NMI_VECTOR, 0, cpu.rip)


@rule("AMD64 APM vol. 2", "NMI Virtualization", "read")
def virtual_nmi_due(cpu: Cpu, vmcb: Vmcb) -> bool:
    """A virtual NMI is pending and not masked, virtual GIF is set, and the processor is in no interrupt shadow. Of a
    shadow the manual says so without a "may", as of virtual interrupts. IF does not matter. It is taken as any NMI is:
    pending is cleared and the mask set before the IDT is read."""
    held: bool = cpu.nmi_masked != 0 or cpu.shadow != SHADOW_NONE
    return cpu.nmi_latched != 0 and not held and not virtual_gif_holds(vmcb)


@rule("AMD64 APM vol. 2", "Single Stepping; Debug Status Register (DR6)")
def take_debug_trap(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """The #DB of an instruction that was single-stepped or touched what a breakpoint watches: DR6 says which; then the
    exception, which returns behind the instruction, or its intercept."""
    causes: u32 = cpu.trap
    cpu.trap = 0
    report(m, cpu, causes)
    raise_exception(m, cpu, vmcb, TRAP, DB_VECTOR, 0, cpu.rip)


@rule("AMD64 APM vol. 2", "Accepting System and IPI Interrupts; Spurious Interrupts: APIC Software Enable")
def latch_irq(cpu: Cpu) -> None:
    """The device's interrupt waits in the local APIC; another one that finds it waiting merges into it, as in KVM (the
    manual has it rejected, and its sender told to retry). A local APIC that software has not enabled accepts none: it
    is lost."""
    if cpu.apic_off == 0:
        cpu.irr = 1


@rule("AMD64 APM vol. 2", "Selecting and Handling Interrupts (APIC); Interrupt Shadows; Global Interrupt Flag")
def irq_due(cpu: Cpu) -> bool:
    """The device's interrupt waits and nothing holds it: not IF, not GIF, not a shadow, not one of its own class in
    service."""
    held: bool = cpu.isr != 0 or cpu.rflags & X86_EFLAGS_IF == 0 or cpu.shadow != SHADOW_NONE
    return cpu.irr != 0 and cpu.gif != 0 and cpu.waits_for_sipi == 0 and not held


@rule("AMD64 APM vol. 2", "Accepting System and IPI Interrupts; Selecting and Handling Interrupts (APIC)")
def take_irq(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """Acknowledge the device's interrupt, which moves it into service, and deliver it."""
    cpu.irr = 0
    cpu.isr = 1
    deliver(m, cpu, vmcb, INTR, IRQ_VECTOR, 0, cpu.rip)


@rule("AMD64 APM vol. 2", "Injecting Virtual (INTR) Interrupts")
def take_virtual_intr(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """V_IRQ is cleared before the IDT is read."""
    vmcb.int_ctl = vmcb.int_ctl & ~V_IRQ_MASK
    deliver(m, cpu, vmcb, INTR, wrap8(vmcb.int_vector), 0, cpu.rip)


@rule("AMD64 APM vol. 2", "Event Injection")
def take_injected(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """EVENTINJ is delivered before the guest's first instruction, whatever IF, shadow and masks say; an injected NMI
    masks nothing but virtual NMIs. TF is pushed as it is, and the delivery does not trap. No intercept applies to the
    event itself."""
    event: u32 = cpu.event_inj
    error: u32 = cpu.event_inj_err
    vector: u8 = wrap8(event & SVM_EVTINJ_VEC_MASK)
    rip: u16 = wrap16(vmcb.next_rip) if returns_behind(event) else cpu.rip
    cpu.event_inj = 0
    cpu.event_inj_err = 0
    vmcb.next_rip = 0
    if event & SVM_EVTINJ_TYPE_MASK == SVM_EVTINJ_TYPE_NMI:
        mask_for_injected_nmi(cpu, vmcb)
        deliver(m, cpu, vmcb, NMI, NMI_VECTOR, 0, rip)
        mask_of_cut_off_injection(m, cpu, vmcb)
    elif event & SVM_EVTINJ_TYPE_MASK == SVM_EVTINJ_TYPE_EXEPT:
        deliver(m, cpu, vmcb, TRAP, vector, error, rip)
    elif event & SVM_EVTINJ_TYPE_MASK == SVM_EVTINJ_TYPE_SOFT:
        deliver(m, cpu, vmcb, SOFT, vector, 0, rip)
    else:
        deliver(m, cpu, vmcb, INTR, vector, 0, rip)


@rule("Linux", "arch/x86/kvm/svm/svm.c:svm_update_soft_interrupt_rip")
def returns_behind(event: u32) -> bool:
    """An injected INT n, INT3 or INTO returns to the VMCB's nRIP; all other events return to RIP."""
    kind: u32 = event & SVM_EVTINJ_TYPE_MASK
    vector: u32 = event & SVM_EVTINJ_VEC_MASK
    if kind == SVM_EVTINJ_TYPE_EXEPT:
        return BP_VECTOR <= vector <= OF_VECTOR
    return kind == SVM_EVTINJ_TYPE_SOFT


@rule("AMD64 APM vol. 2", "Using Breakpoints; Instruction Breakpoints", "read")
def next_instruction(m: Machine, cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb) -> None:
    """A breakpoint on the next instruction is a fault that comes before all else of it, and behind all other events.
    The saved RF is as it was, 0."""
    causes: u32 = code_breakpoint(cpu)
    if causes == 0 or breakpoints_are_lost(m, cpu, vmcb):
        execute(m, cpu, vmcb, ghcb)
        if cpu.trap & DR6_B_MASK != 0 and breakpoints_are_lost(m, cpu, vmcb):
            cpu.trap = cpu.trap & ~DR6_B_MASK
        return
    report(m, cpu, causes)
    raise_exception(m, cpu, vmcb, TRAP, DB_VECTOR, 0, cpu.rip)


@rule("AMD64 APM vol. 2", "Priorities: External Interrupts; Single Stepping; Injecting Virtual (INTR) Interrupts")
def guest_step(m: Machine, cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb) -> None:
    """One step of a guest: its way into SMM, if the hypervisor has put it there, on which nothing may be delivered; the
    injected event, else the trap of the instruction before, else a physical event that exits, else the virtual NMI,
    else the virtual interrupt, else the next instruction."""
    see_nothing(cpu)
    if cpu.smm_found != 0:
        if cpu.event_inj != 0 or virtual_nmi_due(cpu, vmcb):
            delivery_at_smm_entry(m, cpu, vmcb)
        else:
            find_itself_in_smm(cpu)
    elif cpu.event_inj != 0:
        take_injected(m, cpu, vmcb)
    elif cpu.trap != 0:
        take_debug_trap(m, cpu, vmcb)
    elif intr_exit_due(m, cpu, vmcb):
        take_intr_exit(m, cpu, vmcb)
    elif virtual_nmi_due(cpu, vmcb):
        take_nmi(m, cpu, vmcb)
    elif virtual_intr_due(cpu, vmcb):
        if not vintr_exits(m, cpu, vmcb):
            take_virtual_intr(m, cpu, vmcb)
    elif cpu.halted == 0:
        next_instruction(m, cpu, vmcb, ghcb)


@rule("AMD64 APM vol. 2", "Single Stepping; System-Management Interrupt (SMI); Processor Halt", "read")
def bare_step(m: Machine, cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb) -> None:
    """One step of the machine alone: the trap of the instruction before, else the SMI that is due, the INIT, the SIPI,
    the NMI, the interrupt, else the next instruction. HLT ends by an event that is taken. Shut down it
    waits for a reset. That an SMI goes before a trap is not modelled: whether the trap is lost is not documented."""
    see_nothing(cpu)
    if cpu.shutdown:
        return
    if cpu.trap != 0:
        take_debug_trap(m, cpu, vmcb)
    elif smi_due(cpu):
        take_smi(m, cpu, vmcb)
    elif init_due(m, cpu):
        take_init(m, cpu, vmcb)
    elif sipi_due(cpu):
        take_sipi(m, cpu, vmcb)
    elif nmi_due(m, cpu):
        take_nmi(m, cpu, vmcb)
    elif irq_due(cpu):
        take_irq(m, cpu, vmcb)
    elif cpu.halted == 0 and cpu.waits_for_sipi == 0 and cpu.held == 0:
        next_instruction(m, cpu, vmcb, ghcb)
