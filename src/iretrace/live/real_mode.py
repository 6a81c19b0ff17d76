"""Where SMI, INIT and SIPI lead: 16-bit code that switches to 64-bit mode and goes on in front of `smi:` or `init:`.

RSM brings back every general register as SMRAM has it, and INIT clears them. So in a test with one of these the log and
the marks are where neither comes to: the place of the next record lies in memory, and the marks are in an XMM register.

On the way from 16-bit to 64-bit mode KVM exits for CR4, EFER and CR0, as it does for any firmware. All of that is over
when the first instruction of the test executes. An NMI that comes on the way from INIT finds no IDT yet: it begins the
way again, with NMIs masked, and is taken at its end. Where it comes between real mode and the IDT, or the test has no
`nmi:`, the guest is lost, and the run is made again.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from iretrace.litmus.test import VECTORS, Op, Test
from iretrace.live.layout import (
    CODE_SELECTOR,
    DATA_SELECTOR,
    EARLY,
    FIRMWARE,
    GDT,
    GDT_LIMIT,
    GDT_POINTER,
    IDT,
    IDT_LIMIT,
    IDT_POINTER,
    IN_FIRMWARE,
    IVT_NMI,
    LOG,
    LOG_NEXT,
    NOT_CANONICAL,
    PAGE_TABLES,
    SMBASE,
    SMM_CODE,
    STACKS,
    TSS_SELECTOR,
    VALUES,
)
from iretrace.machine.cpu import EFER_LMA, MSR_EFER

SAVED_RFLAGS, SAVED_RIP = SMBASE + 0xFF70, SMBASE + 0xFF78
"""In AMD64's state-save area (APM vol. 2, "SMRAM State-Save Area"), which guests with long mode have."""
SAVED_RDI = SMBASE + 0xFFC0
SAVED_REGISTERS = (
    (0xFF90, b"\x4c\x8b\x2c\x25"),  # mov r13, [...]
    (0xFFC0, b"\x48\x8b\x3c\x25"),  # mov rdi, [...]
    (0xFFD0, b"\x48\x8b\x2c\x25"),  # mov rbp, [...]
    (0xFFD8, b"\x48\x8b\x24\x25"),  # mov rsp, [...]
    (0xFFE8, b"\x48\x8b\x14\x25"),  # mov rdx, [...]
    (0xFFF0, b"\x48\x8b\x0c\x25"),  # mov rcx, [...]
    (0xFFF8, b"\x48\x8b\x04\x25"),  # mov rax, [...]
)
"""Where it has the registers that a test uses, and what loads them: 16-bit code cannot keep their upper halves."""

CR0, CR4 = 0x8000_0033, 0x220
ON_THE_WAY, EARLY_NMI = 1, 2
"""IN_FIRMWARE: an NMI has not come, has come."""

MARKS_AT = 48
"""In a record: the marks, 16 bytes."""


def lasts(test: Test) -> bool:
    """Whether log and marks have to outlast RSM or INIT."""
    return test.smi >= 0 or test.init >= 0


def lasting_mark(number: int) -> bytes:
    """`palignr xmm8, xmmN, 15`: appends the top byte of xmmN, which is N + 1. No memory, no flags."""
    return b"\x66\x44\x0f\x3a\x0f" + bytes([0xC0 | number]) + b"\x0f"


def lead(test: Test, index: int) -> bytes:
    """What runs in front of an instruction, unnoticed: in front of RSM, which brings rdi back from SMRAM, the place for
    the next value shown goes there, `mov [SAVED_RDI], rdi`."""
    shows = any(instruction.op is Op.SHOW for instruction in test.code)
    if test.code[index].op is not Op.RSM or not shows or not 0 <= test.smi <= index:
        return b""
    return b"\x48\x89\x3c\x25" + struct.pack("<I", SAVED_RDI)


def store_marks(pointer: int) -> bytes:
    """`movdqu [rP+MARKS_AT], xmm8`, P being 8 + pointer."""
    return b"\xf3\x45\x0f\x7f" + bytes([0x40 | pointer, MARKS_AT])


def claim(pointer: int, wrap_bit: int) -> tuple[bytes, bytes]:
    """`xadd [LOG_NEXT], rP` and `btr qword [LOG_NEXT], wrap_bit`, P being 8 + pointer."""
    where = b"\x25" + struct.pack("<I", LOG_NEXT)
    return b"\x4c\x0f\xc1" + bytes([4 | pointer << 3]) + where, b"\x48\x0f\xba\x34" + where + bytes([wrap_bit])


def log_smi(pointer: int, value: int) -> bytes:
    """To the record at 8 + pointer: where the SMI came, and with which flags, as the handler can read it in SMRAM."""
    code = b""
    for offset, saved in ((0, SAVED_RIP), (8, SAVED_RFLAGS)):
        code += b"\x4c\x8b" + bytes([4 | value << 3]) + b"\x25" + struct.pack("<I", saved)  # mov value, [saved]
        code += b"\x4d\x89" + bytes([0x40 | value << 3 | pointer, offset])  # mov [pointer+offset], value
    return code


def smi_stub() -> bytes:
    """In front of `smi:`, in 64-bit mode: IDT, segments, and the registers as they were. GDTR and TR are what they were
    all along."""
    return _idt_and_segments() + b"".join(load + struct.pack("<I", SMBASE + offset) for offset, load in SAVED_REGISTERS)


