"""The state of one logical processor, and what is constant during a run: the guest's code, its IDT, knobs."""

from __future__ import annotations

from typing import Annotated

from iretrace.subset import Array, record, u1, u8, u16, u32, u64, wrap32

# RFLAGS (arch/x86/include/uapi/asm/processor-flags.h).
X86_EFLAGS_FIXED = 0x2
X86_EFLAGS_TF = 0x100
X86_EFLAGS_IF = 0x200
X86_EFLAGS_NT = 0x4000
X86_EFLAGS_RF = 0x10000

# DR6 (arch/x86/include/uapi/asm/debugreg.h).
DR6_RESET = 0xFFFF_0FF0
DR6_B_MASK = 0xF
DR6_BD = 0x2000
DR6_BS = 0x4000
DR7_RESET = 0x400
DR7_ENABLE = 0xFF
"""L0-3 and G0-3."""
DR7_GD = 0x2000
DEBUGCTL_BTF = 0x2

# Vectors (arch/x86/include/asm/trapnr.h).
DB_VECTOR = 1
NMI_VECTOR = 2
BP_VECTOR = 3
OF_VECTOR = 4
UD_VECTOR = 6
DF_VECTOR = 8
NP_VECTOR = 11
SS_VECTOR = 12
GP_VECTOR = 13
PF_VECTOR = 14
VC_VECTOR = 29

VECTORS = 64
"""Vectors that the IDT has gates for."""

# EFER (arch/x86/include/asm/msr-index.h).
MSR_EFER = 0xC000_0080
EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NX = 1 << 11
EFER_BOOTED = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX
"""A guest in long mode, as it is when main starts."""

# The GDT: null, null, kernel code, kernel data, TSS (two entries), user data, user code, in the order that SYSCALL and
# SYSRET want; then kernel code and kernel data that are not present.
KERNEL_CS = 0x10
KERNEL_DS = 0x18
USER_DS = 0x33
USER_CS = 0x3B
ABSENT_CS = 0x40
ABSENT_DS = 0x48

# Instructions; numbered as litmus.test.Op (a test compares).
OP_NOP = 0
OP_CLI = 1
OP_STI = 2
OP_HLT = 3
OP_MOV_SS = 4
OP_IRETQ = 5
OP_JMP = 6
OP_PAUSE = 7
OP_CPUID = 8
OP_MARK = 9
OP_SPIN = 10
OP_VMGEXIT = 11
OP_SKIP = 12
OP_PUSH = 13
OP_PUSHFQ = 14
OP_POPFQ = 15
OP_INT3 = 16
OP_INT = 17
OP_OR_STACK = 18
OP_ANDN_STACK = 19
OP_MOV_STACK = 20
OP_ADD_RSP = 21
OP_STGI = 22
OP_CLGI = 23
OP_UD2 = 24
OP_MOV_RAX = 25
OP_TO_DR = 26
OP_FROM_DR = 27
OP_LOAD = 28
OP_LOAD_BAD = 29
OP_SHOW = 30
OP_VC_DB = 31
OP_INT1 = 32
OP_SYSCALL = 33
OP_SYSRET = 34
OP_FROM_R11 = 35
OP_TO_R11 = 36
OP_RSM = 48
OP_LOOK_AT_HOLD = 64

OP_RDMSR = 40
OP_WRMSR = 41
OP_VMRUN = 42

VC_FORWARD = 0xFFFF_FFFF

# Interrupt shadows.
SHADOW_NONE = 0
SHADOW_STI = 1
SHADOW_MOV_SS = 2

# Guest memory is its stacks. Addresses are 8-byte words; a page is one stack; page 0 holds the main stack. A stack
# starts below the last two words of its page, so that `rsp % PAGE_WORDS` is the room left on it.
PAGE_WORDS = 32
STACK_WORDS = 30
PAGES = 6
PAGE_MAIN = 0
PAGE_NMI = 1
PAGE_VC = 2
PAGE_DF = 3
PAGE_DB = 4
PAGE_RSP0 = 5
"""The stack that the TSS has for events that come from user mode."""
PAGE_CODE = 7
"""The page of the one instruction that a test can have apart from all others. No memory of the model is there."""
MEMORY_WORDS = 192
CODE_SIZE = 64

