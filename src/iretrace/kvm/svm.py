"""What x86.c asks of SVM (svm.c, behind kvm_x86_ops): masks and windows, injection, VMRUN and its aftermath."""

from __future__ import annotations

from iretrace.kvm.differences import (
    SINCE_DEBUGCTL_IS_SWITCHED,
    SINCE_NMI_COMPLETE_UNMASKS_AT_ONCE,
    SINCE_NO_POINTLESS_SINGLE_STEP,
)
from iretrace.kvm.exceptions import (
    DR6_ACTIVE_LOW,
    VC_VECTOR,
    kvm_clear_exception_queue,
    kvm_clear_interrupt_queue,
    kvm_deliver_exception_payload,
    kvm_exception_is_soft,
    kvm_queue_interrupt,
    kvm_requeue_exception,
)
from iretrace.kvm.kvm_host import (
    KVM_GUESTDBG_SINGLESTEP,
    KVM_REQ_EVENT,
    WARN_NMI_WINDOW_WITH_VNMI,
    Vcpu,
    VcpuSvm,
    kvm_make_request,
    since,
    warn_on,
)
from iretrace.kvm.svm_h import gif_set, is_vnmi_enabled, svm_clr_intercept, svm_set_intercept
from iretrace.machine.vmcb import (
    INTERCEPT_IRET,
    INTERCEPT_STGI,
    INTERCEPT_VINTR,
    SVM_EVTINJ_TYPE_EXEPT,
    SVM_EVTINJ_TYPE_INTR,
    SVM_EVTINJ_TYPE_MASK,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_TYPE_SOFT,
    SVM_EVTINJ_VALID,
    SVM_EVTINJ_VALID_ERR,
    SVM_EVTINJ_VEC_MASK,
    SVM_GUEST_INTERRUPT_MASK,
    SVM_INTERRUPT_SHADOW_MASK,
    V_IGN_TPR_MASK,
    V_INTR_PRIO_MASK,
    V_IRQ_MASK,
    V_NMI_BLOCKING_MASK,
    V_NMI_PENDING_MASK,
    V_TPR_MASK,
)
from iretrace.subset import u1, u8, u32, u64, wrap8, wrap32, wrap64

X86_EFLAGS_TF = 0x100
X86_EFLAGS_IF = 0x200
X86_EFLAGS_RF = 0x10000

INTERCEPT_CR8_WRITE = 24
KVM_DEBUGREG_WONT_EXIT = 2
"""In VcpuDebug.switch_db_regs: the guest has its debug registers."""
V_IRQ_INJECTION_BITS_MASK = V_IRQ_MASK | V_INTR_PRIO_MASK | V_IGN_TPR_MASK


# The intercept of IRET.


def svm_set_iret_intercept(vcpu: Vcpu) -> None:
    """Be told of the guest's next IRET. An encrypted guest says NMI_COMPLETE instead."""
    if not vcpu.kvm.sev_es:
        svm_set_intercept(vcpu.svm, INTERCEPT_IRET)


def svm_clr_iret_intercept(vcpu: Vcpu) -> None:
    """The IRET was seen."""
    if not vcpu.kvm.sev_es:
        svm_clr_intercept(vcpu.svm, INTERCEPT_IRET)


# Registers and flags of the guest.


def svm_get_rflags(vcpu: Vcpu) -> u64:
    """The guest's RFLAGS, without the TF and RF that KVM has set for its own use."""
    svm = vcpu.svm
    rflags: u64 = svm.vmcb.rflags
    if svm.nmi_singlestep:
        hidden: u64 = (X86_EFLAGS_TF | X86_EFLAGS_RF) & ~svm.nmi_singlestep_guest_rflags
        rflags &= ~hidden
    return rflags


def svm_set_rflags(vcpu: Vcpu, rflags: u64) -> None:
    """Change the guest's RFLAGS and keep stepping, if KVM does."""
    ours: u64 = (X86_EFLAGS_TF | X86_EFLAGS_RF) if vcpu.svm.nmi_singlestep else 0
    vcpu.svm.vmcb.rflags = rflags | ours


def svm_get_if_flag(vcpu: Vcpu) -> bool:
    """RFLAGS.IF; of an encrypted guest the processor tells it in the VMCB."""
    if vcpu.kvm.sev_es:
        return vcpu.svm.vmcb.int_state & SVM_GUEST_INTERRUPT_MASK != 0
    return svm_get_rflags(vcpu) & X86_EFLAGS_IF != 0


