"""The VMCB as CPU and hypervisor share it: the control area, and of the save area what is not encrypted.

Field names are those of struct vmcb_control_area and struct vmcb_save_area (arch/x86/include/asm/svm.h).
"""

from __future__ import annotations

from iretrace.subset import record, u8, u16, u32, u64


@record
class Vmcb:
    """One VMCB. Intercept words are those of struct vmcb_control_area.intercepts, in order."""

    intercept_cr: u32 = 0
    intercept_dr: u32 = 0
    intercept_exception: u32 = 0
    intercept_word3: u32 = 0
    intercept_word4: u32 = 0
    intercept_word5: u32 = 0
    pause_filter_count: u16 = 0
    asid: u32 = 0
    tlb_ctl: u8 = 0
    int_ctl: u32 = 0
    int_vector: u32 = 0
    int_state: u32 = 0
    exit_code: u64 = 0
    exit_info_1: u64 = 0
    exit_info_2: u64 = 0
    exit_int_info: u32 = 0
    exit_int_info_err: u32 = 0
    nested_ctl: u64 = 0
    ghcb_gpa: u64 = 0
    event_inj: u32 = 0
    event_inj_err: u32 = 0
    virt_ext: u64 = 0
    clean: u32 = 0
    next_rip: u64 = 0
    vmsa_pa: u64 = 0
    allowed_sev_features: u64 = 0
    """Bit 63: the other bits are all that SEV_FEATURES of the VMSA may have. 0 where a kernel does not know it."""
    cpl: u8 = 0
    ss: u16 = 0
    """The selector: struct vmcb_seg's of SS."""
    efer: u64 = 0
    dr6: u64 = 0
    dr7: u64 = 0
    rflags: u64 = 0
    rip: u64 = 0
    rsp: u64 = 0
    rax: u64 = 0


# int_ctl.
V_TPR_MASK = 0x0F
V_IRQ_MASK = 1 << 8
V_GIF_MASK = 1 << 9
V_NMI_PENDING_MASK = 1 << 11
V_NMI_BLOCKING_MASK = 1 << 12
V_INTR_PRIO_SHIFT = 16
V_INTR_PRIO_MASK = 0x0F << V_INTR_PRIO_SHIFT
V_IGN_TPR_MASK = 1 << 20
V_INTR_MASKING_MASK = 1 << 24
V_GIF_ENABLE_MASK = 1 << 25
V_NMI_ENABLE_MASK = 1 << 26

EFER_SVME = 1 << 12

LBR_CTL_ENABLE_MASK = 1 << 0
"""In virt_ext."""

INTERCEPT_DR6_READ = 6
"""Bit number in intercept_dr."""

# Bits of int_state.
SVM_INTERRUPT_SHADOW_MASK = 1 << 0
SVM_GUEST_INTERRUPT_MASK = 1 << 1

# event_inj and exit_int_info.
SVM_EVTINJ_VEC_MASK = 0xFF
SVM_EVTINJ_TYPE_SHIFT = 8
SVM_EVTINJ_TYPE_MASK = 7 << SVM_EVTINJ_TYPE_SHIFT
SVM_EVTINJ_TYPE_INTR = 0 << 8
SVM_EVTINJ_TYPE_NMI = 2 << 8
SVM_EVTINJ_TYPE_EXEPT = 3 << 8
SVM_EVTINJ_TYPE_SOFT = 4 << 8
SVM_EVTINJ_VALID_ERR = 1 << 11
SVM_EVTINJ_VALID = 1 << 31

# Bits of nested_ctl.
SVM_NESTED_CTL_NP_ENABLE = 1 << 0
SVM_NESTED_CTL_SEV_ENABLE = 1 << 1
SVM_NESTED_CTL_SEV_ES_ENABLE = 1 << 2

# Intercepts: bit numbers over all intercept words, as in enum intercept numbers of svm.h. The exit that an intercept
# of words 3 to 5 makes has the same number.
INTERCEPT_INTR = 96
INTERCEPT_NMI = 97
INTERCEPT_SMI = 98
INTERCEPT_INIT = 99
INTERCEPT_VINTR = 100
INTERCEPT_PUSHF = 112
INTERCEPT_POPF = 113
INTERCEPT_CPUID = 114
INTERCEPT_RSM = 115
INTERCEPT_IRET = 116
INTERCEPT_INTN = 117
"""KVM writes INTERCEPT_INTn."""
INTERCEPT_PAUSE = 119
INTERCEPT_HLT = 120
INTERCEPT_MSR_PROT = 124
INTERCEPT_SHUTDOWN = 127
INTERCEPT_VMRUN = 128
INTERCEPT_VMMCALL = 129
INTERCEPT_STGI = 132
INTERCEPT_CLGI = 133
INTERCEPT_ICEBP = 136
TRAP_EFER_WRITE = 143

# Exit codes (arch/x86/include/uapi/asm/svm.h).
SVM_EXIT_READ_DR0 = 0x020
SVM_EXIT_READ_DR7 = 0x027
SVM_EXIT_WRITE_DR0 = 0x030
SVM_EXIT_WRITE_DR7 = 0x037
SVM_EXIT_EXCP_BASE = 0x040
SVM_EXIT_INTR = 0x060
SVM_EXIT_NMI = 0x061
SVM_EXIT_VINTR = 0x064
SVM_EXIT_PUSHF = 0x070
SVM_EXIT_POPF = 0x071
SVM_EXIT_CPUID = 0x072
SVM_EXIT_RSM = 0x073
SVM_EXIT_IRET = 0x074
SVM_EXIT_SWINT = 0x075
SVM_EXIT_PAUSE = 0x077
SVM_EXIT_HLT = 0x078
SVM_EXIT_MSR = 0x07C
SVM_EXIT_SHUTDOWN = 0x07F
SVM_EXIT_VMRUN = 0x080
SVM_EXIT_STGI = 0x084
SVM_EXIT_CLGI = 0x085
SVM_EXIT_ICEBP = 0x088
SVM_EXIT_EFER_WRITE_TRAP = 0x08F
SVM_EXIT_NPF = 0x400
SVM_EXIT_VMGEXIT = 0x403
SVM_EXIT_ERR = (1 << 64) - 1
