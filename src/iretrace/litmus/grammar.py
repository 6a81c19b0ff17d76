"""The words of the litmus language and its limits, as tables. docs/litmus.md explains them."""

from __future__ import annotations

from iretrace.litmus.test import VC_FORWARD, VECTORS, Op
from iretrace.machine.ghcb import SVM_VMGEXIT_NMI_COMPLETE
from iretrace.machine.vmcb import SVM_EXIT_CPUID

VCPUS = ("plain", "vnmi", "sev-es", "sev-es-vnmi", "sev-es-debugswap")
"""The vCPU kinds of the language."""

SUPPORTED_VCPUS = ("sev-es",)
"""The vCPU kinds that can be checked so far."""

HOSTS = ("tickless", "ticking")

EVENTS = ("nmi",)
"""Events that can arrive from outside so far."""

LATER_EVENTS = ("irq", "smi", "init")
"""Events that the language will have; named so that the error can say so."""

SECTIONS = ("main", *VECTORS)
LATER_SECTIONS = ("irq", "db", "smi")

HEADERS = ("test", "about", "vcpu", "host", "outside", "ist", "cold", "interrupts")
CLAUSES = ("always", "sometimes", "never")
FOOTERS = ("reach", *CLAUSES)

PLAIN = {
    "nop": Op.NOP,
    "cli": Op.CLI,
    "sti": Op.STI,
    "hlt": Op.HLT,
    "iretq": Op.IRETQ,
    "pause": Op.PAUSE,
    "cpuid": Op.CPUID,
    "spin": Op.SPIN,
    "skip": Op.SKIP,
}
"""Instructions without an operand."""

FIXED = {
    "mov": (Op.MOV_SS, ("ss", ",", "ax"), "mov ss, ax"),
    "push": (Op.PUSH, ("rax",), "push rax"),
}
"""Instructions that the language has with one operand only: what they are, the operand's words, their text."""

MNEMONICS = (*PLAIN, *FIXED, "jmp", "mark", "vmgexit")

VMGEXITS = {"nmi_complete": SVM_VMGEXIT_NMI_COMPLETE, "cpuid": SVM_EXIT_CPUID, "forward": VC_FORWARD}
"""Operands of vmgexit, and the software exit codes that they stand for."""

RAISES_VC = (Op.CPUID,)
"""Instructions that raise #VC in an SEV-ES guest."""

DEFAULT_VC = ("vmgexit forward", "skip", "iretq")
"""The #VC handler of a test that needs one and has none: what Linux's does, as far as events are concerned."""

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
)
"""What `reach:` may ask about: the fields of world.protocol.View (a test compares)."""

COMPARISONS = ("==", "!=", "<=", ">=", "<", ">")

NOTHING = "nothing"
"""In a clause: the guest marks nothing at all."""

RESERVED = frozenset({*SECTIONS, *LATER_SECTIONS, *HEADERS, *FOOTERS, *MNEMONICS, "maybe", "at", "and", "not", NOTHING})
"""Words that no label and no mark may be."""

MAX_BYTES = 64 * 1024
MAX_INSTRUCTIONS = 64
"""Instructions of a test, those that the parser adds included."""
MAX_ARRIVALS = 8
MAX_WORD = 64
"""Characters of a name."""
MAX_NUMBER = 0xFFFF_FFFF
"""Largest number in `reach:`."""
