"""A litmus test as plain data. The parser makes it; world and report read it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Op(IntEnum):
    """Instructions of litmus programs: real mnemonics, and three of ours (mark, spin, vmgexit NAME)."""

    NOP = 0
    CLI = 1
    STI = 2
    HLT = 3
    MOV_SS = 4
    """`mov ss, ax`: reloads SS with the value it has; what matters is its shadow."""
    IRETQ = 5
    JMP = 6
    """arg: instruction index."""
    PAUSE = 7
    CPUID = 8
    MARK = 9
    """arg: index into Test.marks. Retires in one step and is observable."""
    SPIN = 10
    """`jmp .`: the guest keeps the CPU and does nothing observable any more."""
    VMGEXIT = 11
    """arg: the GHCB software exit code; VC_FORWARD forwards the error code of the #VC being handled.

    A stand-in for the few instructions with which a guest fills the GHCB and executes VMGEXIT."""
    SKIP = 12
    """In a #VC handler: drop the error code, advance the saved RIP, as Linux's entry code and vc_finish_insn() do."""

    PUSH = 13
    """`push rax`: touches the stack page (RAX is 0)."""
    PUSHFQ = 14
    """Pushes RFLAGS. What it pushes (TF, IF) is observable: the guest can read it."""
    POPFQ = 15
    """Pops RFLAGS: TF and IF take effect; TF traps first after the next instruction."""
    INT3 = 16
    """`int3`: #BP, a trap; the saved RIP is behind it."""
    INT = 17
    """`int 0x20`: a software interrupt through the gate of handler `int`. arg: the vector."""
    OR_STACK = 18
    """`or qword [rsp+N], IMM`. arg: N / 8 << 24 | IMM."""
    ANDN_STACK = 19
    """`and qword [rsp+N], ~IMM`. arg: N / 8 << 24 | IMM, the bits to clear."""
    MOV_STACK = 20
    """`mov qword [rsp+N], IMM` (a number or a label). arg: N / 8 << 24 | IMM."""
    ADD_RSP = 21
    """`add rsp, N`. arg: N / 8."""
    STGI = 22
    """GIF := 1; #UD unless EFER.SVME is set."""
    CLGI = 23
    """GIF := 0; #UD unless EFER.SVME is set."""
    UD2 = 24
    MOV_RAX = 25
    """`mov rax, V` and `lea rax, [...]`. arg: the value; an address is an instruction index or a word address."""
    TO_DR = 26
    """`mov drN, rax`. arg: N."""
    FROM_DR = 27
    """`mov rax, drN`. arg: N."""
    LOAD = 28
    """`mov rax, [rsp+N]`. arg: N / 8."""
    LOAD_BAD = 29
    """`mov rax, [unmapped]` (arg 0, #PF) and `mov rax, [noncanonical]` (arg 1, #GP)."""
    SHOW = 30
    """`show rax`: the guest looks at RAX, and its value is observable."""
    VC_DB = 31
    """In a #VC handler: #VC(41h) goes on in db:, as in Linux."""
    INT1 = 32
    """`int1` (ICEBP): #DB behind it, DR6 as it was."""
    SYSCALL = 33
    """Goes to `syscall:`, in kernel mode. RCX and R11 hold what SYSRETQ needs."""
    SYSRET = 34
    """`sysretq`: goes to user mode where RCX says, with the flags in R11."""
    FROM_R11 = 35
    """`mov rax, r11`: the flags that SYSCALL saved."""
    TO_R11 = 36
    """`mov r11, rax`: the flags that SYSRETQ loads."""
    RDMSR = 40
    """`rdmsr efer`: RAX := EFER. arg: the number of the MSR."""
    WRMSR = 41
    """`wrmsr efer`: EFER := RAX. arg: the number of the MSR."""
    VMRUN = 42
    """`vmrun rax`: enters the guest whose VMCB is at RAX, which is not modelled; #UD unless EFER.SVME is set."""
    RSM = 48
    """Leaves SMM; #UD elsewhere."""
    LOOK_AT_HOLD = 64
    """Behind `vmgexit ap_reset_hold`: the guest looks at SW_EXITINFO2, and if it is 0, goes back and asks again. arg:
    that of VMGEXIT; if that is a request of the GHCB MSR protocol, the guest looks at the MSR."""


