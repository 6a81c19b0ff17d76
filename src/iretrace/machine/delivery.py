"""IDT delivery in 64-bit mode: stack, frame, gates, and what happens when a delivery itself faults."""

from __future__ import annotations

from iretrace.machine.breakpoints import WRITE, breakpoints_are_lost, matching
from iretrace.machine.cpu import (
    BP_VECTOR,
    DB_VECTOR,
    DF_VECTOR,
    GP_VECTOR,
    KERNEL_CS,
    MEMORY_WORDS,
    NMI_VECTOR,
    NP_VECTOR,
    OF_VECTOR,
    PAGE_MAIN,
    PAGE_RSP0,
    PAGE_WORDS,
    PF_VECTOR,
    SHADOW_NONE,
    STACK_WORDS,
    USER_CS,
    VC_VECTOR,
    VECTORS,
    X86_EFLAGS_IF,
    X86_EFLAGS_NT,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
    Cpu,
    Machine,
    see_delivery,
)
from iretrace.machine.svm import exception_intercepted, vmexit_exception, vmexit_shutdown, vmexit_stack_npf
from iretrace.machine.vmcb import (
    INTERCEPT_DR6_READ,
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_TYPE_SHIFT,
    SVM_EVTINJ_VALID,
    SVM_EVTINJ_VALID_ERR,
    SVM_EXIT_EXCP_BASE,
    Vmcb,
)
from iretrace.subset import rule, u8, u16, u32, wrap16, wrap32

# What is delivered, as far as it makes a difference; those that are no trap or fault are numbered as EVENTINJ's types.
INTR = 0
NMI = 2
SOFT = 4
"""INT n."""
TRAP = 5
"""An exception that is reported behind an instruction, or injected."""
FAULT = 6
"""An exception that an instruction, or a delivery, raises instead of completing."""

# Outcomes of one attempt to deliver.
DELIVERED = 0
EXITED = 1
NOT_PRESENT = 2
"""The gate is absent."""
STACK_FAULT = 3
"""The frame does not fit on the stack page, or there is no stack."""

# The error code bits of a fault met while delivering (EXT) and for a gate (IDT).
ERROR_EXT = 1
ERROR_IDT = 2

# Of a page fault.
PF_WRITE = 2
PF_USER = 4


@rule("AMD64 APM vol. 2", "Error Codes")
def pushes_error(vector: u8) -> bool:
    """#DF, #TS, #NP, #SS, #GP, #PF, #AC and #VC push an error code; NMI and interrupts do not."""
    return (DF_VECTOR <= vector <= PF_VECTOR and vector != 9) or vector == VC_VECTOR or vector == 17


@rule("AMD64 APM vol. 2", "Double-Fault Exception", "memory")
def contributory(vector: u8) -> bool:
    """#DE, #TS, #NP, #SS and #GP are contributory, and so is #VC. NMI and the others are benign."""
    return vector == 0 or 10 <= vector <= GP_VECTOR or vector == VC_VECTOR


@rule("AMD64 APM vol. 2", "Double-Fault Exception", "memory")
def makes_double_fault(first: u8, second: u8) -> bool:
    """Two contributory faults, or a page fault followed by a page fault or a contributory one, make #DF."""
    if first == NMI_VECTOR:
        return False
    if contributory(first):
        return contributory(second)
    if first == PF_VECTOR:
        return contributory(second) or second == PF_VECTOR
    return False


@rule("AMD64 APM vol. 2", "Interrupt-Stack Table; 64-Bit Mode Interrupt-Handler Stack; Interrupt Stack Switch")
def stack_for(m: Machine, cpu: Cpu, vector: u8) -> u16:
    """Where the frame goes: the top of the gate's IST stack if it has one, that of the TSS (RSP0) from user mode, else
    the current stack, 16-byte aligned."""
    page: u8 = m.ist[vector]
    if page != PAGE_MAIN:
        return wrap16(page * PAGE_WORDS + STACK_WORDS)
    if cpu.cpl != 0:
        return PAGE_RSP0 * PAGE_WORDS + STACK_WORDS
    return wrap16(cpu.rsp & 0xFFFE)


@rule("AMD64 APM vol. 2", "Interrupt To Same Privilege in Long Mode; Interrupt To Higher Privilege; Resume Flag")
def push_frame(cpu: Cpu, top: u16, kind: u8, rip: u16, error_words: u8, error: u32) -> None:
    """Push SS, RSP, RFLAGS, CS, RIP and, where the vector has one, the error code. Faults push RF set, all others
    RFLAGS as they are. The memory is the guest's own. From user mode SS becomes null."""
    cpu.memory[wrap16(top - 1)] = cpu.ss
    cpu.memory[wrap16(top - 2)] = cpu.rsp
    cpu.memory[wrap16(top - 3)] = cpu.rflags | X86_EFLAGS_RF if kind == FAULT else cpu.rflags
    cpu.memory[wrap16(top - 4)] = KERNEL_CS if cpu.cpl == 0 else USER_CS
    cpu.memory[wrap16(top - 5)] = rip
    if error_words != 0:
        cpu.memory[wrap16(top - 6)] = error
    cpu.rsp = wrap16(top - 5 - error_words)
    if cpu.cpl != 0:
        cpu.cpl = 0
        cpu.ss = 0


