"""The guest's instructions: one function each, and `execute`, which runs the one at RIP."""

from __future__ import annotations

from iretrace.machine.breakpoints import READ, touch
from iretrace.machine.cpu import (
    BP_VECTOR,
    CODE_SIZE,
    DB_VECTOR,
    GP_VECTOR,
    KNOB_IRET_FAULT_UNMASKS,
    KNOB_TRAP_EXIT_KEEPS_SHADOW,
    MEMORY_WORDS,
    OP_ADD_RSP,
    OP_CLGI,
    OP_CLI,
    OP_CPUID,
    OP_FROM_DR,
    OP_FROM_R11,
    OP_HLT,
    OP_INT,
    OP_INT1,
    OP_INT3,
    OP_IRETQ,
    OP_JMP,
    OP_LOAD,
    OP_LOAD_BAD,
    OP_LOOK_AT_HOLD,
    OP_MARK,
    OP_MOV_RAX,
    OP_MOV_SS,
    OP_MOV_STACK,
    OP_OR_STACK,
    OP_PAUSE,
    OP_POPFQ,
    OP_PUSH,
    OP_PUSHFQ,
    OP_RDMSR,
    OP_RSM,
    OP_SHOW,
    OP_SKIP,
    OP_SPIN,
    OP_STGI,
    OP_STI,
    OP_SYSCALL,
    OP_SYSRET,
    OP_TO_DR,
    OP_TO_R11,
    OP_UD2,
    OP_VC_DB,
    OP_VMGEXIT,
    OP_VMRUN,
    OP_WRMSR,
    PAGE_CODE,
    PAGE_WORDS,
    PF_VECTOR,
    SHADOW_MOV_SS,
    SHADOW_NONE,
    SHADOW_STI,
    STACK_WORDS,
    UD_VECTOR,
    VC_FORWARD,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_NT,
    X86_EFLAGS_RF,
    Cpu,
    Machine,
    knob,
    see_mark,
    see_value,
)
from iretrace.machine.debug import dr_access_stops, read_dr, vc_db, write_dr
from iretrace.machine.delivery import (
    ERROR_IDT,
    SOFT,
    TRAP,
    deliver,
    raise_exception,
    raise_fault,
    raise_gp,
    raise_vc,
)
from iretrace.machine.gates import gif_instruction, msr_instruction, vmrun_instruction
from iretrace.machine.ghcb import GHCB_GPA, GHCB_MSR_AP_RESET_HOLD_REQ, Ghcb
from iretrace.machine.privilege import (
    RPL,
    SELECTOR,
    USER_FLAGS,
    cs_fault,
    gate_shut,
    privileged,
    ss_fault,
    syscall,
    sysret,
)
from iretrace.machine.reset_hold import look_at_reset_hold
from iretrace.machine.smm import rsm
from iretrace.machine.stack import (
    NPF_READ_USER,
    loaded_flags,
    no_access,
    popfq,
    push,
    pushfq,
    retire,
    stack_word,
)
from iretrace.machine.svm import PAGE_SHIFT, exits_instead, intercepted, vmexit
from iretrace.machine.vmcb import (
    INTERCEPT_CPUID,
    INTERCEPT_HLT,
    INTERCEPT_ICEBP,
    INTERCEPT_INTN,
    INTERCEPT_IRET,
    INTERCEPT_PAUSE,
    SVM_EXIT_CPUID,
    SVM_EXIT_HLT,
    SVM_EXIT_ICEBP,
    SVM_EXIT_IRET,
    SVM_EXIT_NPF,
    SVM_EXIT_PAUSE,
    SVM_EXIT_READ_DR7,
    SVM_EXIT_VMGEXIT,
    SVM_EXIT_WRITE_DR7,
    Vmcb,
)
from iretrace.subset import rule, u8, u16, u32, u64, wrap8, wrap16, wrap32, wrap64

PF_FETCH = 0x10
NPF_FETCH_USER = 0x14

