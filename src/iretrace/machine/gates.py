"""EFER and the global interrupt flag: who may set SVME, what CLGI and STGI do, and VMRUN of a guest."""

from __future__ import annotations

from iretrace.machine.cpu import (
    EFER_LMA,
    EFER_LME,
    KNOB_EFER_LMA_IS_CHECKED,
    KNOB_SEV_ES_GUEST_READS_SVME,
    OP_STGI,
    OP_WRMSR,
    UD_VECTOR,
    Cpu,
    Machine,
    knob,
)
from iretrace.machine.delivery import raise_fault, raise_gp, raise_vc
from iretrace.machine.stack import retire
from iretrace.machine.svm import exits_instead, intercepted, vmexit
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_CLGI,
    INTERCEPT_MSR_PROT,
    INTERCEPT_STGI,
    INTERCEPT_VMRUN,
    SVM_EXIT_EFER_WRITE_TRAP,
    SVM_EXIT_MSR,
    SVM_EXIT_VMRUN,
    TRAP_EFER_WRITE,
    V_GIF_ENABLE_MASK,
    V_GIF_MASK,
    Vmcb,
)
from iretrace.subset import rule, u8, u32, u64, wrap16, wrap32, wrap64


@rule("AMD64 APM vol. 2", "Enabling SVM; Global Interrupt Flag, STGI and CLGI Instructions; Virtual GIF", "read")
def gif_instruction(m: Machine, cpu: Cpu, vmcb: Vmcb, op: u8) -> None:
    """STGI and CLGI are #UD unless EFER.SVME is set (STGI also works where CPUID has SKINIT or SVM-Lock, as no guest's
    has). VMRUN wants SVME set: not intercepted, a guest's move V_GIF, whatever the guest knows of SVME."""
    number: u8 = INTERCEPT_STGI if op == OP_STGI else INTERCEPT_CLGI
    if gif_instruction_is_vc(m, cpu, vmcb, number):
        raise_vc(m, cpu, vmcb, number)
        return
    if cpu.efer & EFER_SVME == 0:
        raise_fault(m, cpu, vmcb, UD_VECTOR, 0)
        return
    if exits_instead(m, cpu, vmcb, number):
        return
    if cpu.guest_mode == 0:
        cpu.gif = 1 if op == OP_STGI else 0
    elif vmcb.int_ctl & V_GIF_ENABLE_MASK != 0:
        others: u32 = vmcb.int_ctl & ~V_GIF_MASK
        vmcb.int_ctl = others | V_GIF_MASK if op == OP_STGI else others
    retire(cpu, wrap16(cpu.rip + 1))


@rule("AMD64 APM vol. 2", "Types of Exits (SEV-ES): all other intercepts are non-automatic exits", "derived")
def gif_instruction_is_vc(m: Machine, cpu: Cpu, vmcb: Vmcb, number: u8) -> bool:
    """An SEV-ES guest has SVME set and no SVM: its hypervisor can only have CLGI and STGI raise #VC. On the machine
    alone they stand for that."""
    return m.sev_es != 0 and (cpu.guest_mode == 0 or intercepted(vmcb, number))


