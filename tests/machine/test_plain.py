"""Plain guests: registers in the VMCB, intercepts, software interrupts, and instructions that touch the stack."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import (
    BP_VECTOR,
    DR6_RESET,
    NMI_VECTOR,
    OP_ADD_RSP,
    OP_CLGI,
    OP_CPUID,
    OP_HLT,
    OP_INT,
    OP_INT3,
    OP_IRETQ,
    OP_NOP,
    OP_PAUSE,
    OP_POPFQ,
    OP_PUSH,
    OP_PUSHFQ,
    OP_SPIN,
    OP_STGI,
    OP_UD2,
    PF_VECTOR,
    SEEN_NOTHING,
    SHADOW_STI,
    STACK_WORDS,
    UD_VECTOR,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
)
from iretrace.machine.delivery import FAULT, INTR, NMI, SOFT, TRAP, event_info
from iretrace.machine.svm import exits_instead, vmcb_consistent, vmrun
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_CLGI,
    INTERCEPT_CPUID,
    INTERCEPT_HLT,
    INTERCEPT_INTN,
    INTERCEPT_IRET,
    INTERCEPT_PAUSE,
    INTERCEPT_POPF,
    INTERCEPT_PUSHF,
    INTERCEPT_STGI,
    SVM_EVTINJ_VALID,
    SVM_EXIT_NPF,
    V_GIF_ENABLE_MASK,
    V_GIF_MASK,
)
from tests.machine.rig import HANDLER, INJECT_NMI, Rig, push_words, return_frame, rig

VALID = SVM_EVTINJ_VALID


def on_the_bench(*main: int | tuple[int, int], intercept: int = 0, handlers: dict[int, list[int]] | None = None) -> Rig:
    """A bench with one more intercept, of any word."""
    on = rig(*main, handlers=handlers)
    if intercept >= 128:
        on.vmcb.intercept_word4 |= 1 << intercept - 128
    elif intercept:
        on.vmcb.intercept_word3 |= 1 << intercept - 96
    return on


# Registers. -----------------------------------------------------------------------------------------------------


def test_vmrun_loads_the_registers_of_a_plain_guest() -> None:
    """APM vol. 2, VMRUN: Loading Guest State."""
    on = rig(OP_NOP, OP_NOP)
    on.enter()
    on.vmcb.rip, on.vmcb.rsp, on.vmcb.rflags, on.vmcb.dr6 = 1, 17, X86_EFLAGS_FIXED | X86_EFLAGS_IF, DR6_RESET | 1
    vmrun(on.m, on.cpu, on.vmcb)
    cpu = on.cpu
    assert (cpu.rip, cpu.rsp, cpu.rflags, cpu.dr6) == (1, 17, X86_EFLAGS_FIXED | X86_EFLAGS_IF, DR6_RESET | 1)


def test_an_exit_saves_the_registers_of_a_plain_guest() -> None:
    """APM vol. 2, #VMEXIT: Saving Guest State."""
    on = rig(OP_NOP, OP_PUSH, OP_SPIN, interrupts=True).bare().enter().guest()
    assert (on.vmcb.rip, on.vmcb.rsp, on.vmcb.rflags, on.vmcb.dr6) == (0, 0, 0, 0)
    on.cpu.intr_pending = 1
    on.guest()
    assert (on.vmcb.rip, on.vmcb.rsp, on.vmcb.rflags) == (2, STACK_WORDS - 1, X86_EFLAGS_FIXED | X86_EFLAGS_IF)
    assert on.vmcb.dr6 == DR6_RESET


def test_while_the_guest_runs_the_last_exit_makes_no_difference() -> None:
    """What the next #VMEXIT writes in any case is no part of a guest's state."""
    on = rig(OP_SPIN)
    names = ("exit_code", "exit_info_1", "exit_info_2", "exit_int_info", "exit_int_info_err", "next_rip")
    for name in names:
        setattr(on.vmcb, name, 7)
    on.enter()
    assert all(getattr(on.vmcb, name) == 0 for name in names)


def test_nrip_is_kept_for_an_event_that_may_need_it() -> None:
    """APM vol. 2, Event Injection: nRIP."""
    on = rig(OP_SPIN)
    on.vmcb.next_rip = 5
    assert on.enter(VALID | 4 << 8 | 0x20).vmcb.next_rip == 5


