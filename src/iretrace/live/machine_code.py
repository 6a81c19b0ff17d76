"""From a litmus test to the memory of a real guest: machine code, page tables, GDT, TSS, IDT, stacks.

Each instruction of the test is exactly one instruction of the guest, so that shadows, single-steps and saved RIPs are
what they are in the model. What the test must not notice runs outside of it: a store before main that tells that the
guest has begun, and in front of each handler a few instructions that log the delivery in memory (stubs.py).

A mark is `lea r15, [r15+r15*8+N]`: it appends the digit N to a number of base 9. One instruction, no memory, no flags.
`show rax` is `stosq`: it appends rax to a list in memory. The stack pointer, r14 (next record of the log), r15, rcx
(spins, counted down), rdi (next value shown), rsi (a selector for SS) and r13 (an address that is not canonical) are
taken; in a test with CPUID, which overwrites rax, rbp is the 0 that `push rax` pushes, and in one with SYSCALL rcx and
r11 are its own. User programs see the same pages as their kernel. Where SMM or INIT changes all of
these, log and marks are elsewhere: real_mode.py, which also has what is 16-bit code.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from iretrace.litmus.test import VECTORS, Instruction, Op, Test
from iretrace.live.layout import (
    CODE,
    CODE_END,
    CODE_SELECTOR,
    GDT,
    HOLES,
    IDT,
    INIT,
    LEAD,
    MAIN_STUB,
    MEMORY_END,
    PAGE,
    PAGE_TABLE,
    PAGE_TABLES,
    RESET_VECTOR,
    SECTION_SPACE,
    SMI,
    STACKS,
    SYSCALL,
    TSS,
    UNMAPPED,
    WARM_UP,
)
from iretrace.live.real_mode import firmware, lasting_mark, lasts, lead
from iretrace.live.stacks import UNKNOWN, added, goes_elsewhere, stack_address
from iretrace.live.stubs import stub
from iretrace.machine.cpu import (
    EFER_BOOTED,
    EFER_LMA,
    EFER_LME,
    KERNEL_DS,
    MSR_EFER,
    USER_DS,
)

MAX_MARK = 8
BASE = MAX_MARK + 1
MAX_DIGITS = 20
"""9 ** 20 < 2 ** 64."""
LASTING_MARKS = 16
"""The bytes of an XMM register."""

FIXED = {
    Op.NOP: b"\x90",
    Op.CLI: b"\xfa",
    Op.STI: b"\xfb",
    Op.HLT: b"\xf4",
    Op.MOV_SS: b"\x8e\xd6",  # mov ss, esi
    Op.IRETQ: b"\x48\xcf",
    Op.PAUSE: b"\xf3\x90",
    Op.CPUID: b"\x0f\xa2",
    Op.SPIN: b"\xe2\xfe",  # loop . (counts down rcx)
    Op.PUSH: b"\x50",
    Op.SHOW: b"\x48\xab",  # stosq
    Op.RDMSR: b"\x0f\x32",
    Op.WRMSR: b"\x0f\x30",
    Op.PUSHFQ: b"\x9c",
    Op.POPFQ: b"\x9d",
    Op.INT3: b"\xcc",
    Op.STGI: b"\x0f\x01\xdc",
    Op.CLGI: b"\x0f\x01\xdd",
    Op.VMRUN: b"\x0f\x01\xd8",
    Op.UD2: b"\x0f\x0b",
    Op.RSM: b"\x0f\xaa",
    Op.INT1: b"\xf1",
    Op.SYSCALL: b"\x0f\x05",
    Op.SYSRET: b"\x48\x0f\x07",
    Op.FROM_R11: b"\x4c\x89\xd8",  # mov rax, r11
    Op.TO_R11: b"\x49\x89\xc3",  # mov r11, rax
}

ON_STACK = {Op.OR_STACK: b"\x48\x81\x4c\x24", Op.ANDN_STACK: b"\x48\x81\x64\x24", Op.MOV_STACK: b"\x48\xc7\x44\x24"}
JMP_BYTES = 5
SELF_JUMP = b"\xeb\xfe"
"""A `spin` in a test that needs rcx for something else: CPUID and SYSCALL overwrite it, RDMSR and WRMSR have a number
there."""

MSRS = (Op.RDMSR, Op.WRMSR)
PUSH_0 = b"\x55"
"""push rbp, in a test with CPUID"""

BAD_LOADS = (b"\x48\x8b\x04\x25" + struct.pack("<I", UNMAPPED), b"\x49\x8b\x45\x00")
"""`mov rax, [UNMAPPED]` and `mov rax, [r13]`."""


class NotRunnable(Exception):
    """This test cannot be run on a real KVM here; the message says why."""


@dataclass(frozen=True, slots=True)
class Program:
    """A guest's memory. chunks: address -> bytes. addresses: of each instruction. entry: where the vCPU begins."""

    chunks: Mapping[int, bytes]
    addresses: tuple[int, ...]
    stubs: Mapping[int, tuple[int, int]]
    """Of each vector: from where to where the instructions that log its delivery lie; those in front of main, `smi:`
    and `init:` under the numbers MAIN_STUB, SMI and INIT; none in front of `syscall:`, to which no delivery leads. And
    what is in front of an instruction, under LEAD and its number."""
    claimed: Mapping[int, int]
    """Of each vector, and of SMI: behind which instruction of its stub it has a record of its own."""
    entry: int

    def place(self, rip: int) -> int:
        """The instruction that a saved RIP means, or -1. In front of a section's first one is at its first one, as the
        16-bit code behind an INIT is."""
        if INIT in self.stubs and (rip < FIRMWARE_BYTES or rip == RESET_VECTOR):
            rip = self.stubs[INIT][1]
        for start, end in self.stubs.values():
            if start <= rip < end:
                rip = end
        return self.addresses.index(rip) if rip in self.addresses else -1


