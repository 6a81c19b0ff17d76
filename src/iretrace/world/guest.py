"""From a litmus test to a machine: the guest's code, its IDT, its stacks and the processor's first state."""

from __future__ import annotations

from iretrace.litmus import test as litmus
from iretrace.litmus.test import Test
from iretrace.machine.cpu import (
    CODE_SIZE,
    DR6_RESET,
    DR7_RESET,
    EFER_BOOTED,
    KERNEL_CS,
    KERNEL_DS,
    MEMORY_WORDS,
    PAGE_CODE,
    PAGE_DB,
    PAGE_DF,
    PAGE_MAIN,
    PAGE_NMI,
    PAGE_RSP0,
    PAGE_VC,
    PAGE_WORDS,
    STACK_WORDS,
    USER_DS,
    VC_VECTOR,
    VECTORS,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    Cpu,
    Machine,
)
from iretrace.machine.vmcb import EFER_SVME
from iretrace.world.protocol import PROCESSOR, Processor

STACK_PAGES = {"main": PAGE_MAIN, "nmi": PAGE_NMI, "vc": PAGE_VC, "df": PAGE_DF, "db": PAGE_DB, "rsp0": PAGE_RSP0}
VECTOR_PAGES = {litmus.VECTORS[name]: page for name, page in STACK_PAGES.items() if name in litmus.VECTORS}


def make_machine(test: Test, vcpu: str, knobs: int, processor: Processor = PROCESSOR) -> Machine:
    """The constants of a run of this test on this vCPU kind, with these values of the disputed rules."""
    ops = [int(instruction.op) for instruction in test.code]
    args = [instruction.arg for instruction in test.code]
    idt = [0] * VECTORS
    ist = [PAGE_MAIN] * VECTORS
    for vector, start in test.handlers:
        idt[vector] = start + 1
        if vector in test.ist:
            ist[vector] = VECTOR_PAGES[vector]
    sev_es = vcpu.startswith("sev-es")
    return Machine(
        ops=ops + [0] * (CODE_SIZE - len(ops)),
        args=args + [0] * (CODE_SIZE - len(args)),
        hidden=_hidden(test),
        idt=idt,
        ist=ist,
        lstar=test.syscall + 1,
        cold_code=test.cold_code + 1,
        sev_es=int(sev_es),
        nested_data_bp=int(processor.nested_data_bp),
        iret_unmasks=int(not sev_es or vcpu == "sev-es-vnmi"),
        knobs=knobs,
        consulted=0,
        svm=int(processor.guest_svm and not sev_es),
        smi=test.smi + 1,
        init=test.init + 1,
        ap=int(test.ap),
    )


def _hidden(test: Test) -> list[int]:
    """1 for the instructions of the #VC handler: from its start to the next section."""
    starts = [test.main, test.smi, test.init, test.syscall, *(start for _, start in test.handlers), len(test.code)]
    starts.sort()
    hidden = [0] * CODE_SIZE
    for vector, start in test.handlers:
        if vector == VC_VECTOR:
            end = starts[starts.index(start) + 1]
            hidden[start:end] = [1] * (end - start)
    return hidden


def make_cpu(test: Test, vcpu: str = "plain") -> Cpu:
    """The processor as main begins: an empty main stack, nothing pending, IF as the test says. An encrypted guest's
    EFER has SVME set, as KVM has it when the state is encrypted; the VMCB has another's."""
    return Cpu(
        rip=test.main,
        rsp=STACK_WORDS,
        rflags=X86_EFLAGS_FIXED | (X86_EFLAGS_IF if test.interrupts else 0),
        cpl=test.cpl,
        ss=KERNEL_DS if test.cpl == 0 else USER_DS,
        rax=0,
        rcx=0,
        r11=0,
        dr0=0,
        dr1=0,
        dr2=0,
        dr3=0,
        dr6=DR6_RESET,
        dr7=DR7_RESET,
        shadow_dr7=DR7_RESET,
        debugctl=0,
        debug_swap=0,
        trap=0,
        shadow=0,
        halted=0,
        shutdown=0,
        nmi_latched=0,
        nmi_masked=0,
        irr=0,
        isr=0,
        intr_pending=0,
        guest_mode=0,
        event_inj=0,
        event_inj_err=0,
        cold=sum(1 << STACK_PAGES[name] for name in test.cold) | (1 << PAGE_CODE if test.cold_code >= 0 else 0),
        door=0,
        read_dr6=0,
        seen=0,
        seen_vector=0,
        seen_rip=0,
        seen_rflags=0,
        seen_error=0,
        memory=_memory(test),
        efer=EFER_BOOTED | (EFER_SVME if vcpu.startswith("sev-es") else 0),
    )


def _memory(test: Test) -> list[int]:
    """The stacks before main: empty, but for the frame that a test finds there. It returns to the kernel, on the top of
    main's stack, with no flags."""
    memory = [0] * MEMORY_WORDS
    if test.frame:
        page, rip = test.frame
        top = STACK_PAGES[page] * PAGE_WORDS + STACK_WORDS
        memory[top - 5 : top] = [rip, KERNEL_CS, X86_EFLAGS_FIXED, STACK_WORDS, KERNEL_DS]
    return memory


def place(test: Test, rip: int) -> str:
    """A code address as a reader of the test would say it: `nmi+2`, or the label that stands there."""
    if rip >= len(test.code):
        return f"code+{rip}"
    if test.code[rip].label:
        return test.code[rip].label
    names = {test.smi: "smi", test.init: "init", test.syscall: "syscall", test.main: "main"}
    names |= {start: _name(vector) for vector, start in test.handlers}
    start = max(s for s in names if 0 <= s <= rip)
    return names[start] if start == rip else f"{names[start]}+{rip - start}"


def _name(vector: int) -> str:
    return next((name for name, number in litmus.VECTORS.items() if number == vector), f"vector {vector}")