@rule("AMD64 APM vol. 2", "Enabling SVM; VMRUN Instruction; Types of Exits (SEV-ES)", "read")
def vmrun_instruction(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """VMRUN is #UD unless EFER.SVME is set, and exits in every guest, as no VMCB without that intercept is legal. What
    it does on the machine alone has no contract, as guests of guests are not modelled (Cpu.door)."""
    if gif_instruction_is_vc(m, cpu, vmcb, INTERCEPT_VMRUN):
        raise_vc(m, cpu, vmcb, INTERCEPT_VMRUN)
        return
    if cpu.efer & EFER_SVME == 0:
        raise_fault(m, cpu, vmcb, UD_VECTOR, 0)
        return
    if not exits_instead(m, cpu, vmcb, INTERCEPT_VMRUN):
        cpu.door = SVM_EXIT_VMRUN


# EFER.


@rule("AMD64 APM vol. 2", "MSR Intercepts: MSR Permissions Map; Types of Exits (SEV-ES)", "read")
def msr_access_exits(m: Machine, cpu: Cpu, vmcb: Vmcb, write: bool) -> bool:
    """RDMSR and WRMSR exit unless the permission map lets them through: EXITINFO1 is 1 for a write. In an SEV-ES guest
    that is #VC."""
    passes: bool = (m.efer_passes >> (1 if write else 0)) & 1 != 0
    if cpu.guest_mode == 0 or passes or not intercepted(vmcb, INTERCEPT_MSR_PROT):
        return False
    if m.sev_es:
        raise_vc(m, cpu, vmcb, SVM_EXIT_MSR)
        return True
    vmexit(m, cpu, vmcb, SVM_EXIT_MSR, 1 if write else 0, 0)
    vmcb.next_rip = wrap64(cpu.rip + 1)
    return True


@rule("AMD64 APM vol. 2", "Extended Feature Enable Register (EFER); Enabling SVM")
def efer_refuses(m: Machine, cpu: Cpu, value: u64) -> bool:
    """A write is #GP if it changes LME while paging is on, or sets SVME although CPUID has no SVM. One that changes LMA
    is, too, as newer editions have it; older ones call the bit read-only, and KVM and emulators ignore it (knob)."""
    if (value ^ cpu.efer) & EFER_LME != 0:
        return True
    if value & EFER_SVME != 0 and m.svm == 0 and m.sev_es == 0:
        return True
    return (value ^ cpu.efer) & EFER_LMA != 0 and knob(m, KNOB_EFER_LMA_IS_CHECKED)


@rule("AMD64 APM vol. 2", "Extended Feature Enable Register (EFER): LMA; Control Register Write Traps (SEV-ES): SVME")
def write_efer(m: Machine, cpu: Cpu, value: u64) -> None:
    """LMA stays as it is. Clearing SVME does not set GIF. What an SEV-ES guest writes to SVME is ignored."""
    kept: u32 = EFER_LMA | EFER_SVME if m.sev_es else EFER_LMA
    cpu.efer = (wrap32(value) & ~kept) | (cpu.efer & kept)


@rule("AMD64 APM vol. 2", "Control Register Write Traps: writes by SEV-ES guests to EFER.SVME are always ignored")
def read_efer(m: Machine, cpu: Cpu) -> u32:
    """EFER. An SEV-ES guest's has SVME set whenever it runs; whether it can see that is not documented (knob)."""
    if m.sev_es and not knob(m, KNOB_SEV_ES_GUEST_READS_SVME):
        return cpu.efer & ~EFER_SVME
    return cpu.efer


@rule("AMD64 APM vol. 2", "EFER Write Trap; Types of Exits (SEV-ES)", "derived")
def trap_efer_write(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """The trap exits behind the write: RIP is past the instruction, and EXITINFO1 is EFER as hardware has it now, with
    SVME, as KVM expects in efer_trap()."""
    if cpu.guest_mode and intercepted(vmcb, TRAP_EFER_WRITE):
        vmexit(m, cpu, vmcb, SVM_EXIT_EFER_WRITE_TRAP, cpu.efer, 0)


def msr_instruction(m: Machine, cpu: Cpu, vmcb: Vmcb, op: u8) -> None:
    """RDMSR and WRMSR of EFER. RCX holds its number throughout, and RDX 0."""
    if msr_access_exits(m, cpu, vmcb, op == OP_WRMSR):
        return
    if op == OP_WRMSR and efer_refuses(m, cpu, cpu.rax):
        raise_gp(m, cpu, vmcb)
        return
    retire(cpu, wrap16(cpu.rip + 1))
    if op == OP_WRMSR:
        write_efer(m, cpu, cpu.rax)
        trap_efer_write(m, cpu, vmcb)
    else:
        cpu.rax = read_efer(m, cpu)
