"""Single-stepping: when TF is looked at, where #DB comes, what DR6 says, and what a hypervisor's TF does."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import (
    DB_VECTOR,
    DR6_BS,
    DR6_RESET,
    NMI_VECTOR,
    OP_CLI,
    OP_HLT,
    OP_INT,
    OP_INT3,
    OP_IRETQ,
    OP_MARK,
    OP_MOV_SS,
    OP_NOP,
    OP_POPFQ,
    OP_PUSHFQ,
    OP_SPIN,
    OP_STI,
    OP_UD2,
    OP_VMGEXIT,
    SHADOW_MOV_SS,
    SHADOW_NONE,
    SHADOW_STI,
    STACK_WORDS,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
)
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import (
    INTERCEPT_DR6_READ,
    INTERCEPT_IRET,
    SVM_EXIT_INTR,
    SVM_EXIT_IRET,
)
from tests.machine.rig import HANDLER, INJECT_NMI, Rig, push_words, return_frame, rig

DB = {DB_VECTOR: [OP_NOP, OP_IRETQ]}
ALL = {DB_VECTOR: [OP_NOP, OP_IRETQ], NMI_VECTOR: [OP_NOP, OP_IRETQ], IRQ_VECTOR: [OP_NOP, OP_IRETQ]}
DB_EXIT = 0x41
STEPPED = X86_EFLAGS_FIXED | X86_EFLAGS_TF


def stepped(
    *main: int | tuple[int, int], handlers: dict[int, list[int]] | None = None, interrupts: bool = False
) -> Rig:
    """A bench whose main begins with TF set."""
    on = rig(*main, handlers=handlers or DB)
    on.cpu.rflags |= X86_EFLAGS_TF
    return on


# The trap. ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [OP_NOP, OP_MARK, OP_CLI, OP_PUSHFQ])
def test_a_stepped_instruction_traps_behind_it(op: int) -> None:
    """APM vol. 2, Single Stepping: after the instruction, before the next one."""
    on = stepped(op, OP_SPIN).bare()
    assert (on.cpu.rip, on.cpu.trap, on.delivered()) == (1, DR6_BS, -1)
    assert on.bare().delivered() == DB_VECTOR
    assert on.frame()[0] == 1


def test_nothing_traps_without_tf() -> None:
    """APM vol. 2, Single Stepping."""
    on = rig(OP_NOP, OP_SPIN, handlers=DB).bare()
    assert not on.cpu.trap


def test_the_handler_runs_unstepped_and_the_frame_keeps_tf() -> None:
    """APM vol. 2, Single Stepping: TF is cleared by the delivery."""
    on = stepped(OP_NOP).bare(2)
    assert on.cpu.rip == HANDLER
    assert on.cpu.rflags == X86_EFLAGS_FIXED
    assert on.frame()[2] == STEPPED
    assert not on.bare().cpu.trap


def test_stepping_goes_on_one_instruction_after_the_return() -> None:
    """APM vol. 2, Single Stepping: the IRET that sets TF is not trapped itself."""
    on = stepped(OP_NOP, OP_NOP).bare(4)
    assert (on.cpu.rip, on.cpu.trap, on.cpu.rflags) == (1, 0, STEPPED)
    assert on.bare(2).frame()[0] == 2


def test_tf_is_looked_at_when_the_instruction_begins() -> None:
    """APM vol. 2, Single Stepping: POPF that clears TF traps, POPF that sets it does not."""
    on = stepped(OP_POPFQ)
    push_words(on, X86_EFLAGS_FIXED)
    assert on.bare().cpu.trap
    on = rig(OP_POPFQ, handlers=DB)
    push_words(on, STEPPED)
    assert (on.bare().cpu.trap, on.cpu.rflags) == (0, STEPPED)


def test_an_iret_that_is_stepped_traps_behind_it_with_the_flags_that_it_popped() -> None:
    """APM vol. 2, Single Stepping."""
    on = stepped(OP_IRETQ)
    push_words(on, *return_frame(9, X86_EFLAGS_FIXED | X86_EFLAGS_IF))
    assert on.bare(2).delivered() == DB_VECTOR
    assert (on.frame()[0], on.frame()[2]) == (9, X86_EFLAGS_FIXED | X86_EFLAGS_IF)


def test_a_fault_does_not_trap() -> None:
    """APM vol. 2, Single Stepping: the instruction has not completed."""
    on = stepped(OP_UD2, handlers={6: [OP_SPIN], **DB}).bare()
    assert (on.delivered(), on.cpu.trap) == (6, 0)


@pytest.mark.parametrize("op", [OP_INT3, (OP_INT, 0x20)])
def test_a_software_interrupt_ends_its_own_stepping(op: int | tuple[int, int]) -> None:
    """APM vol. 2, Single Stepping: the delivery clears TF, and the instruction itself does not trap."""
    on = stepped(op, handlers={3: [OP_NOP], 0x20: [OP_NOP], **DB}).bare()
    assert (on.cpu.trap, on.cpu.rflags, on.frame()[2]) == (0, X86_EFLAGS_FIXED, STEPPED)


def test_hlt_that_is_stepped_traps_and_halts_no_more() -> None:
    """APM vol. 2, Single Stepping; Halt."""
    on = stepped(OP_HLT).bare(2)
    assert (on.delivered(), on.frame()[0], on.cpu.halted) == (DB_VECTOR, 1, 0)


def test_a_stepped_instruction_in_place_traps_each_time() -> None:
    """APM vol. 2, Single Stepping."""
    on = stepped(OP_SPIN)
    for _ in range(2):
        assert on.bare(2).delivered() == DB_VECTOR
        on.bare(2)
        assert on.cpu.rip == 0


# Priorities and shadows. ----------------------------------------------------------------------------------------


def test_the_trap_comes_before_an_nmi_and_the_nmi_hits_the_first_instruction_of_its_handler() -> None:
    """APM vol. 2, Priorities of simultaneous interrupts."""
    on = stepped(OP_NOP, handlers=ALL).bare()
    assert on.nmi().bare().delivered() == DB_VECTOR
    assert on.bare().delivered() == NMI_VECTOR
    assert on.frame()[0] == HANDLER


def test_the_trap_comes_before_an_exit() -> None:
    """APM vol. 2, Priorities of simultaneous interrupts."""
    on = stepped(OP_NOP).enter().guest()
    on.cpu.intr_pending = 1
    assert on.guest().delivered() == DB_VECTOR
    assert on.guest().vmcb.exit_code == SVM_EXIT_INTR


def test_sti_does_not_hide_its_trap() -> None:
    """QEMU 1e94ddc68544; Bochs."""
    on = stepped(OP_STI, OP_NOP).bare()
    assert (on.cpu.shadow, on.cpu.trap) == (SHADOW_STI, DR6_BS)
    assert on.bare().delivered() == DB_VECTOR
    assert on.cpu.shadow == SHADOW_NONE


def test_mov_ss_hides_its_trap_behind_the_next_instruction() -> None:
    """Bochs, cpu/event.cc: one #DB, behind the second instruction."""
    on = stepped(OP_MOV_SS, OP_NOP, OP_NOP).bare()
    assert (on.cpu.shadow, on.cpu.trap) == (SHADOW_MOV_SS, 0)
    assert on.bare(2).delivered() == DB_VECTOR
    assert on.frame()[0] == 2


