"""Hardware breakpoints: which accesses match DR0-3 and DR7, and what DR6 says of a #DB."""

from __future__ import annotations

from iretrace.machine.cpu import (
    DEBUGCTL_BTF,
    DR6_B_MASK,
    DR6_BD,
    DR7_ENABLE,
    DR7_GD,
    KNOB_STEP_CLEARS_B,
    KNOB_VGIF_DISCARDS_BREAKPOINTS,
    SHADOW_MOV_SS,
    X86_EFLAGS_RF,
    Cpu,
    Machine,
    knob,
)
from iretrace.machine.vmcb import V_GIF_ENABLE_MASK, V_GIF_MASK, Vmcb
from iretrace.subset import rule, u8, u16, u32, u64

# Kinds of accesses, and DR7.R/W0-3.
EXECUTE = 0
WRITE = 1
READ = 2
RW_WRITE = 1
RW_READ_WRITE = 3


@rule("AMD64 APM vol. 2", "Debug-Control Register (DR7): R/W", "read")
def watches(rw: u32, access: u8) -> bool:
    """R/W = 0 watches execution, 1 writes, 3 reads and writes; 2 (I/O) nothing that a litmus guest does."""
    if access == EXECUTE:
        return rw == EXECUTE
    return rw == RW_READ_WRITE or (access == WRITE and rw == RW_WRITE)


def breakpoint_address(cpu: Cpu, number: u8) -> u64:
    """DR0-3 by number."""
    if number == 0:
        return cpu.dr0
    if number == 1:
        return cpu.dr1
    return cpu.dr2 if number == 2 else cpu.dr3


@rule("AMD64 APM vol. 2", "Debug-Control Register (DR7): L, G; Setting Breakpoints", "read")
def matching(cpu: Cpu, access: u8, address: u16) -> u32:
    """The breakpoints, as bits of DR6, that are enabled (locally or globally) and watch this access."""
    found: u32 = 0
    if cpu.dr7 & DR7_ENABLE == 0:
        return found
    for number in range(4):
        enabled: bool = (cpu.dr7 >> (2 * number)) & 3 != 0
        rw: u32 = (cpu.dr7 >> (16 + 4 * number)) & 3
        if enabled and watches(rw, access) and breakpoint_address(cpu, number) == address:
            found |= 1 << number
    return found


@rule("AMD64 APM vol. 2", "Data Breakpoints", "read")
def touch(cpu: Cpu, access: u8, address: u16) -> None:
    """An access that a data breakpoint watches: #DB is due behind the instruction, or behind the delivery."""
    cpu.trap |= matching(cpu, access, address)


@rule("AMD64 APM vol. 2", "Instruction Breakpoints; Bochs cpu/event.cc for MOV SS", "read")
def code_breakpoint(cpu: Cpu) -> u32:
    """The breakpoints on the next instruction, as bits of DR6: a fault, before it does anything. RF holds them off for
    that instruction, and so does the shadow of MOV SS."""
    if cpu.rflags & X86_EFLAGS_RF != 0 or cpu.shadow == SHADOW_MOV_SS:
        return 0
    return matching(cpu, EXECUTE, cpu.rip)


@rule("AMD64 APM vol. 2", "Global Interrupt Flag: effect of GIF on debug exceptions; Virtual GIF", "read")
def breakpoints_are_lost(m: Machine, cpu: Cpu, vmcb: Vmcb) -> bool:
    """GIF=0 discards the #DB of a breakpoint, and not that of a single step. Whether a guest's virtual GIF does the
    same is not documented (knob)."""
    if cpu.guest_mode == 0:
        return cpu.gif == 0
    if vmcb.int_ctl & V_GIF_ENABLE_MASK == 0 or vmcb.int_ctl & V_GIF_MASK != 0:
        return False
    return knob(m, KNOB_VGIF_DISCARDS_BREAKPOINTS)


@rule("AMD64 APM vol. 2", "Debug-Status Register (DR6)", "read")
def report(m: Machine, cpu: Cpu, causes: u32) -> None:
    """The causes of a #DB are added to DR6. A breakpoint or general detect rewrites B0-B3; whether a single step clears
    them is up to the implementation (knob). General detect is off then, so that the handler can use the registers, and
    so is BTF."""
    if cpu.dr6 & DR6_B_MASK != 0 and rewrites_b(m, causes):
        cpu.dr6 = cpu.dr6 & ~DR6_B_MASK
    cpu.dr6 |= causes
    cpu.dr7 = cpu.dr7 & ~DR7_GD
    cpu.debugctl = cpu.debugctl & ~DEBUGCTL_BTF


def rewrites_b(m: Machine, causes: u32) -> bool:
    """Whether B0-B3 of former #DBs go."""
    return causes & (DR6_B_MASK | DR6_BD) != 0 or knob(m, KNOB_STEP_CLEARS_B)
