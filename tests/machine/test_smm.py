"""SMIs and RSM, INIT, and where a guest goes on that its hypervisor has put there."""

from __future__ import annotations

import pytest

from iretrace.machine.boundary import latch_irq
from iretrace.machine.cpu import (
    DR6_BS,
    DR6_RESET,
    DR7_RESET,
    EFER_BOOTED,
    KERNEL_DS,
    KNOB_INIT_KEEPS_NMI_LATCH,
    KNOB_INIT_KEEPS_NMI_MASK,
    KNOB_INIT_KEEPS_SMI_LATCH,
    KNOB_RSM_LEAVES_NMIS_UNMASKED,
    NMI_VECTOR,
    OP_HLT,
    OP_INT,
    OP_IRETQ,
    OP_MARK,
    OP_NOP,
    OP_RSM,
    OP_SPIN,
    OP_STI,
    SEEN_MARK,
    SEEN_NOTHING,
    SEEN_SMI,
    SHADOW_STI,
    STACK_WORDS,
    UD_VECTOR,
    USER_DS,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_TF,
)
from iretrace.machine.smm import (
    RESET_VECTOR,
    SMM_ENTRY,
    find_firmware,
    find_itself_started,
    latch_init,
    latch_sipi,
    latch_smi,
    sipi_due,
    take_init,
    take_sipi,
    take_sipi_alone,
)
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_NMI,
    INTERCEPT_RSM,
    SVM_EXIT_RSM,
    SVM_EXIT_SHUTDOWN,
    V_NMI_ENABLE_MASK,
    V_NMI_PENDING_MASK,
)
from tests.machine.rig import HANDLER, INJECT_NMI, Rig, put, rig

SMI = 40
INIT = 50
HANDLERS = {NMI_VECTOR: [OP_NOP, OP_IRETQ], 0x20: [OP_IRETQ], UD_VECTOR: [OP_SPIN]}


def bench(*main: int, smi: tuple[int, ...] = (OP_MARK, OP_RSM), interrupts: bool = False, knobs: int = 0) -> Rig:
    """A processor whose SMI handler is at SMI, and whose firmware at INIT."""
    made = rig(*main, handlers=HANDLERS, interrupts=interrupts, knobs=knobs)
    put(made.m.ops, made.m.args, SMI, [(op, 0x20 if op == OP_INT else 0) for op in smi])
    put(made.m.ops, made.m.args, INIT, [OP_SPIN])
    made.m.smi, made.m.init = SMI + 1, INIT + 1
    return made


def with_smi(on: Rig) -> Rig:
    latch_smi(on.cpu)
    return on


def saved(on: Rig) -> tuple[int, ...]:
    """The state-save area."""
    cpu = on.cpu
    registers = (cpu.smm_rip, cpu.smm_rsp, cpu.smm_rflags, cpu.smm_rax, cpu.smm_dr6, cpu.smm_dr7, cpu.smm_efer)
    return (*registers, cpu.smm_cpl, cpu.smm_ss, cpu.smm_shadow, cpu.smm_halted, cpu.smm_nmi_masked)


def test_an_smi_goes_before_an_nmi_and_shows_where_it_came() -> None:
    on = with_smi(bench(OP_NOP, interrupts=True).nmi()).bare()
    assert (on.cpu.seen, on.cpu.seen_rip, on.cpu.seen_rflags) == (SEEN_SMI, 0, X86_EFLAGS_IF)
    assert (on.cpu.rip, on.cpu.smm, on.cpu.nmi_latched, on.cpu.nmi_masked) == (SMI, 1, 1, 1)


def test_in_smm_flags_are_empty_and_no_breakpoint_is_enabled() -> None:
    on = bench(OP_NOP, interrupts=True)
    on.cpu.dr7, on.cpu.shadow = DR7_RESET | 1, SHADOW_STI
    with_smi(on).bare()
    assert (on.cpu.rflags, on.cpu.dr7, on.cpu.shadow) == (X86_EFLAGS_FIXED, DR7_RESET, 0)


