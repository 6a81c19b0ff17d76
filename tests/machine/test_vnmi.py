"""Virtual NMIs: the guest's own latch and mask in int_ctl, what takes them, and what exits make of them."""

from __future__ import annotations

import pytest

from iretrace.machine.cpu import (
    KNOB_CUT_OFF_INJECTION_MASKS,
    KNOB_IRET_FAULT_UNMASKS,
    NMI_VECTOR,
    OP_IRETQ,
    OP_NOP,
    OP_SPIN,
    PAGE_NMI,
    X86_EFLAGS_TF,
)
from iretrace.machine.svm import vmexit
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import (
    INTERCEPT_IRET,
    INTERCEPT_NMI,
    SVM_EXIT_INTR,
    SVM_EXIT_NPF,
    V_GIF_ENABLE_MASK,
    V_GIF_MASK,
    V_INTR_PRIO_MASK,
    V_IRQ_MASK,
    V_NMI_BLOCKING_MASK,
    V_NMI_ENABLE_MASK,
    V_NMI_PENDING_MASK,
)
from tests.machine.rig import HANDLER, INJECT_NMI, Rig, push_words, return_frame, rig

NMI = {NMI_VECTOR: [OP_NOP, OP_IRETQ], IRQ_VECTOR: [OP_NOP, OP_IRETQ]}
BITS = V_NMI_PENDING_MASK | V_NMI_BLOCKING_MASK
COLD = 1 << PAGE_NMI
ON_IST = {NMI_VECTOR: PAGE_NMI}


def vnmi(
    *main: int, bits: int = 0, knobs: int = 0, cold: int = 0, sev_es: bool = False, interrupts: bool = False
) -> Rig:
    """A guest with virtual NMIs, with V_NMI and V_NMI_MASK as given; its NMI handler has a stack of its own."""
    on = rig(
        *main, handlers=NMI, ist=ON_IST, knobs=knobs, intercepts=(INTERCEPT_NMI,), cold=cold, sev_es=sev_es,
        interrupts=interrupts,
    )  # fmt: skip
    on.m.iret_unmasks = 1
    on.vmcb.int_ctl |= V_NMI_ENABLE_MASK | bits
    return on


def saved(on: Rig) -> int:
    """V_NMI and V_NMI_MASK after an exit."""
    if on.cpu.guest_mode:
        vmexit(on.m, on.cpu, on.vmcb, SVM_EXIT_INTR, 0, 0)
    return on.vmcb.int_ctl & BITS


@pytest.mark.parametrize("bits", [0, V_NMI_PENDING_MASK, V_NMI_BLOCKING_MASK, BITS])
def test_vmrun_loads_latch_and_mask_and_vmexit_saves_them(bits: int) -> None:
    """APM vol. 2, NMI Virtualization."""
    on = vnmi(OP_NOP, bits=bits)
    before = on.vmcb.int_ctl
    on.enter()
    assert (on.cpu.nmi_latched, on.cpu.nmi_masked) == (bits & V_NMI_PENDING_MASK != 0, bits & V_NMI_BLOCKING_MASK != 0)
    assert on.vmcb.int_ctl & BITS == 0
    assert saved(on) == bits
    assert on.vmcb.int_ctl == before
    assert (on.cpu.nmi_latched, on.cpu.nmi_masked) == (0, 0)


def test_without_vnmi_the_bits_mean_nothing() -> None:
    """APM vol. 2, NMI Virtualization: V_NMI_ENABLE."""
    on = vnmi(OP_NOP, bits=V_NMI_PENDING_MASK)
    on.vmcb.int_ctl &= ~V_NMI_ENABLE_MASK
    assert on.enter().guest().delivered() == -1
    assert saved(on) == V_NMI_PENDING_MASK


@pytest.mark.parametrize("sev_es", [False, True])
def test_a_pending_virtual_nmi_is_taken_and_masks(sev_es: bool) -> None:
    """APM vol. 2, NMI Virtualization: V_NMI is cleared and V_NMI_MASK set."""
    on = vnmi(OP_NOP, bits=V_NMI_PENDING_MASK, sev_es=sev_es).enter().guest()
    assert (on.delivered(), on.cpu.rip, on.frame()[0]) == (NMI_VECTOR, HANDLER, 0)
    assert saved(on) == V_NMI_BLOCKING_MASK


def test_if_does_not_matter_to_a_virtual_nmi() -> None:
    """APM vol. 2, NMI Virtualization."""
    assert vnmi(OP_NOP, bits=V_NMI_PENDING_MASK, interrupts=False).enter().guest().delivered() == NMI_VECTOR