def test_an_encrypted_guests_registers_are_not_saved() -> None:
    """APM vol. 2, Encrypted State."""
    on = rig(OP_PUSH, OP_SPIN, sev_es=True).enter().guest()
    on.cpu.intr_pending = 1
    on.guest()
    assert (on.vmcb.rip, on.vmcb.rsp, on.vmcb.rflags, on.vmcb.dr6) == (0, 0, 0, 0)


@pytest.mark.parametrize(("field", "value"), [("efer", 0), ("dr6", 1 << 32), ("dr7", 1 << 32)])
def test_vmrun_refuses_a_plain_guest_without_svme_or_with_high_bits_in_dr6_or_dr7(field: str, value: int) -> None:
    """APM vol. 2, Canonicalization and Consistency Checks. An encrypted guest's are in its VMSA."""
    for sev_es in (False, True):
        on = rig(OP_NOP, sev_es=sev_es)
        assert vmcb_consistent(on.m, on.cpu, on.vmcb)
        setattr(on.vmcb, field, value)
        assert vmcb_consistent(on.m, on.cpu, on.vmcb) == sev_es


def test_dr6_and_dr7_may_use_their_low_halves() -> None:
    """APM vol. 2, Canonicalization and Consistency Checks."""
    on = rig(OP_NOP)
    on.vmcb.dr6 = on.vmcb.dr7 = 0xFFFF_FFFF
    on.vmcb.efer = EFER_SVME | 1
    assert vmcb_consistent(on.m, on.cpu, on.vmcb)


# Instruction intercepts. ----------------------------------------------------------------------------------------

INTERCEPTS = {
    INTERCEPT_IRET: OP_IRETQ,
    INTERCEPT_HLT: OP_HLT,
    INTERCEPT_CPUID: OP_CPUID,
    INTERCEPT_PAUSE: OP_PAUSE,
    INTERCEPT_PUSHF: OP_PUSHFQ,
    INTERCEPT_POPF: OP_POPFQ,
    INTERCEPT_INTN: OP_INT,
    INTERCEPT_STGI: OP_STGI,
    INTERCEPT_CLGI: OP_CLGI,
}


@pytest.mark.parametrize("number", INTERCEPTS)
def test_an_intercepted_instruction_exits_before_it_has_done_anything(number: int) -> None:
    """APM vol. 2, Instruction Intercepts: RIP at it, nRIP behind it; even where it would fault."""
    on = on_the_bench(OP_NOP, INTERCEPTS[number], intercept=number, handlers={UD_VECTOR: [OP_SPIN]})
    before = list(on.cpu.memory)
    on.enter(shadow=True)
    on.cpu.rip, on.cpu.shadow = 1, SHADOW_STI
    on.guest()
    assert (on.vmcb.exit_code, on.vmcb.rip, on.vmcb.next_rip) == (number, 1, 2)
    assert (on.vmcb.exit_info_1, on.vmcb.exit_info_2, on.vmcb.exit_int_info) == (0, 0, 0)
    assert (on.cpu.memory, on.vmcb.rsp, on.vmcb.rflags) == (before, STACK_WORDS, X86_EFLAGS_FIXED)
    assert on.cpu.rip == 1
    assert (on.vmcb.int_state, on.cpu.seen, on.cpu.halted) == (1, SEEN_NOTHING, 0)


@pytest.mark.parametrize("number", INTERCEPTS)
def test_only_the_intercept_of_the_instruction_counts(number: int) -> None:
    """APM vol. 2, Instruction Intercepts."""
    on = rig(INTERCEPTS[number], handlers={0: [OP_SPIN], PF_VECTOR: [OP_SPIN]})
    others = set(INTERCEPTS) - {number}
    on.vmcb.intercept_word3 |= sum(1 << n - 96 for n in others if n < 128)
    on.vmcb.intercept_word4 |= sum(1 << n - 128 for n in others if n >= 128)
    assert on.enter().guest().cpu.guest_mode