def test_of_two_mov_ss_the_second_traps() -> None:
    """Bochs, cpu/event.cc: only the first casts a shadow."""
    assert stepped(OP_MOV_SS, OP_MOV_SS).bare(2).cpu.trap


# DR6. -----------------------------------------------------------------------------------------------------------


def test_the_trap_sets_bs_in_dr6_where_it_stays() -> None:
    """APM vol. 2, Debug Status Register (DR6)."""
    on = stepped(OP_NOP).bare()
    assert on.cpu.dr6 == DR6_RESET
    on.bare()
    assert on.cpu.dr6 == on.cpu.seen_error == DR6_RESET | DR6_BS
    assert on.bare(2).cpu.dr6 == DR6_RESET | DR6_BS


def test_only_db_shows_dr6() -> None:
    """APM vol. 2, Debug Status Register (DR6)."""
    assert rig(OP_SPIN, handlers=ALL).nmi().bare().cpu.seen_error == 0


@pytest.mark.parametrize(("intercepted", "shown"), [(True, 0x1234), (False, DR6_RESET)])
def test_a_guest_whose_reads_of_dr6_are_intercepted_sees_what_its_hypervisor_answers(
    intercepted: bool, shown: int
) -> None:
    """APM vol. 2, DR Intercepts."""
    on = rig(OP_SPIN, handlers=DB)
    on.vmcb.intercept_dr = 1 << INTERCEPT_DR6_READ if intercepted else ~(1 << INTERCEPT_DR6_READ) & 0xFFFF
    on.enter(1 << 31 | 3 << 8 | DB_VECTOR)
    on.cpu.read_dr6 = 0x1234
    assert on.guest().cpu.seen_error == shown