def take_early_nmi(init: int, nmi: int, stack: int) -> bytes:
    """Behind the rest of the way to `init:`: it is over, and an NMI that has come on it is taken now, before the first
    instruction, as the IDT would have it. NMIs are still masked. init, nmi: addresses; stack: where the frame goes."""
    code = b"\x66\x83\x3c\x25" + struct.pack("<IB", IN_FIRMWARE, EARLY_NMI)  # cmp word [IN_FIRMWARE], EARLY_NMI
    code += leave_firmware()
    taken = b"\xbc" + struct.pack("<I", stack)  # mov esp, stack
    taken += bytes([0x6A, DATA_SELECTOR]) + b"\x68" + struct.pack("<I", STACKS["main"])  # push SS; push RSP
    taken += b"\x6a\x02" + bytes([0x6A, CODE_SELECTOR])  # push RFLAGS; push CS
    taken += b"\x68" + struct.pack("<I", init)  # push init
    taken += b"\x68" + struct.pack("<I", nmi) + b"\xc3"  # push nmi; ret
    return code + bytes([0x75, len(taken)]) + taken  # jne over it


def leave_firmware() -> bytes:
    """`mov word [IN_FIRMWARE], 0`, in 64-bit mode."""
    return b"\x66\xc7\x04\x25" + struct.pack("<IH", IN_FIRMWARE, 0)


def init_stub(rcx: int) -> bytes:
    """In front of `init:`, in 64-bit mode: IDT, segments, TSS, a stack, and the registers with which main began."""
    code = _idt_and_segments()
    code += b"\x80\x24\x25" + struct.pack("<I", GDT + TSS_SELECTOR + 5) + b"\xfd"  # and byte [TSS type], ~2: not busy
    code += b"\xb8" + struct.pack("<I", TSS_SELECTOR) + b"\x0f\x00\xd8"  # mov eax, TSS_SELECTOR; ltr ax
    code += b"\xbc" + struct.pack("<I", STACKS["main"])  # mov esp, the top of the stack
    code += b"\xbf" + struct.pack("<I", VALUES)  # mov edi, VALUES
    code += b"\x49\xbd" + struct.pack("<Q", NOT_CANONICAL)  # mov r13, NOT_CANONICAL
    code += b"\xb9" + struct.pack("<I", rcx)  # mov ecx, rcx
    return code + b"".join(bytes([register]) + bytes(4) for register in (0xB8, 0xBA, 0xBD))  # mov eax, edx, ebp, 0


def _idt_and_segments() -> bytes:
    code = b"\x0f\x01\x1c\x25" + struct.pack("<I", IDT_POINTER)  # lidt [IDT_POINTER]
    code += b"\xbe" + struct.pack("<I", DATA_SELECTOR)  # mov esi, DATA_SELECTOR
    return code + b"\x8e\xde\x8e\xc6\x8e\xd6"  # mov ds, esi; mov es, esi; mov ss, esi


def firmware(stubs: Mapping[int, int], smi: int, init: int, efer: int) -> Mapping[int, bytes]:
    """What lies in the memory of a guest with an SMI handler or code behind INIT. stubs: where they go on."""
    found: dict[int, bytes] = {}
    if smi in stubs:
        found[SMM_CODE] = to_64_bits(stubs[smi], efer)
    if init in stubs:
        found[FIRMWARE] = enter_firmware(ON_THE_WAY) + to_64_bits(stubs[init], efer)
        again = to_64_bits(stubs[init], efer) if VECTORS["nmi"] in stubs else b"\xf4\xeb\xfd"  # or hlt, for good
        found[EARLY] = enter_firmware(EARLY_NMI) + again
        found[IVT_NMI] = struct.pack("<HH", 0, EARLY >> 4)
    if found:
        found[GDT_POINTER] = struct.pack("<HQ", GDT_LIMIT, GDT)
        found[IDT_POINTER] = struct.pack("<HQ", IDT_LIMIT, IDT)
        found[LOG_NEXT] = struct.pack("<Q", LOG)
    return found


def enter_firmware(how: int) -> bytes:
    """`mov word [IN_FIRMWARE], how`, in 16-bit mode with DS at 0."""
    return b"\xc7\x06" + struct.pack("<HH", IN_FIRMWARE, how)


def to_64_bits(target: int, efer: int) -> bytes:
    """From 16-bit mode, with DS at 0, to 64-bit code at `target`. It changes EAX, ECX and EDX, and no flags."""

    def eax(value: int) -> bytes:
        return b"\x66\xb8" + struct.pack("<I", value)  # mov eax, value

    code = b"\x66\x0f\x01\x16" + struct.pack("<H", GDT_POINTER)  # lgdtl [GDT_POINTER]
    code += eax(CR4) + b"\x0f\x22\xe0"  # mov cr4, eax
    code += eax(PAGE_TABLES) + b"\x0f\x22\xd8"  # mov cr3, eax
    code += b"\x66\xb9" + struct.pack("<I", MSR_EFER) + b"\x66\xba" + bytes(4)  # mov ecx, MSR_EFER; mov edx, 0
    code += eax(efer & ~EFER_LMA) + b"\x0f\x30"  # wrmsr
    code += eax(CR0) + b"\x0f\x22\xc0"  # mov cr0, eax
    return code + b"\x66\xea" + struct.pack("<IH", target, CODE_SELECTOR)  # ljmpl CODE_SELECTOR:target