@pytest.mark.parametrize("number", INTERCEPTS)
def test_bare_metal_has_no_instruction_intercepts(number: int) -> None:
    """APM vol. 2, Instruction Intercepts: of guests."""
    on = on_the_bench(OP_NOP, intercept=number)
    assert not exits_instead(on.m, on.cpu, on.vmcb, number)
    on = rig(OP_NOP, sev_es=True, intercepts=(INTERCEPT_HLT,)).enter()
    assert not exits_instead(on.m, on.cpu, on.vmcb, INTERCEPT_HLT)


def test_an_intercepted_pause_exits_when_the_filter_is_used_up_only() -> None:
    """APM vol. 2, Pause Intercept Filtering."""
    on = on_the_bench(OP_PAUSE, intercept=INTERCEPT_PAUSE)
    on.vmcb.pause_filter_count = 1
    assert on.enter().guest().cpu.rip == 1


def test_an_intercepted_iret_leaves_nmis_masked() -> None:
    """APM vol. 2, IRET Intercept: it has had no effect yet."""
    on = on_the_bench(OP_IRETQ, intercept=INTERCEPT_IRET)
    push_words(on, *return_frame(9))
    on.cpu.nmi_masked = 1
    assert on.enter().guest().cpu.nmi_masked
    assert on.vmcb.rsp == STACK_WORDS - 5


def test_an_exit_that_is_no_instructions_has_no_nrip() -> None:
    """APM vol. 2, State Saved on Exit."""
    on = rig(OP_PUSH, cold=1).enter()
    on.vmcb.next_rip = 7
    assert on.guest().vmcb.exit_code == SVM_EXIT_NPF
    assert on.vmcb.next_rip == 0


@pytest.mark.parametrize("op", [OP_STGI, OP_CLGI])
def test_stgi_and_clgi_are_ud_on_the_machine_alone(op: int) -> None:
    """APM vol. 2, Enabling SVM: CPUID has no SVM."""
    on = rig(OP_NOP, op, handlers={UD_VECTOR: [OP_SPIN]}).bare(2)
    assert (on.delivered(), on.cpu.seen_error, on.frame()[0], on.cpu.rip) == (UD_VECTOR, 0, 1, HANDLER)


@pytest.mark.parametrize(("op", "gif"), [(OP_STGI, V_GIF_MASK), (OP_CLGI, 0)])
@pytest.mark.parametrize("before", [0, V_GIF_MASK])
def test_without_an_intercept_a_guest_changes_its_virtual_gif(op: int, gif: int, before: int) -> None:
    """APM vol. 2, Virtual GIF."""
    on = rig(op).enter()
    control = on.vmcb.int_ctl | V_GIF_ENABLE_MASK
    on.vmcb.int_ctl = control | before
    on.guest()
    assert (on.vmcb.int_ctl, on.cpu.rip, on.delivered()) == (control | gif, 1, -1)


@pytest.mark.parametrize("op", [OP_STGI, OP_CLGI])
def test_without_virtual_gif_there_is_no_bit_to_change(op: int) -> None:
    """APM vol. 2, Virtual GIF."""
    on = rig(op).enter()
    before = on.vmcb.int_ctl
    on.guest()
    assert (on.vmcb.int_ctl, on.cpu.rip) == (before, 1)


@pytest.mark.parametrize(("op", "number"), [(OP_STGI, INTERCEPT_STGI), (OP_CLGI, INTERCEPT_CLGI)])
def test_an_encrypted_guests_intercepted_gif_instruction_is_vc(op: int, number: int) -> None:
    """APM vol. 2, Types of Exits (SEV-ES)."""
    on = rig(op, handlers={29: [OP_SPIN]}, sev_es=True)
    on.vmcb.intercept_word4 |= 1 << number - 128
    on.enter().guest()
    assert (on.cpu.rip, on.cpu.memory[on.cpu.rsp], on.frame_behind_the_error_code()[0]) == (HANDLER, number, 0)


def test_an_encrypted_guests_gif_instruction_that_is_not_intercepted_is_executed() -> None:
    """APM vol. 2, Types of Exits (SEV-ES)."""
    assert rig(OP_STGI, handlers={29: [OP_SPIN]}, sev_es=True).enter().guest().cpu.rip == 1


# Exceptions. ----------------------------------------------------------------------------------------------------


def test_ud2_is_a_fault() -> None:
    """APM vol. 3, UD2."""
    on = rig(OP_NOP, OP_UD2, handlers={UD_VECTOR: [OP_SPIN]}).bare(2)
    assert (on.delivered(), on.frame()[0]) == (UD_VECTOR, 1)


