"""Instructions that move debug registers, #DB's way through the #VC handler, and accesses that cannot be made."""

from __future__ import annotations

from iretrace.machine.breakpoints import breakpoint_address, report
from iretrace.machine.cpu import (
    DB_VECTOR,
    DR6_BD,
    DR6_RESET,
    DR7_GD,
    DR7_RESET,
    MEMORY_WORDS,
    OP_TO_DR,
    Cpu,
    Machine,
)
from iretrace.machine.delivery import FAULT, raise_exception, raise_vc
from iretrace.machine.svm import vmexit
from iretrace.machine.vmcb import SVM_EXIT_EXCP_BASE, SVM_EXIT_READ_DR0, SVM_EXIT_WRITE_DR0, Vmcb
from iretrace.subset import rule, u8, u32, u64, wrap16, wrap32, wrap64

DR6_WRITABLE = 0xE00F
DR7_WRITABLE = 0xFFFF_23FF


def dr_intercepted(vmcb: Vmcb, number: u8, write: bool) -> bool:
    """Whether the intercept of MOV from or to that debug register is set."""
    return (vmcb.intercept_dr >> ((number + 16 if write else number) & 31)) & 1 != 0


@rule("AMD64 APM vol. 2", "Read/Write of DRx Intercepts; EXITINFO1: GPR number; Types of Exits (SEV-ES)", "read")
def dr_access_exits(m: Machine, cpu: Cpu, vmcb: Vmcb, number: u8, write: bool) -> bool:
    """An intercepted MOV DR exits before it has done anything. EXITINFO1 is the number of the general register, and
    RAX's is 0. In an SEV-ES guest it is #VC; on the machine alone DR7 of one without DebugSwap stands for that."""
    code: u64 = wrap64((SVM_EXIT_WRITE_DR0 if write else SVM_EXIT_READ_DR0) + number)
    if cpu.guest_mode == 0:
        if m.sev_es == 0 or cpu.debug_swap or number != 7:
            return False
        raise_vc(m, cpu, vmcb, wrap32(code))
        return True
    if not dr_intercepted(vmcb, number, write):
        return False
    if m.sev_es:
        raise_vc(m, cpu, vmcb, wrap32(code))
        return True
    vmexit(m, cpu, vmcb, code, 0, 0)
    vmcb.next_rip = wrap64(cpu.rip + 1)
    return True


@rule("AMD64 APM vol. 2", "Debug-Control Register (DR7): General-Detect Enable (GD)", "read")
def general_detect(m: Machine, cpu: Cpu, vmcb: Vmcb) -> bool:
    """With DR7.GD set an access of a debug register is #DB, a fault with DR6.BD."""
    if cpu.dr7 & DR7_GD == 0:
        return False
    report(m, cpu, DR6_BD)
    raise_exception(m, cpu, vmcb, FAULT, DB_VECTOR, 0, cpu.rip)
    return True


def dr_access_stops(m: Machine, cpu: Cpu, vmcb: Vmcb, op: u8, number: u8) -> bool:
    """A MOV DR that does not get to move anything. The intercept comes before general detect, as in Bochs."""
    return dr_access_exits(m, cpu, vmcb, number, op == OP_TO_DR) or general_detect(m, cpu, vmcb)


@rule("AMD64 APM vol. 2", "Debug-Status Register (DR6); Debug-Control Register (DR7): reserved bits", "read")
def write_dr(cpu: Cpu, number: u8, value: u64) -> None:
    """What a debug register holds after a write: reserved bits of DR6 and DR7 are as at reset."""
    if number == 0:
        cpu.dr0 = value
    elif number == 1:
        cpu.dr1 = value
    elif number == 2:
        cpu.dr2 = value
    elif number == 3:
        cpu.dr3 = value
    elif number == 6:
        cpu.dr6 = wrap32(value & DR6_WRITABLE) | DR6_RESET
    else:
        cpu.dr7 = wrap32(value & DR7_WRITABLE) | DR7_RESET


def read_dr(cpu: Cpu, number: u8) -> u64:
    """What a debug register holds."""
    if number == 6:
        return cpu.dr6
    return cpu.dr7 if number == 7 else breakpoint_address(cpu, number)


@rule("Linux", "arch/x86/coco/sev/vc-handle.c:vc_raw_handle_exception, exc_vmm_communication: #VC for #DB", "read")
def vc_db(m: Machine, cpu: Cpu) -> u32:
    """#VC(41h) is the guest's #DB: its handler goes on in that of #DB, without a VMGEXIT. Where it goes on."""
    if cpu.rsp >= MEMORY_WORDS or cpu.memory[cpu.rsp] != SVM_EXIT_EXCP_BASE + DB_VECTOR or m.idt[DB_VECTOR] == 0:
        return cpu.rip + 1
    cpu.rsp = wrap16(cpu.rsp + 1)
    return wrap32(m.idt[DB_VECTOR] - 1)
