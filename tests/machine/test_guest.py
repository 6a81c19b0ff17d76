"""The guest's instructions."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import (
    CODE_SIZE,
    GP_VECTOR,
    KERNEL_CS,
    KERNEL_DS,
    KNOB_IRET_FAULT_UNMASKS,
    KNOB_TRAP_EXIT_KEEPS_SHADOW,
    MEMORY_WORDS,
    NMI_VECTOR,
    OP_CLI,
    OP_CPUID,
    OP_HLT,
    OP_IRETQ,
    OP_JMP,
    OP_MARK,
    OP_MOV_SS,
    OP_NOP,
    OP_PAUSE,
    OP_PUSH,
    OP_SKIP,
    OP_SPIN,
    OP_STI,
    OP_VMGEXIT,
    PF_VECTOR,
    SEEN_MARK,
    SEEN_NOTHING,
    SHADOW_MOV_SS,
    SHADOW_NONE,
    SHADOW_STI,
    STACK_WORDS,
    VC_FORWARD,
    VC_VECTOR,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
)
from iretrace.machine.ghcb import GHCB_GPA, SVM_VMGEXIT_NMI_COMPLETE
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
    SVM_INTERRUPT_SHADOW_MASK,
)
from tests.machine.rig import HANDLER, Rig, push_words, return_frame, rig

FAULTS = {GP_VECTOR: [OP_NOP, OP_SPIN], PF_VECTOR: [OP_NOP, OP_SPIN]}
PF_HANDLER = HANDLER + 2


def faults(on: Rig, error: int = 0) -> bool:
    """The step is a page fault, and nothing else: the instruction has had no effect."""
    before = list(on.cpu.memory)
    rip, rsp = on.cpu.rip, on.cpu.rsp
    on.bare()
    assert on.cpu.memory[:96] == before[:96]
    assert (on.cpu.seen_rip, on.frame_behind_the_error_code()[3]) == (rip, rsp)
    assert (on.cpu.door, on.cpu.rip) == (0, PF_HANDLER)
    return (on.delivered(), on.cpu.seen_error) == (PF_VECTOR, error)


# Shadows. ------------------------------------------------------------------------------------------------------------


def test_sti_sets_if_and_casts_a_shadow() -> None:
    """APM vol. 2, Interrupt Shadows."""
    on = rig(OP_STI).bare()
    assert on.cpu.rflags & X86_EFLAGS_IF
    assert on.cpu.shadow == SHADOW_STI


def test_sti_casts_no_shadow_if_if_was_set() -> None:
    """APM vol. 2, Interrupt Shadows."""
    assert rig(OP_STI, interrupts=True).bare().cpu.shadow == SHADOW_NONE


def test_a_shadow_covers_one_instruction() -> None:
    """APM vol. 2, Interrupt Shadows."""
    assert rig(OP_STI, OP_NOP).bare(2).cpu.shadow == SHADOW_NONE


def test_of_several_mov_ss_in_a_row_only_the_first_casts_a_shadow() -> None:
    """Bochs, cpu/event.cc."""
    on = rig(OP_MOV_SS, OP_MOV_SS, OP_MOV_SS).bare()
    assert on.cpu.shadow == SHADOW_MOV_SS
    assert on.bare().cpu.shadow == SHADOW_NONE
    assert on.bare().cpu.shadow == SHADOW_MOV_SS


def test_mov_ss_in_the_shadow_of_sti_casts_its_own() -> None:
    """Bochs, cpu/event.cc."""
    assert rig(OP_STI, OP_MOV_SS).bare(2).cpu.shadow == SHADOW_MOV_SS


def test_cli_clears_if_and_casts_no_shadow() -> None:
    """APM vol. 3, CLI."""
    on = rig(OP_CLI, interrupts=True).bare()
    assert not on.cpu.rflags & X86_EFLAGS_IF
    assert on.cpu.shadow == SHADOW_NONE


# HLT, PAUSE, and instructions that only move on. ----------------------------------------------------------------------


def test_hlt_retires_and_halts() -> None:
    """APM vol. 3, HLT."""
    on = rig(OP_HLT).bare()
    assert (on.cpu.rip, on.cpu.halted) == (1, 1)


def test_hlt_ends_the_shadow_of_sti() -> None:
    """APM vol. 2, Interrupt Shadows: sti; hlt cannot lose a wake-up."""
    assert rig(OP_STI, OP_HLT).bare(2).cpu.shadow == SHADOW_NONE


def test_an_intercepted_hlt_exits_behind_it_and_the_guest_is_not_halted() -> None:
    """APM vol. 2, Types of Exits (SEV-ES): the hardware advances RIP."""
    on = rig(OP_HLT, intercepts=(INTERCEPT_HLT,), sev_es=True).enter().guest()
    assert (on.vmcb.exit_code, on.cpu.rip, on.cpu.halted) == (SVM_EXIT_HLT, 1, 0)
    assert (on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (0, 0)


@pytest.mark.parametrize("op", [OP_HLT, OP_PAUSE, OP_NOP])
def test_bare_metal_has_no_intercepts(op: int) -> None:
    """APM vol. 2, Instruction Intercepts: of a guest's."""
    on = rig(op, intercepts=(INTERCEPT_HLT, INTERCEPT_PAUSE), sev_es=True).bare()
    assert (on.vmcb.exit_code, on.cpu.rip) == (0, 1)


