"""The guest's instructions: one function each, and `execute`, which runs the one at RIP."""

from __future__ import annotations

from iretrace.machine.cpu import (
    CODE_SIZE,
    KERNEL_CS,
    KERNEL_DS,
    KNOB_IRET_FAULT_UNMASKS,
    KNOB_TRAP_EXIT_KEEPS_SHADOW,
    MEMORY_WORDS,
    OP_CLI,
    OP_CPUID,
    OP_HLT,
    OP_IRETQ,
    OP_JMP,
    OP_MARK,
    OP_MOV_SS,
    OP_PAUSE,
    OP_PUSH,
    OP_SKIP,
    OP_SPIN,
    OP_STI,
    OP_VMGEXIT,
    PAGE_WORDS,
    PF_VECTOR,
    SHADOW_MOV_SS,
    SHADOW_NONE,
    SHADOW_STI,
    STACK_WORDS,
    VC_FORWARD,
    VC_VECTOR,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_NT,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
    Cpu,
    Machine,
    knob,
    see_mark,
)
from iretrace.machine.delivery import deliver, raise_fault, raise_gp
from iretrace.machine.ghcb import GHCB_GPA, Ghcb
from iretrace.machine.svm import NPF_WRITE_USER, PAGE_SHIFT, intercepted, vmexit
from iretrace.machine.vmcb import (
    INTERCEPT_CPUID,
    INTERCEPT_HLT,
    INTERCEPT_IRET,
    INTERCEPT_PAUSE,
    SVM_EXIT_CPUID,
    SVM_EXIT_HLT,
    SVM_EXIT_IRET,
    SVM_EXIT_NPF,
    SVM_EXIT_PAUSE,
    SVM_EXIT_VMGEXIT,
    Vmcb,
)
from iretrace.subset import rule, u8, u16, u32, u64, wrap8, wrap16, wrap64

NPF_READ_USER = 0x4
PF_WRITE = 2
PF_FETCH = 0x10

