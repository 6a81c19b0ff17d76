"""What our KVM does about SMIs, RSM and INIT, function by function."""

from __future__ import annotations

import pytest

from iretrace.kvm.host import DROPPED_SMI, HostRun, Sender, send
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.kvm_host import (
    AGAIN,
    KVM_APIC_INIT,
    KVM_APIC_SIPI,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    NOT_MODELLED_LOOP,
    ROUND,
    VMRUN,
    Vcpu,
)
from iretrace.kvm.passes import Between, Passes, at_rest, set_up
from iretrace.kvm.reset import kvm_apic_accept_events
from iretrace.kvm.smm import SMM_ENTRY, enter_smm, process_smi, rsm_interception, svm_enable_smi_window, svm_smi_allowed
from iretrace.kvm.svm import X86_EFLAGS_IF, X86_EFLAGS_TF, svm_complete_interrupts, svm_set_nmi_mask
from iretrace.kvm.x86 import kvm_check_and_inject_events, kvm_vcpu_has_events
from iretrace.kvm.x86_run import leave_halt, vcpu_run
from iretrace.machine.vmcb import EFER_SVME, INTERCEPT_IRET, INTERCEPT_STGI, SVM_INTERRUPT_SHADOW_MASK, V_GIF_MASK
from iretrace.world.protocol import NO_SENDER
from tests.kvm.rig import make_vcpu

LONG_MODE = 0xD01


def in_smm(revision: str = "v6.12", masked: int = 0, shadow: int = 0) -> Vcpu:
    """A vCPU that an SMI has found at RIP 10 with IF set."""
    vcpu = make_vcpu(revision=revision)
    vmcb = vcpu.svm.vmcb
    vmcb.rflags, vmcb.rsp, vmcb.rax, vmcb.int_state = X86_EFLAGS_IF | 2, 20, 3, shadow
    svm_set_nmi_mask(vcpu, masked)
    process_smi(vcpu)
    assert not kvm_check_and_inject_events(vcpu)
    return vcpu


def iret_intercepted(vcpu: Vcpu) -> bool:
    return vcpu.svm.vmcb.intercept_word3 >> INTERCEPT_IRET % 32 & 1 != 0


def test_an_smi_puts_the_guest_at_its_handler() -> None:
    vcpu = in_smm()
    vmcb = vcpu.svm.vmcb
    assert (vcpu.rip, vcpu.smm, vcpu.smi_pending, vmcb.rflags, vmcb.efer) == (SMM_ENTRY, 1, 0, 2, EFER_SVME)
    assert (vcpu.smram_rip, vcpu.smram_rflags, vcpu.smram_rsp, vcpu.smram_rax) == (10, X86_EFLAGS_IF | 2, 20, 3)
    assert vcpu.svm.nmi_masked and iret_intercepted(vcpu)


def test_the_tf_of_kvms_own_step_is_not_saved() -> None:
    vcpu = make_vcpu()
    vcpu.svm.nmi_singlestep = 1
    vcpu.svm.vmcb.rflags = X86_EFLAGS_TF | 2
    enter_smm(vcpu)
    assert vcpu.smram_rflags == 2
    assert vcpu.svm.vmcb.rflags & X86_EFLAGS_TF


@pytest.mark.parametrize("masked", [0, 1])
def test_rsm_brings_back_registers_and_the_mask(masked: int) -> None:
    vcpu = in_smm(masked=masked)
    vcpu.svm.vmcb.rsp = vcpu.svm.vmcb.rax = 0
    assert rsm_interception(vcpu) == AGAIN
    vmcb = vcpu.svm.vmcb
    assert (vcpu.rip, vmcb.rflags, vmcb.rsp, vmcb.rax, vcpu.efer) == (10, X86_EFLAGS_IF | 2, 20, 3, LONG_MODE)
    assert (vcpu.svm.nmi_masked, iret_intercepted(vcpu), vcpu.smm, vcpu.smm_inside_nmi) == (masked, masked != 0, 0, 0)
    assert vcpu.requests >> KVM_REQ_EVENT & 1


def test_where_a_sipi_has_put_cs_is_kept_over_smm() -> None:
    vcpu = make_vcpu()
    vcpu.cs_base = 0x9A000
    enter_smm(vcpu)
    assert vcpu.cs_base == 0
    assert rsm_interception(vcpu) == AGAIN
    assert vcpu.cs_base == 0x9A000


def test_smm_keeps_cpl_as_that_of_ss() -> None:
    vcpu = make_vcpu()
    vmcb = vcpu.svm.vmcb
    vmcb.cpl, vmcb.ss = 3, 0x33
    enter_smm(vcpu)
    assert (vmcb.cpl, vmcb.ss) == (0, 0)
    rsm_interception(vcpu)
    assert (vmcb.cpl, vmcb.ss) == (3, 0x33)