def test_a_masked_virtual_nmi_waits_for_iret() -> None:
    """APM vol. 2, NMI Virtualization: V_NMI_MASK is cleared by IRET, and the virtual NMI comes right after it."""
    on = vnmi(OP_NOP, OP_IRETQ, bits=BITS)
    push_words(on, *return_frame(5))
    on.enter().guest()
    assert on.delivered() == -1
    on.guest(2)
    assert (on.delivered(), on.frame()[0]) == (NMI_VECTOR, 5)


def test_an_iret_that_faults_unmasks_virtual_nmis_only_where_it_unmasks_nmis() -> None:
    """Disputed: knob iret_fault_unmasks."""
    for knobs, left in ((0, V_NMI_BLOCKING_MASK), (1 << KNOB_IRET_FAULT_UNMASKS, 0)):
        on = vnmi(OP_IRETQ, bits=V_NMI_BLOCKING_MASK, knobs=knobs)
        push_words(on, 0, 0, 0, 0, 0)
        assert saved(on.enter().guest()) == left


def test_an_intercepted_iret_leaves_virtual_nmis_masked() -> None:
    """APM vol. 2, Instruction Intercepts: the IRET has had no effect."""
    on = vnmi(OP_IRETQ, bits=V_NMI_BLOCKING_MASK)
    on.vmcb.intercept_word3 |= 1 << INTERCEPT_IRET - 96
    push_words(on, *return_frame(5))
    assert saved(on.enter().guest()) == V_NMI_BLOCKING_MASK


def test_a_shadow_holds_a_virtual_nmi() -> None:
    """APM vol. 2, NMI Virtualization: taken if the processor is not in an interrupt shadow."""
    on = vnmi(OP_NOP, OP_NOP, bits=V_NMI_PENDING_MASK).enter(shadow=True).guest()
    assert (on.delivered(), on.m.consulted) == (-1, 0)
    assert on.guest().delivered() == NMI_VECTOR


@pytest.mark.parametrize(
    ("gif", "vector"),
    [(V_GIF_ENABLE_MASK, -1), (V_GIF_ENABLE_MASK | V_GIF_MASK, NMI_VECTOR), (0, NMI_VECTOR), (V_GIF_MASK, NMI_VECTOR)],
)
def test_virtual_gif_holds_virtual_nmis(gif: int, vector: int) -> None:
    """APM vol. 2, Virtual GIF."""
    on = vnmi(OP_NOP, bits=V_NMI_PENDING_MASK | gif).enter().guest()
    assert on.delivered() == vector


def test_a_physical_interrupt_exits_before_a_virtual_nmi_is_taken() -> None:
    """APM vol. 2, Injecting Virtual (INTR) Interrupts: physical events first."""
    on = vnmi(OP_NOP, bits=V_NMI_PENDING_MASK).enter()
    on.cpu.intr_pending = 1
    on.guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_int_info, saved(on)) == (SVM_EXIT_INTR, 0, V_NMI_PENDING_MASK)


def test_a_single_step_trap_comes_before_a_virtual_nmi() -> None:
    """APM vol. 2, Priorities."""
    on = vnmi(OP_NOP, OP_NOP, bits=V_NMI_PENDING_MASK)
    on.cpu.rflags |= X86_EFLAGS_TF
    on.vmcb.intercept_exception = 1 << 1
    on.enter(shadow=True).guest(2)
    assert (on.vmcb.exit_code, saved(on)) == (0x41, V_NMI_PENDING_MASK)


def test_a_virtual_nmi_goes_before_a_virtual_interrupt() -> None:
    """APM vol. 2, Priorities of simultaneous interrupts."""
    on = vnmi(OP_NOP, bits=V_NMI_PENDING_MASK | V_IRQ_MASK | V_INTR_PRIO_MASK, interrupts=True)
    on.vmcb.int_vector = IRQ_VECTOR
    assert on.enter().guest().delivered() == NMI_VECTOR
    assert on.vmcb.int_ctl & V_IRQ_MASK


@pytest.mark.parametrize("bits", [0, V_NMI_PENDING_MASK])
def test_an_injected_nmi_masks_virtual_nmis_and_leaves_the_latch(bits: int) -> None:
    """APM vol. 2, NMI Virtualization: Event Injection."""
    on = vnmi(OP_SPIN, bits=bits).enter(INJECT_NMI).guest()
    assert (on.delivered(), on.cpu.nmi_masked) == (NMI_VECTOR, 1)
    assert on.guest().delivered() == -1
    assert saved(on) == bits | V_NMI_BLOCKING_MASK


def test_an_injected_nmi_masks_nothing_without_vnmi() -> None:
    """APM vol. 2, Event Injection."""
    on = rig(OP_SPIN, handlers=NMI).enter(INJECT_NMI).guest()
    assert on.cpu.nmi_masked == 0
    assert saved(on) == 0


