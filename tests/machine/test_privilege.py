"""User mode, SYSCALL and SYSRET, the selectors that IRETQ loads, INT1, and instructions on a cold page."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import (
    ABSENT_CS,
    ABSENT_DS,
    BP_VECTOR,
    DB_VECTOR,
    DF_VECTOR,
    DR6_BS,
    DR6_RESET,
    DR7_GD,
    GP_VECTOR,
    KERNEL_CS,
    KERNEL_DS,
    MEMORY_WORDS,
    NMI_VECTOR,
    NP_VECTOR,
    OP_CLGI,
    OP_CLI,
    OP_FROM_DR,
    OP_FROM_R11,
    OP_HLT,
    OP_INT,
    OP_INT1,
    OP_INT3,
    OP_IRETQ,
    OP_NOP,
    OP_POPFQ,
    OP_PUSHFQ,
    OP_RDMSR,
    OP_SHOW,
    OP_SPIN,
    OP_STGI,
    OP_STI,
    OP_SYSCALL,
    OP_SYSRET,
    OP_TO_DR,
    OP_TO_R11,
    OP_VMRUN,
    OP_WRMSR,
    PAGE_CODE,
    PAGE_NMI,
    PAGE_RSP0,
    PAGE_WORDS,
    PF_VECTOR,
    SHADOW_MOV_SS,
    SHADOW_NONE,
    SS_VECTOR,
    STACK_WORDS,
    UD_VECTOR,
    USER_CS,
    USER_DS,
    VC_VECTOR,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_NT,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
)
from iretrace.machine.svm import save_guest_state, vmrun
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_CLGI,
    INTERCEPT_HLT,
    INTERCEPT_ICEBP,
    INTERCEPT_INTN,
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_VALID,
    SVM_EXIT_ICEBP,
    SVM_EXIT_NPF,
    SVM_EXIT_SWINT,
    SVM_INTERRUPT_SHADOW_MASK,
)
from tests.machine.rig import HANDLER, Rig, push_words, return_frame, rig

FAULTS = {vector: [OP_SPIN] for vector in (DB_VECTOR, BP_VECTOR, UD_VECTOR, NP_VECTOR, SS_VECTOR, GP_VECTOR, 0x20)}
FLAGS = X86_EFLAGS_FIXED | X86_EFLAGS_IF
RSP0 = PAGE_RSP0 * PAGE_WORDS + STACK_WORDS


def user(on: Rig) -> Rig:
    """The same bench in user mode."""
    on.cpu.cpl, on.cpu.ss = 3, USER_DS
    return on


def set_icebp_intercept(on: Rig) -> Rig:
    """INT1 is intercepted."""
    on.vmcb.intercept_word4 |= 1 << INTERCEPT_ICEBP - 128
    return on


# Deliveries from user mode. -------------------------------------------------------------------------------------


def test_an_event_of_user_mode_begins_on_the_stack_of_the_tss() -> None:
    """APM vol. 2, Interrupt To Higher Privilege."""
    on = user(rig(OP_SPIN, handlers={NMI_VECTOR: [OP_NOP]}, interrupts=True)).nmi().bare()
    assert on.cpu.rsp == RSP0 - 5
    assert on.frame() == [0, USER_CS, FLAGS, STACK_WORDS, USER_DS]
    assert (on.cpu.cpl, on.cpu.ss) == (0, 0)


def test_the_gates_own_stack_goes_before_that_of_the_tss() -> None:
    """APM vol. 2, Interrupt-Stack Table."""
    on = user(rig(OP_SPIN, handlers={NMI_VECTOR: [OP_NOP]}, ist={NMI_VECTOR: PAGE_NMI})).nmi().bare()
    assert on.cpu.rsp == PAGE_NMI * PAGE_WORDS + STACK_WORDS - 5


def test_a_further_event_stays_on_that_stack_and_saves_the_null_selector() -> None:
    """APM vol. 2, Interrupt To Higher Privilege: SS is null."""
    on = user(rig(OP_SPIN, handlers={NMI_VECTOR: [OP_INT3], BP_VECTOR: [OP_NOP]})).nmi().bare(2)
    assert on.frame() == [HANDLER + 1, KERNEL_CS, X86_EFLAGS_FIXED, RSP0 - 5, 0]
    assert on.cpu.cpl == 0


def test_an_event_of_kernel_mode_saves_its_segments() -> None:
    """APM vol. 2, Interrupt To Same Privilege."""
    on = rig(OP_SPIN, handlers={NMI_VECTOR: [OP_NOP]}).nmi().bare()
    assert on.frame() == [0, KERNEL_CS, X86_EFLAGS_FIXED, STACK_WORDS, KERNEL_DS]
    assert on.cpu.ss == KERNEL_DS


def test_a_cold_stack_of_the_tss_cuts_the_delivery_off_in_user_mode() -> None:
    """APM vol. 2, Exit During IDT Vectoring; VMCB.CPL."""
    on = user(rig(OP_INT3, handlers=FAULTS, cold=1 << PAGE_RSP0)).enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_info_2) == (SVM_EXIT_NPF, PAGE_RSP0 << 12)
    assert on.vmcb.exit_int_info == SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | BP_VECTOR
    assert (on.vmcb.cpl, on.cpu.cpl, on.cpu.rsp) == (3, 3, STACK_WORDS)


def test_vmrun_loads_the_privilege_level() -> None:
    """APM vol. 2, VMRUN Instruction: Loading Guest State."""
    on = rig(OP_SPIN)
    save_guest_state(on.cpu, on.vmcb)
    assert (on.vmcb.cpl, on.vmcb.ss) == (0, KERNEL_DS)
    on.vmcb.efer |= EFER_SVME
    on.vmcb.cpl, on.vmcb.ss = 3, USER_DS
    vmrun(on.m, on.cpu, on.vmcb)
    assert (on.cpu.cpl, on.cpu.ss) == (3, USER_DS)
    assert (on.vmcb.cpl, on.vmcb.ss) == (0, 0)


# What user mode may not do. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [OP_CLI, OP_STI, OP_HLT, OP_TO_DR, OP_FROM_DR, OP_SYSRET, OP_RDMSR])
def test_a_privileged_instruction_is_gp_in_user_mode(op: int) -> None:
    """APM vol. 3, CLI; STI; HLT; MOV (DRn); SYSRET."""
    on = user(rig((op, 7), handlers=FAULTS)).bare()
    assert (on.delivered(), on.cpu.seen_rip, on.cpu.seen_error) == (GP_VECTOR, 0, 0)
    on = rig((op, 7), handlers=FAULTS).bare()
    assert on.delivered() == -1


@pytest.mark.parametrize(("cpl", "vector"), [(0, -1), (3, GP_VECTOR)])
def test_user_mode_may_not_write_an_msr(cpl: int, vector: int) -> None:
    """APM vol. 3, WRMSR."""
    on = rig(OP_WRMSR, handlers=FAULTS)
    on.cpu.rax = on.cpu.efer
    assert (user(on) if cpl else on).bare().delivered() == vector


def test_the_fault_comes_before_the_intercept() -> None:
    """APM vol. 2, Instruction Intercepts."""
    on = user(rig(OP_HLT, handlers=FAULTS, intercepts=(INTERCEPT_HLT,))).enter().guest()
    assert on.delivered() == GP_VECTOR


@pytest.mark.parametrize("op", [OP_STGI, OP_CLGI, OP_VMRUN])
def test_an_svm_instruction_in_user_mode_is_ud_alone_and_gp_in_a_guest(op: int) -> None:
    """APM vol. 3, CLGI; STGI; VMRUN: #UD if EFER.SVME is 0, #GP if CPL is not 0. In a guest it is set."""
    assert user(rig(op, handlers=FAULTS)).bare().delivered() == UD_VECTOR
    on = user(rig(op, handlers=FAULTS))
    on.vmcb.intercept_word4 |= 3 << INTERCEPT_CLGI - 1 - 128
    assert on.enter().guest().delivered() == GP_VECTOR


