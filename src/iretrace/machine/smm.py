"""System-management mode: SMI, the state-save area, RSM; INIT and SIPI; and where the code begins that they start."""

from __future__ import annotations

from iretrace.machine.cpu import (
    DR6_RESET,
    DR7_RESET,
    EFER_BOOTED,
    KERNEL_DS,
    KNOB_INIT_KEEPS_NMI_LATCH,
    KNOB_INIT_KEEPS_NMI_MASK,
    KNOB_INIT_KEEPS_SMI_LATCH,
    KNOB_RSM_LEAVES_NMIS_UNMASKED,
    SHADOW_NONE,
    STACK_WORDS,
    UD_VECTOR,
    X86_EFLAGS_FIXED,
    Cpu,
    Machine,
    knob,
    see_smi,
)
from iretrace.machine.delivery import raise_fault, shut_down
from iretrace.machine.reset_hold import end_reset_hold, held_for_init, settle_in_reset_hold
from iretrace.machine.svm import exits_instead
from iretrace.machine.vectors import SIPI_VECTOR
from iretrace.machine.vmcb import INTERCEPT_RSM, Vmcb
from iretrace.subset import rule, u32, wrap16


@rule("AMD64 APM vol. 2", "Exceptions and Interrupts (SMM): SMI", "read")
def latch_smi(cpu: Cpu) -> None:
    """An SMI is latched, also inside SMM; another one that finds it latched merges into it."""
    cpu.smi_latched = 1


@rule("AMD64 APM vol. 2", "System-Management Interrupt (SMI); Global Interrupt Flag; Interprocessor Interrupts", "read")
def smi_due(cpu: Cpu) -> bool:
    """An SMI is latched, the processor is not in SMM, does not wait for a SIPI, and GIF is set. RFLAGS.IF and an NMI
    that is served do not hold it."""
    return cpu.smi_latched != 0 and cpu.smm == 0 and cpu.gif != 0 and cpu.waits_for_sipi == 0