def svm_set_interrupt_shadow(vcpu: Vcpu, on: u1) -> None:
    """Set or end the interrupt shadow of STI or MOV SS."""
    vmcb = vcpu.svm.vmcb
    vmcb.int_state = wrap32(vmcb.int_state & ~SVM_INTERRUPT_SHADOW_MASK)
    if on:
        vmcb.int_state |= SVM_INTERRUPT_SHADOW_MASK


def svm_set_dr6(vcpu: Vcpu, value: u64) -> None:
    """DR6 for the next VMRUN; an encrypted guest's is its own."""
    if not vcpu.kvm.sev_es:
        vcpu.svm.vmcb.dr6 = value


def svm_set_dr7(vcpu: Vcpu, value: u64) -> None:
    """DR7 for the next VMRUN; an encrypted guest's is its own."""
    if not vcpu.kvm.sev_es:
        vcpu.svm.vmcb.dr7 = value


def kvm_get_rflags(vcpu: Vcpu) -> u64:
    """The guest's RFLAGS, without the TF of a debugger that single-steps (x86.c)."""
    rflags: u64 = svm_get_rflags(vcpu)
    if vcpu.debug.guest_debug & KVM_GUESTDBG_SINGLESTEP != 0:
        rflags &= ~X86_EFLAGS_TF
    return rflags


def kvm_write_rflags(vcpu: Vcpu, rflags: u64) -> None:
    """Change the guest's RFLAGS, and keep stepping where a debugger wants the next step (x86.c: __kvm_set_rflags())."""
    step: bool = vcpu.debug.guest_debug & KVM_GUESTDBG_SINGLESTEP != 0 and vcpu.rip == vcpu.debug.singlestep_rip
    svm_set_rflags(vcpu, rflags | X86_EFLAGS_TF if step else rflags)


def kvm_set_rflags(vcpu: Vcpu, rflags: u64) -> None:
    """The same, and IF may have changed (x86.c)."""
    kvm_write_rflags(vcpu, rflags)
    kvm_make_request(KVM_REQ_EVENT, vcpu)


def svm_skip_rip(vcpu: Vcpu) -> None:
    """Move RIP past the instruction: to where the processor says, or where KVM's emulator finds the next one (every
    instruction of a litmus program has length 1). An encrypted guest's RIP is not KVM's to move."""
    svm = vcpu.svm
    if vcpu.kvm.sev_es:
        return
    if vcpu.kvm.nrips and svm.vmcb.next_rip != 0:
        svm.next_rip = svm.vmcb.next_rip
    if svm.next_rip != 0:
        vcpu.rip = svm.next_rip
        return
    kvm_clear_exception_queue(vcpu)  # the emulator starts afresh: an exception that is injected again is forgotten
    vcpu.rip = wrap64(vcpu.rip + 1)
    if kvm_get_rflags(vcpu) & X86_EFLAGS_RF != 0:
        kvm_set_rflags(vcpu, kvm_get_rflags(vcpu) & ~X86_EFLAGS_RF)


def svm_skip_emulated_instruction(vcpu: Vcpu) -> None:
    """The instruction that exited is done, and the interrupt shadow over it."""
    svm_skip_rip(vcpu)
    svm_set_interrupt_shadow(vcpu, 0)


# NMIs.


def svm_is_vnmi_pending(vcpu: Vcpu) -> bool:
    """Whether the processor has an NMI to deliver when it can."""
    return is_vnmi_enabled(vcpu) and vcpu.svm.vmcb.int_ctl & V_NMI_PENDING_MASK != 0


def svm_set_vnmi_pending(vcpu: Vcpu) -> bool:
    """Hand an NMI to the processor. It has room for one; whether that was free."""
    if not is_vnmi_enabled(vcpu) or vcpu.svm.vmcb.int_ctl & V_NMI_PENDING_MASK != 0:
        return False
    vcpu.svm.vmcb.int_ctl |= V_NMI_PENDING_MASK
    return True


def svm_get_nmi_mask(vcpu: Vcpu) -> bool:
    """Whether the guest handles an NMI, as far as KVM or the processor knows."""
    if is_vnmi_enabled(vcpu):
        return vcpu.svm.vmcb.int_ctl & V_NMI_BLOCKING_MASK != 0
    return vcpu.svm.nmi_masked != 0