def test_an_injected_interrupt_masks_nothing() -> None:
    """APM vol. 2, Event Injection: the virtual NMI comes next, before the handler's first instruction."""
    on = vnmi(OP_SPIN, bits=V_NMI_PENDING_MASK).enter(1 << 31 | IRQ_VECTOR).guest(2)
    assert (on.delivered(), on.frame()[0]) == (NMI_VECTOR, HANDLER + 2)


def test_a_virtual_nmi_whose_delivery_is_cut_off_is_in_exitintinfo_and_nowhere_else() -> None:
    """APM vol. 2, NMI Virtualization: V_NMI_MASK is saved as 0; V_NMI is 0 already."""
    on = vnmi(OP_NOP, bits=V_NMI_PENDING_MASK, cold=COLD).enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_int_info, saved(on)) == (SVM_EXIT_NPF, INJECT_NMI, 0)


@pytest.mark.parametrize(("knobs", "mask"), [(0, 0), (1 << KNOB_CUT_OFF_INJECTION_MASKS, V_NMI_BLOCKING_MASK)])
def test_whether_an_injection_that_is_cut_off_masks_is_not_known(knobs: int, mask: int) -> None:
    """The manual is silent: knob cut_off_injection_masks. The virtual NMI that waits is not touched."""
    on = vnmi(OP_NOP, bits=V_NMI_PENDING_MASK, cold=COLD, knobs=knobs).enter(INJECT_NMI).guest()
    assert (on.vmcb.exit_int_info, saved(on)) == (INJECT_NMI, V_NMI_PENDING_MASK | mask)


def test_the_knob_of_a_cut_off_injection_matters_only_there() -> None:
    """It is consulted neither where an injection succeeds nor without virtual NMIs nor for another event."""
    done = vnmi(OP_NOP).enter(INJECT_NMI).guest()
    plain = rig(OP_NOP, handlers=NMI, ist=ON_IST, cold=COLD).enter(INJECT_NMI).guest()
    virtual = vnmi(OP_NOP, bits=V_NMI_PENDING_MASK, cold=COLD).enter().guest()
    assert done.m.consulted == plain.m.consulted == virtual.m.consulted == 0
    assert plain.vmcb.int_ctl & BITS == 0
    other = vnmi(OP_NOP, cold=1)
    other.m.idt[11], other.m.idt[NMI_VECTOR] = HANDLER + 1, 0
    assert other.enter(INJECT_NMI).guest().vmcb.exit_int_info == 1 << 31 | 3 << 8 | 1 << 11 | 11
    assert other.m.consulted == 0


def test_an_injection_that_is_done_again_finds_the_mask_where_it_runs() -> None:
    """APM vol. 2, NMI Virtualization: nothing of it is in the VMCB while the guest runs."""
    on = vnmi(OP_NOP, cold=COLD, knobs=1 << KNOB_CUT_OFF_INJECTION_MASKS, sev_es=True).enter(INJECT_NMI).guest()
    on.cpu.cold = 0
    on.enter(INJECT_NMI).guest()
    assert (on.delivered(), on.vmcb.int_ctl & BITS) == (NMI_VECTOR, 0)


def test_a_cut_off_interrupt_leaves_virtual_nmis_masked() -> None:
    """APM vol. 2, NMI Virtualization: only an NMI in EXITINTINFO is not in service."""
    on = vnmi(OP_SPIN, bits=V_NMI_BLOCKING_MASK, cold=1).enter(1 << 31 | IRQ_VECTOR).guest()
    assert (on.vmcb.exit_int_info, saved(on)) == (1 << 31 | IRQ_VECTOR, V_NMI_BLOCKING_MASK)


def test_an_exception_that_an_nmis_delivery_raises_runs_with_virtual_nmis_masked() -> None:
    """APM vol. 2, Nonmaskable Interrupts: the mask goes up before the IDT is read."""
    on = vnmi(OP_SPIN, bits=V_NMI_PENDING_MASK)
    on.m.idt[11], on.m.idt[NMI_VECTOR] = HANDLER + 1, 0
    assert on.enter().guest().delivered() == 11
    assert saved(on) == V_NMI_BLOCKING_MASK


def test_an_intercepted_exception_of_an_nmis_delivery_unmasks_virtual_nmis() -> None:
    """APM vol. 2, NMI Virtualization: the NMI is in EXITINTINFO."""
    on = vnmi(OP_SPIN, bits=V_NMI_PENDING_MASK)
    on.m.idt[NMI_VECTOR] = 0
    on.vmcb.intercept_exception = 1 << 11
    on.enter().guest()
    assert (on.vmcb.exit_code, on.vmcb.exit_int_info, saved(on)) == (0x40 + 11, INJECT_NMI, 0)
