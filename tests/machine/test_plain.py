"""Plain guests: registers in the VMCB, intercepts, software interrupts, and instructions that touch the stack."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import (
    BP_VECTOR,
    CODE_SIZE,
    DR6_RESET,
    IRQ_VECTOR,
    MEMORY_WORDS,
    NMI_VECTOR,
    OP_ADD_RSP,
    OP_ANDN_STACK,
    OP_CLGI,
    OP_CPUID,
    OP_HLT,
    OP_INT,
    OP_INT3,
    OP_IRETQ,
    OP_MOV_STACK,
    OP_NOP,
    OP_OR_STACK,
    OP_PAUSE,
    OP_POPFQ,
    OP_PUSH,
    OP_PUSHFQ,
    OP_SPIN,
    OP_STGI,
    OP_UD2,
    PAGE_DB,
    PAGE_WORDS,
    PF_VECTOR,
    SEEN_FLAGS,
    SEEN_NOTHING,
    SHADOW_STI,
    STACK_WORDS,
    UD_VECTOR,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_NT,
    X86_EFLAGS_TF,
)
from iretrace.machine.delivery import FAULT, INTR, NMI, SOFT, TRAP, event_info
from iretrace.machine.svm import exits_instead, vmcb_consistent, vmrun
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
PRIO_1 = 1 << 16


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


# Stack and flags. -----------------------------------------------------------------------------------------------


def test_pushfq_stores_rflags_and_shows_tf_and_if() -> None:
    """APM vol. 3, PUSHF."""
    on = rig(OP_NOP, OP_PUSHFQ, interrupts=True).bare()
    on.cpu.rflags |= X86_EFLAGS_NT
    on.bare()
    assert on.cpu.memory[on.cpu.rsp] == X86_EFLAGS_FIXED | X86_EFLAGS_IF | X86_EFLAGS_NT
    assert (on.cpu.seen, on.cpu.seen_rip, on.cpu.seen_rflags) == (SEEN_FLAGS, 1, X86_EFLAGS_IF)
    assert (on.cpu.rip, on.cpu.rsp) == (2, STACK_WORDS - 1)


def test_pushfq_that_stores_nothing_shows_nothing() -> None:
    """An observation is what the guest can read."""
    on = rig(OP_PUSHFQ, cold=1).enter().guest()
    assert on.cpu.seen == SEEN_NOTHING
    on = rig(OP_PUSHFQ)
    on.m.hidden[0] = 1
    assert on.bare().cpu.seen == SEEN_NOTHING


def test_pushfq_needs_one_word() -> None:
    """APM vol. 3, PUSHF."""
    on = rig(OP_PUSHFQ)
    on.cpu.rsp = PAGE_DB * PAGE_WORDS + 1
    assert on.bare().cpu.seen == SEEN_FLAGS


def test_popfq_loads_tf_if_and_nt_and_casts_no_shadow() -> None:
    """APM vol. 3, POPF."""
    on = rig(OP_POPFQ)
    push_words(on, 0xFFFF_FFFF & ~X86_EFLAGS_TF)
    on.bare()
    assert on.cpu.rflags == X86_EFLAGS_FIXED | X86_EFLAGS_IF | X86_EFLAGS_NT
    assert (on.cpu.rip, on.cpu.rsp, on.cpu.shadow) == (1, STACK_WORDS, 0)
    push_words(on, 0)
    on.cpu.rip = 0
    assert on.bare().cpu.rflags == X86_EFLAGS_FIXED


def test_popfq_without_a_word_is_a_page_fault_that_reads() -> None:
    """APM vol. 2, Page-Fault Exception."""
    on = rig(OP_POPFQ, handlers={PF_VECTOR: [OP_SPIN]}).bare()
    assert (on.delivered(), on.cpu.seen_error, on.cpu.seen_rip, on.cpu.rip) == (PF_VECTOR, 0, 0, HANDLER)


@pytest.mark.parametrize(
    ("op", "before", "after"),
    [(OP_OR_STACK, 0x11, 0x33), (OP_ANDN_STACK, 0x31, 0x11), (OP_MOV_STACK, 0x11, 0x22)],
)
def test_a_word_of_the_stack_is_changed_in_place(op: int, before: int, after: int) -> None:
    """APM vol. 3, OR; AND; MOV."""
    on = rig((op, 2 << 24 | 0x22))
    push_words(on, 7, 7, before, 7)
    on.bare()
    assert on.cpu.memory[on.cpu.rsp : on.cpu.rsp + 4] == [7, 7, after, 7]
    assert (on.cpu.rip, on.cpu.rsp, on.cpu.rflags) == (1, STACK_WORDS - 4, X86_EFLAGS_FIXED)


@pytest.mark.parametrize("op", [OP_OR_STACK, OP_ANDN_STACK, OP_MOV_STACK])
@pytest.mark.parametrize("rsp", [STACK_WORDS, PAGE_WORDS - 1, MEMORY_WORDS, MEMORY_WORDS + 5])
def test_a_word_that_is_on_no_stack_is_a_page_fault_that_writes(op: int, rsp: int) -> None:
    """APM vol. 2, Page-Fault Exception."""
    on = rig((op, 0xFF_FFFF), handlers={PF_VECTOR: [OP_SPIN]}, ist={PF_VECTOR: PAGE_DB})
    on.cpu.rsp = rsp
    on.bare()
    assert (on.delivered(), on.cpu.seen_error) == (PF_VECTOR, 2)


def test_all_24_bits_of_an_immediate_count() -> None:
    """APM vol. 3, MOV."""
    on = rig((OP_MOV_STACK, 0xFF_FFFF))
    push_words(on, 0)
    assert on.bare().cpu.memory[on.cpu.rsp] == 0xFF_FFFF


@pytest.mark.parametrize(("op", "info"), [(OP_MOV_STACK, 6), (OP_POPFQ, 4), (OP_PUSHFQ, 6), (OP_PUSH, 6)])
def test_an_access_of_a_cold_page_exits_before_it_is_made(op: int, info: int) -> None:
    """APM vol. 2, Nested Page Fault: EXITINFO1, EXITINFO2."""
    on = rig(op, cold=1 << PAGE_DB)
    on.cpu.rsp = PAGE_DB * PAGE_WORDS + 9
    before = list(on.cpu.memory)
    on.enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (SVM_EXIT_NPF, info, PAGE_DB << 12)
    assert (on.vmcb.rip, on.vmcb.rsp, on.cpu.memory) == (0, PAGE_DB * PAGE_WORDS + 9, before)
    on.cpu.cold = 0xFF & ~(1 << PAGE_DB)
    assert on.enter().guest().cpu.guest_mode


def test_add_rsp_drops_words() -> None:
    """APM vol. 3, ADD."""
    on = rig((OP_ADD_RSP, 2))
    push_words(on, 1, 2, 3)
    assert (on.bare().cpu.rsp, on.cpu.rip) == (STACK_WORDS - 1, 1)


def test_iretq_with_nt_set_is_gp() -> None:
    """APM vol. 3, IRET: in long mode there is no nested task to return to."""
    on = rig(OP_IRETQ, handlers={13: [OP_SPIN]})
    push_words(on, *return_frame(9))
    on.cpu.rflags |= X86_EFLAGS_NT
    on.cpu.nmi_masked = 1
    assert on.bare().delivered() == 13
    assert (on.cpu.rip, on.frame_behind_the_error_code()[0]) == (HANDLER, 0)
    assert on.frame_behind_the_error_code()[3] == STACK_WORDS - 5
    assert (on.cpu.nmi_masked, on.m.consulted != 0) == (1, True)


def test_code_ends_where_it_ends() -> None:
    """APM vol. 2, Page-Fault Exception: instruction fetch."""
    on = rig(OP_NOP, handlers={PF_VECTOR: [OP_SPIN]})
    on.cpu.rip = CODE_SIZE
    assert on.bare().cpu.seen_error == 0x10
