"""What KVM knows of a VM and its one vCPU, and its requests (include/linux/kvm_host.h, asm/kvm_host.h, svm.h).

Fields have the kernel's names. Those marked *shared* are also accessed by other CPUs; `shared()` stands before each
access, and is where the driver lets the other CPUs' steps land.
"""

from __future__ import annotations

from typing import Annotated

from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import Array, record, shared, u1, u8, u16, u32, u64, wrap8

# KVM_REQ_*: bit numbers in Vcpu.requests (ours: only what this KVM makes).
KVM_REQ_EVENT = 0
KVM_REQ_NMI = 1
KVM_REQ_SMI = 2
KVM_REQ_RECALC_INTERCEPTS = 4
ALL_REQUESTS = 0x17

# enum in include/linux/kvm_host.h: where the vCPU is (Vcpu.mode).
OUTSIDE_GUEST_MODE = 0
IN_GUEST_MODE = 1
EXITING_GUEST_MODE = 2

# KVM_MP_STATE_* (Vcpu.mp_state).
KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_AP_RESET_HOLD = 9

# Bits of Vcpu.pending_events.
KVM_APIC_INIT = 0
KVM_APIC_SIPI = 1

# KVM_EXIT_* (Thread.exit_reason): why KVM_RUN returned.
KVM_EXIT_UNKNOWN = 0
KVM_EXIT_DEBUG = 4
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10

# How a pass of the vCPU thread through its loop ends. In the C, VMRUN and schedule() are calls that come back; here the
# pass hands over to the driver, and another function goes on where it stopped.
TO_USERSPACE = 0
AGAIN = 1
VMRUN = 2
SLEEP = 3
ROUND = 5
"""No pass ends so: the driver says it of passes that go in a circle."""
EINTR = 4
"""KVM_RUN fails with -EINTR."""
EINVAL = 22
"""An ioctl fails with -EINVAL."""

# KVM_GUESTDBG_* (VcpuDebug.guest_debug).
KVM_GUESTDBG_ENABLE = 0x1
KVM_GUESTDBG_SINGLESTEP = 0x2
KVM_GUESTDBG_USE_HW_BP = 0x20000

# Cells that several CPUs access; the first argument of shared().
CELL_NMI_QUEUED = 0
CELL_REQUESTS = 1
CELL_MODE = 2
CELL_TASK_STATE = 3
CELL_THREAD_FLAGS = 4
CELL_IRR = 5
CELL_PENDING_EVENTS = 6
CELL_SIPI_VECTOR = 7
CELL_APIC_ENABLED = 8

# How a cell is accessed. The order of two reads does not matter, nor that of two SETs of one bit.
READ = 0
WRITE = 1
SET = 2


@record
class DebugRegisters:
    """Debug registers that the processor has for whoever runs on it: DR0-3, their address masks, DR7, DR6, DEBUGCTL."""

    dr: Annotated[list[int], Array(64, 4)]
    mask: Annotated[list[int], Array(64, 4)]
    dr7: u64
    dr6: u64
    debugctl: u64


@record
class Kvm:
    """Constants of a run: the kind of VM, module parameters, the host's own debug registers, and what the revision does
    differently (revisions.py)."""

    host: DebugRegisters
    sev_es: u1
    debug_swap: u1
    """The VMM has turned DebugSwap on: an encrypted guest's debug registers are its own."""
    vgif: u1
    vnmi: u1
    """Virtual NMIs: the processor has the latch and the mask of NMIs for its guests."""
    nrips: u1
    pause_filter_count: u32
    revision: u32
    """Bit n: the difference with number n is there."""
    guest_svm: u1 = 1
    """The guest's CPUID has SVM (the VMM passes on that KVM offers it: module parameter nested)."""


@record
class VcpuSvm:
    """struct vcpu_svm: what is AMD's about the vCPU."""

    vmcb: Vmcb
    ghcb: Ghcb
    nmi_masked: u1 = 0
    """An NMI is being handled. Linux 6.1 keeps it in vcpu->arch.hflags."""
    awaiting_iret_completion: u1 = 0
    """An IRET was intercepted, so that the handler is about to end."""
    nmi_iret_rip: u64 = 0
    nmi_singlestep: u1 = 0
    """KVM has set RFLAGS.TF for a #DB after the next instruction."""
    nmi_singlestep_guest_rflags: u64 = 0
    guest_gif: u1 = 1
    next_rip: u64 = 0
    soft_int_injected: u1 = 0
    soft_int_old_rip: u64 = 0
    soft_int_next_rip: u64 = 0
    ghcb_mapped: u1 = 0
    """The guest's GHCB is in use (sev_es.ghcb is not NULL)."""
    ap_reset_hold_type: u8 = 0
    """How the guest has asked to be held, since SINCE_RESET_HOLD_HAS_A_TYPE."""