@rule("AMD64 APM vol. 2", "SMM Operating-Environment; Exceptions and Interrupts (SMM); Auto-Halt Restart", "read")
def take_smi(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """Enter SMM: what RSM brings back is saved in SMRAM, the mask of NMIs and whether the processor was halted with it;
    NMIs, interrupts, SMIs and INITs are held, RFLAGS is empty, SVM is off, no breakpoint is enabled and no shadow is
    cast. CPL is 0, whoever was interrupted. EFER and SS are what the handler sets for long mode."""
    see_smi(cpu, cpu.rip, cpu.rflags)
    cpu.smi_latched = 0
    cpu.smm = 1
    cpu.smm_rip = cpu.rip
    cpu.smm_rsp = cpu.rsp
    cpu.smm_cpl = cpu.cpl
    cpu.smm_ss = cpu.ss
    cpu.smm_rflags = cpu.rflags
    cpu.smm_rax = cpu.rax
    cpu.smm_dr6 = cpu.dr6
    cpu.smm_dr7 = cpu.dr7
    cpu.smm_efer = cpu.efer
    cpu.smm_shadow = cpu.shadow
    cpu.smm_halted = cpu.halted
    cpu.smm_nmi_masked = cpu.nmi_masked
    cpu.rip = wrap16(m.smi - 1)
    leave_user_mode(cpu)
    cpu.rflags = X86_EFLAGS_FIXED
    cpu.dr7 = DR7_RESET
    cpu.efer = EFER_BOOTED
    cpu.shadow = SHADOW_NONE
    cpu.halted = 0
    cpu.nmi_masked = 1


@rule("AMD64 APM vol. 2", "Leaving SMM; Auto-Halt Restart; of an interrupt shadow it says nothing", "read")
def rsm(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """Leave SMM for the state saved: in user mode if it was there, halted if it was, and in the shadow that it was in,
    since STI holds interrupts until the instruction behind it has executed. Outside of SMM: #UD. The TF that comes back
    traps behind the next instruction."""
    if exits_instead(m, cpu, vmcb, INTERCEPT_RSM):
        return
    if cpu.smm == 0:
        raise_fault(m, cpu, vmcb, UD_VECTOR, 0)
        return
    cpu.smm = 0
    cpu.rip = cpu.smm_rip
    cpu.rsp = cpu.smm_rsp
    cpu.cpl = cpu.smm_cpl
    cpu.ss = cpu.smm_ss
    cpu.rflags = cpu.smm_rflags
    cpu.rax = cpu.smm_rax
    cpu.dr6 = cpu.smm_dr6
    cpu.dr7 = cpu.smm_dr7
    cpu.efer = cpu.smm_efer
    cpu.shadow = cpu.smm_shadow
    cpu.halted = cpu.smm_halted
    restore_nmi_mask(m, cpu)
    forget_save_area(cpu)


@rule("AMD64 APM vol. 2", "SMM_CTL MSR: EXIT; Linux arch/x86/kvm/smm.c: HF_SMM_INSIDE_NMI_MASK")
def restore_nmi_mask(m: Machine, cpu: Cpu) -> None:
    """RSM brings NMIs' mask back as it was when SMM was entered. Whether it masks them again where an IRET inside of
    SMM had unmasked them is disputed (knob). By default it does, as SMM_CTL does, which stands for RSM where a
    hypervisor leaves SMM."""
    if cpu.smm_nmi_masked != 0 and cpu.nmi_masked == 0 and knob(m, KNOB_RSM_LEAVES_NMIS_UNMASKED):
        return
    cpu.nmi_masked = cpu.smm_nmi_masked


def forget_save_area(cpu: Cpu) -> None:
    """No litmus guest reads SMRAM: what was saved there makes no difference after RSM."""
    cpu.smm_rip = 0
    cpu.smm_rsp = 0
    cpu.smm_cpl = 0
    cpu.smm_ss = 0
    cpu.smm_rflags = 0
    cpu.smm_rax = 0
    cpu.smm_dr6 = 0
    cpu.smm_dr7 = 0
    cpu.smm_efer = 0
    cpu.smm_shadow = 0
    cpu.smm_halted = 0
    cpu.smm_nmi_masked = 0


@rule("AMD64 APM vol. 2", "SMM Execution Environment", "memory")
def find_itself_in_smm(cpu: Cpu) -> None:
    """The hypervisor has put the guest at the first instruction of its SMI handler: to the guest an SMI has come. Where
    it came and with which flags the handler can read in the state-save area, which the hypervisor has written."""
    see_smi(cpu, cpu.smm_rip, cpu.smm_rflags)
    cpu.smm_found = 0
    forget_save_area(cpu)


@rule("Linux", "arch/x86/kvm/smm.c:enter_smm: IDT limit is set to zero on entry to SMM", "read")
def delivery_at_smm_entry(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """An event that is delivered before the first instruction in SMM finds no IDT, which the handler has yet to set up:
    the guest shuts down, and has seen nothing of the SMI."""
    cpu.smm_found = 0
    forget_save_area(cpu)
    shut_down(m, cpu, vmcb)


def latch_init(cpu: Cpu) -> None:
    """An INIT waits; another one that finds it waiting merges into it. A SIPI that waits came before it and is
    void."""
    cpu.init_latched = 1
    cpu.sipi_latched = 0


@rule("AMD64 APM vol. 2", "Exceptions and Interrupts (SMM): INIT; Global Interrupt Flag; INIT Support", "read")
def init_due(m: Machine, cpu: Cpu) -> bool:
    """An INIT waits, and neither SMM nor GIF holds it."""
    return cpu.init_latched != 0 and cpu.smm == 0 and cpu.gif != 0 and held_for_init(m, cpu)


@rule("AMD64 APM vol. 2", "Processor Initialization State: Initial Processor State after INIT", "memory")
def take_init(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """INIT: registers, flags and debug registers as after RESET, the local APIC too, which is not enabled then; the
    processor is not halted, and a trap that was due is gone. Of an encrypted guest the processor's state stays as it
    is."""
    cpu.init_latched = 0
    cpu.waits_for_sipi = m.ap
    cpu.irr = 0
    cpu.isr = 0
    cpu.apic_off = 1
    forget_events(m, cpu)
    if m.sev_es:
        settle_in_reset_hold(cpu)
        return
    cpu.trap = 0
    cpu.shadow = SHADOW_NONE
    cpu.halted = 0
    cpu.rflags = X86_EFLAGS_FIXED
    cpu.rax = 0
    cpu.dr0 = 0
    cpu.dr1 = 0
    cpu.dr2 = 0
    cpu.dr3 = 0
    cpu.dr6 = DR6_RESET
    cpu.dr7 = DR7_RESET
    cpu.efer = EFER_BOOTED
    begin_firmware(m, cpu)


@rule("AMD64 APM vol. 2", "Processor Initialization State: Initial Processor State after INIT", "memory")
def forget_events(m: Machine, cpu: Cpu) -> None:
    """What becomes of a latched NMI or SMI and of NMIs' mask at an INIT is not documented (knobs)."""
    if cpu.nmi_latched != 0 and not knob(m, KNOB_INIT_KEEPS_NMI_LATCH):
        cpu.nmi_latched = 0
    if cpu.nmi_masked != 0 and not knob(m, KNOB_INIT_KEEPS_NMI_MASK):
        cpu.nmi_masked = 0
    if cpu.smi_latched != 0 and not knob(m, KNOB_INIT_KEEPS_SMI_LATCH):
        cpu.smi_latched = 0


@rule("AMD64 APM vol. 2", "Interprocessor Interrupts (IPI): INIT, STARTUP", "read")
def latch_sipi(m: Machine, cpu: Cpu) -> None:
    """A SIPI is for an application processor that waits for it, also if it is about to, because an INIT goes first
    that nothing holds but that an encrypted guest is elsewhere. Every other processor ignores it."""
    if m.ap != 0 and (cpu.waits_for_sipi != 0 or init_due(m, cpu) or (m.sev_es and cpu.init_latched)):
        cpu.sipi_latched = 1


@rule("AMD64 APM vol. 2", "Interprocessor Interrupts (IPI): INIT, STARTUP", "read")
def sipi_due(cpu: Cpu) -> bool:
    """The processor waits for a SIPI, and one has come. Another INIT goes first."""
    return cpu.sipi_latched != 0 and cpu.waits_for_sipi != 0 and cpu.init_latched == 0


@rule("AMD64 APM vol. 2", "Interprocessor Interrupts (IPI): INIT, STARTUP", "read")
def take_sipi(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """The processor begins to execute where the SIPI says, an encrypted guest where it has asked to be held. While it
    waited it responded to nothing else. What came, SMIs and NMIs too, was held, and is taken from here on."""
    cpu.sipi_latched = 0
    cpu.waits_for_sipi = 0
    end_reset_hold(cpu)


@rule("Linux", "arch/x86/kvm/svm/sev.c:sev_vcpu_deliver_sipi_vector: AP reset hold; silent about NMIs", "derived")
def take_sipi_alone(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """The same where an encrypted guest's hypervisor, which holds it, has lost the NMI which came while it was held."""
    take_sipi(m, cpu, vmcb)
    cpu.nmi_latched = 0


def begin_firmware(m: Machine, cpu: Cpu) -> None:
    """`init:` stands for what the code at the reset vector, or where a SIPI says, starts once it has set up a stack and
    an IDT."""
    cpu.rip = wrap16(m.init - 1)
    cpu.rsp = STACK_WORDS
    leave_user_mode(cpu)


@rule("AMD64 APM vol. 2", "VMRUN Instruction: Loading Guest State: CPL in real mode; Initial SMM State", "memory")
def leave_user_mode(cpu: Cpu) -> None:
    """SMM, and what INIT starts, begin in real mode, where CPL is 0, whatever a VMCB says. They set up SS."""
    cpu.cpl = 0
    cpu.ss = KERNEL_DS


@rule("AMD64 APM vol. 2", "SMM Execution Environment; Processor Initialization State: the first instruction", "memory")
def find_firmware(m: Machine, cpu: Cpu) -> None:
    """VMRUN at the entry of SMM or at the reset vector: the code there is `smi:` or `init:`."""
    if m.sev_es:
        return
    if m.smi != 0 and cpu.rip == SMM_ENTRY:
        cpu.rip = wrap16(m.smi - 1)
        leave_user_mode(cpu)
        cpu.smm_found = 1
    elif m.init != 0 and cpu.rip == RESET_VECTOR:
        begin_firmware(m, cpu)


@rule("AMD64 APM vol. 2", "Multiple-Processor Initialization: STARTUP IPI", "memory")
def find_itself_started(m: Machine, cpu: Cpu, code_base: u32) -> None:
    """VMRUN at the first byte of the page that the SIPI names, with the base of CS there: the code is `init:`."""
    if m.ap != 0 and cpu.rip == 0 and code_base == SIPI_VECTOR << 12:
        begin_firmware(m, cpu)


SMM_ENTRY = 0x8000
"""RIP of the first instruction in SMM, from SMBASE on (AMD64 APM vol. 2, "SMM Execution Environment")."""

RESET_VECTOR = 0xFFF0
"""RIP behind RESET and INIT (AMD64 APM vol. 2, "Processor Initialization State")."""