@pytest.mark.parametrize(
    ("op", "vector", "error", "nrip"),
    [(OP_UD2, 6, 0, 0), (OP_INT3, 3, 0, 1), (OP_IRETQ, 13, 0, 0), (OP_POPFQ, 14, 0, 0)],
)
def test_an_intercepted_exception_exits_with_rip_at_the_instruction(
    op: int, vector: int, error: int, nrip: int
) -> None:
    """APM vol. 2, Exception Intercepts; State Saved on Exit: nRIP for INT3."""
    on = rig(op, handlers={vector: [OP_SPIN]})
    if op == OP_IRETQ:
        push_words(on, 0, 0, 0, 0, 0)
    on.vmcb.intercept_exception = 1 << vector
    on.enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_int_info) == (0x40 + vector, 0, 0)
    assert (on.vmcb.rip, on.vmcb.next_rip, on.delivered()) == (0, nrip, -1)


def test_the_error_code_of_an_intercepted_exception_is_told() -> None:
    """APM vol. 2, #PF Intercept: EXITINFO1."""
    on = rig((OP_ADD_RSP, 1), OP_PUSH)
    on.vmcb.intercept_exception = 1 << PF_VECTOR
    on.enter().guest(2)
    assert (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (0x40 + PF_VECTOR, 2, 0)
    assert (on.vmcb.exit_int_info, on.vmcb.exit_int_info_err) == (0, 0)


def test_an_intercepted_fault_of_a_delivery_keeps_the_error_code_of_the_event() -> None:
    """APM vol. 2, Exit During IDT Vectoring: nothing is delivered."""
    on = rig(OP_SPIN, handlers={11: [OP_SPIN], 8: [OP_SPIN]})
    on.vmcb.intercept_exception = 1 << 11
    on.enter(VALID | 3 << 8 | 1 << 11 | 13, error=0x18).guest()
    assert (on.vmcb.exit_int_info, on.vmcb.exit_int_info_err) == (VALID | 3 << 8 | 1 << 11 | 13, 0x18)
    assert (on.cpu.rip, on.delivered()) == (0, -1)


def test_exception_intercepts_come_before_df_and_the_df_intercept_after() -> None:
    """APM vol. 2, Exception Intercepts."""
    on = rig(OP_SPIN, handlers={8: [OP_SPIN]})
    on.vmcb.intercept_exception = 1 << 8
    on.enter(VALID | 3 << 8 | 1 << 11 | 13, error=0x18).guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_info_1, on.cpu.rip, on.delivered()) == (0x48, 0, 0, -1)
    assert (on.vmcb.exit_int_info, on.vmcb.exit_int_info_err) == (VALID | 3 << 8 | 1 << 11 | 13, 0x18)


def test_an_encrypted_guests_df_does_not_exit() -> None:
    """APM vol. 2, Types of Exits (SEV-ES)."""
    on = rig(OP_SPIN, handlers={8: [OP_SPIN]}, sev_es=True)
    on.vmcb.intercept_exception = 1 << 8
    assert on.enter(VALID | 3 << 8 | 1 << 11 | 13).guest().delivered() == 8


# Software interrupts. -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "vector"), [(OP_INT3, BP_VECTOR), ((OP_INT, 0x20), 0x20)])
@pytest.mark.parametrize("guest", [False, True])
def test_a_software_interrupt_returns_behind_the_instruction(
    op: int | tuple[int, int], vector: int, guest: bool
) -> None:
    """APM vol. 3, INT; INT3."""
    on = rig(OP_NOP, op, handlers={vector: [OP_SPIN]})
    on = on.enter().guest(2) if guest else on.bare(2)
    assert (on.delivered(), on.cpu.rip, on.frame()[0], on.cpu.seen_rip) == (vector, HANDLER, 2, 2)
    assert on.cpu.seen_error == 0


