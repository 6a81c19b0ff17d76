"""SVM as the guest has it: SVME, CLGI, STGI, VMRUN (svm.c, nested.c), and EFER (x86.c, msrs.c). No L2 is modelled."""

from __future__ import annotations

from iretrace.kvm.debug import kvm_skip_emulated_instruction
from iretrace.kvm.differences import SINCE_CLEARING_SVME_KEEPS_GIF, SINCE_SVM_INSTRUCTIONS_EXIT_WITHOUT_SVME
from iretrace.kvm.exceptions import UD_VECTOR, kvm_inject_gp, kvm_queue_exception
from iretrace.kvm.kvm_host import (
    AGAIN,
    KVM_REQ_EVENT,
    KVM_REQ_RECALC_INTERCEPTS,
    NOT_MODELLED_L2,
    Vcpu,
    kvm_make_request,
    not_modelled,
    since,
)
from iretrace.kvm.lapic import kvm_apic_has_interrupt, kvm_apic_has_pending_init_or_sipi
from iretrace.kvm.svm import svm_clear_vintr
from iretrace.kvm.svm_h import disable_gif, enable_gif, svm_clr_intercept, svm_set_intercept
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_CLGI,
    INTERCEPT_STGI,
    INTERCEPT_VINTR,
    SVM_EXIT_STGI,
)
from iretrace.subset import u8, u64

EFER_LME = 1 << 8
EFER_LMA = 1 << 10

INTERCEPT_VMLOAD = 130
INTERCEPT_VMSAVE = 131
INTERCEPT_RDTSCP = 135


# GIF.


def svm_has_pending_gif_event(vcpu: Vcpu) -> bool:
    """Whether something waits that GIF may hold."""
    if vcpu.smi_pending or vcpu.nmi_pending != 0 or kvm_apic_has_interrupt(vcpu):
        return True
    return kvm_apic_has_pending_init_or_sipi(vcpu)


def svm_set_gif(vcpu: Vcpu, value: bool) -> None:
    """The guest's GIF changes. STGI was intercepted only to see it open; a virtual interrupt that waits for it is
    offered again when events are looked at."""
    svm = vcpu.svm
    if not value:
        disable_gif(vcpu)
        if not vcpu.kvm.vgif:
            svm_clear_vintr(svm)
        return
    if vcpu.kvm.vgif:
        svm_clr_intercept(svm, INTERCEPT_STGI)
    if (svm.vmcb.intercept_word3 >> (INTERCEPT_VINTR & 31)) & 1 != 0:
        svm_clear_vintr(svm)
    enable_gif(vcpu)
    if svm_has_pending_gif_event(vcpu):
        kvm_make_request(KVM_REQ_EVENT, vcpu)


def nested_svm_refuses(vcpu: Vcpu) -> bool:
    """An SVM instruction is #UD unless the guest has set EFER.SVME (nested_svm_check_permissions())."""
    if vcpu.efer & EFER_SVME != 0:
        return False
    kvm_queue_exception(vcpu, UD_VECTOR)
    return True


def svm_instruction_interception(vcpu: Vcpu) -> u8:
    """STGI, also where KVM waits for it, and CLGI (stgi_interception(), clgi_interception())."""
    if nested_svm_refuses(vcpu):
        return AGAIN
    r: u8 = kvm_skip_emulated_instruction(vcpu)
    svm_set_gif(vcpu, vcpu.svm.vmcb.exit_code == SVM_EXIT_STGI)
    return r


def vmrun_interception(vcpu: Vcpu) -> u8:
    """VMRUN: what follows where the guest has set SVME is nested_svm_vmrun(), for an L2."""
    if nested_svm_refuses(vcpu):
        return AGAIN
    return not_modelled(vcpu, NOT_MODELLED_L2)


# EFER.


def svm_recalc_instruction_intercepts(vcpu: Vcpu) -> None:
    """Instructions that exit only because the guest has not got them: it has no RDTSCP, and SVM's while SVME is 0."""
    svm = vcpu.svm
    svm_set_intercept(svm, INTERCEPT_RDTSCP)
    if not since(vcpu, SINCE_SVM_INSTRUCTIONS_EXIT_WITHOUT_SVME):
        return
    if vcpu.efer & EFER_SVME == 0:
        svm_set_intercept(svm, INTERCEPT_VMLOAD)
        svm_set_intercept(svm, INTERCEPT_VMSAVE)
        svm_set_intercept(svm, INTERCEPT_CLGI)
        svm_set_intercept(svm, INTERCEPT_STGI)
        return
    svm_clr_intercept(svm, INTERCEPT_VMLOAD)
    svm_clr_intercept(svm, INTERCEPT_VMSAVE)
    if vcpu.kvm.vgif:
        svm_clr_intercept(svm, INTERCEPT_CLGI)
        svm_clr_intercept(svm, INTERCEPT_STGI)
        if svm_has_pending_gif_event(vcpu):
            kvm_make_request(KVM_REQ_EVENT, vcpu)


def svm_set_efer(vcpu: Vcpu, efer: u64) -> None:
    """EFER as the guest sees it; the processor sees SVME set whenever a guest runs. The guest's own SVME decides what
    becomes of its SVM instructions; clearing it opened GIF once."""
    changed: u64 = vcpu.efer ^ efer
    vcpu.efer = efer
    if changed & EFER_SVME != 0:
        if efer & EFER_SVME == 0 and not since(vcpu, SINCE_CLEARING_SVME_KEEPS_GIF):
            svm_set_gif(vcpu, True)
        if since(vcpu, SINCE_SVM_INSTRUCTIONS_EXIT_WITHOUT_SVME):
            kvm_make_request(KVM_REQ_RECALC_INTERCEPTS, vcpu)
    vcpu.svm.vmcb.efer = efer | EFER_SVME


def set_efer(vcpu: Vcpu, efer: u64) -> bool:
    """The guest writes EFER. False: #GP, for SVME without SVM in its CPUID, and for LME, as paging is on. LMA stays."""
    if efer & EFER_SVME != 0 and not vcpu.kvm.guest_svm:
        return False
    if (vcpu.efer ^ efer) & EFER_LME != 0:
        return False
    svm_set_efer(vcpu, (efer & ~EFER_LMA) | (vcpu.efer & EFER_LMA))
    return True


def kvm_complete_insn_gp(vcpu: Vcpu, done: bool) -> u8:
    """The instruction is done, or #GP."""
    if done:
        return kvm_skip_emulated_instruction(vcpu)
    kvm_inject_gp(vcpu, 0)
    return AGAIN


def msr_interception(vcpu: Vcpu) -> u8:
    """RDMSR or WRMSR, of EFER: RCX holds no other number, and RDX is 0."""
    vmcb = vcpu.svm.vmcb
    if vmcb.exit_info_1 != 0:
        return kvm_complete_insn_gp(vcpu, set_efer(vcpu, vmcb.rax & 0xFFFF_FFFF))
    vmcb.rax = vcpu.efer & 0xFFFF_FFFF
    return kvm_skip_emulated_instruction(vcpu)


def efer_trap(vcpu: Vcpu) -> u8:
    """An encrypted guest has written EFER. The processor reports it with SVME set, which the guest did not mean."""
    return kvm_complete_insn_gp(vcpu, set_efer(vcpu, vcpu.svm.vmcb.exit_info_1 & ~EFER_SVME))