@pytest.mark.parametrize("op", [OP_NOP, OP_SPIN, OP_SHOW, OP_SYSCALL])
def test_any_other_instruction_may_be_executed(op: int) -> None:
    """APM vol. 3."""
    assert user(rig(op, handlers=FAULTS)).bare().delivered() == -1


def test_int_n_needs_a_gate_that_is_open_to_user_mode() -> None:
    """APM vol. 2, Privilege-Checking: gate DPL; Error Codes: IDT."""
    on = user(rig((OP_INT, 0x20), handlers=FAULTS)).bare()
    assert (on.delivered(), on.cpu.seen_rip, on.cpu.seen_error) == (GP_VECTOR, 0, 0x20 * 8 + 2)
    assert rig((OP_INT, 0x20), handlers=FAULTS).bare().delivered() == 0x20
    assert user(rig((OP_INT, BP_VECTOR), handlers=FAULTS)).bare().delivered() == BP_VECTOR


def test_the_intercept_of_int_n_comes_before_the_gate() -> None:
    """APM vol. 2, Instruction Intercepts: INTn."""
    on = user(rig((OP_INT, 0x20), handlers=FAULTS, intercepts=(INTERCEPT_INTN,))).enter().guest()
    assert on.vmcb.exit_code == SVM_EXIT_SWINT