def test_rsm_brings_back_what_was() -> None:
    on = bench(OP_NOP, interrupts=True)
    on.cpu.rax, on.cpu.dr6, on.cpu.dr7, on.cpu.shadow = 7, DR6_RESET | 1, DR7_RESET | 1, SHADOW_STI
    with_smi(on).bare()
    on.cpu.rax, on.cpu.rsp, on.cpu.dr6 = 1, 3, DR6_RESET
    on.bare(2)
    assert (on.cpu.rip, on.cpu.rsp, on.cpu.rax) == (0, STACK_WORDS, 7)
    assert (on.cpu.rflags, on.cpu.shadow) == (X86_EFLAGS_FIXED | X86_EFLAGS_IF, SHADOW_STI)
    assert (on.cpu.dr6, on.cpu.dr7) == (DR6_RESET | 1, DR7_RESET | 1)
    assert (on.cpu.smm, saved(on)) == (0, (0,) * 12)


def in_user_mode(on: Rig) -> Rig:
    on.cpu.cpl, on.cpu.ss = 3, USER_DS
    return on


def test_an_smi_to_a_user_program_runs_in_kernel_mode_and_rsm_goes_back() -> None:
    on = with_smi(in_user_mode(bench(OP_NOP))).bare()
    assert (on.cpu.cpl, on.cpu.ss, on.cpu.rsp) == (0, KERNEL_DS, STACK_WORDS)
    on.bare(2)
    assert (on.cpu.rip, on.cpu.cpl, on.cpu.ss, on.cpu.smm) == (0, 3, USER_DS, 0)
    assert saved(on) == (0,) * 12


def test_rsm_brings_the_null_ss_of_a_handler_back() -> None:
    on = bench(OP_NOP)
    on.cpu.ss = 0
    with_smi(on).bare(3)
    assert (on.cpu.rip, on.cpu.cpl, on.cpu.ss) == (0, 0, 0)


def test_init_ends_user_mode() -> None:
    on = in_user_mode(bench(OP_NOP))
    latch_init(on.cpu)
    on.bare()
    assert (on.cpu.rip, on.cpu.cpl, on.cpu.ss) == (INIT, 0, KERNEL_DS)


@pytest.mark.parametrize(("rip", "at"), [(SMM_ENTRY, SMI), (RESET_VECTOR, INIT)])
def test_a_guest_in_real_mode_is_no_user_program_whatever_its_vmcb_says(rip: int, at: int) -> None:
    on = in_user_mode(bench(OP_NOP))
    on.cpu.rip = rip
    find_firmware(on.m, on.cpu)
    assert (on.cpu.rip, on.cpu.cpl, on.cpu.ss) == (at, 0, KERNEL_DS)


def test_init_clears_the_local_apic_which_accepts_no_interrupt_then() -> None:
    on = bench(OP_NOP)
    latch_irq(on.cpu)
    on.cpu.isr = 1
    latch_init(on.cpu)
    on.bare()
    assert (on.cpu.irr, on.cpu.isr, on.cpu.apic_off) == (0, 0, 1)
    latch_irq(on.cpu)
    assert on.cpu.irr == 0


def test_svm_is_off_in_smm() -> None:
    on = bench(OP_NOP)
    on.cpu.efer |= EFER_SVME
    with_smi(on).bare()
    assert on.cpu.efer == EFER_BOOTED
    on.bare(2)
    assert on.cpu.efer == EFER_BOOTED | EFER_SVME


def test_gif_holds_smi_and_init() -> None:
    for latch in (latch_smi, latch_init):
        on = bench(OP_SPIN)
        on.cpu.gif = 0
        latch(on.cpu)
        assert on.bare().cpu.rip == 0
        on.cpu.gif = 1
        assert on.bare().cpu.rip in (SMI, INIT)


def test_rsm_goes_back_into_hlt() -> None:
    on = with_smi(bench(OP_HLT, OP_SPIN).bare())
    on.bare()
    assert not on.cpu.halted
    on.bare(2)
    assert (on.cpu.halted, on.cpu.rip, saved(on)) == (1, 1, (0,) * 12)


def test_the_flags_that_rsm_brings_back_trap_behind_the_next_instruction() -> None:
    on = bench(OP_NOP, OP_NOP)
    on.cpu.rflags |= X86_EFLAGS_TF
    with_smi(on).bare(3)
    assert on.cpu.trap == 0
    on.bare()
    assert on.cpu.trap


def test_a_second_smi_waits_for_rsm() -> None:
    on = with_smi(with_smi(bench(OP_SPIN)).bare()).bare()
    assert (on.cpu.seen, on.cpu.smm, on.cpu.smi_latched) == (SEEN_MARK, 1, 1)
    on.bare(2)
    assert (on.cpu.seen, on.cpu.rip) == (SEEN_SMI, SMI)


