"""What runs in front of main and of each handler, and the test does not notice: a store that tells that the guest has
begun, and a few instructions that log the delivery in memory. Nothing here exits."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from iretrace.litmus.test import VECTORS, Test
from iretrace.live.layout import ARMED, INIT, MAIN_STUB, RECORD_BYTES, SMI, STACKS, SYSCALL, WRAP_BIT
from iretrace.live.real_mode import (
    claim,
    init_stub,
    lasts,
    leave_firmware,
    log_smi,
    smi_stub,
    store_marks,
    take_early_nmi,
)

ERROR_CODE_VECTORS = frozenset(VECTORS[name] for name in ("df", "np", "ss", "gp", "pf", "vc"))


@dataclass(frozen=True, slots=True)
class Stub:
    """What runs in front of a section. claimed: after how many bytes it has a record of the log; 0: it takes none."""

    code: bytes
    claimed: int = 0


def stub(vector: int, test: Test, rcx: int, addresses: Sequence[int]) -> Stub:
    """In front of the section of this vector, or of main, `smi:` or `init:`. rcx: as main has it. addresses: of each
    instruction."""
    if vector == MAIN_STUB:
        return Stub(_begun())
    if vector == INIT:
        return Stub(init_stub(rcx) + _begun() + _take_early_nmi(test, addresses))
    if vector == SYSCALL:
        return Stub(b"")
    return _log_smi() if vector == SMI else _log_delivery(vector, test)


def _take_early_nmi(test: Test, addresses: Sequence[int]) -> bytes:
    nmi = VECTORS["nmi"]
    start = next((start for vector, start in test.handlers if vector == nmi), -1)
    if start < 0:
        return leave_firmware()
    handler = addresses[start] - len(_log_delivery(nmi, test).code)
    return take_early_nmi(addresses[test.init], handler, STACKS["nmi" if nmi in test.ist else "main"])


def _begun() -> bytes:
    """mov dword [ARMED], 1"""
    return b"\xc7\x04\x25" + struct.pack("<II", ARMED, 1)


def _log_smi() -> Stub:
    """In registers that RSM brings back; nothing that needs them comes between."""
    before = smi_stub()
    taken = _claim(2, lasting=True)
    return Stub(before + taken.code + log_smi(2, 3) + _log_registers(2, SMI, lasting=True), len(before) + taken.claimed)


def _claim(pointer: int, lasting: bool) -> Stub:
    """Take the next record. One XADD does it, so a delivery that comes in between takes another."""
    code = bytes([0x41, 0xB8 + pointer]) + struct.pack("<I", RECORD_BYTES)  # mov pointer, RECORD_BYTES
    if lasting:
        xadd, wrap = claim(pointer, WRAP_BIT)
    else:
        xadd = b"\x4d\x0f\xc1" + bytes([0xC6 | pointer << 3])  # xadd r14, pointer
        wrap = b"\x49\x0f\xba\xf6" + bytes([WRAP_BIT])  # btr r14, WRAP_BIT
    return Stub(code + xadd + wrap, len(code + xadd))


def _log_registers(pointer: int, vector: int, lasting: bool) -> bytes:
    """The marks so far, the vector, the counts of spins and of values shown."""
    marks = store_marks(pointer) if lasting else b"\x4d\x89" + bytes([0x78 | pointer, 16])  # mov [pointer+16], r15
    code = marks + b"\x49\x89" + bytes([0x48 | pointer, 32])  # mov [pointer+32], rcx
    code += b"\x49\x89" + bytes([0x78 | pointer, 40])  # mov [pointer+40], rdi
    code += b"\x41\xc7" + bytes([0x40 | pointer, 24])  # mov dword [pointer+24], vector
    return code + struct.pack("<I", vector)


def _log_delivery(vector: int, test: Test) -> Stub:
    """Log a delivery: RIP, RFLAGS, the marks so far, vector, error code, the counts of spins and of values shown.

    NMIs, which may come between any two of these instructions, use registers of their own (r8, r9; the others r10,
    r12), and the stack is only read.
    """
    pointer, value = (0, 1) if vector == VECTORS["nmi"] else (2, 4)
    frame = 8 if vector in ERROR_CODE_VECTORS else 0

    def load(offset: int) -> bytes:
        return b"\x4c\x8b" + bytes([0x44 | value << 3, 0x24, offset])  # mov value, [rsp+offset]

    def store(offset: int) -> bytes:
        return b"\x4d\x89" + bytes([0x40 | value << 3 | pointer, offset])  # mov [pointer+offset], value

    taken = _claim(pointer, lasts(test))
    code = taken.code + load(frame) + store(0) + load(frame + 16) + store(8)
    code += _log_registers(pointer, vector, lasts(test))
    if frame:
        code += load(0) + b"\x45\x89" + bytes([0x40 | value << 3 | pointer, 28])  # mov [pointer+28], value (32 bits)
    return Stub(code, taken.claimed)