@pytest.mark.parametrize(("op", "vector"), [(OP_INT3, BP_VECTOR), (OP_INT1, DB_VECTOR)])
def test_int3_and_int1_are_open_to_user_mode(op: int, vector: int) -> None:
    """APM vol. 3, INT3; INT1."""
    on = user(rig(op, handlers=FAULTS)).bare()
    assert (on.delivered(), on.cpu.seen_rip, on.cpu.cpl) == (vector, 1, 0)


@pytest.mark.parametrize(("op", "error"), [(OP_IRETQ, 0), (OP_POPFQ, 0), (OP_PUSHFQ, 2)])
def test_a_page_fault_tells_user_mode_from_the_kernel(op: int, error: int) -> None:
    for cpl, bit in ((0, 0), (3, 4)):
        on = rig(op, handlers={PF_VECTOR: [OP_NOP]}, ist={PF_VECTOR: 3})
        on.cpu.cpl, on.cpu.rsp = cpl, MEMORY_WORDS + 8
        assert (on.bare().delivered(), on.cpu.seen_error) == (PF_VECTOR, error | bit)


@pytest.mark.parametrize(("before", "popped"), [(FLAGS, X86_EFLAGS_TF), (X86_EFLAGS_FIXED, FLAGS | X86_EFLAGS_TF)])
def test_user_mode_does_not_change_if(before: int, popped: int) -> None:
    """APM vol. 3, POPF; IRET."""
    on = user(rig(OP_POPFQ))
    push_words(on, popped)
    on.cpu.rflags = before
    assert on.bare().cpu.rflags == before | X86_EFLAGS_TF
    on = user(rig(OP_IRETQ))
    push_words(on, 9, USER_CS, popped, 11, USER_DS)
    on.cpu.rflags = before
    on.bare()
    assert (on.cpu.rip, on.cpu.rsp, on.cpu.cpl) == (9, 11, 3)
    assert on.cpu.rflags == before | X86_EFLAGS_TF