@pytest.mark.parametrize(
    ("op", "vector", "event"),
    [(OP_INT3, BP_VECTOR, VALID | 3 << 8 | 3), ((OP_INT, 0x20), 0x20, VALID | 4 << 8 | 0x20)],
)
def test_a_software_interrupt_that_is_cut_off_is_named_and_rip_is_at_it(
    op: int | tuple[int, int], vector: int, event: int
) -> None:
    """APM vol. 2, Exit During IDT Vectoring."""
    on = rig(OP_NOP, op, handlers={vector: [OP_SPIN]}, cold=1).enter().guest(2)
    assert (on.vmcb.exit_code, on.vmcb.exit_int_info) == (SVM_EXIT_NPF, event)
    assert (on.vmcb.rip, on.vmcb.next_rip) == (1, 0)


@pytest.mark.parametrize(
    ("op", "error"), [(OP_INT3, 3 * 8 + 2), ((OP_INT, 4), 4 * 8 + 2), ((OP_INT, 0x20), 0x20 * 8 + 2)]
)
def test_a_software_interrupt_without_a_gate_is_np_at_it_and_not_external(
    op: int | tuple[int, int], error: int
) -> None:
    """APM vol. 2, Error Codes: EXT."""
    on = rig(OP_NOP, op, handlers={11: [OP_SPIN]}).bare(2)
    assert (on.delivered(), on.cpu.seen_error, on.frame_behind_the_error_code()[0]) == (11, error, 1)


def test_an_interrupt_with_the_vector_of_bp_is_external() -> None:
    """APM vol. 2, Error Codes: EXT."""
    on = rig(OP_SPIN, handlers={11: [OP_SPIN]}).enter(VALID | BP_VECTOR).guest()
    assert on.cpu.seen_error == BP_VECTOR * 8 + 3


@pytest.mark.parametrize("vector", [NMI_VECTOR, IRQ_VECTOR, 1, UD_VECTOR])
def test_any_other_event_without_a_gate_is_external(vector: int) -> None:
    """APM vol. 2, Error Codes: EXT."""
    assert rig(OP_SPIN, handlers={11: [OP_SPIN]}).deliver(vector).cpu.seen_error == vector * 8 + 3


@pytest.mark.parametrize(
    ("event", "rip"),
    [
        (VALID | 4 << 8 | 0x20, 7),
        (VALID | 3 << 8 | 3, 7),
        (VALID | 3 << 8 | 4, 7),
        (VALID | 3 << 8 | 1, 0),
        (VALID | 3 << 8 | 6, 0),
        (VALID | 3, 0),
        (VALID | IRQ_VECTOR, 0),
        (INJECT_NMI, 0),
    ],
)
def test_an_injected_software_interrupt_returns_to_nrip_and_all_others_to_rip(event: int, rip: int) -> None:
    """APM vol. 2, Event Injection; Linux, svm_update_soft_interrupt_rip()."""
    on = rig(OP_SPIN, handlers={event & 0xFF: [OP_SPIN]})
    on.vmcb.next_rip = 7
    on.enter(event).guest()
    assert (on.delivered(), on.frame()[0], on.vmcb.next_rip) == (event & 0xFF, rip, 0)


@pytest.mark.parametrize("event", [VALID | 4 << 8 | 13, VALID | 13])
def test_only_exceptions_push_an_error_code(event: int) -> None:
    """APM vol. 2, Event Injection; Error Codes."""
    on = rig(OP_SPIN, handlers={13: [OP_SPIN]}).enter(event, error=5).guest()
    assert (on.cpu.rsp, on.cpu.seen_error) == (STACK_WORDS - 5, 0)


def test_each_kind_of_event_has_its_type_in_exitintinfo() -> None:
    """APM vol. 2, Event Injection: TYPE."""
    assert event_info(INTR, 0x30, 0) == 0x8000_0030
    assert event_info(NMI, 2, 0) == 0x8000_0202
    assert event_info(SOFT, 0x20, 0) == 0x8000_0420
    assert event_info(TRAP, 3, 0) == 0x8000_0303
    assert event_info(FAULT, 14, 1) == 0x8000_0B0E


def test_an_injected_interrupt_that_is_cut_off_is_named() -> None:
    """APM vol. 2, Exit During IDT Vectoring."""
    on = rig(OP_SPIN, handlers={IRQ_VECTOR: [OP_SPIN]}, cold=1).enter(VALID | IRQ_VECTOR).guest()
    assert on.vmcb.exit_int_info == VALID | IRQ_VECTOR