def test_an_intercepted_pause_exits_behind_it() -> None:
    """APM vol. 2, Types of Exits (SEV-ES)."""
    on = rig(OP_PAUSE, intercepts=(INTERCEPT_PAUSE,), sev_es=True).enter().guest()
    assert (on.vmcb.exit_code, on.cpu.rip) == (SVM_EXIT_PAUSE, 1)


def test_the_pause_filter_lets_a_single_pause_pass() -> None:
    """APM vol. 2, Pause Intercept Filtering."""
    on = rig(OP_PAUSE, intercepts=(INTERCEPT_PAUSE,))
    on.vmcb.pause_filter_count = 3000
    on.enter().guest()
    assert (on.cpu.guest_mode, on.cpu.rip) == (1, 1)


@pytest.mark.parametrize(("knobs", "state"), [(0, 0), (1 << KNOB_TRAP_EXIT_KEEPS_SHADOW, SVM_INTERRUPT_SHADOW_MASK)])
def test_whether_an_automatic_exit_keeps_a_shadow_is_a_knob(knobs: int, state: int) -> None:
    """Not documented."""
    on = rig(OP_HLT, intercepts=(INTERCEPT_HLT,), sev_es=True, knobs=knobs).enter(shadow=True).guest()
    assert on.vmcb.int_state == state
    assert on.m.consulted == 1 << KNOB_TRAP_EXIT_KEEPS_SHADOW


def test_an_automatic_exit_without_a_shadow_consults_no_knob() -> None:
    on = rig(OP_HLT, intercepts=(INTERCEPT_HLT,), sev_es=True).enter().guest()
    assert on.m.consulted == 0


def test_nop_jmp_and_spin_go_where_they_say() -> None:
    assert rig(OP_NOP).bare().cpu.rip == 1
    assert rig((OP_JMP, 7)).bare().cpu.rip == 7
    assert rig(OP_SPIN).bare(3).cpu.rip == 0


def test_spinning_ends_a_shadow() -> None:
    """APM vol. 2, Interrupt Shadows: `jmp .` is an instruction like others."""
    assert rig(OP_STI, OP_SPIN).bare(2).cpu.shadow == SHADOW_NONE


def test_a_mark_is_seen() -> None:
    """docs/design.md, History."""
    on = rig((OP_MARK, 4)).bare()
    assert (on.cpu.seen, on.cpu.seen_vector, on.cpu.rip) == (SEEN_MARK, 4, 1)


def test_a_mark_is_seen_for_one_step() -> None:
    assert rig((OP_MARK, 4)).bare(2).cpu.seen == SEEN_NOTHING