FIRMWARE_BYTES = 0x100
"""More than the 16-bit code behind an INIT has, whose first byte is at 0."""

USE_RAX = frozenset({Op.MOV_RAX, Op.TO_DR, Op.FROM_DR, Op.LOAD, Op.LOAD_BAD, Op.SHOW})
ARITHMETIC = (Op.OR_STACK, Op.ANDN_STACK, Op.ADD_RSP)
"""Instructions that change flags which the model does not have."""


def assemble(test: Test, cuts: Mapping[int, int]) -> Program:
    """The guest of a test. cuts: section start -> instruction index that begins a page (its section's first if absent).

    NotRunnable for what only an encrypted guest can do, and for what else live guests do not have.
    """
    _refuse(test)
    sections = sections_of(test)
    starts = sorted(sections)
    labels = {instruction.label: index for index, instruction in enumerate(test.code) if instruction.label}
    addresses = _addresses(test, starts, cuts)
    stubs = {start: stub(vector, test, msr_of(test), addresses) for start, vector in sections.items()}
    chunks = dict(_tables(test, addresses))
    where: dict[int, tuple[int, int]] = {}
    claimed: dict[int, int] = {}
    for start, vector in sections.items():
        end = _end(test, starts, start)
        body = b"".join(lead(test, index) + _one(test, index, addresses, labels) for index in range(start, end))
        before = stubs[start]
        first = addresses[start] - len(lead(test, start)) - len(before.code)
        chunks[first] = before.code + body
        where[vector] = (first, addresses[start])
        if before.claimed:
            claimed[vector] = first + before.claimed
    leads = {
        LEAD + at: (addresses[at] - len(code), addresses[at])
        for at in range(len(test.code))
        if (code := lead(test, at))
    }
    chunks |= firmware({vector: first for vector, (first, _) in where.items()}, SMI, INIT, efer_of(test))
    return Program(chunks, tuple(addresses), leads | where, claimed, where[MAIN_STUB][0])


