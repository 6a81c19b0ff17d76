"""KVM_CREATE_VCPU and what a VMM does before the guest runs: the first VMCB (svm.c: init_vmcb(); sev.c)."""

from __future__ import annotations

from iretrace.kvm.differences import (
    SINCE_ICEBP_IS_INTERCEPTED,
    SINCE_INTERCEPTS_ARE_MADE_ON_REQUEST,
    SINCE_SVM_INSTRUCTIONS_EXIT_WITHOUT_SVME,
)
from iretrace.kvm.exceptions import AC_VECTOR, DB_VECTOR, DR6_ACTIVE_LOW, MC_VECTOR, UD_VECTOR
from iretrace.kvm.kvm_host import KVM_REQ_EVENT, KVM_REQ_RECALC_INTERCEPTS, Vcpu, kvm_make_request, since
from iretrace.kvm.nested import INTERCEPT_VMLOAD, INTERCEPT_VMSAVE, svm_recalc_instruction_intercepts, svm_set_efer
from iretrace.kvm.svm import INTERCEPT_CR8_WRITE
from iretrace.kvm.svm_h import enable_gif, svm_clr_intercept, svm_set_intercept
from iretrace.machine.ghcb import GHCB_GPA
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_CLGI,
    INTERCEPT_CPUID,
    INTERCEPT_HLT,
    INTERCEPT_ICEBP,
    INTERCEPT_INTR,
    INTERCEPT_MSR_PROT,
    INTERCEPT_NMI,
    INTERCEPT_PAUSE,
    INTERCEPT_SHUTDOWN,
    INTERCEPT_SMI,
    INTERCEPT_STGI,
    INTERCEPT_VMMCALL,
    INTERCEPT_VMRUN,
    SVM_NESTED_CTL_NP_ENABLE,
    SVM_NESTED_CTL_SEV_ENABLE,
    SVM_NESTED_CTL_SEV_ES_ENABLE,
    TRAP_EFER_WRITE,
    V_GIF_ENABLE_MASK,
    V_INTR_MASKING_MASK,
    V_NMI_ENABLE_MASK,
)

# Intercepts that no instruction of a litmus test meets (svm.h).
INTERCEPT_CR4_READ = 4
INTERCEPT_CR4_WRITE = 20
INTERCEPT_DR7_READ = 39
INTERCEPT_DR7_WRITE = 55
INTERCEPT_EXCEPTIONS = 64
INTERCEPT_SELECTIVE_CR0 = 101
INTERCEPT_RDPMC = 111
INTERCEPT_RSM = 115
INTERCEPT_INVD = 118
INTERCEPT_INVLPGA = 122
INTERCEPT_IOIO_PROT = 123
INTERCEPT_TASK_SWITCH = 125
INTERCEPT_SKINIT = 134
INTERCEPT_WBINVD = 137
INTERCEPT_MONITOR = 138
INTERCEPT_MWAIT = 139
INTERCEPT_XSETBV = 141
INTERCEPT_RDPRU = 142
TRAP_CR0_WRITE = 144
TRAP_CR4_WRITE = 148
TRAP_CR8_WRITE = 152

EVERY_DR = 0x00FF_00FF
LONG_MODE_EFER = 0xD01
"""SCE, LME, LMA, NXE: the guest has booted."""
RESET_RFLAGS = 0x2
RESET_RIP = 0xFFF0
RESET_DR7 = 0x400


def init_vmcb(vcpu: Vcpu) -> None:
    """The VMCB of a guest that is not encrypted: what exits, and virtual interrupts and GIF."""
    svm = vcpu.svm
    svm_set_intercept(svm, INTERCEPT_CR4_READ)
    svm_set_intercept(svm, INTERCEPT_CR4_WRITE)
    svm_set_intercept(svm, INTERCEPT_CR8_WRITE)
    svm.vmcb.intercept_dr = EVERY_DR
    svm_set_intercept(svm, INTERCEPT_EXCEPTIONS + UD_VECTOR)
    svm_set_intercept(svm, INTERCEPT_EXCEPTIONS + MC_VECTOR)
    svm_set_intercept(svm, INTERCEPT_EXCEPTIONS + AC_VECTOR)
    svm_set_intercept(svm, INTERCEPT_EXCEPTIONS + DB_VECTOR)
    init_vmcb_instructions(vcpu)
    svm.vmcb.int_ctl = V_INTR_MASKING_MASK
    svm.vmcb.nested_ctl = SVM_NESTED_CTL_NP_ENABLE
    svm.vmcb.pause_filter_count = vcpu.kvm.pause_filter_count & 0xFFFF
    svm.vmcb.asid = 1
    svm.vmcb.ss = 0
    if vcpu.kvm.vgif:
        svm.vmcb.int_ctl |= V_GIF_ENABLE_MASK
    if since(vcpu, SINCE_SVM_INSTRUCTIONS_EXIT_WITHOUT_SVME):
        svm_set_intercept(svm, INTERCEPT_VMLOAD)
        svm_set_intercept(svm, INTERCEPT_VMSAVE)
    elif vcpu.kvm.vgif:
        svm_clr_intercept(svm, INTERCEPT_STGI)
        svm_clr_intercept(svm, INTERCEPT_CLGI)
    if vcpu.kvm.vnmi:
        svm.vmcb.int_ctl |= V_NMI_ENABLE_MASK
    if since(vcpu, SINCE_INTERCEPTS_ARE_MADE_ON_REQUEST):
        kvm_make_request(KVM_REQ_RECALC_INTERCEPTS, vcpu)
    else:
        svm_recalc_instruction_intercepts(vcpu)
    enable_gif(vcpu)