# Knobs: disputed rules. Bit numbers in Machine.knobs and Machine.consulted.
KNOB_SHADOW_BLOCKS_EXIT = 0
KNOB_IRET_FAULT_UNMASKS = 1
KNOB_STI_BLOCKS_NMI = 2
KNOB_MOVSS_BLOCKS_NMI = 3
KNOB_TRAP_EXIT_KEEPS_SHADOW = 4
KNOB_STEP_CLEARS_B = 5
KNOB_SEV_ES_GUEST_READS_SVME = 6
KNOB_VGIF_DISCARDS_BREAKPOINTS = 7
KNOB_CUT_OFF_INJECTION_MASKS = 8
KNOB_RSM_LEAVES_NMIS_UNMASKED = 12
KNOB_INIT_KEEPS_NMI_LATCH = 13
KNOB_INIT_KEEPS_NMI_MASK = 14
KNOB_INIT_KEEPS_SMI_LATCH = 15
KNOB_INIT_WAITS_FOR_RESET_HOLD = 16
KNOB_EFER_LMA_IS_CHECKED = 17

# What a step showed to the guest (Cpu.seen).
SEEN_NOTHING = 0
SEEN_DELIVERY = 1
SEEN_MARK = 2
SEEN_FLAGS = 3
"""RFLAGS that PUSHFQ put where the guest can read it."""
SEEN_VALUE = 4
"""RAX."""
SEEN_SMI = 8
"""The processor has entered SMM: where it was, and with which flags, as SMRAM says."""


@record
class Machine:
    """Constants of a run. ops and args are the guest's code; idt holds a handler's index + 1, 0 for an absent gate."""

    ops: Annotated[list[int], Array(8, CODE_SIZE)]
    args: Annotated[list[int], Array(32, CODE_SIZE)]
    hidden: Annotated[list[int], Array(1, CODE_SIZE)]
    """1 for instructions of #VC handlers: what they mark is not compared."""
    idt: Annotated[list[int], Array(16, VECTORS)]
    ist: Annotated[list[int], Array(8, VECTORS)]
    """The stack page that a vector's gate switches to (IST); PAGE_MAIN: none."""
    lstar: u16
    """Where SYSCALL goes: an instruction's index + 1, or 0 in a test without it."""
    cold_code: u16
    """The instruction on PAGE_CODE: its index + 1, or 0 in a test without one."""
    sev_es: u1
    """The guest's register state is encrypted."""
    nested_data_bp: u1
    """The processor lacks NoNestedDataBp: a data breakpoint that #DB's own delivery hits raises #DB again."""
    iret_unmasks: u1
    """IRET opens the NMI gate. 0: the guest has another way to say so (a door), as SEV-ES guests do."""
    knobs: u32
    consulted: u32
    """Knobs whose value mattered so far: the only field that changes during a run."""
    svm: u1 = 1
    """The guest's CPUID has SVM, so that it may set EFER.SVME. An encrypted guest's has not."""
    efer_passes: u8 = 0
    """In a guest: accesses of EFER that the MSR permission map lets through. Bit 0: reads, bit 1: writes."""
    smi: u16 = 0
    """Where the SMI handler begins, + 1; 0: the guest has none."""
    init: u16 = 0
    """Where goes on what the reset vector starts, or a SIPI, + 1; 0: nobody sends INIT."""
    ap: u1 = 0
    """An application processor: after INIT it waits for a SIPI."""