def test_a_mark_in_a_vc_handler_is_not_seen() -> None:
    """docs/design.md, History."""
    on = rig((OP_MARK, 4))
    on.m.hidden[0] = 1
    assert on.bare().cpu.seen == SEEN_NOTHING


def test_an_instruction_that_completes_clears_rf() -> None:
    """APM vol. 2, RF."""
    on = rig(OP_NOP)
    on.cpu.rflags |= X86_EFLAGS_RF
    assert not on.bare().cpu.rflags & X86_EFLAGS_RF


def test_outside_of_the_code_there_is_no_page() -> None:
    """A guest can return to any RIP that it has in memory."""
    on = rig(OP_NOP, handlers=FAULTS, ist={PF_VECTOR: 3})
    on.cpu.rip = CODE_SIZE
    assert faults(on, 0x10)


# IRETQ. --------------------------------------------------------------------------------------------------------------


def returning(*words: int, handlers: dict[int, list[int]] | None = None, **options: bool | int) -> Rig:
    """A bench about to execute IRETQ on a stack that holds these words, NMIs masked."""
    on = rig(OP_IRETQ, handlers=handlers or FAULTS, **options)  # type: ignore[arg-type]
    push_words(on, *words)
    on.cpu.nmi_masked = 1
    return on


def test_iretq_pops_rip_cs_rflags_rsp_ss() -> None:
    """APM vol. 3, IRETQ."""
    on = returning(*return_frame(9, X86_EFLAGS_FIXED | X86_EFLAGS_IF | X86_EFLAGS_TF, 22)).bare()
    assert (on.cpu.rip, on.cpu.rsp) == (9, 22)
    assert on.cpu.rflags == X86_EFLAGS_FIXED | X86_EFLAGS_IF | X86_EFLAGS_TF


def test_iretq_pops_what_memory_holds_now() -> None:
    """APM vol. 3, IRETQ: the frame is ordinary memory."""
    on = rig(OP_SPIN, handlers={NMI_VECTOR: [OP_IRETQ]}).nmi().bare()
    on.cpu.memory[on.cpu.rsp] = 7
    assert on.bare().cpu.rip == 7


def test_iretq_ignores_flags_that_it_does_not_know() -> None:
    """APM vol. 3, IRETQ."""
    assert returning(*return_frame(9, 0)).bare().cpu.rflags == X86_EFLAGS_FIXED


def test_iretq_unmasks_nmis() -> None:
    """APM vol. 2, Nonmaskable Interrupts."""
    assert not returning(*return_frame(9)).bare().cpu.nmi_masked


def test_iretq_of_an_encrypted_guest_opens_nothing() -> None:
    """GHCB specification, NMI Complete: the guest says so itself."""
    assert returning(*return_frame(9), sev_es=True).bare().cpu.nmi_masked


def test_iretq_to_nowhere_is_gp_at_the_iretq() -> None:
    """APM vol. 3, IRETQ. Selectors: test_privilege.py."""
    on = returning(CODE_SIZE, KERNEL_CS, X86_EFLAGS_FIXED, STACK_WORDS, KERNEL_DS).bare()
    assert on.delivered() == GP_VECTOR
    assert (on.cpu.seen_rip, on.cpu.seen_error) == (0, 0)


@pytest.mark.parametrize("rsp", [STACK_WORDS, STACK_WORDS - 4, 30 + 32 - 4, MEMORY_WORDS, MEMORY_WORDS + 1])
def test_iretq_without_a_frame_on_its_page_is_a_page_fault(rsp: int) -> None:
    """APM vol. 3, IRETQ. #PF needs a stack too, so it has one of its own here."""
    on = rig(OP_IRETQ, handlers=FAULTS, ist={PF_VECTOR: 3})
    on.cpu.rsp = rsp
    assert faults(on)


