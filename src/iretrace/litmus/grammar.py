"""The words of the litmus language and its limits, as tables. docs/litmus.md explains them."""

from __future__ import annotations

from iretrace.litmus.test import VC_FORWARD, VECTORS, Op
from iretrace.machine.cpu import (
    ABSENT_CS,
    ABSENT_DS,
    DR7_GD,
    EFER_BOOTED,
    KERNEL_CS,
    KERNEL_DS,
    PAGE_DB,
    PAGE_DF,
    PAGE_MAIN,
    PAGE_NMI,
    PAGE_VC,
    USER_CS,
    USER_DS,
    X86_EFLAGS_IF,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
)
from iretrace.machine.ghcb import GHCB_MSR_AP_RESET_HOLD_REQ, SVM_VMGEXIT_AP_HLT_LOOP, SVM_VMGEXIT_NMI_COMPLETE
from iretrace.machine.vmcb import EFER_SVME, SVM_EXIT_CPUID

VCPUS = ("plain", "vnmi", "sev-es", "sev-es-vnmi", "sev-es-debugswap")
"""The vCPU kinds of the language."""

ENCRYPTED_VCPUS = ("sev-es", "sev-es-vnmi", "sev-es-debugswap")
"""The kinds whose register state the hypervisor cannot read: they have a GHCB, and get #VC where others exit."""

HOSTS = ("tickless", "ticking")

PROCESSORS = ("bsp", "ap")
"""The bootstrap processor, which INIT starts anew, or an application processor, which then waits for a SIPI."""

EVENTS = ("nmi", "irq", "smi", "init", "sipi", "signal", "guest-debug", "kvm-nmi", "save-restore")
"""Events that can arrive from outside so far."""

DEBUGGER_ACTIONS = ("step", "break", "off")
"""What a VMM can do with `guest-debug`."""

VMM_EVENTS = ("guest-debug", "kvm-nmi", "save-restore")
"""Ioctls of the VMM: a signal brings it to where it can call them."""

HANDLED_EVENTS = {"nmi": "nmi", "irq": "irq", "kvm-nmi": "nmi"}
"""Events that the guest takes. A signal is for the thread that runs the vCPU: the guest must not notice."""

IN_HOLD = ("init", "sipi")
"""Events that have a contract for encrypted guests only while the guest is in AP reset hold."""

NOT_IN_IDT = ("smi", "init")
"""Events that go through no gate: each needs the section of its name, and there is none for encrypted guests."""

SECTIONS = ("main", "syscall", *VECTORS, *NOT_IN_IDT)

ERROR_CODE_SECTIONS = ("np", "ss", "gp", "pf")
"""Handlers that find an error code on the stack and drop it by `add rsp, 8` (#VC's is dropped by `skip`)."""

STACKS = ("nmi", "vc", "df", "db")
"""Handlers that can have a stack of their own."""

SHARED_STACKS = ("main", "rsp0")
"""Stacks that are no handler's own: main's, and that on which user mode's events begin."""

HEADERS = ("test", "about", "vcpu", "host", "outside", "ist", "cold", "frame", "interrupts", "cpl", "processor")
CLAUSES = ("always", "sometimes", "never")
FOOTERS = ("reach", *CLAUSES)

BARE = {
    "nop": Op.NOP,
    "cli": Op.CLI,
    "sti": Op.STI,
    "hlt": Op.HLT,
    "iretq": Op.IRETQ,
    "rsm": Op.RSM,
    "pause": Op.PAUSE,
    "cpuid": Op.CPUID,
    "pushfq": Op.PUSHFQ,
    "popfq": Op.POPFQ,
    "int3": Op.INT3,
    "stgi": Op.STGI,
    "clgi": Op.CLGI,
    "ud2": Op.UD2,
    "spin": Op.SPIN,
    "skip": Op.SKIP,
    "vc_db": Op.VC_DB,
    "int1": Op.INT1,
    "syscall": Op.SYSCALL,
    "sysretq": Op.SYSRET,
}
"""Instructions without an operand."""

FIXED = {
    "push": (Op.PUSH, ("rax",), "push rax"),
    "int": (Op.INT, ("0x20",), "int 0x20"),
    "show": (Op.SHOW, ("rax",), "show rax"),
    "rdmsr": (Op.RDMSR, ("efer",), "rdmsr efer"),
    "wrmsr": (Op.WRMSR, ("efer",), "wrmsr efer"),
    "vmrun": (Op.VMRUN, ("rax",), "vmrun rax"),
}
"""Instructions that the language has with one operand only: what they are, the operand's words, their text."""

MNEMONICS = (*BARE, *FIXED, "mov", "lea", "or", "and", "add", "jmp", "mark", "vmgexit")

VALUES = {
    "TF": X86_EFLAGS_TF,
    "IF": X86_EFLAGS_IF,
    "RF": X86_EFLAGS_RF,
    "CS": KERNEL_CS,
    "SS": KERNEL_DS,
    "USER_CS": USER_CS,
    "USER_SS": USER_DS,
    "ABSENT_CS": ABSENT_CS,
    "ABSENT_SS": ABSENT_DS,
}
"""Names for numbers that stand on the stack: bits of RFLAGS, and selectors of the guest's segments."""

