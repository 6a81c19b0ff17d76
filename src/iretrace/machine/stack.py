"""Instructions that use the stack: PUSH, PUSHFQ, POPFQ, and those that change a word of it; and how one completes."""

from __future__ import annotations

from iretrace.machine.breakpoints import READ, WRITE, touch
from iretrace.machine.cpu import (
    DEBUGCTL_BTF,
    DR6_BS,
    MEMORY_WORDS,
    OP_ANDN_STACK,
    OP_OR_STACK,
    PAGE_WORDS,
    PF_VECTOR,
    SHADOW_NONE,
    STACK_WORDS,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
    Cpu,
    Machine,
    see_flags,
)
from iretrace.machine.delivery import PF_WRITE, raise_fault
from iretrace.machine.privilege import USER_FLAGS
from iretrace.machine.svm import NPF_WRITE_USER, PAGE_SHIFT, exits_instead, vmexit
from iretrace.machine.vmcb import INTERCEPT_POPF, INTERCEPT_PUSHF, SVM_EXIT_NPF, Vmcb
from iretrace.subset import rule, u8, u16, u32, wrap16, wrap64

NPF_READ_USER = 0x4

# Operands of instructions that change a word of the stack.
STACK_OFFSET_SHIFT = 24
STACK_IMMEDIATE = 0xFF_FFFF


@rule("AMD64 APM vol. 2", "Single Stepping; Debug-Control MSR: Branch Single Step")
def steps(cpu: Cpu, next_rip: u16) -> bool:
    """TF traps behind every instruction, and with DEBUGCTL.BTF behind those only that do not go on to the next one."""
    if cpu.rflags & X86_EFLAGS_TF == 0:
        return False
    return cpu.debugctl & DEBUGCTL_BTF == 0 or next_rip != cpu.rip + 1


@rule("AMD64 APM vol. 2", "Single Stepping; Resume Flag (RF) Bit; Interrupt Shadows")
def retire(cpu: Cpu, next_rip: u16) -> None:
    """The instruction completes: RIP moves on, a shadow that covered it ends with it, RF is cleared, and if TF was set
    when it began, a trap is due. An instruction that changes TF does so only after this."""
    if steps(cpu, next_rip):
        cpu.trap |= DR6_BS
    cpu.rip = next_rip
    cpu.shadow = SHADOW_NONE
    cpu.rflags = cpu.rflags & ~X86_EFLAGS_RF


@rule("AMD64 APM vol. 2", "Nested Page Fault: the instruction restarts; Interrupt Shadows")
def no_access(m: Machine, cpu: Cpu, vmcb: Vmcb, at: u16, write: bool) -> bool:
    """The instruction cannot reach a word of its stack: there is no page, or nested paging has not mapped it. Then it
    has faulted or exited before it has done anything, a shadow that covers it still open."""
    if at % PAGE_WORDS >= STACK_WORDS or at >= MEMORY_WORDS:
        raise_fault(m, cpu, vmcb, PF_VECTOR, PF_WRITE if write else 0)
        return True
    page: u16 = at // PAGE_WORDS
    if cpu.guest_mode == 0 or (cpu.cold >> (page & 7)) & 1 == 0:
        return False
    vmexit(m, cpu, vmcb, SVM_EXIT_NPF, NPF_WRITE_USER if write else NPF_READ_USER, wrap64(page << PAGE_SHIFT))
    return True


@rule("AMD64 APM vol. 3", "PUSH")
def push(m: Machine, cpu: Cpu, vmcb: Vmcb, value: u32) -> None:
    """PUSH stores below RSP and moves RSP there."""
    at: u16 = wrap16(cpu.rsp - 1)
    if no_access(m, cpu, vmcb, at, True):
        return
    cpu.rsp = at
    cpu.memory[at] = value
    retire(cpu, wrap16(cpu.rip + 1))
    touch(cpu, WRITE, at)


@rule("AMD64 APM vol. 3", "PUSHF, PUSHFD, PUSHFQ")
def pushfq(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """PUSHFQ stores RFLAGS with RF clear; where the guest can read it, TF and IF are an observation."""
    if exits_instead(m, cpu, vmcb, INTERCEPT_PUSHF):
        return
    at: u16 = wrap16(cpu.rsp - 1)
    if no_access(m, cpu, vmcb, at, True):
        return
    if m.hidden[cpu.rip] == 0:
        see_flags(cpu)
    push(m, cpu, vmcb, cpu.rflags & ~X86_EFLAGS_RF)


@rule("AMD64 APM vol. 3", "POPF, POPFD, POPFQ")
def popfq(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """POPFQ loads TF, IF and NT, in user mode not IF, since IOPL is 0; RF is cleared. IF going up casts no shadow. TF
    traps first after the next instruction."""
    if exits_instead(m, cpu, vmcb, INTERCEPT_POPF) or no_access(m, cpu, vmcb, cpu.rsp, False):
        return
    flags: u32 = loaded_flags(cpu, cpu.memory[cpu.rsp] & USER_FLAGS)
    retire(cpu, wrap16(cpu.rip + 1))
    touch(cpu, READ, cpu.rsp)
    cpu.rsp = wrap16(cpu.rsp + 1)
    cpu.rflags = X86_EFLAGS_FIXED | flags


def loaded_flags(cpu: Cpu, flags: u32) -> u32:
    """Flags that POPFQ or IRETQ loads: IF stays as it is in user mode."""
    if cpu.cpl == 0:
        return flags
    return (flags & ~X86_EFLAGS_IF) | (cpu.rflags & X86_EFLAGS_IF)


def stack_word(m: Machine, cpu: Cpu, vmcb: Vmcb, op: u8, arg: u32) -> None:
    """OR, AND NOT or MOV of an immediate to a word of the stack."""
    at: u16 = wrap16(cpu.rsp + (arg >> STACK_OFFSET_SHIFT))
    if no_access(m, cpu, vmcb, at, True):
        return
    value: u32 = arg & STACK_IMMEDIATE
    if op == OP_OR_STACK:
        cpu.memory[at] |= value
    elif op == OP_ANDN_STACK:
        cpu.memory[at] = cpu.memory[at] & ~value
    else:
        cpu.memory[at] = value
    retire(cpu, wrap16(cpu.rip + 1))
    touch(cpu, WRITE, at)
