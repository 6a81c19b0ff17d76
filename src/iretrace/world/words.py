"""What the guest sees, and what a VMCB says, in words."""

from __future__ import annotations

from collections.abc import Hashable

from iretrace.litmus.test import Test
from iretrace.machine.cpu import (
    BP_VECTOR,
    DB_VECTOR,
    DF_VECTOR,
    DR6_RESET,
    GP_VECTOR,
    NMI_VECTOR,
    NP_VECTOR,
    PF_VECTOR,
    SEEN_DELIVERY,
    SEEN_FLAGS,
    SEEN_MARK,
    SEEN_SMI,
    SEEN_VALUE,
    SS_VECTOR,
    UD_VECTOR,
    VC_VECTOR,
    X86_EFLAGS_IF,
    X86_EFLAGS_TF,
)
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import (
    INTERCEPT_IRET,
    SVM_EVTINJ_TYPE_MASK,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_TYPE_SOFT,
    SVM_EVTINJ_VALID,
    SVM_EVTINJ_VEC_MASK,
    SVM_EXIT_CLGI,
    SVM_EXIT_CPUID,
    SVM_EXIT_EFER_WRITE_TRAP,
    SVM_EXIT_EXCP_BASE,
    SVM_EXIT_HLT,
    SVM_EXIT_ICEBP,
    SVM_EXIT_INTR,
    SVM_EXIT_IRET,
    SVM_EXIT_MSR,
    SVM_EXIT_NPF,
    SVM_EXIT_PAUSE,
    SVM_EXIT_POPF,
    SVM_EXIT_PUSHF,
    SVM_EXIT_RSM,
    SVM_EXIT_SHUTDOWN,
    SVM_EXIT_STGI,
    SVM_EXIT_SWINT,
    SVM_EXIT_VINTR,
    SVM_EXIT_VMGEXIT,
    SVM_EXIT_VMRUN,
    V_NMI_PENDING_MASK,
    Vmcb,
)
from iretrace.world.guest import place

VECTOR_NAMES = {
    DB_VECTOR: "#DB",
    NMI_VECTOR: "an NMI",
    BP_VECTOR: "#BP",
    UD_VECTOR: "#UD",
    DF_VECTOR: "#DF",
    NP_VECTOR: "#NP",
    SS_VECTOR: "#SS",
    GP_VECTOR: "#GP",
    PF_VECTOR: "#PF",
    VC_VECTOR: "#VC",
    0x20: "int 0x20",
    IRQ_VECTOR: "an IRQ",
}
EXIT_NAMES = {
    SVM_EXIT_EXCP_BASE + DB_VECTOR: "#DB",
    SVM_EXIT_EXCP_BASE + UD_VECTOR: "#UD",
    SVM_EXIT_INTR: "INTR",
    SVM_EXIT_VINTR: "VINTR",
    SVM_EXIT_PUSHF: "PUSHF",
    SVM_EXIT_POPF: "POPF",
    SVM_EXIT_CPUID: "CPUID",
    SVM_EXIT_RSM: "RSM",
    SVM_EXIT_IRET: "IRET",
    SVM_EXIT_SWINT: "INTn",
    SVM_EXIT_HLT: "HLT",
    SVM_EXIT_PAUSE: "PAUSE",
    SVM_EXIT_VMRUN: "VMRUN",
    SVM_EXIT_STGI: "STGI",
    SVM_EXIT_CLGI: "CLGI",
    SVM_EXIT_ICEBP: "ICEBP",
    SVM_EXIT_MSR: "MSR",
    SVM_EXIT_EFER_WRITE_TRAP: "EFER write trap",
    SVM_EXIT_NPF: "NPF",
    SVM_EXIT_SHUTDOWN: "SHUTDOWN",
    SVM_EXIT_VMGEXIT: "VMGEXIT",
}


def vector_name(vector: int) -> str:
    """What comes by a vector."""
    return VECTOR_NAMES.get(vector, f"vector {vector:#x}")


def exit_name(vmcb: Vmcb) -> str:
    """The exit code by name, and the event whose delivery the exit cut off."""
    name = EXIT_NAMES.get(vmcb.exit_code, f"{vmcb.exit_code:#x}")
    event = event_name(vmcb.exit_int_info)
    return f"{name}, while delivering {event}" if event else name


def event_name(event: int) -> str:
    """An event as EVENTINJ and EXITINTINFO hold it; "" if there is none."""
    if not event & SVM_EVTINJ_VALID:
        return ""
    kind, vector = event & SVM_EVTINJ_TYPE_MASK, event & SVM_EVTINJ_VEC_MASK
    if kind == SVM_EVTINJ_TYPE_NMI:
        return vector_name(NMI_VECTOR)
    return f"int {vector:#x}" if kind == SVM_EVTINJ_TYPE_SOFT else vector_name(vector)


def vmrun(vmcb: Vmcb, encrypted: bool) -> str:
    """What a VMRUN with this VMCB does. encrypted: TF in the save area has no effect."""
    event = event_name(vmcb.event_inj)
    words = [f"VMRUN, injects {event}" if event else "VMRUN, nothing injected"]
    if vmcb.int_ctl & V_NMI_PENDING_MASK:
        words.append("a virtual NMI is pending")
    if vmcb.intercept_word3 >> INTERCEPT_IRET % 32 & 1:
        words.append("IRET is intercepted")
    if vmcb.rflags & X86_EFLAGS_TF and not encrypted:
        words.append("TF is set")
    return "; ".join(words)


def say(test: Test, shown: Hashable) -> str:
    """An observation in words."""
    assert isinstance(shown, tuple)
    seen, vector, rip, rflags, error = shown
    if seen == SEEN_MARK:
        return f"mark {test.marks[vector]}"
    here = place(test, rip)
    if seen == SEEN_VALUE:
        return f"rax is {error:#x} at {here}"
    if seen == SEEN_FLAGS:
        return f"RFLAGS with{_flags(rflags) or ' neither IF nor TF'}, stored by pushfq at {here}"
    if seen == SEEN_SMI:
        return f"an SMI at {here}{' with' + _flags(rflags) if _flags(rflags) else ''}"
    assert seen == SEEN_DELIVERY
    flags = _flags(rflags)
    return f"{vector_name(vector)} at {here}{' with' + flags if flags else ''}{_detail(vector, error)}"


def _flags(rflags: int) -> str:
    return f"{' IF' if rflags & X86_EFLAGS_IF else ''}{' TF' if rflags & X86_EFLAGS_TF else ''}"


def _detail(vector: int, error: int) -> str:
    """The error code, if it is not 0; for #DB, DR6."""
    if vector == DB_VECTOR:
        return f", DR6 {error:#x}{' (its reset value)' if error == DR6_RESET else ''}"
    return f", error code {error:#x}" if error else ""