# IRETQ's selectors. ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpl", "cs", "ss", "vector", "error"),
    [
        (0, 0, KERNEL_DS, GP_VECTOR, 0),
        (0, 3, KERNEL_DS, GP_VECTOR, 0),
        (0, KERNEL_DS, KERNEL_DS, GP_VECTOR, KERNEL_DS),
        (0, 0x50, KERNEL_DS, GP_VECTOR, 0x50),
        (0, KERNEL_CS + 1, KERNEL_DS, GP_VECTOR, KERNEL_CS),
        (0, KERNEL_CS + 4, KERNEL_DS, GP_VECTOR, KERNEL_CS + 4),
        (0, USER_CS - 3, KERNEL_DS, GP_VECTOR, USER_CS - 3),
        (0, USER_CS - 1, USER_DS, GP_VECTOR, USER_CS - 3),
        (3, KERNEL_CS, KERNEL_DS, GP_VECTOR, KERNEL_CS),
        (3, ABSENT_CS, KERNEL_DS, GP_VECTOR, ABSENT_CS),
        (0, ABSENT_CS, ABSENT_DS, NP_VECTOR, ABSENT_CS),
        (0, KERNEL_CS, 1, GP_VECTOR, 0),
        (0, KERNEL_CS, USER_DS, GP_VECTOR, USER_DS - 3),
        (0, KERNEL_CS, KERNEL_DS + 1, GP_VECTOR, KERNEL_DS),
        (0, KERNEL_CS, KERNEL_CS, GP_VECTOR, KERNEL_CS),
        (0, KERNEL_CS, ABSENT_DS, SS_VECTOR, ABSENT_DS),
        (0, USER_CS, 0, GP_VECTOR, 0),
        (0, USER_CS, 3, GP_VECTOR, 0),
        (0, USER_CS, KERNEL_DS, GP_VECTOR, KERNEL_DS),
        (0, USER_CS, ABSENT_DS, GP_VECTOR, ABSENT_DS),
        (3, USER_CS, USER_DS - 1, GP_VECTOR, USER_DS - 3),
    ],
)
def test_iretq_faults_with_the_selector_that_it_cannot_load(
    cpl: int, cs: int, ss: int, vector: int, error: int
) -> None:
    """APM vol. 3, IRET: CS, then SS."""
    on = rig(OP_IRETQ, handlers=FAULTS, ist={vector: PAGE_NMI})
    on.cpu.cpl, on.cpu.nmi_masked = cpl, 1
    push_words(on, 9, cs, X86_EFLAGS_FIXED, STACK_WORDS, ss)
    on.bare()
    assert (on.delivered(), on.cpu.seen_rip, on.cpu.seen_error) == (vector, 0, error)
    assert on.cpu.nmi_masked


@pytest.mark.parametrize(
    ("cs", "ss", "cpl"), [(KERNEL_CS, 0, 0), (KERNEL_CS, KERNEL_DS, 0), (USER_CS, USER_DS, 3), (0xF0010, 0xF0018, 0)]
)
def test_iretq_loads_the_segments_of_its_frame(cs: int, ss: int, cpl: int) -> None:
    """APM vol. 3, IRET: null in SS is for kernel mode; a selector has 16 bits."""
    on = rig(OP_IRETQ)
    push_words(on, 9, cs, X86_EFLAGS_FIXED, STACK_WORDS, ss)
    on.bare()
    assert (on.cpu.rip, on.cpu.cpl, on.cpu.ss) == (9, cpl, ss & 0xFFFF)


def test_the_fault_names_cs_where_both_are_bad_and_rip_comes_last() -> None:
    """APM vol. 3, IRET."""
    on = rig(OP_IRETQ, handlers=FAULTS)
    push_words(on, 0xFFFF, KERNEL_CS, X86_EFLAGS_FIXED, STACK_WORDS, ABSENT_DS)
    assert on.bare().delivered() == SS_VECTOR
    on = rig(OP_IRETQ, handlers=FAULTS)
    push_words(on, 64, KERNEL_CS, X86_EFLAGS_FIXED, STACK_WORDS, KERNEL_DS)
    on.bare()
    assert (on.delivered(), on.cpu.seen_error) == (GP_VECTOR, 0)