# ghcb.save.valid_bitmap: bit n stands for the quadword at offset 8 * n of struct ghcb_save_area.
GHCB_VALID_SW_EXIT_HI = 7 << (0x390 // 8 - 64)
"""sw_exit_code, sw_exit_info_1 and sw_exit_info_2, at 0x390."""
GHCB_VALID_RAX_LO = 1 << (0x1F8 // 8)
GHCB_VALID_RCX_HI = 1 << (0x308 // 8 - 64)


def retire(cpu: Cpu, next_rip: u16) -> None:
    """The instruction completes: RIP moves on, and a shadow that covered the instruction ends with it."""
    cpu.rip = next_rip
    cpu.shadow = SHADOW_NONE
    cpu.rflags = cpu.rflags & ~X86_EFLAGS_RF


@rule("AMD64 APM vol. 2", "Interrupt Shadows")
def sti(cpu: Cpu) -> None:
    """STI casts a shadow over the next instruction, but only when it changes IF from 0 to 1."""
    was_set: bool = cpu.rflags & X86_EFLAGS_IF != 0
    retire(cpu, wrap16(cpu.rip + 1))
    cpu.rflags = cpu.rflags | X86_EFLAGS_IF
    if not was_set:
        cpu.shadow = SHADOW_STI


@rule("Bochs", "cpu/event.cc:interrupts inhibited by MOV SS", "emulator")
def mov_ss(cpu: Cpu) -> None:
    """MOV SS casts a shadow over the next instruction; of several in a row only the first does."""
    in_shadow: bool = cpu.shadow == SHADOW_MOV_SS
    retire(cpu, wrap16(cpu.rip + 1))
    if not in_shadow:
        cpu.shadow = SHADOW_MOV_SS


@rule("AMD64 APM vol. 2", "HLT Intercept; Types of Exits (SEV-ES)")
def hlt(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """HLT waits for an event that is taken. Intercepted under SEV-ES it is an automatic exit, RIP already past it."""
    if cpu.guest_mode and intercepted(vmcb, INTERCEPT_HLT):
        automatic_exit(m, cpu, vmcb, SVM_EXIT_HLT)
        return
    retire(cpu, wrap16(cpu.rip + 1))
    cpu.halted = 1


@rule("AMD64 APM vol. 2", "Pause Intercept Filtering", "derived")
def pause(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """An intercepted PAUSE exits when the filter counter is used up; litmus guests never execute thousands of them."""
    if cpu.guest_mode and intercepted(vmcb, INTERCEPT_PAUSE) and vmcb.pause_filter_count == 0:
        automatic_exit(m, cpu, vmcb, SVM_EXIT_PAUSE)
        return
    retire(cpu, wrap16(cpu.rip + 1))


@rule("AMD64 APM vol. 2", "Types of Exits (SEV-ES): hardware advances RIP", "derived")
def automatic_exit(m: Machine, cpu: Cpu, vmcb: Vmcb, code: u64) -> None:
    """An automatic exit of HLT or PAUSE: the hardware advances RIP. Whether a shadow that covered the instruction is
    saved as still open is not documented (knob)."""
    shadow: u8 = cpu.shadow
    retire(cpu, wrap16(cpu.rip + 1))
    if shadow != SHADOW_NONE and knob(m, KNOB_TRAP_EXIT_KEEPS_SHADOW):
        cpu.shadow = shadow
    vmexit(m, cpu, vmcb, code, 0, 0)


@rule("AMD64 APM vol. 2", "#VC Exception; Non-Automatic Exits")
def cpuid(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """CPUID is a non-automatic exit of an SEV-ES guest: no #VMEXIT, but #VC with the exit code as error code.

    On the machine alone it stands for what an ideal hypervisor must have the guest do, so it is #VC there too."""
    if m.sev_es and (cpu.guest_mode == 0 or intercepted(vmcb, INTERCEPT_CPUID)):
        deliver(m, cpu, vmcb, VC_VECTOR, SVM_EXIT_CPUID)
        return
    retire(cpu, wrap16(cpu.rip + 1))


@rule("AMD64 APM vol. 2", "VMGEXIT; Types of Exits (SEV-ES)")
def vmgexit(m: Machine, cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb, operand: u32) -> None:
    """Fill the GHCB and execute VMGEXIT: it completes, RIP is past it, and #VMEXIT(403h) follows, always.

    On the machine alone the world answers for the ideal hypervisor (Cpu.door)."""
    code: u64 = operand
    if operand == VC_FORWARD:
        if cpu.rsp >= MEMORY_WORDS:
            raise_fault(m, cpu, vmcb, PF_VECTOR, 0)
            return
        code = cpu.memory[cpu.rsp]
    retire(cpu, wrap16(cpu.rip + 1))
    if cpu.guest_mode == 0:
        cpu.door = code
        return
    ghcb.sw_exit_code = code
    ghcb.sw_exit_info_1 = 0
    ghcb.sw_exit_info_2 = 0
    ghcb.valid_bitmap_lo = 0
    ghcb.valid_bitmap_hi = GHCB_VALID_SW_EXIT_HI
    if code == SVM_EXIT_CPUID:
        ghcb.rax = 0
        ghcb.rcx = 0
        ghcb.valid_bitmap_lo = GHCB_VALID_RAX_LO
        ghcb.valid_bitmap_hi = GHCB_VALID_SW_EXIT_HI | GHCB_VALID_RCX_HI
    vmcb.ghcb_gpa = GHCB_GPA
    vmexit(m, cpu, vmcb, SVM_EXIT_VMGEXIT, 0, 0)


@rule("Linux", "arch/x86/coco/sev/vc-handle.c:vc_finish_insn and idtentry_vc's error code", "read")
def skip(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """A #VC handler is done: it drops the error code and steps the saved RIP over the instruction."""
    if cpu.rsp + 2 > MEMORY_WORDS:
        raise_fault(m, cpu, vmcb, PF_VECTOR, 0)
        return
    cpu.rsp = wrap16(cpu.rsp + 1)
    cpu.memory[cpu.rsp] = wrap16(cpu.memory[cpu.rsp] + 1)
    retire(cpu, wrap16(cpu.rip + 1))


@rule("AMD64 APM vol. 2", "Nested Page Fault: the instruction restarts; Interrupt Shadows")
def push(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """PUSH of a zero. On a cold page it exits before it has done anything, a shadow that covers it still open."""
    if cpu.rsp % PAGE_WORDS == 0 or cpu.rsp >= MEMORY_WORDS:
        raise_fault(m, cpu, vmcb, PF_VECTOR, PF_WRITE)
        return
    page: u16 = cpu.rsp // PAGE_WORDS
    if cpu.guest_mode and (cpu.cold >> (page & 7)) & 1 != 0:
        vmexit(m, cpu, vmcb, SVM_EXIT_NPF, NPF_WRITE_USER, wrap64(page << PAGE_SHIFT))
        return
    cpu.rsp = wrap16(cpu.rsp - 1)
    cpu.memory[cpu.rsp] = 0
    retire(cpu, wrap16(cpu.rip + 1))


@rule("AMD64 APM vol. 2", "Types of Exits (SEV-ES); IRET Intercept")
def iretq(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """IRETQ pops RIP, CS, RFLAGS, RSP and SS from what memory holds now, and any IRET that completes unmasks NMIs.

    In an SEV-ES guest the IRET intercept cannot exit: the guest gets #VC(74h) instead."""
    if cpu.guest_mode and m.sev_es and intercepted(vmcb, INTERCEPT_IRET):
        deliver(m, cpu, vmcb, VC_VECTOR, SVM_EXIT_IRET)
        return
    page: u16 = cpu.rsp // PAGE_WORDS
    if cpu.rsp % PAGE_WORDS + 5 > STACK_WORDS or cpu.rsp >= MEMORY_WORDS:
        iret_fault(m, cpu)
        raise_fault(m, cpu, vmcb, PF_VECTOR, 0)
        return
    if cpu.guest_mode and (cpu.cold >> (page & 7)) & 1 != 0:
        vmexit(m, cpu, vmcb, SVM_EXIT_NPF, NPF_READ_USER, wrap64(page << PAGE_SHIFT))
        return
    rip: u32 = cpu.memory[cpu.rsp]
    if cpu.memory[cpu.rsp + 1] != KERNEL_CS or cpu.memory[cpu.rsp + 4] != KERNEL_DS or rip >= CODE_SIZE:
        iret_fault(m, cpu)
        raise_gp(m, cpu, vmcb)
        return
    flags: u32 = cpu.memory[cpu.rsp + 2] & (X86_EFLAGS_IF | X86_EFLAGS_TF | X86_EFLAGS_NT | X86_EFLAGS_RF)
    new_rsp: u16 = wrap16(cpu.memory[cpu.rsp + 3])
    retire(cpu, wrap16(rip))
    cpu.rflags = X86_EFLAGS_FIXED | flags
    cpu.rsp = new_rsp
    if m.iret_unmasks:
        cpu.nmi_masked = 0


@rule("AMD64 APM vol. 2", "NMI Virtualization: V_NMI_MASK cleared on successful completion of IRET", "derived")
def iret_fault(m: Machine, cpu: Cpu) -> None:
    """Does an IRET that faults unmask NMIs? Sources disagree (knob); the default is no."""
    if m.iret_unmasks and cpu.nmi_masked and knob(m, KNOB_IRET_FAULT_UNMASKS):
        cpu.nmi_masked = 0


def execute(m: Machine, cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb) -> None:
    """Run the instruction at RIP: it retires, faults, or is intercepted. Outside of the code there is no page."""
    if cpu.rip >= CODE_SIZE:
        raise_fault(m, cpu, vmcb, PF_VECTOR, PF_FETCH)
        return
    op: u8 = m.ops[cpu.rip]
    if op == OP_STI:
        sti(cpu)
    elif op == OP_MOV_SS:
        mov_ss(cpu)
    elif op == OP_HLT:
        hlt(m, cpu, vmcb)
    elif op == OP_IRETQ:
        iretq(m, cpu, vmcb)
    elif op == OP_VMGEXIT:
        vmgexit(m, cpu, vmcb, ghcb, m.args[cpu.rip])
    elif op == OP_CPUID:
        cpuid(m, cpu, vmcb)
    elif op == OP_PAUSE:
        pause(m, cpu, vmcb)
    elif op == OP_SKIP:
        skip(m, cpu, vmcb)
    elif op == OP_PUSH:
        push(m, cpu, vmcb)
    elif op == OP_JMP:
        retire(cpu, wrap16(m.args[cpu.rip]))
    elif op == OP_SPIN:
        retire(cpu, cpu.rip)
    else:
        plain(m, cpu, op)


def plain(m: Machine, cpu: Cpu, op: u8) -> None:
    """Instructions that only move on: nop, cli, mark."""
    at: u16 = cpu.rip
    retire(cpu, wrap16(at + 1))
    if op == OP_CLI:
        cpu.rflags = cpu.rflags & ~X86_EFLAGS_IF
    elif op == OP_MARK and m.hidden[at] == 0:
        see_mark(cpu, wrap8(m.args[at]))