@record
class Cpu:
    """One processor as far as events are concerned. With guest_mode=1 it runs the guest of a VMCB, else bare metal.

    rip is an instruction index, rsp a word address. seen_*: what the last step showed to the guest.
    """

    rip: u16
    rsp: u16
    rflags: u32
    cpl: u8
    """0, or 3 in user mode. CS is the code segment of that mode."""
    ss: u16
    """The selector in SS: null in a handler that was entered from user mode."""
    rax: u64
    """The one general register that guests compute with."""
    rcx: u16
    r11: u32
    """What SYSCALL left for SYSRET: the return address and RFLAGS."""
    dr0: u64
    dr1: u64
    dr2: u64
    dr3: u64
    """Breakpoint addresses: an instruction index or a word address, as the breakpoint's type has it."""
    dr6: u32
    dr7: u32
    shadow_dr7: u32
    """DR7 as the #VC handler of an SEV-ES guest without DebugSwap remembers it."""
    debugctl: u32
    """MSR 1D9h as it is in effect: on bare metal and by default 0."""
    debug_swap: u1
    """SEV_FEATURES.DebugSwap of the guest's VMSA: its debug registers are its own."""
    trap: u32
    """#DB is due at this boundary: the bits that it sets in DR6. BS: the instruction before was single-stepped."""
    shadow: u8
    halted: u1
    shutdown: u1
    nmi_latched: u1
    nmi_masked: u1
    """While a guest runs both are those of its virtual NMIs, if it has them, else 0 (vnmi.py)."""
    irr: u1
    """On bare metal: the device's interrupt waits in the local APIC."""
    isr: u1
    """On bare metal: the device's interrupt was taken. No guest sends EOI, so a second one waits for ever."""
    intr_pending: u1
    """A physical interrupt of the host (kick, tick) waits."""
    guest_mode: u1
    event_inj: u32
    event_inj_err: u32
    cold: u8
    """Bit p: nested paging has not mapped page p."""
    door: u64
    """On bare metal: the software exit code of the VMGEXIT that this step executed; the world answers it. Or
    SVM_EXIT_VMRUN, if it would enter a guest."""
    read_dr6: u32
    """In a guest whose reads of DR6 are intercepted: what its hypervisor has them find."""
    seen: u8
    seen_vector: u8
    """The vector delivered, or the number of the mark."""
    seen_rip: u16
    seen_rflags: u32
    """TF and IF as pushed; RF is not compared."""
    seen_error: u32
    """The error code; for #DB, which has none, DR6 as its handler can read it."""
    memory: Annotated[list[int], Array(32, MEMORY_WORDS)]
    gif: u1 = 1
    """The global interrupt flag, on bare metal. A guest's is virtual, in its VMCB, or its hypervisor keeps it."""
    efer: u32 = EFER_BOOTED
    """EFER, on bare metal and of an encrypted guest, whose own SVME hardware keeps; another guest's is in its VMCB."""
    smi_latched: u1 = 0
    init_latched: u1 = 0
    sipi_latched: u1 = 0
    waits_for_sipi: u1 = 0
    """On bare metal: an INIT was taken, and no SIPI yet. Nothing else is."""
    apic_off: u1 = 0
    """On bare metal: software has not enabled the local APIC since an INIT."""
    held: u8 = 0
    """On bare metal: an encrypted guest is in AP reset hold (reset_hold.py: HELD, ASKS_AGAIN)."""
    started: u1 = 0
    """On bare metal: a SIPI has ended the hold, and the guest has not looked yet."""
    smm: u1 = 0
    """On bare metal: the processor is in system-management mode. A guest's SMM is its hypervisor's affair."""
    smm_found: u1 = 0
    """In a guest: VMRUN has begun at the first instruction of its SMI handler."""
    smm_rip: u16 = 0
    smm_rsp: u16 = 0
    smm_cpl: u8 = 0
    smm_ss: u16 = 0
    smm_rflags: u32 = 0
    smm_rax: u64 = 0
    smm_dr6: u32 = 0
    smm_dr7: u32 = 0
    smm_efer: u32 = 0
    smm_shadow: u8 = 0
    smm_halted: u1 = 0
    smm_nmi_masked: u1 = 0
    """smm_rip to smm_nmi_masked: the state-save area in SMRAM."""


def knob(m: Machine, number: u8) -> bool:
    """The value of a disputed rule, and the note that it mattered."""
    m.consulted |= 1 << (number & 31)
    return (m.knobs >> (number & 31)) & 1 != 0


def see_nothing(cpu: Cpu) -> None:
    """Start of a step: the guest has seen nothing yet."""
    cpu.door = 0
    cpu.seen = SEEN_NOTHING
    cpu.seen_vector = 0
    cpu.seen_rip = 0
    cpu.seen_rflags = 0
    cpu.seen_error = 0


def see_delivery(cpu: Cpu, vector: u8, rip: u16, rflags: u32, error: u32) -> None:
    """Record an IDT delivery as the guest sees it. #VC is the guest's own business with its hypervisor."""
    if vector == VC_VECTOR:
        return
    cpu.seen = SEEN_DELIVERY
    cpu.seen_vector = vector
    cpu.seen_rip = rip
    cpu.seen_rflags = rflags & (X86_EFLAGS_TF | X86_EFLAGS_IF)
    cpu.seen_error = error


def see_flags(cpu: Cpu) -> None:
    """Record what PUSHFQ stored."""
    cpu.seen = SEEN_FLAGS
    cpu.seen_rip = cpu.rip
    cpu.seen_rflags = cpu.rflags & (X86_EFLAGS_TF | X86_EFLAGS_IF)


def see_value(cpu: Cpu) -> None:
    """Record the value that `show rax` looks at."""
    cpu.seen = SEEN_VALUE
    cpu.seen_rip = cpu.rip
    cpu.seen_error = wrap32(cpu.rax)


def see_smi(cpu: Cpu, rip: u16, rflags: u32) -> None:
    """Record that the processor has entered SMM."""
    cpu.seen = SEEN_SMI
    cpu.seen_rip = rip
    cpu.seen_rflags = rflags & (X86_EFLAGS_TF | X86_EFLAGS_IF)


def see_mark(cpu: Cpu, number: u8) -> None:
    """Record a `mark`."""
    cpu.seen = SEEN_MARK
    cpu.seen_vector = number