def _refuse(test: Test) -> None:
    """NotRunnable for a test that no guest can be made of."""
    if len(test.marks) > MAX_MARK:
        raise NotRunnable(f"more than {MAX_MARK} marks")
    if any(vector == VECTORS["ss"] for vector, _ in test.handlers):
        raise NotRunnable("QEMU raises #NP where IRETQ loads an SS that is not present")
    ops = {instruction.op for instruction in test.code}
    if {Op.VMRUN, Op.WRMSR} <= ops:
        raise NotRunnable("VMRUN of a guest that writes EFER has no contract")
    if test.cpl and any(i.op is Op.MOV_SS and section_of(test, at) != test.main for at, i in enumerate(test.code)):
        raise NotRunnable("MOV SS in kernel mode, where the selector at hand is the user program's")
    if Op.FROM_R11 in ops and not ops.isdisjoint(ARITHMETIC):
        raise NotRunnable("SYSCALL saves arithmetic flags, too, which the model does not have")
    if test.frame:
        raise NotRunnable("a frame that is there before main is not in live guests yet")
    adds = [at for at, instruction in enumerate(test.code) if instruction.op is Op.ADD_RSP]
    if any(added(test, section_of(test, at), at) == UNKNOWN for at in adds):
        raise NotRunnable("RSP goes to another stack, which lies elsewhere in a live guest")
    if test.init >= 0 and _has(test, Op.SHOW):
        raise NotRunnable("INIT clears the register that counts the values shown")
    if lasts(test) and CODE + len(sections_of(test)) * SECTION_SPACE > CODE_END:
        raise NotRunnable("more sections than there is room for in front of SMRAM")


def sections_of(test: Test) -> dict[int, int]:
    """Of each section: its first instruction, and its vector, or MAIN_STUB, SMI, INIT or SYSCALL."""
    others = {MAIN_STUB: test.main, SMI: test.smi, INIT: test.init, SYSCALL: test.syscall}
    return {start: vector for vector, start in test.handlers} | {at: what for what, at in others.items() if at >= 0}


def section_of(test: Test, index: int) -> int:
    """The first instruction of the section that an instruction belongs to, or -1."""
    return max((start for start in sections_of(test) if start <= index), default=-1)


def data_selector(test: Test) -> int:
    """What SS holds while main runs."""
    return USER_DS if test.cpl else KERNEL_DS


def _end(test: Test, starts: list[int], start: int) -> int:
    """Where the section that starts there ends."""
    return min((other for other in starts if other > start), default=len(test.code))


def _has(test: Test, op: Op) -> bool:
    return any(instruction.op is op for instruction in test.code)


def counts_spins(test: Test) -> bool:
    """Whether rcx tells how often the guest has spun. INIT clears it."""
    return test.init < 0 and not any(_has(test, op) for op in (Op.CPUID, Op.SYSCALL, *MSRS))


def msr_of(test: Test) -> int:
    """The number of the MSR that the test accesses, which its guest has in rcx; 0 if it accesses none."""
    return next((instruction.arg for instruction in test.code if instruction.op in MSRS), 0)


def has_svm(test: Test) -> bool:
    """Whether the guest's CPUID has SVM: as in the model, if it accesses EFER."""
    return msr_of(test) == MSR_EFER


def efer_of(test: Test) -> int:
    """EFER when main begins, and in 64-bit mode behind an SMI, an INIT or a SIPI."""
    return EFER_BOOTED if has_svm(test) or test.syscall >= 0 else EFER_LME | EFER_LMA


def number_of(lasting: int) -> int:
    """Lasting marks, a byte each, as the number that marks are otherwise; where some may be lost, no such number."""
    if lasting >> 8 * (LASTING_MARKS - 1):
        return (1 << 64) - 1
    number = 0
    for byte in lasting.to_bytes(LASTING_MARKS, "big"):
        number = number * BASE + byte
    return number