@rule("Linux", "arch/x86/kvm/svm/sev.c:sev_es_init_vmcb, arch/x86/include/asm/cpufeatures.h: NO_NESTED_DATA_BP", "read")
def watch_frame(m: Machine, cpu: Cpu, vmcb: Vmcb, vector: u8, top: u16, error_words: u8) -> None:
    """A data breakpoint on the frame: #DB is due before the handler's first instruction. On the frame of #DB itself
    that goes on for ever, and nothing comes between, unless the processor has NoNestedDataBp."""
    if vector == DB_VECTOR and m.nested_data_bp == 0:
        return
    found: u32 = 0
    for n in range(5):
        found |= matching(cpu, WRITE, wrap16(top - 1 - n))
    if error_words != 0:
        found |= matching(cpu, WRITE, wrap16(top - 6))
    if found != 0 and not breakpoints_are_lost(m, cpu, vmcb):
        cpu.trap |= found


@rule("AMD64 APM vol. 2", "Event Injection; Exit During IDT Vectoring")
def event_info(kind: u8, vector: u8, error_words: u8) -> u32:
    """The event in the format of EVENTINJ and EXITINTINFO."""
    event_type: u32 = SVM_EVTINJ_TYPE_EXEPT if kind >= TRAP else kind << SVM_EVTINJ_TYPE_SHIFT
    error_valid: u32 = SVM_EVTINJ_VALID_ERR if error_words != 0 else 0
    return SVM_EVTINJ_VALID | event_type | error_valid | vector


def error_words_of(kind: u8, vector: u8) -> u8:
    """1 if an error code is pushed: only exceptions have one."""
    return 1 if kind >= TRAP and pushes_error(vector) else 0


@rule("AMD64 APM vol. 2", "Debug Status Register (DR6); DR Intercepts")
def dr6_as_read(cpu: Cpu, vmcb: Vmcb) -> u32:
    """DR6 as the guest can read it: where its reads are intercepted, what its hypervisor answers."""
    if cpu.guest_mode and (vmcb.intercept_dr >> INTERCEPT_DR6_READ) & 1 != 0:
        return cpu.read_dr6
    return cpu.dr6


@rule("AMD64 APM vol. 2", "Interrupt To Same Privilege in Long Mode; Interrupt Stack Frame")
def try_to_deliver(m: Machine, cpu: Cpu, vmcb: Vmcb, kind: u8, vector: u8, error: u32, rip: u16) -> u8:
    """One attempt: gate, stack, frame, flags. The handler starts with IF, TF, RF and NT clear, without a shadow, and
    without a trap of its own."""
    if vector >= VECTORS or m.idt[vector] == 0:
        return NOT_PRESENT
    top: u16 = stack_for(m, cpu, vector)
    error_words: u8 = error_words_of(kind, vector)
    if top % PAGE_WORDS < 5 + error_words or top >= MEMORY_WORDS:
        return STACK_FAULT
    page: u16 = top // PAGE_WORDS
    if cpu.guest_mode and (cpu.cold >> (page & 7)) & 1 != 0:
        vmexit_stack_npf(m, cpu, vmcb, page, event_info(kind, vector, error_words), error)
        return EXITED
    see_delivery(cpu, vector, rip, cpu.rflags, dr6_as_read(cpu, vmcb) if vector == DB_VECTOR else error)
    watch_frame(m, cpu, vmcb, vector, top, error_words)
    push_frame(cpu, top, kind, rip, error_words, error)
    cpu.rip = wrap16(m.idt[vector] - 1)
    cpu.rflags = cpu.rflags & ~(X86_EFLAGS_IF | X86_EFLAGS_TF | X86_EFLAGS_RF | X86_EFLAGS_NT)
    cpu.shadow = SHADOW_NONE
    cpu.halted = 0
    cpu.held = 0
    return DELIVERED