def test_an_nmi_in_smm_waits_for_rsm() -> None:
    on = with_smi(bench(OP_SPIN)).bare().nmi().bare()
    assert on.cpu.seen == SEEN_MARK
    on.bare(2)
    assert (on.delivered(), on.cpu.seen_rip) == (NMI_VECTOR, 0)


def test_iret_unmasks_nmis_in_smm_too() -> None:
    on = with_smi(bench(OP_SPIN, smi=(OP_INT, OP_MARK, OP_RSM))).bare().nmi().bare(3)
    assert (on.delivered(), on.cpu.seen_rip) == (NMI_VECTOR, SMI + 1)


def test_rsm_leaves_nmis_masked_where_smm_was_entered_so() -> None:
    on = with_smi(bench(OP_SPIN).nmi().bare()).bare(3)
    assert (on.cpu.rip, on.cpu.nmi_masked, saved(on)) == (HANDLER, 1, (0,) * 12)


def test_what_an_iret_unmasked_in_smm_is_no_question_where_it_was_unmasked_before() -> None:
    on = with_smi(bench(OP_SPIN, smi=(OP_INT, OP_MARK, OP_RSM))).bare(5)
    assert (on.cpu.rip, on.cpu.nmi_masked, on.m.consulted) == (0, 0, 0)


@pytest.mark.parametrize("leaves", [0, 1])
def test_whether_rsm_masks_again_what_an_iret_unmasked_is_disputed(leaves: int) -> None:
    on = bench(OP_SPIN, smi=(OP_INT, OP_MARK, OP_RSM), knobs=leaves << KNOB_RSM_LEAVES_NMIS_UNMASKED)
    with_smi(on.nmi().bare()).bare(5)
    assert (on.cpu.rip, on.cpu.nmi_masked) == (HANDLER, 1 - leaves)
    assert on.m.consulted == 1 << KNOB_RSM_LEAVES_NMIS_UNMASKED


def test_rsm_outside_of_smm_is_an_undefined_opcode() -> None:
    on = bench(OP_RSM).bare()
    assert (on.delivered(), on.cpu.seen_rip, on.cpu.seen_error) == (UD_VECTOR, 0, 0)
    assert on.m.idt[UD_VECTOR] == on.cpu.rip + 1


def test_an_intercepted_rsm_exits_before_it_has_done_anything() -> None:
    on = rig(OP_RSM, handlers=HANDLERS, intercepts=(INTERCEPT_RSM,)).enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.rip, on.vmcb.next_rip, on.delivered()) == (SVM_EXIT_RSM, 0, 1, -1)


# INIT. ----------------------------------------------------------------------------------------------------------


def with_init(on: Rig) -> Rig:
    latch_init(on.cpu)
    assert on.cpu.init_latched == 1
    return on


def test_init_forgets_a_trap_that_was_due() -> None:
    on = bench(OP_SPIN)
    on.cpu.trap = DR6_BS
    take_init(on.m, on.cpu, on.vmcb)
    assert on.cpu.trap == 0


def test_init_resets_the_registers() -> None:
    on = bench(OP_STI, OP_HLT).bare(2)
    cpu = on.cpu
    cpu.rsp, cpu.rax, cpu.dr0, cpu.dr1, cpu.dr2, cpu.dr3, cpu.dr6, cpu.dr7 = 3, 1, 1, 1, 1, 1, DR6_RESET | 1, 1
    cpu.irr = cpu.isr = cpu.shadow = 1
    cpu.efer |= EFER_SVME
    with_init(on).bare()
    assert (cpu.rip, cpu.rsp, cpu.rflags, cpu.rax, cpu.halted) == (INIT, STACK_WORDS, X86_EFLAGS_FIXED, 0, 0)
    assert (cpu.dr0, cpu.dr1, cpu.dr2, cpu.dr3, cpu.dr6, cpu.dr7) == (0, 0, 0, 0, DR6_RESET, DR7_RESET)
    assert (cpu.irr, cpu.isr, cpu.shadow, cpu.init_latched, cpu.efer) == (0, 0, 0, 0, EFER_BOOTED)


def test_init_waits_for_rsm() -> None:
    on = with_init(with_smi(bench(OP_SPIN)).bare()).bare()
    assert on.cpu.seen == SEEN_MARK
    on.bare(2)
    assert on.cpu.rip == INIT


def test_an_smi_goes_before_an_init() -> None:
    assert with_smi(with_init(bench(OP_SPIN))).bare().cpu.rip == SMI