def init_vmcb_instructions(vcpu: Vcpu) -> None:
    """Events and instructions that exit, in init_vmcb()."""
    svm = vcpu.svm
    svm_set_intercept(svm, INTERCEPT_INTR)
    svm_set_intercept(svm, INTERCEPT_NMI)
    svm_set_intercept(svm, INTERCEPT_SMI)
    svm_set_intercept(svm, INTERCEPT_SELECTIVE_CR0)
    svm_set_intercept(svm, INTERCEPT_RDPMC)
    svm_set_intercept(svm, INTERCEPT_CPUID)
    svm_set_intercept(svm, INTERCEPT_INVD)
    svm_set_intercept(svm, INTERCEPT_INVLPGA)
    svm_set_intercept(svm, INTERCEPT_IOIO_PROT)
    svm_set_intercept(svm, INTERCEPT_MSR_PROT)
    svm_set_intercept(svm, INTERCEPT_TASK_SWITCH)
    svm_set_intercept(svm, INTERCEPT_SHUTDOWN)
    svm_set_intercept(svm, INTERCEPT_VMRUN)
    svm_set_intercept(svm, INTERCEPT_VMMCALL)
    svm_set_intercept(svm, INTERCEPT_STGI)
    svm_set_intercept(svm, INTERCEPT_CLGI)
    svm_set_intercept(svm, INTERCEPT_SKINIT)
    svm_set_intercept(svm, INTERCEPT_WBINVD)
    svm_set_intercept(svm, INTERCEPT_XSETBV)
    svm_set_intercept(svm, INTERCEPT_RDPRU)
    svm_set_intercept(svm, INTERCEPT_RSM)
    svm_set_intercept(svm, INTERCEPT_MONITOR)
    svm_set_intercept(svm, INTERCEPT_MWAIT)
    svm_set_intercept(svm, INTERCEPT_HLT)
    svm_set_intercept(svm, INTERCEPT_PAUSE)
    if since(vcpu, SINCE_ICEBP_IS_INTERCEPTED):
        svm_set_intercept(svm, INTERCEPT_ICEBP)


def sev_es_init_vmcb(vcpu: Vcpu) -> None:
    """What is different for an encrypted guest: it tells of control registers after the fact, and of NMIs by GHCB."""
    svm = vcpu.svm
    svm.vmcb.nested_ctl |= SVM_NESTED_CTL_SEV_ENABLE | SVM_NESTED_CTL_SEV_ES_ENABLE
    svm.vmcb.vmsa_pa = 1
    svm_clr_intercept(svm, INTERCEPT_EXCEPTIONS + UD_VECTOR)
    svm_clr_intercept(svm, INTERCEPT_CR4_READ)
    svm_clr_intercept(svm, INTERCEPT_CR4_WRITE)
    svm_clr_intercept(svm, INTERCEPT_CR8_WRITE)
    svm_clr_intercept(svm, INTERCEPT_SELECTIVE_CR0)
    svm_set_intercept(svm, TRAP_EFER_WRITE)
    svm_set_intercept(svm, TRAP_CR0_WRITE)
    svm_set_intercept(svm, TRAP_CR4_WRITE)
    svm_set_intercept(svm, TRAP_CR8_WRITE)
    svm.vmcb.intercept_dr = 0
    if vcpu.kvm.debug_swap:
        svm_clr_intercept(svm, INTERCEPT_EXCEPTIONS + DB_VECTOR)  # KVM allows DebugSwap only where #DB comes to an end
    else:
        svm_set_intercept(svm, INTERCEPT_DR7_READ)
        svm_set_intercept(svm, INTERCEPT_DR7_WRITE)
    svm_clr_intercept(svm, INTERCEPT_XSETBV)


def kvm_arch_vcpu_create(vcpu: Vcpu) -> None:
    """A vCPU whose guest has booted: long mode, local APIC enabled, and for an encrypted one the GHCB announced."""
    vmcb = vcpu.svm.vmcb
    init_vmcb(vcpu)
    vcpu.rip = RESET_RIP
    vcpu.dr6 = DR6_ACTIVE_LOW
    vmcb.rflags = RESET_RFLAGS
    vmcb.dr7 = RESET_DR7
    vcpu.debug.dr7 = RESET_DR7
    svm_set_efer(vcpu, LONG_MODE_EFER)
    if vcpu.kvm.sev_es:
        sev_es_init_vmcb(vcpu)
        vmcb.efer = EFER_SVME  # as it was when the state was encrypted
        vmcb.ghcb_gpa = GHCB_GPA
    kvm_make_request(KVM_REQ_EVENT, vcpu)