def test_what_the_hypervisor_answers_ends_with_the_exit() -> None:
    """DR Intercepts."""
    on = rig(OP_SPIN).enter()
    on.cpu.read_dr6 = 1
    on.cpu.intr_pending = 1
    assert on.guest().cpu.read_dr6 == 0


def test_bare_metal_reads_its_own_dr6() -> None:
    """APM vol. 2, DR Intercepts: of guests."""
    on = stepped(OP_NOP)
    on.vmcb.intercept_dr = 1 << INTERCEPT_DR6_READ
    assert on.bare(2).cpu.seen_error == DR6_RESET | DR6_BS


# Under a hypervisor. --------------------------------------------------------------------------------------------


def test_an_intercepted_trap_exits_behind_the_instruction_with_dr6_set() -> None:
    """APM vol. 2, #DB Intercept."""
    on = stepped(OP_NOP, OP_SPIN)
    on.vmcb.intercept_exception = 1 << DB_VECTOR
    on.enter().guest(2)
    assert (on.vmcb.exit_code, on.vmcb.rip, on.vmcb.dr6) == (DB_EXIT, 1, DR6_RESET | DR6_BS)
    assert on.vmcb.rflags == STEPPED
    assert (on.vmcb.exit_info_1, on.vmcb.exit_int_info, on.vmcb.next_rip, on.delivered()) == (0, 0, 0, -1)


def test_a_trap_that_is_not_intercepted_is_the_guests() -> None:
    """APM vol. 2, Exception Intercepts."""
    on = stepped(OP_NOP, OP_SPIN)
    on.vmcb.intercept_exception = ~(1 << DB_VECTOR) & 0xFFFF_FFFF
    assert on.enter().guest(2).delivered() == DB_VECTOR


def test_nothing_traps_between_vmrun_and_the_first_instruction() -> None:
    """APM vol. 2, VMRUN: TF traps behind the first instruction of the guest."""
    on = stepped(OP_NOP)
    on.cpu.trap = DR6_BS
    assert on.enter().guest().cpu.rip == 1


def test_a_first_instruction_that_is_intercepted_does_not_trap() -> None:
    """kvm-unit-tests, svm_test_singlestep."""
    on = stepped(OP_IRETQ)
    on.vmcb.intercept_word3 |= 1 << INTERCEPT_IRET - 96
    on.vmcb.intercept_exception = 1 << DB_VECTOR
    assert on.enter().guest().vmcb.exit_code == SVM_EXIT_IRET
    assert not on.cpu.trap


def test_an_exit_forgets_a_trap() -> None:
    """APM vol. 2, #VMEXIT: the VMCB has no field for it."""
    on = rig((OP_VMGEXIT, 0), sev_es=True)
    on.cpu.rflags |= X86_EFLAGS_TF
    assert on.enter().guest().cpu.trap == 0