def test_two_faults_of_segments_make_a_double_fault() -> None:
    """APM vol. 2, Double-Fault Exception: #NP is contributory."""
    on = rig(OP_IRETQ, handlers={DF_VECTOR: [OP_SPIN]})
    push_words(on, *return_frame(9)[:1], ABSENT_CS, *return_frame(9)[2:])
    assert on.bare().delivered() == DF_VECTOR


# SYSCALL and SYSRET. --------------------------------------------------------------------------------------------


def test_syscall_saves_where_to_return_and_the_flags_and_masks_some() -> None:
    """APM vol. 3, SYSCALL."""
    on = user(rig(OP_NOP, OP_SYSCALL, lstar=HANDLER + 1))
    on.cpu.rflags = FLAGS | X86_EFLAGS_RF | X86_EFLAGS_NT
    on.cpu.rip, on.cpu.shadow = 1, SHADOW_MOV_SS
    on.bare()
    assert (on.cpu.rip, on.cpu.rcx, on.cpu.r11) == (HANDLER, 2, FLAGS | X86_EFLAGS_NT)
    assert (on.cpu.rflags, on.cpu.cpl, on.cpu.ss) == (X86_EFLAGS_FIXED, 0, KERNEL_DS)
    assert (on.cpu.rsp, on.cpu.shadow, on.cpu.trap) == (STACK_WORDS, SHADOW_NONE, 0)


def test_there_is_no_trap_behind_syscall_since_it_clears_tf() -> None:
    """QEMU target/i386/tcg/translate.c."""
    on = user(rig(OP_SYSCALL, lstar=HANDLER + 1))
    on.cpu.rflags |= X86_EFLAGS_TF
    on.bare()
    assert (on.cpu.trap, on.cpu.r11) == (0, X86_EFLAGS_FIXED | X86_EFLAGS_TF)


def test_sysret_goes_to_user_mode() -> None:
    """APM vol. 3, SYSRET."""
    on = rig(OP_SYSRET)
    on.cpu.rcx, on.cpu.r11, on.cpu.shadow = 9, X86_EFLAGS_IF | X86_EFLAGS_NT | X86_EFLAGS_RF, SHADOW_MOV_SS
    on.bare()
    assert (on.cpu.rip, on.cpu.rflags) == (9, FLAGS | X86_EFLAGS_NT)
    assert (on.cpu.cpl, on.cpu.ss, on.cpu.shadow, on.cpu.trap) == (3, USER_DS, SHADOW_NONE, 0)


@pytest.mark.parametrize(("before", "after"), [(0, X86_EFLAGS_TF), (X86_EFLAGS_TF, X86_EFLAGS_TF), (X86_EFLAGS_TF, 0)])
def test_sysret_traps_if_it_has_set_tf(before: int, after: int) -> None:
    """QEMU target/i386/tcg/translate.c."""
    on = rig(OP_SYSRET)
    on.cpu.rflags |= before
    on.cpu.r11 = after
    assert on.bare().cpu.trap == (DR6_BS if after else 0)


def test_r11_can_be_read_and_written() -> None:
    """APM vol. 3, MOV."""
    on = rig(OP_FROM_R11, OP_TO_R11)
    on.cpu.r11 = 7
    assert on.bare().cpu.rax == 7
    on.cpu.rax = 0x1_0000_0009
    assert on.bare().cpu.r11 == 9
    assert on.cpu.rip == 2


# INT1. ----------------------------------------------------------------------------------------------------------


def test_int1_is_db_behind_it_and_says_nothing_in_dr6_and_dr7() -> None:
    """APM vol. 2, Debug Status Register (DR6)."""
    on = rig(OP_INT1, handlers=FAULTS)
    on.cpu.dr7 |= DR7_GD
    on.cpu.rflags |= X86_EFLAGS_TF
    on.bare()
    assert (on.delivered(), on.cpu.seen_rip, on.cpu.seen_error) == (DB_VECTOR, 1, DR6_RESET)
    assert on.cpu.dr7 & DR7_GD
    assert on.cpu.trap == 0
    assert on.frame()[2] == X86_EFLAGS_FIXED | X86_EFLAGS_TF