@pytest.mark.parametrize(("revision", "behind"), [("v6.1", 0), ("v6.12", SVM_INTERRUPT_SHADOW_MASK)])
def test_the_shadow_outlives_smm_since_it_is_saved(revision: str, behind: int) -> None:
    vcpu = in_smm(revision, shadow=SVM_INTERRUPT_SHADOW_MASK)
    assert vcpu.svm.vmcb.int_state == SVM_INTERRUPT_SHADOW_MASK - behind
    rsm_interception(vcpu)
    assert vcpu.svm.vmcb.int_state == behind


def test_an_iret_that_is_awaited_counts_as_done_in_smm() -> None:
    vcpu = make_vcpu()
    svm_set_nmi_mask(vcpu, 1)
    vcpu.svm.awaiting_iret_completion, vcpu.svm.nmi_iret_rip = 1, vcpu.rip
    enter_smm(vcpu)
    svm_complete_interrupts(vcpu)
    assert (vcpu.smm, vcpu.svm.nmi_masked) == (1, 0)


def test_a_second_smi_waits_and_so_does_one_behind_an_event() -> None:
    vcpu = in_smm()
    process_smi(vcpu)
    assert not svm_smi_allowed(vcpu)
    assert not kvm_check_and_inject_events(vcpu)
    assert vcpu.smi_pending
    vcpu.smm, vcpu.nmi_injected = 0, 1
    assert kvm_check_and_inject_events(vcpu)
    assert vcpu.smi_pending


def test_an_smi_that_gif_holds_waits_for_stgi() -> None:
    vcpu = make_vcpu()
    vcpu.svm.vmcb.int_ctl &= ~V_GIF_MASK
    vcpu.svm.vmcb.intercept_word4 = 0
    assert not svm_smi_allowed(vcpu)
    svm_enable_smi_window(vcpu)
    assert vcpu.svm.vmcb.intercept_word4 >> INTERCEPT_STGI % 32 & 1


def test_rsm_outside_of_smm_is_an_undefined_opcode() -> None:
    vcpu = make_vcpu()
    vcpu.svm.vmcb.int_state = SVM_INTERRUPT_SHADOW_MASK
    assert rsm_interception(vcpu) == AGAIN
    assert (vcpu.exception_pending, vcpu.exception_vector, vcpu.rip, vcpu.svm.vmcb.int_state) == (1, 6, 10, 0)


def test_an_smi_to_an_encrypted_guest_is_dropped_since_v7_3() -> None:
    senders = [BuiltinHypervisor(revision, "sev-es").sender("smi") for revision in ("v6.12", "v7.3")]
    assert senders == [Sender("smi", 0), Sender(DROPPED_SMI, 0)]
    vcpu = make_vcpu("sev-es", "v7.3")
    assert send(vcpu, Sender(DROPPED_SMI, 0)) == (NO_SENDER, False)
    assert vcpu.requests == 0


# INIT. ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("revision", "masked"), [("v6.1", 0), ("v6.12", 1)])
def test_init_resets_all_but_the_mask_of_nmis(revision: str, masked: int) -> None:
    vcpu = in_smm(revision)
    vcpu.smm, vcpu.pending_events, vcpu.mp_state = 0, 1 << KVM_APIC_INIT, KVM_MP_STATE_HALTED
    vcpu.nmi_queued = vcpu.nmi_pending = vcpu.nmi_injected = vcpu.smi_pending = vcpu.exception_pending = 1
    vcpu.interrupt_injected = vcpu.irr = vcpu.isr = 1
    assert kvm_vcpu_has_events(vcpu)
    kvm_apic_accept_events(vcpu)
    assert (vcpu.pending_events, vcpu.mp_state, vcpu.rip) == (0, KVM_MP_STATE_RUNNABLE, 0xFFF0)
    assert (vcpu.nmi_queued, vcpu.nmi_pending, vcpu.nmi_injected, vcpu.smi_pending) == (0, 0, 0, 0)
    assert (vcpu.exception_pending, vcpu.interrupt_injected, vcpu.irr, vcpu.isr) == (0, 0, 0, 0)
    assert (vcpu.svm.vmcb.rflags, vcpu.efer, vcpu.apic_enabled, vcpu.svm.nmi_masked) == (2, 0, 0, masked)


@pytest.mark.parametrize(("enabled", "accepted"), [(0, 0), (1, 1)])
def test_a_local_apic_that_is_not_enabled_accepts_no_interrupt(enabled: int, accepted: int) -> None:
    vcpu = make_vcpu()
    vcpu.apic_enabled = enabled
    sender, sent = send(vcpu, Sender("irq", 0))
    assert (sender is NO_SENDER, sent) == (not accepted, False)
    if sender is not NO_SENDER:
        assert isinstance(sender, Sender)
        send(vcpu, sender)
    assert vcpu.irr == accepted