@pytest.mark.parametrize(("knobs", "masked"), [(0, 1), (1 << KNOB_IRET_FAULT_UNMASKS, 0)])
def test_whether_an_iretq_that_faults_unmasks_is_a_knob(knobs: int, masked: int) -> None:
    """APM vol. 2, NMI Virtualization; Bochs unmasks before it checks."""
    on = returning(9, 0, 0, 0, 0, knobs=knobs).bare()
    assert on.cpu.nmi_masked == masked
    assert on.m.consulted == 1 << KNOB_IRET_FAULT_UNMASKS


def test_an_iretq_without_a_frame_is_an_iretq_that_faults_too() -> None:
    """APM vol. 2, NMI Virtualization."""
    on = rig(OP_IRETQ, handlers=FAULTS, knobs=1 << KNOB_IRET_FAULT_UNMASKS)
    on.cpu.nmi_masked = 1
    assert on.bare().delivered() == PF_VECTOR
    assert on.cpu.nmi_masked == 0


def test_an_iretq_of_an_encrypted_guest_opens_nothing_by_faulting_either() -> None:
    """GHCB specification, NMI Complete."""
    on = returning(9, 0, 0, 0, 0, sev_es=True, knobs=1 << KNOB_IRET_FAULT_UNMASKS).bare()
    assert (on.cpu.nmi_masked, on.m.consulted) == (1, 0)


def test_an_iretq_that_succeeds_consults_no_knob() -> None:
    assert returning(*return_frame(9)).bare().m.consulted == 0


def test_an_iretq_on_a_cold_page_exits_and_has_had_no_effect() -> None:
    """kvm-unit-tests x86/eventinj.c, NMI IRET: a fault that the hypervisor resolves is no execution."""
    on = returning(*return_frame(9), cold=1).enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_int_info) == (SVM_EXIT_NPF, 0)
    assert (on.cpu.rip, on.cpu.nmi_masked) == (0, 1)


