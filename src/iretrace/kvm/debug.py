"""Debug registers of the guest, of a debugger and of the host; KVM_SET_GUEST_DEBUG (x86.c, svm.c).

The processor does not switch DR0-3 of a guest whose state is not encrypted. KVM loads them only where they matter:
while a breakpoint is enabled (KVM_DEBUGREG_BP_ENABLED), or for one stay in guest mode after the guest has accessed a
debug register (KVM_DEBUGREG_WONT_EXIT): then it may do with them what it likes, and KVM reads them back at the next
#VMEXIT.
"""

from __future__ import annotations

from iretrace.kvm.differences import (
    SINCE_DR_EXITS_OF_SEV_ES_ARE_IGNORED,
    SINCE_EMULATED_DB_GOES_TO_ANY_DEBUGGER,
    SINCE_HOST_DRS_ARE_RESTORED_BY_KVM,
)
from iretrace.kvm.exceptions import (
    DB_VECTOR,
    DR6_ACTIVE_LOW,
    DR6_BS,
    DR6_FIXED_1,
    DR6_VOLATILE,
    kvm_inject_gp,
    kvm_queue_exception_p,
)
from iretrace.kvm.kvm_host import (
    AGAIN,
    EINVAL,
    KVM_EXIT_DEBUG,
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
    TO_USERSPACE,
    Thread,
    Vcpu,
    since,
)
from iretrace.kvm.svm import (
    KVM_DEBUGREG_WONT_EXIT,
    X86_EFLAGS_TF,
    kvm_get_rflags,
    kvm_set_rflags,
    svm_get_rflags,
    svm_set_dr7,
    svm_skip_emulated_instruction,
)
from iretrace.subset import u8, u32, u64, wrap8, wrap64

KVM_DEBUGREG_BP_ENABLED = 1

DR7_BP_EN_MASK = 0xFF
DR7_GLOBAL_ENABLE = 0xAA
DR7_GD = 1 << 13
DR7_FIXED_1 = 0x400
DR7_VOLATILE = 0xFFFF_2BFF

EVERY_DR = 0x00FF_00FF
DR7_INTERCEPTS = 0x0080_0080
SVM_EXIT_READ_DR0 = 0x20


# What the guest has, or the debugger in its place.


def set_dr_intercepts(vcpu: Vcpu) -> None:
    """Be told of the next access of a debug register."""
    vcpu.svm.vmcb.intercept_dr = EVERY_DR


def clr_dr_intercepts(vcpu: Vcpu) -> None:
    """The guest has its debug registers. Those of DR7 stay for an encrypted guest."""
    vcpu.svm.vmcb.intercept_dr = DR7_INTERCEPTS if vcpu.kvm.sev_es else 0


def kvm_update_dr0123(vcpu: Vcpu) -> None:
    """DR0-3 that the guest runs with are its own, unless a debugger has set breakpoints."""
    if vcpu.debug.guest_debug & KVM_GUESTDBG_USE_HW_BP == 0:
        for i in range(4):
            vcpu.debug.eff_db[i] = vcpu.debug.db[i]


def kvm_update_dr7(vcpu: Vcpu) -> None:
    """DR7 that the guest runs with, and whether DR0-3 matter."""
    dr7: u64 = vcpu.debug.dr7
    if vcpu.debug.guest_debug & KVM_GUESTDBG_USE_HW_BP != 0:
        dr7 = vcpu.debug.guest_debug_dr7
    svm_set_dr7(vcpu, dr7)
    vcpu.debug.switch_db_regs = wrap8(vcpu.debug.switch_db_regs & ~KVM_DEBUGREG_BP_ENABLED)
    if dr7 & DR7_BP_EN_MASK != 0:
        vcpu.debug.switch_db_regs |= KVM_DEBUGREG_BP_ENABLED