@rule("AMD64 APM vol. 2", "Double-Fault Exception; Shutdown; Exception Intercepts", "memory")
def deliver(m: Machine, cpu: Cpu, vmcb: Vmcb, kind: u8, vector: u8, error: u32, rip: u16) -> None:
    """Deliver an event; rip is where its handler returns to. A fault on the way is intercepted, replaces the event, or
    makes #DF of the two, in this order; a fault while #DF is delivered shuts the processor down."""
    what: u8 = kind
    current: u8 = vector
    code: u32 = error
    back: u16 = rip
    for _attempt in range(4):
        outcome: u8 = try_to_deliver(m, cpu, vmcb, what, current, code, back)
        if outcome <= EXITED:
            return
        if current == DF_VECTOR:
            break
        fault: u8 = NP_VECTOR if outcome == NOT_PRESENT else PF_VECTOR
        fault_code: u32 = gate_error(what, current) if outcome == NOT_PRESENT else PF_WRITE
        event: u32 = event_info(what, current, error_words_of(what, current))
        if fault_exits(m, cpu, vmcb, fault, fault_code, event, code):
            return
        if cpu.guest_mode and m.sev_es and exception_intercepted(vmcb, fault):
            fault_code = wrap32(SVM_EXIT_EXCP_BASE + fault)
            fault = VC_VECTOR
        if makes_double_fault(current, fault):
            fault = DF_VECTOR
            fault_code = 0
            if fault_exits(m, cpu, vmcb, fault, fault_code, event, code):
                return
        current = fault
        code = fault_code
        what = FAULT
        back = cpu.rip
    shut_down(m, cpu, vmcb)


@rule("AMD64 APM vol. 2", "Exception Intercepts; Exit During IDT Vectoring")
def fault_exits(m: Machine, cpu: Cpu, vmcb: Vmcb, fault: u8, error: u32, event: u32, event_error: u32) -> bool:
    """A fault met while an event is delivered exits if it is intercepted, unless the guest's state is encrypted."""
    if cpu.guest_mode == 0 or m.sev_es or not exception_intercepted(vmcb, fault):
        return False
    vmexit_exception(m, cpu, vmcb, fault, error, event, event_error)
    return True


@rule("AMD64 APM vol. 2", "Error Codes: Selector-Error Code")
def gate_error(kind: u8, vector: u8) -> u32:
    """The error code for an absent gate: its number, IDT, and EXT unless an instruction asked for the event."""
    asked_for: bool = kind == SOFT or (kind == TRAP and BP_VECTOR <= vector <= OF_VECTOR)
    return wrap32(vector * 8 + ERROR_IDT + (0 if asked_for else ERROR_EXT))


@rule("AMD64 APM vol. 2", "Shutdown; Shutdown Intercept")
def shut_down(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """A fault while #DF is delivered: the processor shuts down, or the hypervisor that asked for it is told."""
    cpu.shutdown = 1
    if cpu.guest_mode:
        vmexit_shutdown(m, cpu, vmcb)


@rule("AMD64 APM vol. 2", "Exception Intercepts; #VC Exception")
def raise_exception(m: Machine, cpu: Cpu, vmcb: Vmcb, kind: u8, vector: u8, error: u32, rip: u16) -> None:
    """An exception of the guest's own. Intercepted it exits, RIP still where it was, and for INT3 nRIP behind it; an
    SEV-ES guest gets #VC, for #DB also under the ideal hypervisor of the machine alone, unless it has DebugSwap."""
    if exception_is_vc(m, cpu, vmcb, vector):
        deliver(m, cpu, vmcb, FAULT, VC_VECTOR, wrap32(SVM_EXIT_EXCP_BASE + vector), rip)
    elif cpu.guest_mode == 0 or not exception_intercepted(vmcb, vector):
        deliver(m, cpu, vmcb, kind, vector, error, rip)
    else:
        vmexit_exception(m, cpu, vmcb, vector, error, 0, 0)
        if vector == BP_VECTOR:
            vmcb.next_rip = rip


@rule("Linux", "arch/x86/kvm/svm/sev.c:sev_es_init_vmcb: #DB is intercepted unless DebugSwap is on", "read")
def exception_is_vc(m: Machine, cpu: Cpu, vmcb: Vmcb, vector: u8) -> bool:
    """An SEV-ES guest's exception reaches it as #VC: if it is intercepted; on the machine alone #DB does."""
    if m.sev_es == 0:
        return False
    if cpu.guest_mode:
        return exception_intercepted(vmcb, vector)
    return vector == DB_VECTOR and cpu.debug_swap == 0


def raise_fault(m: Machine, cpu: Cpu, vmcb: Vmcb, vector: u8, error: u32) -> None:
    """A fault of the current instruction. A page fault's error code says that it was user code's."""
    user: u32 = PF_USER if vector == PF_VECTOR and cpu.cpl == 3 else 0
    raise_exception(m, cpu, vmcb, FAULT, vector, error | user, cpu.rip)


def raise_vc(m: Machine, cpu: Cpu, vmcb: Vmcb, code: u32) -> None:
    """#VC of the current instruction: what exits in other guests. The error code is the exit code."""
    deliver(m, cpu, vmcb, FAULT, VC_VECTOR, code, cpu.rip)


def raise_gp(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """#GP(0) of the current instruction."""
    raise_fault(m, cpu, vmcb, GP_VECTOR, 0)
