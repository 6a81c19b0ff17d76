"""VMRUN, #VMEXIT and SEV-ES."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from iretrace.machine.cpu import (
    NMI_VECTOR,
    OP_HLT,
    OP_IRETQ,
    OP_MOV_SS,
    OP_NOP,
    OP_SPIN,
    OP_STI,
    SHADOW_NONE,
    SHADOW_STI,
    X86_EFLAGS_TF,
)
from iretrace.machine.svm import exception_intercepted, intercepted, vmcb_consistent, vmexit, vmrun
from iretrace.machine.vmcb import (
    INTERCEPT_CLGI,
    INTERCEPT_HLT,
    INTERCEPT_INTR,
    INTERCEPT_NMI,
    INTERCEPT_SHUTDOWN,
    INTERCEPT_VMRUN,
    SVM_EVTINJ_VALID,
    SVM_EXIT_ERR,
    SVM_EXIT_INTR,
    SVM_GUEST_INTERRUPT_MASK,
    SVM_INTERRUPT_SHADOW_MASK,
    V_NMI_ENABLE_MASK,
    Vmcb,
)
from tests.machine.rig import INJECT_NMI, rig, vmcb

NMI = {NMI_VECTOR: [OP_NOP, OP_IRETQ]}
EXCEPTION = SVM_EVTINJ_VALID | 3 << 8
Change = Callable[[Vmcb], None]


def change(**fields: int) -> Change:
    def apply(made: Vmcb) -> None:
        for name, value in fields.items():
            setattr(made, name, value)

    return apply


def test_an_ordinary_vmcb_is_accepted() -> None:
    """APM vol. 2, Canonicalization and Consistency Checks."""
    on = rig(OP_NOP)
    vmrun(on.m, on.cpu, on.vmcb)
    assert on.cpu.guest_mode


REFUSED = {
    "VMRUN not intercepted": change(intercept_word4=0),
    "ASID 0": change(asid=0),
    "an exception with the vector of NMI": change(event_inj=EXCEPTION | 2),
    "an exception with a vector beyond 31": change(event_inj=EXCEPTION | 32),
    "the reserved type 1": change(event_inj=SVM_EVTINJ_VALID | 1 << 8 | 3),
    "the reserved type 5": change(event_inj=SVM_EVTINJ_VALID | 5 << 8 | 3),
    "the reserved type 6": change(event_inj=SVM_EVTINJ_VALID | 6 << 8 | 3),
    "the reserved type 7": change(event_inj=SVM_EVTINJ_VALID | 7 << 8 | 3),
    "vNMI without the NMI intercept": change(int_ctl=V_NMI_ENABLE_MASK),
}
REFUSED_SEV_ES = {
    "SEV-ES not enabled": change(nested_ctl=1),
    "no VMSA": change(vmsa_pa=0),
    "a software interrupt": change(event_inj=SVM_EVTINJ_VALID | 4 << 8 | 0x80),
    "#BP": change(event_inj=EXCEPTION | 3),
    "#OF": change(event_inj=EXCEPTION | 4),
}


@pytest.mark.parametrize("sev_es", [False, True])
@pytest.mark.parametrize("why", REFUSED)
def test_vmrun_refuses(why: str, sev_es: bool) -> None:
    """APM vol. 2, Canonicalization and Consistency Checks; Event Injection; NMI Virtualization."""
    on = rig(OP_NOP, sev_es=sev_es)
    REFUSED[why](on.vmcb)
    assert not vmcb_consistent(on.m, on.cpu, on.vmcb)


@pytest.mark.parametrize("why", REFUSED_SEV_ES)
def test_vmrun_refuses_for_an_encrypted_guest(why: str) -> None:
    """APM vol. 2, Encrypted State: Event Injection Restrictions."""
    on = rig(OP_NOP, sev_es=True)
    REFUSED_SEV_ES[why](on.vmcb)
    assert not vmcb_consistent(on.m, on.cpu, on.vmcb)
    plain = rig(OP_NOP)
    REFUSED_SEV_ES[why](plain.vmcb)
    assert vmcb_consistent(plain.m, plain.cpu, plain.vmcb)


@pytest.mark.parametrize(
    "event",
    [INJECT_NMI, *(SVM_EVTINJ_VALID | vector for vector in (3, 4, 0x30)), EXCEPTION | 13, EXCEPTION | 1 << 11 | 14],
    ids=hex,
)
@pytest.mark.parametrize("sev_es", [False, True])
def test_vmrun_accepts_nmis_interrupts_and_exceptions(event: int, sev_es: bool) -> None:
    """APM vol. 2, Event Injection."""
    on = rig(OP_NOP, sev_es=sev_es)
    on.vmcb.event_inj = event
    assert vmcb_consistent(on.m, on.cpu, on.vmcb)


@pytest.mark.parametrize("sev_es", [False, True])
@pytest.mark.parametrize("event", [7 << 8 | 2, 4 << 8 | 0x80, 3 << 8 | 3])
def test_an_event_that_is_not_valid_is_not_looked_at(event: int, sev_es: bool) -> None:
    """APM vol. 2, Event Injection."""
    on = rig(OP_SPIN, handlers=NMI, sev_es=sev_es)
    assert on.enter(event).guest().delivered() == -1


def test_vnmi_with_the_nmi_intercept_is_accepted() -> None:
    """APM vol. 2, NMI Virtualization."""
    on = rig(OP_NOP, intercepts=(INTERCEPT_NMI,))
    on.vmcb.int_ctl |= V_NMI_ENABLE_MASK
    assert vmcb_consistent(on.m, on.cpu, on.vmcb)


def test_a_refused_vmrun_exits_as_invalid_and_runs_nothing() -> None:
    """APM vol. 2, VMRUN Instruction."""
    on = rig(OP_NOP)
    on.vmcb.asid = 0
    for name in ("exit_info_1", "exit_info_2", "exit_int_info", "exit_int_info_err"):
        setattr(on.vmcb, name, 7)
    vmrun(on.m, on.cpu, on.vmcb)
    assert (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (SVM_EXIT_ERR, 0, 0)
    assert (on.vmcb.exit_int_info, on.vmcb.exit_int_info_err, on.cpu.guest_mode) == (0, 0, 0)


def test_vmrun_loads_the_interrupt_shadow_and_vmexit_saves_it() -> None:
    """APM vol. 2, Interrupt Shadows."""
    on = rig(OP_NOP).enter(shadow=True)
    assert on.cpu.shadow == SHADOW_STI
    on.cpu.intr_pending = 1
    assert on.guest().vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK
    assert on.enter(shadow=False).cpu.shadow == SHADOW_NONE


def test_the_shadows_of_sti_and_mov_ss_are_one_bit() -> None:
    """APM vol. 2, Interrupt Shadows."""
    for op in (OP_STI, OP_MOV_SS):
        on = rig(op).enter().guest()
        on.cpu.intr_pending = 1
        assert on.guest().vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK


def test_an_injected_event_ends_the_shadow() -> None:
    """Bochs, cpu/exception.cc."""
    on = rig(OP_SPIN, handlers=NMI).enter(INJECT_NMI, shadow=True).guest()
    on.cpu.intr_pending = 1
    assert not on.guest().vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK


def test_eventinj_reads_0_after_an_exit() -> None:
    """KVM, svm_vcpu_run(); QEMU, do_vmexit(); bhyve asserts it."""
    on = rig(OP_SPIN, handlers=NMI).enter(INJECT_NMI).guest()
    on.cpu.intr_pending = 1
    assert on.guest().vmcb.event_inj == 0


def test_an_event_is_not_delivered_after_an_exit() -> None:
    """APM vol. 2, Event Injection."""
    on = rig(OP_SPIN, handlers=NMI).enter(INJECT_NMI, error=5)
    vmexit(on.m, on.cpu, on.vmcb, SVM_EXIT_INTR, 0, 0)
    assert (on.cpu.event_inj, on.cpu.event_inj_err) == (0, 0)
    assert on.enter().guest().delivered() == -1


@pytest.mark.parametrize(("interrupts", "mask"), [(True, SVM_GUEST_INTERRUPT_MASK), (False, 0)])
def test_an_encrypted_guests_if_is_told_to_the_hypervisor(interrupts: bool, mask: int) -> None:
    """Linux, svm_get_if_flag(): GUEST_INTERRUPT_MASK."""
    on = rig(OP_NOP, sev_es=True, interrupts=interrupts).enter()
    on.cpu.intr_pending = 1
    assert on.guest().vmcb.int_state == mask


def test_a_plain_guests_if_is_not_in_the_interrupt_state() -> None:
    """Linux, svm_get_if_flag()."""
    on = rig(OP_NOP, interrupts=True).enter()
    on.cpu.intr_pending = 1
    assert on.guest().vmcb.int_state == 0


def test_what_the_hypervisor_writes_to_an_encrypted_guests_save_area_has_no_effect() -> None:
    """APM vol. 2, Encrypted State: registers come from the VMSA."""
    on = rig(OP_NOP, OP_NOP, sev_es=True)
    on.vmcb.rip, on.vmcb.rsp, on.vmcb.rflags = 40, 8, X86_EFLAGS_TF
    on.enter().guest()
    assert (on.cpu.rip, on.cpu.rflags & X86_EFLAGS_TF) == (1, 0)


def test_an_exit_gives_its_code_and_infos() -> None:
    """APM vol. 2, #VMEXIT."""
    on = rig(OP_NOP).enter()
    vmexit(on.m, on.cpu, on.vmcb, 0x400, 6, 0x1000)
    assert (on.vmcb.exit_code, on.vmcb.exit_info_1, on.vmcb.exit_info_2) == (0x400, 6, 0x1000)
    assert not on.cpu.guest_mode


def test_intercepts_are_bits_of_three_words() -> None:
    """Linux, arch/x86/include/asm/svm.h: enum intercept numbers."""
    made = vmcb((INTERCEPT_HLT,))
    assert all(intercepted(made, n) for n in (INTERCEPT_INTR, INTERCEPT_HLT, INTERCEPT_SHUTDOWN, INTERCEPT_VMRUN))
    assert not any(intercepted(made, n) for n in (INTERCEPT_NMI, INTERCEPT_CLGI, 160, 165))
    made.intercept_word5 = 1 << 5
    assert intercepted(made, 165)


def test_exception_intercepts_are_bits_by_vector() -> None:
    """APM vol. 2, Exception Intercepts."""
    made = Vmcb(intercept_exception=1 << 14)
    assert [vector for vector in range(32) if exception_intercepted(made, vector)] == [14]


def test_hlt_that_is_not_intercepted_halts_the_guest() -> None:
    """APM vol. 2, HLT Intercept."""
    assert rig(OP_HLT).enter().guest().cpu.halted