@pytest.mark.parametrize(("op", "info"), [(OP_IRETQ, 4), (OP_PUSH, 6)])
def test_the_page_of_the_stack_pointer_is_the_one_that_must_be_warm(op: int, info: int) -> None:
    """APM vol. 2, Nested Page Fault: EXITINFO; a read and a write."""
    for cold in (1 << 1, 1 << 2):
        on = rig(op, cold=cold).enter()
        on.cpu.rsp = 2 * 32 + 20
        on.cpu.memory[on.cpu.rsp : on.cpu.rsp + 5] = return_frame(9)
        on.guest()
        if cold == 1 << 2:
            assert (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (SVM_EXIT_NPF, info, 0x2000)
        else:
            assert on.cpu.guest_mode


@pytest.mark.parametrize("op", [OP_IRETQ, OP_PUSH])
def test_bare_metal_knows_no_cold_pages(op: int) -> None:
    """Nested paging is the hypervisor's."""
    on = rig(op, cold=0xFF)
    push_words(on, *return_frame(9))
    on.bare()
    assert on.vmcb.exit_code == 0


def test_an_encrypted_guests_iretq_that_is_not_intercepted_is_executed() -> None:
    """APM vol. 2, Non-Automatic Exits: only if the intercept is set."""
    assert returning(*return_frame(9), handlers={VC_VECTOR: [OP_SPIN]}, sev_es=True).enter().guest().cpu.rip == 9


@pytest.mark.parametrize("sev_es", [False, True])
def test_the_machine_alone_executes_an_iretq_whatever_a_vmcb_says(sev_es: bool) -> None:
    """APM vol. 2, IRET Intercept: of guests."""
    on = returning(*return_frame(9), handlers={VC_VECTOR: [OP_SPIN]}, sev_es=sev_es)
    on.vmcb.intercept_word3 |= 1 << INTERCEPT_IRET - 96
    assert on.bare().cpu.rip == 9


def test_an_intercepted_iretq_of_an_encrypted_guest_is_vc_74h() -> None:
    """APM vol. 2, Types of Exits (SEV-ES): not automatic."""
    handlers = {VC_VECTOR: [OP_SPIN]}
    on = returning(*return_frame(9), handlers=handlers, sev_es=True)
    on.vmcb.intercept_word3 |= 1 << INTERCEPT_IRET - 96
    on.enter().guest()
    assert (on.cpu.rip, on.cpu.guest_mode) == (HANDLER, 1)
    assert on.cpu.memory[on.cpu.rsp : on.cpu.rsp + 2] == [SVM_EXIT_IRET, 0]


# CPUID, VMGEXIT, SKIP, PUSH. -----------------------------------------------------------------------------------------

VC = {VC_VECTOR: [OP_SKIP, OP_IRETQ]}


def test_an_intercepted_cpuid_of_an_encrypted_guest_is_vc_72h_at_the_cpuid() -> None:
    """APM vol. 2, #VC Exception; Non-Automatic Exits."""
    on = rig(OP_CPUID, handlers=VC, sev_es=True, intercepts=(INTERCEPT_CPUID,)).enter().guest()
    assert on.cpu.guest_mode
    assert on.cpu.memory[on.cpu.rsp : on.cpu.rsp + 2] == [SVM_EXIT_CPUID, 0]


def test_cpuid_that_is_not_intercepted_retires() -> None:
    """APM vol. 2, Non-Automatic Exits: only if the intercept is set."""
    assert rig(OP_CPUID, handlers=VC, sev_es=True).enter().guest().cpu.rip == 1


def test_cpuid_is_vc_on_the_machine_alone_too() -> None:
    """docs/design.md, Doors: the ideal hypervisor intercepts what a guest must handle."""
    assert rig(OP_CPUID, handlers=VC, sev_es=True).bare().cpu.rip == HANDLER


def test_cpuid_of_a_plain_machine_retires() -> None:
    """APM vol. 2, #VC Exception: of encrypted guests."""
    assert rig(OP_CPUID, handlers=VC).bare().cpu.rip == 1


def test_skip_needs_an_error_code_and_a_saved_rip() -> None:
    on = rig(OP_SKIP)
    on.cpu.rsp = MEMORY_WORDS - 2
    on.bare()
    assert (on.cpu.rip, on.cpu.rsp, on.cpu.memory[MEMORY_WORDS - 1]) == (1, MEMORY_WORDS - 1, 1)


def test_a_vc_handler_that_skips_returns_behind_the_instruction() -> None:
    """Linux, vc-handle.c:vc_finish_insn()."""
    on = rig(OP_CPUID, handlers=VC, sev_es=True).bare(3)
    assert (on.cpu.rip, on.cpu.rsp) == (1, STACK_WORDS)


def test_skip_without_a_frame_is_a_page_fault() -> None:
    on = rig(OP_SKIP, handlers=FAULTS, ist={PF_VECTOR: 3})
    on.cpu.rsp = MEMORY_WORDS - 1
    assert faults(on)


def exiting(operand: int, *words: int) -> Rig:
    on = rig((OP_VMGEXIT, operand), sev_es=True, interrupts=True)
    push_words(on, *words)
    return on.enter().guest()


def test_vmgexit_always_exits_and_rip_is_behind_it() -> None:
    """APM vol. 2, VMGEXIT; Types of Exits (SEV-ES)."""
    on = exiting(SVM_VMGEXIT_NMI_COMPLETE)
    assert (on.vmcb.exit_code, on.cpu.rip, on.cpu.guest_mode) == (SVM_EXIT_VMGEXIT, 1, 0)
    assert (on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (0, 0)
    assert (on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (0, 0)


def test_vmgexit_fills_the_ghcb() -> None:
    """Linux, coco/sev/noinstr.c:__sev_es_nmi_complete(): three valid fields and the GHCB's address."""
    on = exiting(SVM_VMGEXIT_NMI_COMPLETE)
    assert on.ghcb.sw_exit_code == SVM_VMGEXIT_NMI_COMPLETE
    assert (on.ghcb.sw_exit_info_1, on.ghcb.sw_exit_info_2) == (0, 0)
    assert (on.ghcb.valid_bitmap_lo, on.ghcb.valid_bitmap_hi) == (0, 7 << 50)
    assert on.vmcb.ghcb_gpa == GHCB_GPA


def test_vmgexit_overwrites_what_the_last_one_left_in_the_ghcb() -> None:
    """Linux, sev-shared.c:vc_ghcb_invalidate()."""
    on = rig((OP_VMGEXIT, SVM_VMGEXIT_NMI_COMPLETE), sev_es=True)
    on.ghcb.sw_exit_info_1 = on.ghcb.sw_exit_info_2 = on.ghcb.valid_bitmap_lo = on.ghcb.valid_bitmap_hi = 0xFF
    on.enter().guest()
    assert (on.ghcb.sw_exit_info_1, on.ghcb.sw_exit_info_2) == (0, 0)
    assert (on.ghcb.valid_bitmap_lo, on.ghcb.valid_bitmap_hi) == (0, 7 << 50)


def test_vmgexit_for_cpuid_passes_rax_and_rcx() -> None:
    """Linux, sev-shared.c:vc_handle_cpuid()."""
    on = rig((OP_VMGEXIT, SVM_EXIT_CPUID), sev_es=True)
    on.ghcb.rax = on.ghcb.rcx = 5
    on.enter().guest()
    assert (on.ghcb.rax, on.ghcb.rcx) == (0, 0)
    assert on.ghcb.valid_bitmap_lo == 1 << 0x1F8 // 8
    assert on.ghcb.valid_bitmap_hi == 7 << 50 | 1 << 0x308 // 8 - 64


def test_vmgexit_forward_passes_the_error_code_of_vc() -> None:
    """Linux, coco/sev/vc-handle.c: the error code is the exit code."""
    assert exiting(VC_FORWARD, SVM_EXIT_CPUID).ghcb.sw_exit_code == SVM_EXIT_CPUID


def test_vmgexit_forward_without_a_stack_is_a_page_fault() -> None:
    on = rig((OP_VMGEXIT, VC_FORWARD), handlers=FAULTS, ist={PF_VECTOR: 3}, sev_es=True)
    on.cpu.rsp = MEMORY_WORDS
    assert faults(on)


def test_vmgexit_on_the_machine_alone_is_a_door() -> None:
    """docs/design.md, Doors."""
    on = rig((OP_VMGEXIT, SVM_VMGEXIT_NMI_COMPLETE), sev_es=True).bare()
    assert (on.cpu.door, on.cpu.rip) == (SVM_VMGEXIT_NMI_COMPLETE, 1)
    assert (on.vmcb.exit_code, on.ghcb.sw_exit_code) == (0, 0)
    assert on.bare().cpu.door == 0


def test_push_stores_a_word_below_the_stack_pointer() -> None:
    """APM vol. 3, PUSH."""
    on = rig(OP_PUSH)
    on.cpu.memory[STACK_WORDS - 1] = 5
    on.bare()
    assert (on.cpu.rsp, on.cpu.memory[STACK_WORDS - 1], on.cpu.rip) == (STACK_WORDS - 1, 0, 1)


def test_push_on_a_cold_page_exits_with_its_shadow_still_open() -> None:
    """APM vol. 2, Nested Page Fault; Interrupt Shadows."""
    on = rig(OP_PUSH, cold=1).enter(shadow=True).guest()
    assert (on.vmcb.exit_code, on.vmcb.int_state & 1) == (SVM_EXIT_NPF, 1)
    assert (on.cpu.rip, on.cpu.rsp) == (0, STACK_WORDS)


@pytest.mark.parametrize("rsp", [0, 32, MEMORY_WORDS + 2])
def test_push_below_its_page_is_a_page_fault(rsp: int) -> None:
    """APM vol. 3, PUSH."""
    on = rig(OP_PUSH, handlers=FAULTS, ist={PF_VECTOR: 3})
    on.cpu.rsp = rsp
    assert faults(on, 2)