def svm_set_nmi_mask(vcpu: Vcpu, masked: u1) -> None:
    """Say that the guest handles an NMI, or that it does not."""
    if is_vnmi_enabled(vcpu):
        vcpu.svm.vmcb.int_ctl = wrap32(vcpu.svm.vmcb.int_ctl & ~V_NMI_BLOCKING_MASK)
        if masked:
            vcpu.svm.vmcb.int_ctl |= V_NMI_BLOCKING_MASK
        return
    vcpu.svm.nmi_masked = masked
    if masked:
        svm_set_iret_intercept(vcpu)
    else:
        svm_clr_iret_intercept(vcpu)


def svm_nmi_blocked(vcpu: Vcpu) -> bool:
    """Whether the processor would hold an NMI back here."""
    if not gif_set(vcpu):
        return True
    if svm_get_nmi_mask(vcpu):
        return True
    return vcpu.svm.vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK != 0


def svm_nmi_allowed(vcpu: Vcpu) -> bool:
    """Whether an NMI can be injected now."""
    return not svm_nmi_blocked(vcpu)


def svm_inject_nmi(vcpu: Vcpu) -> None:
    """The next VMRUN delivers an NMI. Without virtual NMIs the processor does not mask further ones for an injected
    one, so KVM does."""
    vcpu.svm.vmcb.event_inj = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_NMI
    if not is_vnmi_enabled(vcpu):
        vcpu.svm.nmi_masked = 1
        svm_set_iret_intercept(vcpu)


def svm_enable_nmi_window(vcpu: Vcpu) -> None:
    """Have KVM called back when the NMI that is pending now can be injected."""
    svm = vcpu.svm
    if svm_get_nmi_mask(vcpu):
        warn_on(vcpu, is_vnmi_enabled(vcpu), WARN_NMI_WINDOW_WITH_VNMI)
        if not svm.awaiting_iret_completion:
            return  # the IRET intercept is armed, or the guest will say NMI_COMPLETE
    if since(vcpu, SINCE_NO_POINTLESS_SINGLE_STEP) and vcpu.kvm.sev_es:
        return
    if not gif_set(vcpu):
        if vcpu.kvm.vgif:
            svm_set_intercept(svm, INTERCEPT_STGI)
        return
    svm.nmi_singlestep_guest_rflags = svm_get_rflags(vcpu)
    svm.nmi_singlestep = 1
    svm.vmcb.rflags |= X86_EFLAGS_TF | X86_EFLAGS_RF


def disable_nmi_singlestep(vcpu: Vcpu) -> None:
    """Stop stepping: TF and RF are the guest's again, or a debugger's."""
    svm = vcpu.svm
    svm.nmi_singlestep = 0
    if vcpu.debug.guest_debug & KVM_GUESTDBG_SINGLESTEP == 0:
        ours: u64 = (X86_EFLAGS_TF | X86_EFLAGS_RF) & ~svm.nmi_singlestep_guest_rflags
        svm.vmcb.rflags &= ~ours


# Interrupts.


def svm_interrupt_blocked(vcpu: Vcpu) -> bool:
    """Whether the processor would hold an interrupt back here."""
    if not gif_set(vcpu):
        return True
    if not svm_get_if_flag(vcpu):
        return True
    return vcpu.svm.vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK != 0


def svm_interrupt_allowed(vcpu: Vcpu) -> bool:
    """Whether an interrupt can be injected now."""
    return not svm_interrupt_blocked(vcpu)


def svm_set_vintr(svm: VcpuSvm) -> None:
    """Offer the processor a dummy virtual interrupt: where it would take it, it exits instead: that is the window."""
    svm_set_intercept(svm, INTERCEPT_VINTR)
    svm.vmcb.int_vector = 0
    svm.vmcb.int_ctl |= V_IRQ_MASK | V_INTR_PRIO_MASK


def svm_clear_vintr(svm: VcpuSvm) -> None:
    """Take the dummy away."""
    svm_clr_intercept(svm, INTERCEPT_VINTR)
    svm.vmcb.int_ctl = wrap32(svm.vmcb.int_ctl & ~V_IRQ_INJECTION_BITS_MASK)