def test_smm_holds_an_init() -> None:
    vcpu = in_smm()
    vcpu.pending_events = 1 << KVM_APIC_INIT | 1 << KVM_APIC_SIPI
    kvm_apic_accept_events(vcpu)
    assert (vcpu.pending_events, vcpu.rip) == (1 << KVM_APIC_INIT, SMM_ENTRY)


# SIPI. ----------------------------------------------------------------------------------------------------------


def running_ap() -> Vcpu:
    vcpu = in_smm()
    vcpu.smm, vcpu.ap, vcpu.rip = 0, 1, 5
    return vcpu


def test_an_ap_waits_for_a_sipi_behind_an_init() -> None:
    vcpu = running_ap()
    send(vcpu, Sender("init", 0))
    kvm_apic_accept_events(vcpu)
    assert (vcpu.mp_state, vcpu.rip, vcpu.cs_base) == (KVM_MP_STATE_INIT_RECEIVED, 0xFFF0, 0)
    send(vcpu, Sender("sipi", 0))
    send(vcpu, Sender("sipi", 1))
    kvm_apic_accept_events(vcpu)
    assert (vcpu.mp_state, vcpu.rip, vcpu.cs_base) == (KVM_MP_STATE_RUNNABLE, 0, 0x9A000)


def test_a_sipi_that_nobody_waits_for_is_dropped_and_ends_hlt() -> None:
    vcpu = running_ap()
    vcpu.mp_state = KVM_MP_STATE_HALTED
    send(vcpu, Sender("sipi", 1))
    assert kvm_vcpu_has_events(vcpu)
    leave_halt(vcpu)
    assert (vcpu.pending_events, vcpu.mp_state, vcpu.rip) == (0, KVM_MP_STATE_RUNNABLE, 5)


def test_no_event_ends_the_wait_for_a_sipi() -> None:
    vcpu = running_ap()
    vcpu.mp_state = KVM_MP_STATE_INIT_RECEIVED
    vcpu.nmi_pending = 1
    leave_halt(vcpu)
    assert vcpu.mp_state == KVM_MP_STATE_INIT_RECEIVED


def test_an_init_makes_a_sipi_void_that_came_before_it() -> None:
    vcpu = running_ap()
    send(vcpu, Sender("sipi", 1))
    send(vcpu, Sender("init", 0))
    assert vcpu.pending_events == 1 << KVM_APIC_INIT


def kept_awake() -> Vcpu:
    """A vCPU that waits for a SIPI, and an NMI has come."""
    vcpu = running_ap()
    vcpu.mp_state, vcpu.requests, vcpu.nmi_queued = KVM_MP_STATE_INIT_RECEIVED, 1 << KVM_REQ_NMI, 1
    return vcpu


def test_a_thread_whose_vcpu_waits_for_a_sipi_does_not_sleep_while_an_nmi_is_requested() -> None:
    vcpu = kept_awake()
    assert (vcpu_run(vcpu), vcpu.mp_state, vcpu.sleeping) == (AGAIN, KVM_MP_STATE_INIT_RECEIVED, 0)
    passes = Passes(vcpu.kvm, True)
    assert passes.step(passes.states(standing(kept_awake())), vcpu_run, ()).result == ROUND


def standing(vcpu: Vcpu, *senders: Sender) -> Between:
    """The vCPU's thread between two passes."""
    return at_rest(vcpu, HostRun(vcpu, senders, (), True))


def test_a_thread_that_goes_in_a_circle_leaves_it_for_whatever_lands_there() -> None:
    vcpu = kept_awake()
    passes = Passes(vcpu.kvm, True)
    first = passes.states(standing(vcpu, Sender("sipi", 0)))
    step = passes.step(first, vcpu_run, ())
    assert step.result == ROUND
    wakes = [opening for opening in step.openings if opening[2] == 2]
    assert wakes
    for landing in wakes:
        made = passes.step(first, vcpu_run, (landing,))
        assert made.result == VMRUN
        again = set_up(vcpu.kvm, passes.states.values[made.after]).vcpu
        assert (again.mp_state, again.rip, again.svm.nmi_masked) == (KVM_MP_STATE_RUNNABLE, 0, 1)


def test_a_loop_that_counts_is_no_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    def counts(vcpu: Vcpu) -> int:
        vcpu.rip += 1
        return AGAIN

    vcpu = running_ap()
    monkeypatch.setattr("iretrace.kvm.passes.vcpu_run", counts)
    passes = Passes(vcpu.kvm, True)
    after = passes.step(passes.states(standing(vcpu)), counts, ()).after
    assert set_up(vcpu.kvm, passes.states.values[after]).unmodelled == NOT_MODELLED_LOOP