def _one(test: Test, index: int, addresses: list[int], labels: Mapping[str, int] | None) -> bytes:
    if test.code[index].op is Op.SPIN and not counts_spins(test):
        return SELF_JUMP
    if test.code[index].op is Op.PUSH and _has(test, Op.CPUID):
        return PUSH_0
    if test.code[index].op is Op.JMP and lead(test, test.code[index].arg):
        target = addresses[test.code[index].arg] - len(lead(test, test.code[index].arg))
        return b"\xe9" + struct.pack("<i", target - addresses[index] - JMP_BYTES)
    if test.code[index].op is Op.MARK and lasts(test):
        return lasting_mark(test.code[index].arg)
    if test.code[index].op is Op.ADD_RSP and goes_elsewhere(test, index):
        return b"\x48\x81\xc4" + struct.pack("<i", added(test, section_of(test, index), index))
    return encode(test.code[index], index, addresses, labels)


def _addresses(test: Test, starts: list[int], cuts: Mapping[int, int]) -> list[int]:
    """Where each instruction lies: sections one after the other, each with its cut at the beginning of a page."""
    addresses = [0] * len(test.code)
    for number, start in enumerate(starts):
        end = _end(test, starts, start)
        offsets = [0]
        for index in range(start, end):
            offsets[-1] += len(lead(test, index))
            offsets.append(offsets[-1] + _size(test, index))
        boundary = CODE + number * SECTION_SPACE + PAGE
        base = boundary - offsets[cuts.get(start, start) - start]
        for index in range(start, end):
            addresses[index] = base + offsets[index - start]
    return addresses


def _size(test: Test, index: int) -> int:
    """The bytes of an instruction; jumps are always long."""
    return JMP_BYTES if test.code[index].op == Op.JMP else len(_one(test, index, [0] * 256, None))


def encode(instruction: Instruction, index: int, addresses: list[int], labels: Mapping[str, int] | None) -> bytes:
    """The machine code of one instruction. labels: None while only the size matters."""
    op, arg = instruction.op, instruction.arg
    if op in FIXED:
        return FIXED[op]
    if op == Op.MARK:
        return b"\x4f\x8d\x7c\xff" + bytes([arg + 1])
    if op == Op.JMP:
        return b"\xe9" + struct.pack("<i", addresses[arg] - addresses[index] - JMP_BYTES)
    if op == Op.INT:
        return b"\xcd" + bytes([arg])
    if op == Op.ADD_RSP:
        return b"\x48\x81\xc4" + struct.pack("<I", arg * 8)
    if op in ON_STACK:
        value = arg & 0xFF_FFFF
        operand = instruction.text.rsplit(" ", 1)[-1]
        if op == Op.MOV_STACK and labels is not None and operand in labels:
            value = addresses[labels[operand]]
        if op == Op.ANDN_STACK:
            value = ~value & 0xFFFF_FFFF
        return ON_STACK[op] + bytes([(arg >> 24) * 8]) + struct.pack("<I", value)
    if op in USE_RAX:
        return _with_rax(instruction, addresses)
    if op in (Op.VMGEXIT, Op.SKIP, Op.VC_DB):
        raise NotRunnable("what only encrypted guests can do")
    raise NotRunnable(f"there is no machine code yet for '{instruction.text}'")


def _with_rax(instruction: Instruction, addresses: list[int]) -> bytes:
    """What loads RAX, stores it, or moves it to a debug register."""
    op, arg = instruction.op, instruction.arg
    if op == Op.LOAD_BAD:
        return BAD_LOADS[arg]
    if op == Op.LOAD:
        return b"\x48\x8b\x44\x24" + bytes([arg * 8])
    if op in (Op.TO_DR, Op.FROM_DR):
        return bytes([0x0F, 0x23 if op == Op.TO_DR else 0x21, 0xC0 | arg << 3])
    if instruction.text.startswith("mov"):
        return b"\xb8" + struct.pack("<I", arg)  # mov eax, arg
    on_stack = "_stack" in instruction.text
    return b"\x48\x8d\x04\x25" + struct.pack("<I", stack_address(arg) if on_stack else addresses[arg])  # lea rax