def svm_enable_irq_window(vcpu: Vcpu) -> None:
    """Have KVM called back when the interrupt that waits can be injected."""
    if vcpu.kvm.vgif or gif_set(vcpu):
        svm_set_vintr(vcpu.svm)


def svm_update_cr8_intercept(vcpu: Vcpu) -> None:
    """Writes of CR8 matter only while TPR holds an interrupt back, and TPR is 0."""
    if not vcpu.kvm.sev_es:
        svm_clr_intercept(vcpu.svm, INTERCEPT_CR8_WRITE)


# Injection.


def svm_update_soft_interrupt_rip(vcpu: Vcpu) -> None:
    """INT3 or INTn is injected: the processor takes the RIP to push from next_rip, and RIP itself stays, for the case
    that the delivery is cut off. Without nrips RIP moves on now, and is moved back then."""
    svm = vcpu.svm
    old_rip: u64 = vcpu.rip
    old_rflags: u64 = svm.vmcb.rflags
    svm_skip_rip(vcpu)
    svm.soft_int_injected = 1
    svm.soft_int_old_rip = old_rip
    svm.soft_int_next_rip = vcpu.rip
    svm.vmcb.next_rip = vcpu.rip
    if vcpu.kvm.nrips:
        vcpu.rip = old_rip
        svm.vmcb.rflags = old_rflags
    else:
        svm_set_interrupt_shadow(vcpu, 0)


def svm_inject_exception(vcpu: Vcpu) -> None:
    """The next VMRUN delivers the queued exception."""
    kvm_deliver_exception_payload(vcpu)
    if kvm_exception_is_soft(vcpu.exception_vector):
        svm_update_soft_interrupt_rip(vcpu)
    error_code: u32 = SVM_EVTINJ_VALID_ERR if vcpu.exception_has_error_code else 0
    vcpu.svm.vmcb.event_inj = vcpu.exception_vector | SVM_EVTINJ_VALID | error_code | SVM_EVTINJ_TYPE_EXEPT
    vcpu.svm.vmcb.event_inj_err = vcpu.exception_error_code


def svm_inject_irq(vcpu: Vcpu) -> None:
    """The next VMRUN delivers the interrupt."""
    kind: u32 = SVM_EVTINJ_TYPE_INTR
    if vcpu.interrupt_soft:
        svm_update_soft_interrupt_rip(vcpu)
        kind = SVM_EVTINJ_TYPE_SOFT
    vcpu.svm.vmcb.event_inj = vcpu.interrupt_nr | SVM_EVTINJ_VALID | kind


def svm_complete_soft_interrupt(vcpu: Vcpu, vector: u8, kind: u32) -> None:
    """The delivery of an INT3 or INTn that KVM injected was cut off: make RIP and next_rip what they were before."""
    svm = vcpu.svm
    is_exception: bool = kind == SVM_EVTINJ_TYPE_EXEPT
    is_soft: bool = kind == SVM_EVTINJ_TYPE_SOFT
    if vcpu.kvm.nrips:
        if (is_soft or (is_exception and kvm_exception_is_soft(vector))) and vcpu.rip == svm.soft_int_old_rip:
            svm.vmcb.next_rip = svm.soft_int_next_rip
    elif (is_soft or is_exception) and vcpu.rip == svm.soft_int_next_rip:
        vcpu.rip = svm.soft_int_old_rip


def svm_iret_is_done(vcpu: Vcpu) -> bool:
    """Whether the IRET that was intercepted has been executed: RIP has moved. Before v6.6 also: the guest is encrypted,
    and has said NMI_COMPLETE before its last VMRUN."""
    if not vcpu.svm.awaiting_iret_completion:
        return False
    if vcpu.kvm.sev_es and not since(vcpu, SINCE_NMI_COMPLETE_UNMASKS_AT_ONCE):
        return True
    return vcpu.rip != vcpu.svm.nmi_iret_rip


