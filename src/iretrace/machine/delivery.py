"""IDT delivery in 64-bit mode: stack, frame, gates, and what happens when a delivery itself faults."""

from __future__ import annotations

from iretrace.machine.cpu import (
    DF_VECTOR,
    GP_VECTOR,
    KERNEL_CS,
    KERNEL_DS,
    MEMORY_WORDS,
    NMI_VECTOR,
    NP_VECTOR,
    PAGE_MAIN,
    PAGE_WORDS,
    PF_VECTOR,
    SHADOW_NONE,
    STACK_WORDS,
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
from iretrace.machine.svm import exception_intercepted, vmexit_shutdown, vmexit_stack_npf
from iretrace.machine.vmcb import (
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_VALID,
    SVM_EVTINJ_VALID_ERR,
    SVM_EXIT_EXCP_BASE,
    Vmcb,
)
from iretrace.subset import rule, u8, u16, u32, wrap16, wrap32

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
PF_WRITE = 2


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


@rule("AMD64 APM vol. 2", "Interrupt-Stack Table; 64-Bit Mode Interrupt-Handler Stack")
def stack_for(m: Machine, cpu: Cpu, vector: u8) -> u16:
    """Where the frame goes: the top of the gate's IST stack if it has one, else the current stack, 16-byte aligned."""
    page: u8 = m.ist[vector]
    if page != PAGE_MAIN:
        return wrap16(page * PAGE_WORDS + STACK_WORDS)
    return wrap16(cpu.rsp & 0xFFFE)


@rule("AMD64 APM vol. 2", "Interrupt To Same Privilege in Long Mode")
def push_frame(cpu: Cpu, top: u16, error_words: u8, error: u32) -> None:
    """Push SS, RSP, RFLAGS, CS, RIP and, where the vector has one, the error code. The memory is the guest's own."""
    cpu.memory[wrap16(top - 1)] = KERNEL_DS
    cpu.memory[wrap16(top - 2)] = cpu.rsp
    cpu.memory[wrap16(top - 3)] = cpu.rflags
    cpu.memory[wrap16(top - 4)] = KERNEL_CS
    cpu.memory[wrap16(top - 5)] = cpu.rip
    if error_words != 0:
        cpu.memory[wrap16(top - 6)] = error
    cpu.rsp = wrap16(top - 5 - error_words)


def event_info(vector: u8, error: u32) -> u32:
    """The event in the format of EVENTINJ and EXITINTINFO."""
    if vector == NMI_VECTOR:
        return wrap32(SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_NMI | vector)
    if pushes_error(vector):
        return wrap32(SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | SVM_EVTINJ_VALID_ERR | vector)
    return wrap32(SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | vector)


@rule("AMD64 APM vol. 2", "Interrupt To Same Privilege in Long Mode; Interrupt Stack Frame")
def try_to_deliver(m: Machine, cpu: Cpu, vmcb: Vmcb, vector: u8, error: u32) -> u8:
    """One attempt: gate, stack, frame, flags. The handler starts with IF, TF, RF and NT clear and without a shadow."""
    if vector >= VECTORS or m.idt[vector] == 0:
        return NOT_PRESENT
    top: u16 = stack_for(m, cpu, vector)
    error_words: u8 = 1 if pushes_error(vector) else 0
    if top % PAGE_WORDS < 5 + error_words or top >= MEMORY_WORDS:
        return STACK_FAULT
    page: u16 = top // PAGE_WORDS
    if cpu.guest_mode and (cpu.cold >> (page & 7)) & 1 != 0:
        vmexit_stack_npf(m, cpu, vmcb, page, event_info(vector, error), error)
        return EXITED
    see_delivery(cpu, vector, cpu.rip, cpu.rflags, error)
    push_frame(cpu, top, error_words, error)
    cpu.rip = wrap16(m.idt[vector] - 1)
    cpu.rflags = cpu.rflags & ~(X86_EFLAGS_IF | X86_EFLAGS_TF | X86_EFLAGS_RF | X86_EFLAGS_NT)
    cpu.shadow = SHADOW_NONE
    cpu.halted = 0
    return DELIVERED


@rule("AMD64 APM vol. 2", "Double-Fault Exception; Shutdown", "memory")
def deliver(m: Machine, cpu: Cpu, vmcb: Vmcb, vector: u8, error: u32) -> None:
    """Deliver an event. A fault on the way replaces it, or makes #DF of the two; a fault while #DF is delivered shuts
    the processor down."""
    current: u8 = vector
    code: u32 = error
    for _attempt in range(4):
        outcome: u8 = try_to_deliver(m, cpu, vmcb, current, code)
        if outcome <= EXITED:
            return
        if current == DF_VECTOR:
            break
        fault: u8 = NP_VECTOR if outcome == NOT_PRESENT else PF_VECTOR
        if cpu.guest_mode and m.sev_es and exception_intercepted(vmcb, fault):
            code = wrap32(SVM_EXIT_EXCP_BASE + fault)
            fault = VC_VECTOR
        elif fault == NP_VECTOR:
            code = wrap32(current * 8 + ERROR_IDT + ERROR_EXT)
        else:
            code = PF_WRITE
        if makes_double_fault(current, fault):
            current = DF_VECTOR
            code = 0
        else:
            current = fault
    shut_down(m, cpu, vmcb)


@rule("AMD64 APM vol. 2", "Shutdown; Shutdown Intercept")
def shut_down(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """A fault while #DF is delivered: the processor shuts down, or the hypervisor that asked for it is told."""
    cpu.shutdown = 1
    if cpu.guest_mode:
        vmexit_shutdown(m, cpu, vmcb)


def raise_fault(m: Machine, cpu: Cpu, vmcb: Vmcb, vector: u8, error: u32) -> None:
    """A fault of the current instruction. Intercepted in an SEV-ES guest it is a non-automatic exit: #VC instead."""
    if cpu.guest_mode and m.sev_es and exception_intercepted(vmcb, vector):
        deliver(m, cpu, vmcb, VC_VECTOR, wrap32(SVM_EXIT_EXCP_BASE + vector))
        return
    deliver(m, cpu, vmcb, vector, error)


def raise_gp(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """#GP(0) of the current instruction."""
    raise_fault(m, cpu, vmcb, GP_VECTOR, 0)