# What the test does not notice. -----------------------------------------------------------------------------------


def _warm_up() -> bytes:
    """Write to every page that is there, then leave by an OUT."""
    last = HOLES[-1] + PAGE
    ranges = ((PAGE, HOLES[0], PAGE), (HOLES[0] + PAGE, last, 2 * PAGE), (last, MEMORY_END, PAGE))
    return b"".join(_touch_pages(*pages) for pages in ranges) + b"\xe6\x80"  # out 0x80, al


def _touch_pages(first: int, end: int, step: int) -> bytes:
    code = b"\xb9" + struct.pack("<I", first)  # mov ecx, first
    loop = b"\xf0\x80\x09\x00"  # lock or byte [rcx], 0
    loop += b"\x81\xc1" + struct.pack("<I", step)  # add ecx, step
    loop += b"\x81\xf9" + struct.pack("<I", end)  # cmp ecx, end
    loop += b"\x72" + struct.pack("<b", -len(loop) - 2)  # jb loop
    return code + loop


# Tables of the processor. -----------------------------------------------------------------------------------------


def _tables(test: Test, addresses: list[int]) -> Mapping[int, bytes]:
    """Page tables, GDT, TSS and IDT. Accessed and dirty bits are set already, so that nothing here is written."""
    return {
        PAGE_TABLES: struct.pack("<Q", PAGE_TABLES + PAGE | 0x27),
        PAGE_TABLES + PAGE: struct.pack("<Q", PAGE_TABLES + 2 * PAGE | 0x27),
        PAGE_TABLES + 2 * PAGE: struct.pack("<Q", PAGE_TABLE | 0x27),
        PAGE_TABLE: _page_table(),
        GDT: _gdt(),
        TSS: _tss(),
        IDT: _idt(test, addresses),
        WARM_UP: _warm_up(),
    }


def _page_table() -> bytes:
    """The first 2 MiB, without the holes, for user programs as well: neither SMEP nor SMAP is on."""
    return b"".join(struct.pack("<Q", 0 if page * PAGE in HOLES else page * PAGE | 0x67) for page in range(512))


def _gdt() -> bytes:
    """Null, null, 64-bit code, data, TSS (16 bytes), user data and code, and code and data that are not present."""
    tss = 0x67 | (TSS & 0xFFFFFF) << 16 | 0x8B << 40
    code, data = 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF
    user, present = 0x6000_0000_0000, 0x8000_0000_0000
    return struct.pack("<10Q", 0, 0, code, data, tss, 0, data | user, code | user, code & ~present, data & ~present)


IST_SLOTS = {name: number for number, name in enumerate(("nmi", "vc", "df", "db"), start=1)}


def _tss() -> bytes:
    """RSP0, for what comes from user mode, and the IST."""
    tss = bytearray(104)
    struct.pack_into("<Q", tss, 4, STACKS["rsp0"])
    for name, slot in IST_SLOTS.items():
        struct.pack_into("<Q", tss, 0x24 + 8 * (slot - 1), STACKS[name])
    return bytes(tss)


def _idt(test: Test, addresses: list[int]) -> bytes:
    """Interrupt gates, that of #BP for user programs as well; those of vectors without a handler are not present."""
    idt = bytearray(struct.pack("<HHBBHII", 0, CODE_SELECTOR, 0, 0x0E, 0, 0, 0) * 256)
    names = {vector: name for name, vector in VECTORS.items()}
    for vector, start in test.handlers:
        address = addresses[start] - len(stub(vector, test, msr_of(test), addresses).code)
        ist = IST_SLOTS[names[vector]] if vector in test.ist else 0
        kind = 0xEE if vector == VECTORS["bp"] else 0x8E
        gate = struct.pack("<HHBBHII", address & 0xFFFF, CODE_SELECTOR, ist, kind, address >> 16, 0, 0)
        idt[vector * 16 : vector * 16 + 16] = gate
    return bytes(idt)