@pytest.mark.parametrize("keeps", [0, 1])
def test_whether_init_keeps_a_latched_nmi_is_not_known(keeps: int) -> None:
    on = with_init(bench(OP_SPIN, knobs=keeps << KNOB_INIT_KEEPS_NMI_LATCH).nmi()).bare()
    assert (on.cpu.nmi_latched, on.m.consulted) == (keeps, 1 << KNOB_INIT_KEEPS_NMI_LATCH)


@pytest.mark.parametrize("keeps", [0, 1])
def test_whether_init_keeps_the_mask_of_nmis_is_not_known(keeps: int) -> None:
    on = with_init(bench(OP_SPIN, knobs=keeps << KNOB_INIT_KEEPS_NMI_MASK).nmi().bare()).bare()
    assert (on.cpu.nmi_masked, on.m.consulted) == (keeps, 1 << KNOB_INIT_KEEPS_NMI_MASK)


@pytest.mark.parametrize("keeps", [0, 1])
def test_whether_init_keeps_a_latched_smi_is_not_known(keeps: int) -> None:
    on = with_smi(bench(OP_SPIN, knobs=keeps << KNOB_INIT_KEEPS_SMI_LATCH))
    take_init(on.m, on.cpu, on.vmcb)
    assert (on.cpu.smi_latched, on.m.consulted) == (keeps, 1 << KNOB_INIT_KEEPS_SMI_LATCH)


# A guest whose hypervisor has put it there. -----------------------------------------------------------------------


def test_vmrun_at_the_entry_of_smm_is_an_smi_to_the_guest() -> None:
    on = bench(OP_SPIN)
    on.cpu.rip = SMM_ENTRY
    on.enter()
    find_firmware(on.m, on.cpu)
    assert on.cpu.smm_found == 1
    on.cpu.smm_rip, on.cpu.smm_rflags = 5, X86_EFLAGS_IF
    on.guest()
    assert (on.cpu.seen, on.cpu.seen_rip, on.cpu.seen_rflags, on.cpu.rip) == (SEEN_SMI, 5, X86_EFLAGS_IF, SMI)
    assert (on.cpu.smm_found, on.cpu.smm_rip) == (0, 0)


def test_what_is_injected_before_the_first_instruction_in_smm_finds_no_idt() -> None:
    on = bench(OP_SPIN)
    on.cpu.rip, on.cpu.smm_rip = SMM_ENTRY, 3
    on.enter(INJECT_NMI)
    find_firmware(on.m, on.cpu)
    on.guest()
    assert (on.cpu.seen, on.cpu.smm_found, on.cpu.event_inj, saved(on)) == (SEEN_NOTHING, 0, 0, (0,) * 12)
    assert (on.vmcb.exit_code, on.cpu.guest_mode) == (SVM_EXIT_SHUTDOWN, 0)


def test_a_virtual_nmi_that_is_due_before_the_first_instruction_in_smm_finds_no_idt_either() -> None:
    on = bench(OP_SPIN)
    on.cpu.rip = SMM_ENTRY
    on.vmcb.intercept_word3 |= 1 << INTERCEPT_NMI - 96
    on.vmcb.int_ctl |= V_NMI_ENABLE_MASK | V_NMI_PENDING_MASK
    on.enter()
    find_firmware(on.m, on.cpu)
    on.guest()
    assert (on.cpu.seen, on.cpu.smm_found, on.vmcb.exit_code) == (SEEN_NOTHING, 0, SVM_EXIT_SHUTDOWN)


def test_vmrun_at_the_reset_vector_goes_to_the_firmware() -> None:
    on = bench(OP_SPIN)
    on.cpu.rip, on.cpu.rsp = RESET_VECTOR, 0
    find_firmware(on.m, on.enter().cpu)
    assert (on.cpu.rip, on.cpu.rsp, on.cpu.smm_found) == (INIT, STACK_WORDS, 0)


def test_an_encrypted_guest_has_no_smm() -> None:
    on = bench(OP_SPIN)
    on.m.sev_es, on.cpu.rip = 1, SMM_ENTRY
    find_firmware(on.m, on.cpu)
    assert (on.cpu.rip, on.cpu.smm_found) == (SMM_ENTRY, 0)


