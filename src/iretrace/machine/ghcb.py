"""The GHCB page as guest and hypervisor share it (struct ghcb, arch/x86/include/asm/svm.h)."""

from __future__ import annotations

from iretrace.subset import record, u32, u64


@record
class Ghcb:
    """The fields of struct ghcb that the modelled protocol uses. A *_valid field is the field's bit of valid_bitmap."""

    sw_exit_code: u64 = 0
    sw_exit_info_1: u64 = 0
    sw_exit_info_2: u64 = 0
    rax: u64 = 0
    rbx: u64 = 0
    rcx: u64 = 0
    rdx: u64 = 0
    valid_bitmap_lo: u64 = 0
    """Bytes 0-7 of valid_bitmap."""
    valid_bitmap_hi: u64 = 0
    """Bytes 8-15 of valid_bitmap."""
    ghcb_usage: u32 = 0


# Software exit codes of the GHCB protocol (arch/x86/include/uapi/asm/svm.h).
SVM_VMGEXIT_NMI_COMPLETE = 0x8000_0003
SVM_VMGEXIT_AP_HLT_LOOP = 0x8000_0004
# The GHCB MSR protocol: a request in the MSR (VMCB.ghcb_gpa) in place of the GHCB's address (asm/sev-common.h).
GHCB_MSR_INFO_MASK = 0xFFF
GHCB_MSR_AP_RESET_HOLD_REQ = 0x006
GHCB_MSR_AP_RESET_HOLD_RESP = 0x007
GHCB_MSR_AP_RESET_HOLD_RESULT_POS = 12
VALID_SW_EXIT_INFO_2_HI = 1 << (0x3A0 // 8 - 64)
"""The bit of sw_exit_info_2 in valid_bitmap_hi."""
GHCB_GPA = 0x0050_0000
"""Guest-physical address of the one GHCB page. Page protocol, so bits 11:0 are zero."""
