"""System-management mode, which KVM emulates: SMI, the state-save area in the guest's SMRAM, RSM (smm.c, emulate.c).

Before v6.2 this is in x86.c and emulate.c. Of what is saved there is here what can be different behind RSM.
"""

from __future__ import annotations

from iretrace.kvm.debug import DR7_FIXED_1, kvm_set_dr, kvm_vcpu_do_singlestep
from iretrace.kvm.differences import SINCE_SMRAM_HAS_THE_SHADOW
from iretrace.kvm.exceptions import UD_VECTOR, kvm_clear_exception_queue, kvm_queue_exception
from iretrace.kvm.kvm_host import AGAIN, KVM_REQ_EVENT, Vcpu, kvm_make_request, since
from iretrace.kvm.nested import svm_set_efer
from iretrace.kvm.svm import (
    X86_EFLAGS_IF,
    X86_EFLAGS_TF,
    kvm_get_rflags,
    kvm_set_rflags,
    kvm_write_rflags,
    svm_get_nmi_mask,
    svm_get_rflags,
    svm_set_interrupt_shadow,
    svm_set_nmi_mask,
)
from iretrace.kvm.svm_h import gif_set, svm_set_intercept
from iretrace.machine.vmcb import INTERCEPT_STGI, SVM_INTERRUPT_SHADOW_MASK
from iretrace.subset import u1, u8, u16, u64, wrap64

X86_EFLAGS_FIXED = 0x2
SMM_ENTRY = 0x8000


def process_smi(vcpu: Vcpu) -> None:
    """Take over the SMI that another CPU has requested. Several merge."""
    vcpu.smi_pending = 1
    kvm_make_request(KVM_REQ_EVENT, vcpu)


def svm_smi_blocked(vcpu: Vcpu) -> bool:
    """Whether the processor would hold an SMI back here."""
    return not gif_set(vcpu) or vcpu.smm != 0


def svm_smi_allowed(vcpu: Vcpu) -> bool:
    """Whether the guest can enter SMM now."""
    return not svm_smi_blocked(vcpu)


def svm_enable_smi_window(vcpu: Vcpu) -> None:
    """Have KVM called back when the guest can enter SMM: RSM exits, and where GIF holds the SMI STGI does."""
    if not gif_set(vcpu) and vcpu.kvm.vgif:
        svm_set_intercept(vcpu.svm, INTERCEPT_STGI)


def enter_smm_save_state_64(vcpu: Vcpu) -> None:
    """What RSM will bring back goes into the guest's memory. CPL is there as DPL of SS."""
    vmcb = vcpu.svm.vmcb
    vcpu.smram_rsp = vmcb.rsp
    vcpu.smram_rax = vmcb.rax
    vcpu.smram_cpl = vmcb.cpl
    vcpu.smram_ss = vmcb.ss
    vcpu.smram_cs_base = vcpu.cs_base
    vcpu.smram_rip = vcpu.rip
    vcpu.smram_rflags = kvm_get_rflags(vcpu)
    vcpu.smram_dr6 = vcpu.dr6
    vcpu.smram_dr7 = vcpu.debug.dr7
    vcpu.smram_efer = vcpu.efer
    vcpu.smram_int_shadow = 0
    if since(vcpu, SINCE_SMRAM_HAS_THE_SHADOW) and vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK != 0:
        vcpu.smram_int_shadow = 1


def svm_set_ss(vcpu: Vcpu, selector: u16, dpl: u8) -> None:
    """svm_set_segment() of SS, whose DPL is the guest's CPL."""
    vcpu.svm.vmcb.ss = selector
    vcpu.svm.vmcb.cpl = dpl


def enter_smm(vcpu: Vcpu) -> None:
    """The SMI is delivered: the guest goes on in its SMI handler, with NMIs masked."""
    enter_smm_save_state_64(vcpu)
    vcpu.smm = 1
    if svm_get_nmi_mask(vcpu):
        vcpu.smm_inside_nmi = 1
    else:
        svm_set_nmi_mask(vcpu, 1)
    kvm_set_rflags(vcpu, X86_EFLAGS_FIXED)
    vcpu.rip = SMM_ENTRY
    vcpu.cs_base = 0
    if since(vcpu, SINCE_SMRAM_HAS_THE_SHADOW):
        svm_set_interrupt_shadow(vcpu, 0)
    kvm_set_dr(vcpu, 7, DR7_FIXED_1)
    svm_set_ss(vcpu, 0, 0)
    svm_set_efer(vcpu, 0)


def kvm_smm_left(vcpu: Vcpu) -> None:
    """kvm_smm_changed(): the guest leaves SMM; an SMI or INIT that waits is looked at."""
    vcpu.smm = 0
    vcpu.smm_inside_nmi = 0
    kvm_make_request(KVM_REQ_EVENT, vcpu)


def emulator_leave_smm(vcpu: Vcpu) -> None:
    """RSM. NMIs are unmasked, unless SMM was entered while one was being handled. RIP, RFLAGS and the shadow are
    written when the emulator is done."""
    if not vcpu.smm_inside_nmi:
        svm_set_nmi_mask(vcpu, 0)
    kvm_smm_left(vcpu)
    vcpu.svm.vmcb.rsp = vcpu.smram_rsp
    vcpu.svm.vmcb.rax = vcpu.smram_rax
    kvm_set_dr(vcpu, 6, vcpu.smram_dr6)
    kvm_set_dr(vcpu, 7, vcpu.smram_dr7)
    svm_set_efer(vcpu, vcpu.smram_efer)
    svm_set_ss(vcpu, vcpu.smram_ss, vcpu.smram_cpl)
    vcpu.cs_base = vcpu.smram_cs_base
    if since(vcpu, SINCE_SMRAM_HAS_THE_SHADOW):
        svm_set_interrupt_shadow(vcpu, 0)


def toggle_interruptibility(vcpu: Vcpu, shadow: u1) -> None:
    """The interrupt shadow behind an instruction that was emulated. Of two in a row only the first casts one."""
    had: bool = vcpu.svm.vmcb.int_state & SVM_INTERRUPT_SHADOW_MASK != 0
    on: u1 = 0 if had else shadow
    if had or on:
        svm_set_interrupt_shadow(vcpu, on)
        if not on:
            kvm_make_request(KVM_REQ_EVENT, vcpu)


def rsm_interception(vcpu: Vcpu) -> u8:
    """RSM, which the emulator does: x86_emulate_instruction() around em_rsm(). Outside of SMM it is #UD."""
    kvm_clear_exception_queue(vcpu)
    stepped: bool = kvm_get_rflags(vcpu) & X86_EFLAGS_TF != 0
    if not vcpu.smm:
        kvm_queue_exception(vcpu, UD_VECTOR)
        toggle_interruptibility(vcpu, 0)
        return AGAIN
    emulator_leave_smm(vcpu)
    before: u64 = svm_get_rflags(vcpu)
    toggle_interruptibility(vcpu, vcpu.smram_int_shadow)
    vcpu.rip = vcpu.smram_rip
    r: u8 = kvm_vcpu_do_singlestep(vcpu) if stepped else AGAIN
    rflags: u64 = vcpu.smram_rflags | X86_EFLAGS_FIXED
    kvm_write_rflags(vcpu, rflags)
    if wrap64(rflags & ~before) & X86_EFLAGS_IF != 0:
        kvm_make_request(KVM_REQ_EVENT, vcpu)
    return r