DR7_BITS = {
    **{f"X{n}": 1 << 2 * n for n in range(4)},
    **{f"W{n}": 1 << 2 * n | 0x9 << 16 + 4 * n for n in range(4)},
    **{f"RW{n}": 1 << 2 * n | 0xB << 16 + 4 * n for n in range(4)},
    "GD": DR7_GD,
}
"""Names for parts of DR7: breakpoint N, enabled locally, on execution, on writes, or on reads and writes of 8 bytes."""

EFER_VALUES = {"EFER": EFER_BOOTED, "SVME": EFER_SVME}
"""Names for values of EFER: what it is when main starts, and the bit that enables SVM."""

RAX_VALUES = DR7_BITS | EFER_VALUES
"""Names for what RAX can be loaded with, joined by +."""

DEBUG_REGISTERS = {f"dr{n}": n for n in (0, 1, 2, 3, 6, 7)}

BAD_ADDRESSES = ("unmapped", "noncanonical")
"""What `mov rax, [...]` can try to read; the index is the instruction's argument."""

STACK_TOPS = {
    "main_stack": PAGE_MAIN,
    "nmi_stack": PAGE_NMI,
    "vc_stack": PAGE_VC,
    "df_stack": PAGE_DF,
    "db_stack": PAGE_DB,
}
"""Names for the tops of stacks, in `lea rax, [main_stack - 8]`."""

VMGEXITS = {
    "nmi_complete": SVM_VMGEXIT_NMI_COMPLETE,
    "cpuid": SVM_EXIT_CPUID,
    "forward": VC_FORWARD,
    "ap_reset_hold": SVM_VMGEXIT_AP_HLT_LOOP,
    "ap_reset_hold_msr": GHCB_MSR_AP_RESET_HOLD_REQ,
}
"""Operands of vmgexit, and the software exit codes that they stand for."""

DR7 = 7
DR_ACCESS = (Op.TO_DR, Op.FROM_DR)
RAISES_VC = (Op.CPUID,)
"""Instructions that raise #VC in an SEV-ES guest, whose default handler deals with it."""

MSR_ACCESS = (Op.RDMSR, Op.WRMSR)
"""Instructions that find the number of EFER in RCX, where SYSCALL puts its return address."""

CHANGES_RAX = (Op.CPUID,)
"""Instructions that leave in RAX what the hypervisor makes up."""

USES_RAX = (Op.SHOW, Op.TO_DR, Op.TO_R11, Op.SYSRET, Op.RDMSR, Op.WRMSR)
"""Instructions by which the value of RAX shows, or that of RCX, which CPUID changes as well."""

RAISES_OWN_VC = (Op.STGI, Op.CLGI, Op.VMRUN)
"""Instructions that raise a #VC in an SEV-ES guest which no GHCB event answers: the test has to handle it."""

NEEDS_SVME = (Op.STGI, Op.CLGI, Op.VMRUN)
"""Instructions that are #UD while EFER.SVME is 0, as it is when main starts."""

NOT_ENCRYPTED = (Op.RSM,)
"""Instructions that raise a #VC in an SEV-ES guest which nothing of this model answers."""

HANDLER_OF = {
    Op.INT3: "bp",
    Op.INT: "int",
    Op.UD2: "ud",
    Op.INT1: "db",
}
"""The handler that an instruction enters whenever it is executed."""

RETURNS: dict[str, tuple[str, ...]] = {"main": (), "df": (), "syscall": ("sysretq",), "smi": ("rsm",), "init": ()}
"""How a section can return, where that is not by iretq."""

DEFAULT_VC = ("vmgexit forward", "skip", "iretq")
"""The #VC handler of a test that needs one and has none: what Linux's does, as far as events are concerned. With a #DB
handler `vc_db` comes first."""

VIEW_FIELDS = (
    "nmi_queued",
    "nmi_pending",
    "nmi_injected",
    "nmi_masked",
    "awaiting_iret_completion",
    "nmi_singlestep",
    "int_shadow",
    "gif",
    "event_inj",
    "requests",
    "mp_state",
    "irq_pending",
    "irq_injected",
    "exception_pending",
    "dr6_active",
    "guest_debug",
    "switch_db_regs",
    "svme",
    "smi_pending",
    "smm",
    "init_pending",
)
"""What `reach:` may ask about: the fields of world.protocol.View (a test compares)."""

COMPARISONS = ("==", "!=", "<=", ">=", "<", ">")

NOTHING = "nothing"
"""In a clause: the guest marks nothing at all."""

OPERANDS = (*VALUES, *RAX_VALUES, "efer", *DEBUG_REGISTERS, *BAD_ADDRESSES, *STACK_TOPS)

RESERVED = frozenset({*SECTIONS, *HEADERS, *FOOTERS, *MNEMONICS, *OPERANDS, "maybe", "at", "and", "not", NOTHING})
"""Words that no label and no mark may be."""

MAX_BYTES = 64 * 1024
MAX_INSTRUCTIONS = 64
"""Instructions of a test, those that the parser adds included."""
MAX_ARRIVALS = 8
MAX_WORD = 64
"""Characters of a name."""
MAX_NUMBER = 0xFFFF_FFFF
"""Largest number in `reach:`."""
MAX_VALUE = 0xFF_FFFF
"""Largest number that an instruction writes to the stack."""
MAX_OFFSET = 248
"""Largest offset from RSP, in bytes: a stack is not larger."""