@record
class VcpuDebug:
    """What of struct kvm_vcpu and struct kvm_vcpu_arch is about debug registers, and of the host save area."""

    db: Annotated[list[int], Array(64, 4)]
    """DR0-3 of the guest."""
    eff_db: Annotated[list[int], Array(64, 4)]
    """DR0-3 that it runs with: its own or the debugger's."""
    host_dr: Annotated[list[int], Array(64, 4)]
    host_mask: Annotated[list[int], Array(64, 4)]
    """In the host save area: what #VMEXIT loads under DebugSwap."""
    dr7: u64
    switch_db_regs: u8
    guest_debug: u32
    guest_debug_dr7: u64
    singlestep_rip: u64
    host_debugctl: u64
    guest_state_loaded: u1
    """svm_prepare_switch_to_guest() has been done since KVM_RUN was called; kept only where it matters."""


@record
class Thread:
    """The vCPU thread, the CPU that it runs on, and struct kvm_run.

    cpu: its debug registers. itself: the same when the host was itself again after a #VMEXIT. wanted: what the VMM
    gives to KVM_SET_GUEST_DEBUG.
    """

    cpu: DebugRegisters
    itself: DebugRegisters
    wanted: DebugRegisters
    noted: u1 = 0
    interrupts: u1 = 1
    """The CPU takes interrupts."""
    ipi: u1 = 0
    """A reschedule interrupt is pending for it."""
    warm: u1 = 0
    """This step mapped the page of a nested page fault."""
    exit_reason: u32 = 0
    unmodelled: u32 = 0
    """Not 0: the guest did something that this KVM has no code for (one of NOT_MODELLED_*)."""
    warned: u8 = 0
    """Not 0: a WARN was reached (one of WARN_*)."""


@record
class Vcpu:
    """struct kvm_vcpu and the struct kvm_vcpu_arch in it, with as much of the local APIC as one device needs."""

    kvm: Kvm
    thread: Thread
    svm: VcpuSvm
    debug: VcpuDebug
    requests: u8 = 0
    """*shared*"""
    mode: u8 = 0
    """*shared*"""
    nmi_queued: u8 = 0
    """*shared* NMIs that have been sent and not looked at."""
    sleeping: u1 = 0
    """*shared* The thread's task state is TASK_INTERRUPTIBLE: it sleeps, or will do so at schedule()."""
    signal_pending: u1 = 0
    """*shared* TIF_SIGPENDING of the thread."""
    irr: u1 = 0
    """*shared* APIC_IRR, of the device's vector."""
    isr: u1 = 0
    """APIC_ISR, of the same. There is no EOI: it stays."""
    nmi_pending: u8 = 0
    """NMIs to be injected."""
    nmi_injected: u1 = 0
    exception_pending: u1 = 0
    exception_injected: u1 = 0
    exception_vector: u8 = 0
    exception_has_error_code: u1 = 0
    exception_error_code: u32 = 0
    exception_has_payload: u1 = 0
    exception_payload: u64 = 0
    interrupt_injected: u1 = 0
    interrupt_soft: u1 = 0
    interrupt_nr: u8 = 0
    mp_state: u8 = 0
    rip: u64 = 0
    """regs[VCPU_REGS_RIP]. The other registers stay in the VMCB, as nothing here changes them."""
    rax: u64 = 0
    """RAX to RDX: what the guest passes through its GHCB; other guests' stay in the machine."""
    rbx: u64 = 0
    rcx: u64 = 0
    rdx: u64 = 0
    efer: u64 = 0
    dr6: u64 = 0
    apic_enabled: u1 = 1
    """The guest has software-enabled its local APIC."""
    pending_events: u8 = 0
    """*shared* Of the local APIC: KVM_APIC_INIT, KVM_APIC_SIPI."""
    sipi_vector: u8 = 0
    """*shared* Of the local APIC."""
    ap: u1 = 0
    """Neither bsp_vcpu_id names the vCPU, nor does its APIC base have the BSP flag."""
    cs_base: u32 = 0
    """save.cs.base of the VMCB where kvm_vcpu_deliver_sipi_vector() has set it, or RSM has brought it back, until
    the next #VMEXIT; else 0."""
    smi_pending: u1 = 0
    smm: u1 = 0
    """HF_SMM_MASK in hflags: the guest is in SMM."""
    smm_inside_nmi: u1 = 0
    """HF_SMM_INSIDE_NMI_MASK: it got there while it handled an NMI."""
    smram_rip: u64 = 0
    smram_rflags: u64 = 0
    smram_rsp: u64 = 0
    smram_rax: u64 = 0
    smram_cpl: u8 = 0
    smram_ss: u16 = 0
    smram_cs_base: u32 = 0
    smram_dr6: u64 = 0
    smram_dr7: u64 = 0
    smram_efer: u64 = 0
    smram_int_shadow: u1 = 0
    """smram_*: the state-save area in the guest's memory, as KVM has written it."""