def kvm_set_dr(vcpu: Vcpu, number: u8, value: u64) -> bool:
    """MOV to DR for a guest that is debugged. False: #GP."""
    if number < 4:
        vcpu.debug.db[number] = value
        if vcpu.debug.guest_debug & KVM_GUESTDBG_USE_HW_BP == 0:
            vcpu.debug.eff_db[number] = value
        return True
    if value >> 32 != 0:
        return False
    if number == 4 or number == 6:
        vcpu.dr6 = value & DR6_VOLATILE | DR6_FIXED_1
    else:
        vcpu.debug.dr7 = value & DR7_VOLATILE | DR7_FIXED_1
        kvm_update_dr7(vcpu)
    return True


def kvm_get_dr(vcpu: Vcpu, number: u8) -> u64:
    """MOV from DR for a guest that is debugged."""
    if number < 4:
        return vcpu.debug.db[number]
    if number == 4 or number == 6:
        return vcpu.dr6
    return vcpu.debug.dr7


def dr_interception(vcpu: Vcpu) -> u8:
    """The guest accesses a debug register: it gets them all, and executes the instruction again. Not so while a
    debugger is attached. Encrypted guests' are not KVM's: before v6.6 it took a VMGEXIT for DR7 for an access."""
    if vcpu.kvm.sev_es and since(vcpu, SINCE_DR_EXITS_OF_SEV_ES_ARE_IGNORED):
        return AGAIN
    if vcpu.debug.guest_debug == 0:
        clr_dr_intercepts(vcpu)
        vcpu.debug.switch_db_regs |= KVM_DEBUGREG_WONT_EXIT
        return AGAIN
    number: u8 = wrap8(wrap64(vcpu.svm.vmcb.exit_code - SVM_EXIT_READ_DR0))
    if number >= 16:
        if not kvm_set_dr(vcpu, wrap8(number - 16), vcpu.svm.vmcb.rax):
            kvm_inject_gp(vcpu, 0)
            return AGAIN
    else:
        vcpu.svm.vmcb.rax = kvm_get_dr(vcpu, number)
    return kvm_skip_emulated_instruction(vcpu)


# Around VMRUN.


def kvm_load_debug_registers(vcpu: Vcpu) -> bool:
    """Before VMRUN, in vcpu_enter_guest(). Whether DR6 is the guest's, too."""
    cpu = vcpu.thread.cpu
    if vcpu.debug.switch_db_regs != 0:
        cpu.dr7 = DR7_FIXED_1
        for i in range(4):
            cpu.dr[i] = vcpu.debug.eff_db[i]
        return vcpu.debug.switch_db_regs & KVM_DEBUGREG_WONT_EXIT != 0
    if hw_breakpoint_active(vcpu):
        cpu.dr7 = DR7_FIXED_1
    return False


def svm_sync_dirty_debug_regs(vcpu: Vcpu) -> None:
    """Take over what the guest has left in its debug registers. Not an encrypted one's."""
    if vcpu.kvm.sev_es:
        return
    for i in range(4):
        vcpu.debug.db[i] = vcpu.thread.cpu.dr[i]
    vcpu.dr6 = vcpu.svm.vmcb.dr6
    vcpu.debug.dr7 = vcpu.svm.vmcb.dr7
    vcpu.debug.switch_db_regs = wrap8(vcpu.debug.switch_db_regs & ~KVM_DEBUGREG_WONT_EXIT)
    set_dr_intercepts(vcpu)


def kvm_save_debug_registers(vcpu: Vcpu) -> None:
    """After #VMEXIT, in vcpu_enter_guest(): the guest's registers, then the host's."""
    if vcpu.debug.switch_db_regs & KVM_DEBUGREG_WONT_EXIT != 0:
        svm_sync_dirty_debug_regs(vcpu)
        kvm_update_dr0123(vcpu)
        kvm_update_dr7(vcpu)
    if hw_breakpoint_active(vcpu):
        hw_breakpoint_restore(vcpu)


def hw_breakpoint_active(vcpu: Vcpu) -> bool:
    """Whether the host uses breakpoints."""
    return vcpu.kvm.host.dr7 & DR7_GLOBAL_ENABLE != 0