def svm_complete_interrupts(vcpu: Vcpu) -> None:
    """The guest has left. What was to be injected is done, unless EXITINTINFO says that its delivery was cut off."""
    svm = vcpu.svm
    exitintinfo: u32 = svm.vmcb.exit_int_info
    soft_int_injected: u1 = svm.soft_int_injected
    svm.soft_int_injected = 0
    if svm_iret_is_done(vcpu):
        svm.awaiting_iret_completion = 0
        svm.nmi_masked = 0
        kvm_make_request(KVM_REQ_EVENT, vcpu)
    vcpu.nmi_injected = 0
    kvm_clear_exception_queue(vcpu)
    kvm_clear_interrupt_queue(vcpu)
    if exitintinfo & SVM_EVTINJ_VALID == 0:
        return
    kvm_make_request(KVM_REQ_EVENT, vcpu)
    vector: u8 = wrap8(exitintinfo & SVM_EVTINJ_VEC_MASK)
    kind: u32 = exitintinfo & SVM_EVTINJ_TYPE_MASK
    if soft_int_injected:
        svm_complete_soft_interrupt(vcpu, vector, kind)
    if kind == SVM_EVTINJ_TYPE_NMI:
        vcpu.nmi_injected = 1
    elif kind == SVM_EVTINJ_TYPE_EXEPT:
        if vector != VC_VECTOR:  # the guest raises it again by itself
            svm_requeue_exception(vcpu, vector, exitintinfo)
    elif kind == SVM_EVTINJ_TYPE_INTR:
        kvm_queue_interrupt(vcpu, vector, 0)
    elif kind == SVM_EVTINJ_TYPE_SOFT:
        kvm_queue_interrupt(vcpu, vector, 1)


def svm_requeue_exception(vcpu: Vcpu, vector: u8, exitintinfo: u32) -> None:
    """The exception that EXITINTINFO names has to be injected again, with its error code."""
    if exitintinfo & SVM_EVTINJ_VALID_ERR != 0:
        kvm_requeue_exception(vcpu, vector, 1, vcpu.svm.vmcb.exit_int_info_err)
    else:
        kvm_requeue_exception(vcpu, vector, 0, 0)


def svm_cancel_injection(vcpu: Vcpu) -> None:
    """VMRUN does not happen after all: take back what was to be injected, as if its delivery had been cut off."""
    vmcb = vcpu.svm.vmcb
    vmcb.exit_int_info = vmcb.event_inj
    vmcb.exit_int_info_err = vmcb.event_inj_err
    vmcb.event_inj = 0
    svm_complete_interrupts(vcpu)


# VMRUN.


def sync_lapic_to_cr8(vcpu: Vcpu) -> None:
    """V_TPR is the local APIC's TPR, 0."""
    vmcb = vcpu.svm.vmcb
    vmcb.int_ctl = wrap32(vmcb.int_ctl & ~V_TPR_MASK)


def svm_vcpu_run(vcpu: Vcpu, force_immediate_exit: bool, load_guest_dr6: bool) -> None:
    """Everything up to VMRUN. Interrupts are off, so an IPI to this CPU waits, and ends guest mode right after what is
    injected has been delivered. DR6 is empty, so that #DB shows its cause, unless the guest has its debug registers."""
    svm = vcpu.svm
    svm.vmcb.rip = vcpu.rip
    if svm.nmi_singlestep and svm.vmcb.event_inj != 0:
        # The TF that KVM has set would be pushed onto the guest's stack.
        disable_nmi_singlestep(vcpu)
        vcpu.thread.ipi = 1
    if force_immediate_exit:
        vcpu.thread.ipi = 1
    sync_lapic_to_cr8(vcpu)
    if load_guest_dr6:
        svm_set_dr6(vcpu, vcpu.dr6)
    elif vcpu.debug.switch_db_regs & KVM_DEBUGREG_WONT_EXIT == 0:
        svm_set_dr6(vcpu, DR6_ACTIVE_LOW)
    if since(vcpu, SINCE_DEBUGCTL_IS_SWITCHED):
        vcpu.debug.host_debugctl = vcpu.thread.cpu.debugctl
        vcpu.thread.cpu.debugctl = 0


def svm_vcpu_exited(vcpu: Vcpu) -> None:
    """The second half of svm_vcpu_run(): the guest has left."""
    if since(vcpu, SINCE_DEBUGCTL_IS_SWITCHED):
        vcpu.thread.cpu.debugctl = vcpu.debug.host_debugctl
    if not vcpu.kvm.sev_es:
        vcpu.rip = vcpu.svm.vmcb.rip
    vcpu.svm.next_rip = 0
    svm_complete_interrupts(vcpu)
