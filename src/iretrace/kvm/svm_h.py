"""What svm.h has inline: intercepts, the global interrupt flag, whether the processor tracks NMIs."""

from __future__ import annotations

from iretrace.kvm.kvm_host import Vcpu, VcpuSvm
from iretrace.machine.vmcb import V_GIF_MASK, V_NMI_ENABLE_MASK
from iretrace.subset import u8, u32, wrap32

# Intercepts.


def svm_set_intercept(svm: VcpuSvm, number: u8) -> None:
    """Have the guest leave when that happens. number: enum in svm.h, over all words; exceptions start at 64."""
    bit: u32 = 1 << (number & 31)
    if number < 32:
        svm.vmcb.intercept_cr |= bit
    elif number < 64:
        svm.vmcb.intercept_dr |= bit
    elif number < 96:
        svm.vmcb.intercept_exception |= bit
    elif number < 128:
        svm.vmcb.intercept_word3 |= bit
    elif number < 160:
        svm.vmcb.intercept_word4 |= bit
    else:
        svm.vmcb.intercept_word5 |= bit


def svm_clr_intercept(svm: VcpuSvm, number: u8) -> None:
    """Have the guest go on when that happens."""
    keep: u32 = wrap32(~(1 << (number & 31)))
    if number < 32:
        svm.vmcb.intercept_cr &= keep
    elif number < 64:
        svm.vmcb.intercept_dr &= keep
    elif number < 96:
        svm.vmcb.intercept_exception &= keep
    elif number < 128:
        svm.vmcb.intercept_word3 &= keep
    elif number < 160:
        svm.vmcb.intercept_word4 &= keep
    else:
        svm.vmcb.intercept_word5 &= keep


# GIF.


def gif_set(vcpu: Vcpu) -> bool:
    """The global interrupt flag: with virtual GIF the processor keeps it."""
    if vcpu.kvm.vgif:
        return vcpu.svm.vmcb.int_ctl & V_GIF_MASK != 0
    return vcpu.svm.guest_gif != 0


def enable_gif(vcpu: Vcpu) -> None:
    """Open the global interrupt flag."""
    if vcpu.kvm.vgif:
        vcpu.svm.vmcb.int_ctl |= V_GIF_MASK
    else:
        vcpu.svm.guest_gif = 1


def disable_gif(vcpu: Vcpu) -> None:
    """Close the global interrupt flag."""
    if vcpu.kvm.vgif:
        vcpu.svm.vmcb.int_ctl = wrap32(vcpu.svm.vmcb.int_ctl & ~V_GIF_MASK)
    else:
        vcpu.svm.guest_gif = 0


# Virtual NMIs.


def is_vnmi_enabled(vcpu: Vcpu) -> bool:
    """Whether the processor tracks the guest's NMIs (svm.h)."""
    return vcpu.kvm.vnmi != 0 and vcpu.svm.vmcb.int_ctl & V_NMI_ENABLE_MASK != 0