def hw_breakpoint_restore(vcpu: Vcpu) -> None:
    """The host's breakpoints again."""
    vcpu.thread.cpu.dr6 = DR6_ACTIVE_LOW
    vcpu.thread.cpu.dr7 = vcpu.kvm.host.dr7
    for i in range(4):
        vcpu.thread.cpu.dr[i] = vcpu.kvm.host.dr[i]


def sev_es_prepare_switch_to_guest(vcpu: Vcpu) -> None:
    """Under DebugSwap #VMEXIT loads DR0-3 and their masks from the host save area, and VMRUN does not save them there.
    Later KVMs save the masks only, and restore DR0-3 like those of any guest."""
    if vcpu.kvm.debug_swap == 0 or vcpu.debug.guest_state_loaded:
        return
    vcpu.debug.guest_state_loaded = 1
    for i in range(4):
        vcpu.debug.host_mask[i] = vcpu.kvm.host.mask[i]
        if not since(vcpu, SINCE_HOST_DRS_ARE_RESTORED_BY_KVM):
            vcpu.debug.host_dr[i] = vcpu.thread.cpu.dr[i]


def note_host(thread: Thread) -> None:
    """The host is itself again for the first time after a #VMEXIT: what its debug registers are now."""
    if thread.noted:
        return
    thread.noted = 1
    thread.itself.dr6 = thread.cpu.dr6
    thread.itself.dr7 = thread.cpu.dr7
    thread.itself.debugctl = thread.cpu.debugctl
    for i in range(4):
        thread.itself.dr[i] = thread.cpu.dr[i]
        thread.itself.mask[i] = thread.cpu.mask[i]


# Single-stepping by the guest or by a debugger.


def kvm_vcpu_do_singlestep(vcpu: Vcpu) -> u8:
    """KVM has done an instruction that traps behind it (later kvm_inject_emulated_db())."""
    debugger: u32 = KVM_GUESTDBG_SINGLESTEP
    if since(vcpu, SINCE_EMULATED_DB_GOES_TO_ANY_DEBUGGER):
        debugger = KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP
    if vcpu.debug.guest_debug & debugger != 0:
        vcpu.thread.exit_reason = KVM_EXIT_DEBUG
        return TO_USERSPACE
    kvm_queue_exception_p(vcpu, DB_VECTOR, 1, DR6_BS)
    return AGAIN


def kvm_skip_emulated_instruction(vcpu: Vcpu) -> u8:
    """KVM has done the instruction. If it is single-stepped, it counts."""
    rflags: u64 = svm_get_rflags(vcpu)
    svm_skip_emulated_instruction(vcpu)
    return kvm_vcpu_do_singlestep(vcpu) if rflags & X86_EFLAGS_TF != 0 else AGAIN


def kvm_arch_vcpu_ioctl_set_guest_debug(vcpu: Vcpu, control: u32, dr7: u64) -> u8:
    """The VMM attaches or detaches a debugger; its DR0-3 are in thread.wanted. EINVAL: not an encrypted guest."""
    if vcpu.kvm.sev_es:
        return EINVAL
    rflags: u64 = kvm_get_rflags(vcpu)
    vcpu.debug.guest_debug = control if control & KVM_GUESTDBG_ENABLE != 0 else 0
    if vcpu.debug.guest_debug & KVM_GUESTDBG_USE_HW_BP != 0:
        for i in range(4):
            vcpu.debug.eff_db[i] = vcpu.thread.wanted.dr[i]
        vcpu.debug.guest_debug_dr7 = dr7
    else:
        for i in range(4):
            vcpu.debug.eff_db[i] = vcpu.debug.db[i]
    kvm_update_dr7(vcpu)
    if vcpu.debug.guest_debug & KVM_GUESTDBG_SINGLESTEP != 0:
        vcpu.debug.singlestep_rip = vcpu.rip
    kvm_set_rflags(vcpu, rflags)
    return 0