def test_an_injected_event_pushes_tf_and_its_handler_runs_unstepped() -> None:
    """Linux, svm_vcpu_run(): the hypervisor's TF leaks into the guest's stack."""
    on = stepped(OP_NOP, handlers=ALL).enter(INJECT_NMI).guest()
    assert on.cpu.seen_rflags == X86_EFLAGS_TF
    assert on.frame()[2] == STEPPED
    assert not on.guest().cpu.trap


def test_stepping_a_successful_iret_ends_with_the_flags_that_it_popped() -> None:
    """APM vol. 2, Single Stepping: TF is the guest's again."""
    on = stepped(OP_IRETQ)
    push_words(on, *return_frame(9, X86_EFLAGS_FIXED | X86_EFLAGS_RF))
    on.vmcb.intercept_exception = 1 << DB_VECTOR
    on.enter().guest(2)
    assert (on.vmcb.exit_code, on.vmcb.rip, on.vmcb.rsp) == (DB_EXIT, 9, STACK_WORDS)
    assert on.vmcb.rflags == X86_EFLAGS_FIXED | X86_EFLAGS_RF


def test_stepping_pushfq_shows_tf_to_the_guest() -> None:
    """APM vol. 3, PUSHF."""
    on = stepped(OP_PUSHFQ).enter().guest()
    assert on.cpu.seen_rflags == X86_EFLAGS_TF


def test_stepping_a_faulting_iret_shows_tf_in_the_frame_of_the_fault() -> None:
    """APM vol. 2, Interrupt To Same Privilege in Long Mode."""
    on = stepped(OP_IRETQ, handlers={13: [OP_SPIN]})
    push_words(on, 9, 0, 0, 0, 0)
    on.enter().guest()
    assert (on.delivered(), on.cpu.seen_rflags) == (13, X86_EFLAGS_TF)


def test_an_encrypted_guests_trap_is_vc_with_the_exit_code_if_it_is_intercepted() -> None:
    """APM vol. 2, Types of Exits (SEV-ES)."""
    on = rig(OP_NOP, handlers={29: [OP_SPIN], **DB}, sev_es=True)
    on.cpu.rflags |= X86_EFLAGS_TF
    on.vmcb.intercept_exception = 1 << DB_VECTOR
    on.enter().guest(2)
    assert (on.cpu.guest_mode, on.cpu.rip, on.cpu.memory[on.cpu.rsp]) == (1, HANDLER, DB_EXIT)
    assert on.frame_behind_the_error_code()[0] == 1


# RF. ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "rf"), [(6, X86_EFLAGS_RF), (NMI_VECTOR, 0), (DB_VECTOR, 0), (3, 0), (IRQ_VECTOR, 0)]
)
def test_faults_push_rf_and_nothing_else_does(vector: int, rf: int) -> None:
    """APM vol. 2, Resume Flag (RF) Bit."""
    on = rig(OP_SPIN, handlers={vector: [OP_SPIN]}).deliver(vector)
    assert on.frame()[2] == X86_EFLAGS_FIXED | rf


def test_an_injected_fault_pushes_rf_as_the_hypervisor_has_set_it() -> None:
    """Linux, kvm_check_and_inject_events() sets RF for faults itself."""
    on = rig(OP_SPIN, handlers={6: [OP_SPIN]}).enter(1 << 31 | 3 << 8 | 6).guest()
    assert on.frame()[2] == X86_EFLAGS_FIXED


def test_popfq_clears_rf_and_pushfq_does_not_show_it() -> None:
    """APM vol. 3, POPF; PUSHF."""
    on = rig(OP_POPFQ)
    push_words(on, X86_EFLAGS_FIXED | X86_EFLAGS_RF)
    assert on.bare().cpu.rflags == X86_EFLAGS_FIXED
    on = rig(OP_PUSHFQ)
    on.cpu.rflags |= X86_EFLAGS_RF
    assert on.bare().cpu.memory[on.cpu.rsp] == X86_EFLAGS_FIXED