def test_elsewhere_and_without_such_code_nothing_is_found() -> None:
    on = bench(OP_SPIN)
    find_firmware(on.m, on.cpu)
    assert on.cpu.rip == 0
    on.m.smi = on.m.init = 0
    for place in (SMM_ENTRY, RESET_VECTOR):
        on.cpu.rip = place
        find_firmware(on.m, on.cpu)
        assert (on.cpu.rip, on.cpu.smm_found) == (place, 0)


# SIPI. ----------------------------------------------------------------------------------------------------------


def waiting_ap() -> Rig:
    """An application processor behind an INIT."""
    on = bench(OP_SPIN)
    on.m.ap = 1
    return with_init(on).bare()


def test_an_ap_waits_for_a_sipi_and_executes_nothing() -> None:
    on = waiting_ap().bare(2)
    assert (on.cpu.waits_for_sipi, on.cpu.rip, on.cpu.seen) == (1, INIT, 0)
    latch_sipi(on.m, on.cpu)
    on.bare()
    assert (on.cpu.waits_for_sipi, on.cpu.sipi_latched, on.cpu.rip) == (0, 0, INIT)


def test_an_instruction_that_would_move_on_is_not_executed_by_a_processor_that_waits() -> None:
    on = waiting_ap()
    put(on.m.ops, on.m.args, INIT, [(OP_NOP, 0)])
    assert on.bare(2).cpu.rip == INIT


def test_another_init_goes_before_the_sipi() -> None:
    on = waiting_ap()
    on.cpu.sipi_latched = 1
    assert sipi_due(on.cpu)
    on.cpu.init_latched = 1
    assert not sipi_due(on.cpu)


def test_a_bootstrap_processor_with_an_init_ignores_a_sipi_all_the_same() -> None:
    on = with_init(bench(OP_SPIN))
    latch_sipi(on.m, on.cpu)
    assert on.cpu.sipi_latched == 0


def test_nothing_but_init_and_sipi_is_taken_by_a_processor_that_waits() -> None:
    on = waiting_ap()
    on.cpu.nmi_latched = on.cpu.smi_latched = on.cpu.irr = 1
    on.cpu.rflags |= X86_EFLAGS_IF
    on.bare(2)
    assert (on.cpu.nmi_latched, on.cpu.smi_latched, on.cpu.irr) == (1, 1, 1)


def test_what_came_while_the_processor_waited_is_held() -> None:
    """AMD: "All other interrupts (including SMI and NMI) are held pending until the STARTUP IPI has been accepted"."""
    on = waiting_ap()
    on.cpu.nmi_latched = on.cpu.smi_latched = on.cpu.sipi_latched = 1
    take_sipi(on.m, on.cpu, on.vmcb)
    assert (on.cpu.nmi_latched, on.cpu.smi_latched) == (1, 1)
    assert (on.cpu.waits_for_sipi, on.cpu.sipi_latched) == (0, 0)


def test_an_nmi_that_came_while_an_encrypted_guest_was_held_may_be_lost() -> None:
    on = waiting_ap()
    on.cpu.nmi_latched = 1
    take_sipi_alone(on.m, on.cpu, on.vmcb)
    assert (on.cpu.nmi_latched, on.cpu.waits_for_sipi) == (0, 0)


@pytest.mark.parametrize("ap", [0, 1])
def test_a_sipi_that_nobody_waits_for_is_ignored(ap: int) -> None:
    on = bench(OP_SPIN)
    on.m.ap = ap
    latch_sipi(on.m, on.cpu)
    assert on.cpu.sipi_latched == 0


def test_a_sipi_behind_an_init_that_is_due_is_kept_unless_something_holds_the_init() -> None:
    on = bench(OP_SPIN)
    on.m.ap = 1
    with_init(on)
    on.cpu.smm = 1
    latch_sipi(on.m, on.cpu)
    assert on.cpu.sipi_latched == 0
    on.cpu.smm = 0
    latch_sipi(on.m, on.cpu)
    assert on.cpu.sipi_latched == 1
    latch_init(on.cpu)
    assert on.cpu.sipi_latched == 0


@pytest.mark.parametrize(
    ("ap", "rip", "base", "found"), [(1, 0, 0x9A000, 1), (0, 0, 0x9A000, 0), (1, 0, 0, 0), (1, 1, 0x9A000, 0)]
)
def test_a_guest_finds_itself_started_where_the_sipi_says(ap: int, rip: int, base: int, found: int) -> None:
    on = bench(OP_SPIN)
    on.m.ap, on.cpu.rip = ap, rip
    find_itself_started(on.m, on.cpu, base)
    assert on.cpu.rip == (INIT if found else rip)