# ghcb.save.valid_bitmap: bit n stands for the quadword at offset 8 * n of struct ghcb_save_area.
GHCB_VALID_SW_EXIT_HI = 7 << (0x390 // 8 - 64)
"""sw_exit_code, sw_exit_info_1 and sw_exit_info_2, at 0x390."""
GHCB_VALID_RAX_LO = 1 << (0x1F8 // 8)
GHCB_VALID_RCX_HI = 1 << (0x308 // 8 - 64)


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
    """MOV SS casts a shadow over the next instruction, which also hides the single-step trap: it comes after that one.
    Of several in a row only the first casts it."""
    in_shadow: bool = cpu.shadow == SHADOW_MOV_SS
    retire(cpu, wrap16(cpu.rip + 1))
    if not in_shadow:
        cpu.shadow = SHADOW_MOV_SS
        cpu.trap = 0


@rule("AMD64 APM vol. 2", "HLT Intercept; Types of Exits (SEV-ES)")
def hlt(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """HLT waits for an event that is taken. Intercepted it exits before it has done anything; under SEV-ES that is an
    automatic exit, RIP already past it."""
    if exits_instead(m, cpu, vmcb, INTERCEPT_HLT):
        return
    if cpu.guest_mode and intercepted(vmcb, INTERCEPT_HLT):
        automatic_exit(m, cpu, vmcb, SVM_EXIT_HLT)
        return
    retire(cpu, wrap16(cpu.rip + 1))
    cpu.halted = 1


@rule("AMD64 APM vol. 2", "Pause Intercept Filtering", "derived")
def pause(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """An intercepted PAUSE exits when the filter counter is used up; litmus guests never execute thousands of them."""
    if cpu.guest_mode and intercepted(vmcb, INTERCEPT_PAUSE) and vmcb.pause_filter_count == 0:
        if not exits_instead(m, cpu, vmcb, INTERCEPT_PAUSE):
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


@rule("AMD64 APM vol. 2", "#VC Exception; Non-Automatic Exits; CPUID Intercept")
def cpuid(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """CPUID is a non-automatic exit of an SEV-ES guest: no #VMEXIT, but #VC with the exit code as error code.

    On the machine alone it stands for what an ideal hypervisor must have the guest do, so it is #VC there too."""
    if m.sev_es and (cpu.guest_mode == 0 or intercepted(vmcb, INTERCEPT_CPUID)):
        raise_vc(m, cpu, vmcb, SVM_EXIT_CPUID)
        return
    if not exits_instead(m, cpu, vmcb, INTERCEPT_CPUID):
        retire(cpu, wrap16(cpu.rip + 1))


@rule("AMD64 APM vol. 2", "VMGEXIT; Types of Exits (SEV-ES)")
def vmgexit(m: Machine, cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb, operand: u32) -> None:
    """Fill the GHCB, or put a request into its MSR, and execute VMGEXIT: it completes, RIP is past it, and
    #VMEXIT(403h) follows, always.

    On the machine alone the world answers for the ideal hypervisor (Cpu.door)."""
    code: u64 = operand
    if operand == VC_FORWARD:
        if cpu.rsp >= MEMORY_WORDS:
            raise_fault(m, cpu, vmcb, PF_VECTOR, 0)
            return
        code = cpu.memory[cpu.rsp]
    retire(cpu, wrap16(cpu.rip + 1))
    if shadows_dr7(cpu, code):
        return
    if cpu.guest_mode == 0:
        cpu.door = code
        return
    if code == GHCB_MSR_AP_RESET_HOLD_REQ:
        vmcb.ghcb_gpa = code
        vmexit(m, cpu, vmcb, SVM_EXIT_VMGEXIT, 0, 0)
        return
    ghcb.sw_exit_code = code
    ghcb.sw_exit_info_1 = 0
    ghcb.sw_exit_info_2 = 0
    ghcb.valid_bitmap_lo = 0
    ghcb.valid_bitmap_hi = GHCB_VALID_SW_EXIT_HI
    if code == SVM_EXIT_WRITE_DR7:
        ghcb.rax = cpu.rax
        ghcb.valid_bitmap_lo = GHCB_VALID_RAX_LO
    if code == SVM_EXIT_CPUID:
        ghcb.rax = 0
        ghcb.rcx = 0
        ghcb.valid_bitmap_lo = GHCB_VALID_RAX_LO
        ghcb.valid_bitmap_hi = GHCB_VALID_SW_EXIT_HI | GHCB_VALID_RCX_HI
    vmcb.ghcb_gpa = GHCB_GPA
    vmexit(m, cpu, vmcb, SVM_EXIT_VMGEXIT, 0, 0)


@rule("Linux", "arch/x86/coco/sev/vc-handle.c:vc_handle_dr7_write, vc_handle_dr7_read", "read")
def shadows_dr7(cpu: Cpu, code: u64) -> bool:
    """The #VC handler remembers what is written to DR7, and answers a read by itself, without VMGEXIT."""
    if code == SVM_EXIT_WRITE_DR7:
        cpu.shadow_dr7 = wrap32(cpu.rax)
    if code == SVM_EXIT_READ_DR7:
        cpu.rax = cpu.shadow_dr7
        return True
    return False


@rule("Linux", "arch/x86/coco/sev/vc-handle.c:vc_finish_insn and idtentry_vc's error code", "read")
def skip(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """A #VC handler is done: it drops the error code and steps the saved RIP over the instruction."""
    if cpu.rsp + 2 > MEMORY_WORDS:
        raise_fault(m, cpu, vmcb, PF_VECTOR, 0)
        return
    cpu.rsp = wrap16(cpu.rsp + 1)
    cpu.memory[cpu.rsp] = wrap16(cpu.memory[cpu.rsp] + 1)
    retire(cpu, wrap16(cpu.rip + 1))


@rule("AMD64 APM vol. 3", "INT; INT3: interrupts generated by software return behind the instruction")
def software_interrupt(m: Machine, cpu: Cpu, vmcb: Vmcb, op: u8, vector: u32) -> None:
    """INT3 raises #BP, INT goes through the gate of its vector. The return address is behind it; if the delivery is cut
    off, RIP is still at it. It does not complete as other instructions do: its own TF ends with the delivery."""
    behind: u16 = wrap16(cpu.rip + 1)
    if op == OP_INT3:
        raise_exception(m, cpu, vmcb, TRAP, BP_VECTOR, 0, behind)
    elif not exits_instead(m, cpu, vmcb, INTERCEPT_INTN):
        if gate_shut(cpu, vector):
            raise_fault(m, cpu, vmcb, GP_VECTOR, wrap32(vector * 8 + ERROR_IDT))
        else:
            deliver(m, cpu, vmcb, SOFT, wrap8(vector), 0, behind)


@rule("AMD64 APM vol. 2", "EXITINTINFO; Instruction Intercepts; #DB (Debug); Linux icebp_interception()", "read")
def int1(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """INT1 is #DB behind the instruction, with DR6 and DR7 as they were. It has an intercept of its own, and that of
    #DB does not see it. If its delivery is cut off, RIP is still at it, as for INT3: Linux and Xen say so."""
    if exits_instead(m, cpu, vmcb, INTERCEPT_ICEBP):
        return
    if cpu.guest_mode and m.sev_es and intercepted(vmcb, INTERCEPT_ICEBP):
        raise_vc(m, cpu, vmcb, SVM_EXIT_ICEBP)
        return
    deliver(m, cpu, vmcb, TRAP, DB_VECTOR, 0, wrap16(cpu.rip + 1))


@rule("AMD64 APM vol. 2", "Types of Exits (SEV-ES); IRET Intercept")
def iretq(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """IRETQ pops RIP, CS, RFLAGS, RSP and SS from what memory holds now, and any IRET that completes unmasks NMIs. It
    casts no shadow. Its intercept comes before all else, so that no IRET which exits has unmasked anything.

    In an SEV-ES guest the IRET intercept cannot exit: the guest gets #VC(74h) instead."""
    if exits_instead(m, cpu, vmcb, INTERCEPT_IRET):
        return
    if cpu.guest_mode and m.sev_es and intercepted(vmcb, INTERCEPT_IRET):
        raise_vc(m, cpu, vmcb, SVM_EXIT_IRET)
        return
    page: u16 = cpu.rsp // PAGE_WORDS
    if cpu.rflags & X86_EFLAGS_NT != 0:
        iret_fault(m, cpu)
        raise_gp(m, cpu, vmcb)
        return
    if cpu.rsp % PAGE_WORDS + 5 > STACK_WORDS or cpu.rsp >= MEMORY_WORDS:
        iret_fault(m, cpu)
        raise_fault(m, cpu, vmcb, PF_VECTOR, 0)
        return
    if cpu.guest_mode and (cpu.cold >> (page & 7)) & 1 != 0:
        vmexit(m, cpu, vmcb, SVM_EXIT_NPF, NPF_READ_USER, wrap64(page << PAGE_SHIFT))
        return
    if iret_frame_faults(m, cpu, vmcb):
        return
    rip: u32 = cpu.memory[cpu.rsp]
    cs: u16 = wrap16(cpu.memory[cpu.rsp + 1])
    ss: u16 = wrap16(cpu.memory[cpu.rsp + 4])
    flags: u32 = loaded_flags(cpu, cpu.memory[cpu.rsp + 2] & (USER_FLAGS | X86_EFLAGS_RF))
    new_rsp: u16 = wrap16(cpu.memory[cpu.rsp + 3])
    retire(cpu, wrap16(rip))
    for n in range(5):
        touch(cpu, READ, wrap16(cpu.rsp + n))
    cpu.rflags = X86_EFLAGS_FIXED | flags
    cpu.rsp = new_rsp
    cpu.cpl = cs & RPL
    cpu.ss = ss
    if m.iret_unmasks:
        cpu.nmi_masked = 0


@rule("AMD64 APM vol. 3", "IRET: CS, SS, then RIP; Error Codes: Selector-Error Code", "memory")
def iret_frame_faults(m: Machine, cpu: Cpu, vmcb: Vmcb) -> bool:
    """A frame that cannot be returned to: the fault is the IRETQ's own, the error code names the selector."""
    cs: u16 = wrap16(cpu.memory[cpu.rsp + 1])
    ss: u16 = wrap16(cpu.memory[cpu.rsp + 4])
    error: u32 = cs & SELECTOR
    fault: u8 = cs_fault(cpu, cs)
    if fault == 0:
        error = ss & SELECTOR
        fault = ss_fault(ss, cs & RPL)
    if fault == 0 and cpu.memory[cpu.rsp] >= CODE_SIZE:
        error = 0
        fault = GP_VECTOR
    if fault == 0:
        return False
    iret_fault(m, cpu)
    raise_fault(m, cpu, vmcb, fault, error)
    return True


@rule("AMD64 APM vol. 2", "NMI Virtualization: V_NMI_MASK cleared on successful completion of IRET", "derived")
def iret_fault(m: Machine, cpu: Cpu) -> None:
    """Does an IRET that faults unmask NMIs? Sources disagree (knob); the default is no."""
    if m.iret_unmasks and cpu.nmi_masked and knob(m, KNOB_IRET_FAULT_UNMASKS):
        cpu.nmi_masked = 0


@rule("AMD64 APM vol. 2", "Nested Page Fault: EXITINFO1 and 2; Interrupt Shadows", "memory")
def no_fetch(m: Machine, cpu: Cpu, vmcb: Vmcb) -> bool:
    """Nested paging has not mapped the page that the instruction is on: it exits before anything of it is done, a
    shadow that covers it still open."""
    if cpu.guest_mode == 0 or cpu.rip + 1 != m.cold_code or (cpu.cold >> PAGE_CODE) & 1 == 0:
        return False
    vmexit(m, cpu, vmcb, SVM_EXIT_NPF, NPF_FETCH_USER, PAGE_CODE << PAGE_SHIFT)
    return True


def execute(m: Machine, cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb) -> None:
    """Run the instruction at RIP: it retires, faults, or is intercepted. Outside of the code there is no page."""
    if cpu.rip >= CODE_SIZE:
        raise_fault(m, cpu, vmcb, PF_VECTOR, PF_FETCH)
        return
    if no_fetch(m, cpu, vmcb):
        return
    op: u8 = m.ops[cpu.rip]
    if privileged(cpu, op):
        raise_gp(m, cpu, vmcb)
    elif op == OP_STI:
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
        push(m, cpu, vmcb, wrap32(cpu.rax))
    elif op == OP_PUSHFQ:
        pushfq(m, cpu, vmcb)
    elif op == OP_POPFQ:
        popfq(m, cpu, vmcb)
    elif OP_INT3 <= op <= OP_INT:
        software_interrupt(m, cpu, vmcb, op, m.args[cpu.rip])
    elif OP_OR_STACK <= op <= OP_MOV_STACK:
        stack_word(m, cpu, vmcb, op, m.args[cpu.rip])
    elif OP_STGI <= op <= OP_CLGI:
        gif_instruction(m, cpu, vmcb, op)
    elif OP_RDMSR <= op <= OP_WRMSR:
        msr_instruction(m, cpu, vmcb, op)
    elif op == OP_VMRUN:
        vmrun_instruction(m, cpu, vmcb)
    elif op == OP_UD2:
        raise_fault(m, cpu, vmcb, UD_VECTOR, 0)
    elif op == OP_RSM:
        rsm(m, cpu, vmcb)
    elif op == OP_LOOK_AT_HOLD:
        look_at_reset_hold(cpu, vmcb, ghcb, m.args[cpu.rip])
    elif OP_MOV_RAX <= op <= OP_VC_DB:
        rax_instruction(m, cpu, vmcb, op, m.args[cpu.rip])
    elif OP_INT1 <= op <= OP_TO_R11:
        system_instruction(m, cpu, vmcb, op)
    else:
        moves_on(m, cpu, op)


@rule("AMD64 APM vol. 3", "MOV; MOV (DRn)", "memory")
def rax_instruction(m: Machine, cpu: Cpu, vmcb: Vmcb, op: u8, arg: u32) -> None:
    """Instructions that load RAX or look at it, and vc_db. MOV to a debug register watches with the old ones."""
    to: u32 = cpu.rip + 1
    if op == OP_LOAD_BAD:
        if arg == 0:
            raise_fault(m, cpu, vmcb, PF_VECTOR, 0)
        else:
            raise_gp(m, cpu, vmcb)
        return
    if OP_TO_DR <= op <= OP_FROM_DR and dr_access_stops(m, cpu, vmcb, op, wrap8(arg)):
        return
    if op == OP_LOAD:
        at: u16 = wrap16(cpu.rsp + arg)
        if no_access(m, cpu, vmcb, at, False):
            return
        cpu.rax = cpu.memory[at]
        touch(cpu, READ, at)
    elif op == OP_MOV_RAX:
        cpu.rax = arg
    elif op == OP_TO_DR:
        write_dr(cpu, wrap8(arg), cpu.rax)
    elif op == OP_FROM_DR:
        cpu.rax = read_dr(cpu, wrap8(arg))
    elif op == OP_SHOW:
        see_value(cpu)
    else:
        to = vc_db(m, cpu)
    retire(cpu, wrap16(to))


def system_instruction(m: Machine, cpu: Cpu, vmcb: Vmcb, op: u8) -> None:
    """INT1, SYSCALL and SYSRET, and what looks at R11 or changes it."""
    if op == OP_INT1:
        int1(m, cpu, vmcb)
    elif op == OP_SYSCALL:
        syscall(m, cpu)
    elif op == OP_SYSRET:
        sysret(cpu)
    else:
        if op == OP_FROM_R11:
            cpu.rax = cpu.r11
        else:
            cpu.r11 = wrap32(cpu.rax)
        retire(cpu, wrap16(cpu.rip + 1))


def moves_on(m: Machine, cpu: Cpu, op: u8) -> None:
    """Instructions that touch neither memory nor events: nop, cli, mark, add rsp, jmp, spin."""
    at: u16 = cpu.rip
    to: u16 = wrap16(at + 1)
    if op == OP_JMP:
        to = wrap16(m.args[at])
    elif op == OP_SPIN:
        to = at
    retire(cpu, to)
    if op == OP_CLI:
        cpu.rflags = cpu.rflags & ~X86_EFLAGS_IF
    elif op == OP_ADD_RSP:
        cpu.rsp = wrap16(cpu.rsp + m.args[at])
    elif op == OP_MARK and m.hidden[at] == 0:
        see_mark(cpu, wrap8(m.args[at]))
