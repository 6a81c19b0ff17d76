"""User mode: what it may not execute, the selectors that IRETQ loads, SYSCALL and SYSRET."""

from __future__ import annotations

from iretrace.machine.cpu import (
    ABSENT_CS,
    ABSENT_DS,
    BP_VECTOR,
    DR6_BS,
    GP_VECTOR,
    KERNEL_CS,
    KERNEL_DS,
    NP_VECTOR,
    OP_CLGI,
    OP_CLI,
    OP_FROM_DR,
    OP_HLT,
    OP_RDMSR,
    OP_STGI,
    OP_SYSRET,
    OP_TO_DR,
    OP_VMRUN,
    OP_WRMSR,
    SHADOW_NONE,
    SS_VECTOR,
    USER_CS,
    USER_DS,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_NT,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
    Cpu,
    Machine,
)
from iretrace.machine.vmcb import EFER_SVME
from iretrace.subset import rule, u8, u32, wrap16

USER_FLAGS = X86_EFLAGS_IF | X86_EFLAGS_TF | X86_EFLAGS_NT
"""The flags of this model that software can load, RF apart."""

FMASK = X86_EFLAGS_IF | X86_EFLAGS_TF | X86_EFLAGS_NT
"""MSR SFMASK as Linux sets it (arch/x86/kernel/cpu/common.c:syscall_init()), as far as this model has these flags."""

RPL = 3
SELECTOR = 0xFFFC
"""What an error code has of a selector."""


@rule("AMD64 APM vol. 3", "CLI; STI; HLT; MOV (DRn); RDMSR; SYSRET: #GP(0); CLGI; STGI; VMRUN: #UD first", "memory")
def privileged(cpu: Cpu, op: u8) -> bool:
    """In user mode, with IOPL 0, these are #GP(0), before any intercept. CLGI, STGI and VMRUN are so where EFER.SVME
    is set, as it is in hardware for every guest; else they are no instructions."""
    if cpu.cpl == 0:
        return False
    if OP_STGI <= op <= OP_CLGI or op == OP_VMRUN:
        return cpu.efer & EFER_SVME != 0
    if OP_TO_DR <= op <= OP_FROM_DR or OP_CLI <= op <= OP_HLT or OP_RDMSR <= op <= OP_WRMSR:
        return True
    return op == OP_SYSRET


@rule("AMD64 APM vol. 2", "Privilege-Checking: INT n, INT3: gate DPL; INT1 is not checked", "memory")
def gate_shut(cpu: Cpu, vector: u32) -> bool:
    """User mode may go through a gate by INT n or INT3 only if its DPL is 3. As in Linux that of #BP is; that of
    INT 0x20 is not."""
    return cpu.cpl != 0 and vector != BP_VECTOR


def named(selector: u32) -> u32:
    """A selector without RPL."""
    return selector & SELECTOR


@rule("AMD64 APM vol. 3", "IRET: CS", "memory")
def cs_fault(cpu: Cpu, selector: u32) -> u8:
    """The fault of loading CS by IRETQ, or 0: #GP for what is no code segment, for a more privileged one, or for an RPL
    that is not its DPL, then #NP for one that is not present."""
    user: bool = named(selector) == named(USER_CS)
    if not user and selector != KERNEL_CS and selector != ABSENT_CS:
        return GP_VECTOR
    if selector & RPL < cpu.cpl or selector & RPL != (RPL if user else 0):
        return GP_VECTOR
    return NP_VECTOR if selector == ABSENT_CS else 0


@rule("AMD64 APM vol. 3", "IRET: SS", "memory")
def ss_fault(selector: u32, rpl: u32) -> u8:
    """The fault of loading SS by IRETQ to a CPL, or 0: null is for kernel mode only; #GP for what is no data segment or
    has another RPL or DPL, then #SS for one that is not present."""
    if named(selector) == 0:
        return GP_VECTOR if rpl != 0 or selector != 0 else 0
    if rpl != 0:
        return 0 if selector == USER_DS else GP_VECTOR
    if selector == ABSENT_DS:
        return SS_VECTOR
    return 0 if selector == KERNEL_DS else GP_VECTOR


@rule("AMD64 APM vol. 3", "SYSCALL; QEMU target/i386/tcg/translate.c: TF of SYSCALL and SYSRET", "emulator")
def syscall(m: Machine, cpu: Cpu) -> None:
    """RCX is where to return, R11 RFLAGS without RF; what SFMASK names is cleared, and CPL is 0. The stack is not
    switched. TF is looked at when it is done, so that there is no trap behind it where SFMASK has TF."""
    flags: u32 = cpu.rflags & ~X86_EFLAGS_RF
    cpu.rcx = wrap16(cpu.rip + 1)
    cpu.r11 = flags
    cpu.rflags = flags & ~FMASK
    cpu.cpl = 0
    cpu.ss = KERNEL_DS
    cpu.rip = wrap16(m.lstar - 1)
    step_if_set(cpu)


@rule("AMD64 APM vol. 3", "SYSRET; QEMU target/i386/tcg/translate.c: TF of SYSCALL and SYSRET", "emulator")
def sysret(cpu: Cpu) -> None:
    """To user mode at RCX, with the flags in R11, RF clear. TF is looked at when it is done: the trap comes before the
    first instruction there, as if SYSCALL had just been stepped over."""
    cpu.rflags = X86_EFLAGS_FIXED | cpu.r11 & USER_FLAGS
    cpu.cpl = 3
    cpu.ss = USER_DS
    cpu.rip = cpu.rcx
    step_if_set(cpu)


def step_if_set(cpu: Cpu) -> None:
    """The end of an instruction that looks at TF when it is done."""
    cpu.shadow = SHADOW_NONE
    if cpu.rflags & X86_EFLAGS_TF != 0:
        cpu.trap |= DR6_BS