def test_the_intercept_of_db_does_not_see_int1() -> None:
    """APM vol. 2, #DB Intercept."""
    on = rig(OP_INT1, handlers=FAULTS)
    on.vmcb.intercept_exception = 1 << DB_VECTOR
    assert on.enter().guest().delivered() == DB_VECTOR


def test_int1_has_an_intercept_of_its_own() -> None:
    """APM vol. 2, ICEBP Intercept."""
    on = set_icebp_intercept(rig(OP_INT1, handlers=FAULTS)).enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.rip, on.vmcb.next_rip) == (SVM_EXIT_ICEBP, 0, 1)
    assert on.delivered() == -1
    assert set_icebp_intercept(rig(OP_INT1, handlers=FAULTS)).bare().delivered() == DB_VECTOR


def test_an_encrypted_guests_intercepted_int1_is_vc() -> None:
    """APM vol. 2, #VC Exception."""
    handlers = {**FAULTS, VC_VECTOR: [OP_SPIN]}
    on = set_icebp_intercept(rig(OP_INT1, handlers=handlers, sev_es=True)).enter().guest()
    assert on.cpu.memory[on.cpu.rsp] == SVM_EXIT_ICEBP
    assert on.cpu.rsp == STACK_WORDS - 6
    assert rig(OP_INT1, handlers=handlers, sev_es=True).enter().guest().delivered() == DB_VECTOR
    assert set_icebp_intercept(rig(OP_INT1, handlers=handlers, sev_es=True)).bare().delivered() == DB_VECTOR


def test_int1_that_is_cut_off_is_an_exception_and_rip_is_at_it() -> None:
    """Linux, svm.c:icebp_interception()."""
    on = rig(OP_INT1, handlers=FAULTS, cold=1).enter().guest()
    assert on.vmcb.exit_int_info == SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_EXEPT | DB_VECTOR
    assert (on.vmcb.rip, on.vmcb.next_rip, on.vmcb.exit_int_info_err) == (0, 0, 0)


def test_int1_without_a_gate_is_external() -> None:
    """Bochs, cpu/soft_int.cc: INT1 sets EXT."""
    on = rig(OP_INT1, handlers={NP_VECTOR: [OP_SPIN]}).bare()
    assert (on.delivered(), on.cpu.seen_error) == (NP_VECTOR, DB_VECTOR * 8 + 3)


# An instruction on a cold page. ---------------------------------------------------------------------------------


def test_an_instruction_on_a_cold_page_exits_in_its_shadow() -> None:
    """APM vol. 2, Nested Page Fault; Interrupt Shadows."""
    on = rig(OP_NOP, OP_CLI, cold_code=2, cold=1 << PAGE_CODE, interrupts=True).enter()
    on.guest()
    on.cpu.shadow = SHADOW_MOV_SS
    on.guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (SVM_EXIT_NPF, 0x14, PAGE_CODE << 12)
    assert (on.vmcb.rip, on.vmcb.rflags, on.vmcb.int_state) == (1, FLAGS, SVM_INTERRUPT_SHADOW_MASK)
    assert on.cpu.rip == 1


def test_a_page_of_code_that_is_warm_or_another_instructions_is_no_obstacle() -> None:
    """APM vol. 2, Nested Page Fault."""
    assert rig(OP_CLI, cold_code=1, cold=0).enter().guest().cpu.rip == 1
    assert rig(OP_CLI, cold_code=2, cold=1 << PAGE_CODE).enter().guest().cpu.rip == 1
    assert rig(OP_CLI, cold_code=1, cold=1 << PAGE_CODE).bare().cpu.rip == 1


def test_vmrun_of_an_encrypted_guest_leaves_its_privilege_level() -> None:
    """APM vol. 2, Encrypted State."""
    on = user(rig(OP_SPIN, sev_es=True))
    vmrun(on.m, on.cpu, on.vmcb)
    assert on.cpu.cpl == 3