VC_FORWARD = 0xFFFF_FFFF
"""Operand of VMGEXIT: use the error code that #VC delivery pushed as software exit code."""

VECTORS = {"nmi": 2, "df": 8, "vc": 29, "db": 1, "bp": 3, "ud": 6, "np": 11, "ss": 12, "gp": 13, "pf": 14} | {
    "int": 0x20,
    "irq": 0x30,
}
"""Handlers that a test may define, and their vectors."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. text is its source text, line its line in the litmus file, label the label in front of it."""

    op: Op
    arg: int
    text: str
    line: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event from outside. promised: happens in every fair run; else `maybe`.

    at: instruction index for `at LABEL: nmi` (complete before that instruction executes for the first time), else -1.
    within: index of the LOOK_AT_HOLD behind the VMGEXIT for `in LABEL: init` (it begins while the guest is held there,
    and when those before it of the same hold are done), else -1.
    debugger: for `guest-debug`, what the VMM does: "step", "break" or "off". target: the instruction that break is for.
    """

    kind: str
    promised: bool = True
    at: int = -1
    line: int = 0
    debugger: str = ""
    target: int = -1
    within: int = -1


@dataclass(frozen=True, slots=True)
class Clause:
    """`always` / `sometimes` / `never` MARK...: about the marks of every / some / no infinite outcome, in order."""

    quantifier: str
    marks: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Reach:
    """`reach:` a conjunction over the hypervisor's view; some reachable state must meet it, else the test is vacuous.

    terms: (field, operator, value) with operator one of == != < <= > >=; a bare field means != 0, `not field` == 0.
    """

    terms: tuple[tuple[str, str, int], ...]
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Test:
    """One litmus test. code is all sections one after the other; main and handlers index into it."""

    name: str
    about: str
    path: str
    vcpus: tuple[str, ...]
    hosts: tuple[str, ...]
    """("tickless",) unless the test says otherwise."""
    outside: tuple[Arrival, ...]
    code: tuple[Instruction, ...]
    main: int
    handlers: tuple[tuple[int, int], ...]
    """(vector, instruction index) for each handler defined."""
    ist: frozenset[int]
    """Vectors delivered on a stack of their own (IST): a nested delivery overwrites the frame of the first."""
    cold: frozenset[str]
    """Stack pages that nested paging has not mapped yet: "main", "rsp0" (what user mode's events come to), or a
    handler's IST stack by its name ("nmi", ...)."""
    interrupts: bool
    """RFLAGS.IF when main starts."""
    marks: tuple[str, ...]
    reach: Reach | None
    clauses: tuple[Clause, ...]
    cpl: int = 0
    """3 if main is a user program."""
    syscall: int = -1
    """The instruction index of `syscall:`, or -1."""
    cold_code: int = -1
    """The instruction whose page nested paging has not mapped yet, or -1."""
    frame: tuple[str, int] | None = None
    """(stack page, instruction): the frame at the top of that stack is there before main; IRETQ returns by it."""
    smi: int = -1
    """Instruction index of the SMI handler; -1: there is none."""
    init: int = -1
    """Instruction index of what the processor executes behind an INIT, or behind a SIPI; -1: there is none."""
    ap: bool = False
    """An application processor: after an INIT it waits for a SIPI."""


def before_in_hold(outside: tuple[Arrival, ...], number: int) -> tuple[int, ...]:
    """The arrivals before this one that begin in the same hold. They come from one CPU, one after the other."""
    return tuple(n for n in range(number) if outside[n].within == outside[number].within >= 0)