# Why a step cannot go on: Thread.unmodelled, and words for it in hypervisor.py.
NOT_MODELLED_EXIT = 1
NOT_MODELLED_VMGEXIT = 2
NOT_MODELLED_EXCEPTIONS = 3
NOT_MODELLED_LOOP = 4
NOT_MODELLED_L2 = 5

# WARNs: Thread.warned, and words for them in hypervisor.py.
WARN_NMI_WINDOW_WITH_VNMI = 1


def since(vcpu: Vcpu, difference: u8) -> bool:
    """Whether this revision has a difference of revisions.py."""
    return (vcpu.kvm.revision >> (difference & 31)) & 1 != 0


def kvm_request_pending(vcpu: Vcpu) -> bool:
    """Whether there is any request."""
    shared(vcpu.thread, CELL_REQUESTS, ALL_REQUESTS, READ)
    return vcpu.requests != 0


def kvm_make_request(request: u8, vcpu: Vcpu) -> None:
    """Ask the vCPU thread for something before it enters the guest again."""
    shared(vcpu.thread, CELL_REQUESTS, wrap8(1 << (request & 7)), SET)
    vcpu.requests = wrap8(vcpu.requests | 1 << (request & 7))


def kvm_test_request(request: u8, vcpu: Vcpu) -> bool:
    """Whether a request has been made."""
    shared(vcpu.thread, CELL_REQUESTS, wrap8(1 << (request & 7)), READ)
    return (vcpu.requests >> (request & 7)) & 1 != 0


def kvm_check_request(request: u8, vcpu: Vcpu) -> bool:
    """Take a request: two accesses, a test and a clear."""
    if not kvm_test_request(request, vcpu):
        return False
    shared(vcpu.thread, CELL_REQUESTS, wrap8(1 << (request & 7)), WRITE)
    vcpu.requests = wrap8(vcpu.requests & ~(1 << (request & 7)))
    return True


def set_mode(vcpu: Vcpu, mode: u8) -> None:
    """Say where the vCPU is. Senders read it to know whether an IPI is needed."""
    shared(vcpu.thread, CELL_MODE, 1, WRITE)
    vcpu.mode = mode


def local_irq_enable(vcpu: Vcpu) -> None:
    """From here on the CPU takes interrupts; one that waited is taken by the host now."""
    vcpu.thread.interrupts = 1
    vcpu.thread.ipi = 0


def local_irq_disable(vcpu: Vcpu) -> None:
    """From here on interrupts wait: until VMRUN, which leaves the guest again for one."""
    vcpu.thread.interrupts = 0


def not_modelled(vcpu: Vcpu, why: u32) -> u8:
    """Give up: the verdict becomes undetermined, naming why."""
    vcpu.thread.unmodelled = why
    return TO_USERSPACE


def warn_on(vcpu: Vcpu, condition: bool, which: u8) -> None:
    """WARN_ON_ONCE(): KVM says in its log that this cannot be, and goes on."""
    if condition:
        vcpu.thread.warned = which


def vcpu_signal_pending(vcpu: Vcpu) -> bool:
    """Whether a signal waits for the thread."""
    shared(vcpu.thread, CELL_THREAD_FLAGS, 1, READ)
    return vcpu.signal_pending != 0
