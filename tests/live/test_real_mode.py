"""16-bit code in front of SMM handlers and of what INIT starts, and the log that outlasts RSM and INIT."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from iretrace.litmus.test import Op
from iretrace.live.layout import (
    EARLY,
    FIRMWARE,
    GDT_POINTER,
    IDT_POINTER,
    IN_FIRMWARE,
    INIT,
    IVT_NMI,
    LOG_NEXT,
    NOT_CANONICAL,
    PAGE,
    RESET_VECTOR,
    SMI,
    SMM_CODE,
    STACKS,
    VALUES,
    WRAP_BIT,
)
from iretrace.live.machine_code import NotRunnable, assemble, number_of
from iretrace.live.observed import digits, read_run
from iretrace.live.real_mode import (
    claim,
    enter_firmware,
    init_stub,
    lasting_mark,
    lead,
    leave_firmware,
    log_smi,
    smi_stub,
    store_marks,
    take_early_nmi,
    to_64_bits,
)
from iretrace.live.walk import Delivery, Mark
from tests.live.guests import first_guest, make_test

SMM = """\
test smm
about An SMI, an NMI and an INIT come while main spins.
vcpu  plain
outside smi, nmi, init

main:
    mark    m
    spin
nmi:
    mark    n
    iretq
smi:
    mark    s
    mark    t
    rsm
init:
    mark    i
    spin
"""

SWITCH = f"""\
.code16
lgdtl {GDT_POINTER:#x}
movl $0x220, %eax
movl %eax, %cr4
movl $0x1000, %eax
movl %eax, %cr3
movl $0xc0000080, %ecx
movl $0, %edx
movl $0x901, %eax
wrmsr
movl $0x80000033, %eax
movl %eax, %cr0
ljmpl $0x10, $0x21000
"""

SEGMENTS = f"""\
lidt {IDT_POINTER:#x}
movl $0x18, %esi
movl %esi, %ds
movl %esi, %es
movl %esi, %ss
"""

SMI_STUB = (
    SEGMENTS
    + """\
movq 0x3ff90, %r13
movq 0x3ffc0, %rdi
movq 0x3ffd0, %rbp
movq 0x3ffd8, %rsp
movq 0x3ffe8, %rdx
movq 0x3fff0, %rcx
movq 0x3fff8, %rax
"""
)

INIT_STUB = (
    SEGMENTS
    + f"""\
andb $~2, 0x4025
movl $0x20, %eax
ltr %ax
movl ${STACKS["main"]:#x}, %esp
movl ${VALUES:#x}, %edi
movabsq ${NOT_CANONICAL:#x}, %r13
movl $7, %ecx
movl $0, %eax
movl $0, %edx
movl $0, %ebp
"""
)

EARLY_NMI = f"""\
cmpw $2, {IN_FIRMWARE:#x}
movw $0, {IN_FIRMWARE:#x}
jne over
movl $0x13000, %esp
pushq $0x18
pushq $0x11000
pushq $2
pushq $0x10
pushq $0x23000
pushq $0x22f00
ret
over:
"""

LOGGING = f"""\
xaddq %r10, {LOG_NEXT:#x}
btrq ${WRAP_BIT}, {LOG_NEXT:#x}
movq 0x3ff78, %r11
movq %r11, 0(%r10)
movq 0x3ff70, %r11
movq %r11, 8(%r10)
movdqu %xmm8, 48(%r10)
palignr $15, %xmm0, %xmm8
palignr $15, %xmm7, %xmm8
"""


def _assembled(text: str, directory: Path) -> list[str]:
    (directory / "a.s").write_text(text)
    subprocess.run(["as", "-o", directory / "a.o", directory / "a.s"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", directory / "a.o", directory / "a.bin"], check=True)
    return _disassembled((directory / "a.bin").read_bytes(), directory, "i8086" if ".code16" in text else "i386:x86-64")


def _disassembled(code: bytes, directory: Path, machine: str = "i386:x86-64") -> list[str]:
    """Mnemonics and operands, without addresses; a displacement of 0 is none."""
    (directory / "b.bin").write_bytes(code)
    command = ["objdump", "-D", "-b", "binary", "-m", machine, "--no-show-raw-insn", str(directory / "b.bin")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [" ".join(line.split("\t", 1)[1].split()) for line in text.splitlines() if ":\t" in line]


@pytest.mark.skipif(not shutil.which("as"), reason="no assembler to compare with (apt install binutils)")
def test_every_instruction_in_front_is_what_the_assembler_makes_of_it(tmp_path: Path) -> None:
    assert _disassembled(to_64_bits(0x21000, 0xD01 & ~0x400), tmp_path, "i8086") == _assembled(SWITCH, tmp_path)
    assert _disassembled(smi_stub(), tmp_path) == _assembled(SMI_STUB, tmp_path)
    assert _disassembled(init_stub(7), tmp_path) == _assembled(INIT_STUB, tmp_path)
    early = _disassembled(take_early_nmi(0x23000, 0x22F00, STACKS["nmi"]), tmp_path)
    assert early == _assembled(EARLY_NMI, tmp_path)
    flag = f".code16\nmovw $1, {IN_FIRMWARE:#x}\n"
    assert _disassembled(enter_firmware(1), tmp_path, "i8086") == _assembled(flag, tmp_path)
    logging = b"".join(claim(2, WRAP_BIT)) + log_smi(2, 3) + store_marks(2) + lasting_mark(0) + lasting_mark(7)
    plain = [text.replace(",0x0(", ",(") for text in _disassembled(logging, tmp_path)]
    assert plain == _assembled(LOGGING, tmp_path)


def test_16_bit_code_leads_to_what_is_in_front_of_the_section() -> None:
    program = assemble(make_test(SMM), {})
    for address, what in ((SMM_CODE, SMI), (FIRMWARE, INIT)):
        first, end = program.stubs[what]
        assert program.chunks[address][-6:] == first.to_bytes(4, "little") + b"\x10\0"
        assert program.place(first) == program.place(end)


def test_an_instruction_of_the_smi_handler_can_begin_a_page() -> None:
    test = make_test(SMM)
    program = assemble(test, {test.smi: test.smi + 1})
    assert program.addresses[test.smi + 1] % PAGE == 0


def test_a_mark_that_lasts_is_as_long_as_any_other() -> None:
    assert {len(lasting_mark(number)) for number in range(8)} == {7}


def test_lasting_marks_are_digits_with_the_first_one_on_top() -> None:
    assert number_of(0x010203) == (1 * 9 + 2) * 9 + 3
    assert digits(number_of(0x010203)) == (0, 1, 2)


def test_marks_that_may_be_lost_are_no_number_of_marks() -> None:
    assert len(digits(number_of(1 << 120))) > 20


def test_the_register_that_init_clears_counts_no_values() -> None:
    with pytest.raises(NotRunnable, match="counts the values"):
        assemble(make_test(SMM.replace("    mark    m", "    show    rax")), {})


def test_an_smi_is_an_event_of_the_history() -> None:
    guest = first_guest(SMM)
    place = guest.program.addresses[1]
    log = f"{SMI:x}:{place:x}:202:0:1:0:0;"
    line = f"run 0 0 end=runs reason=0 errno=0 rip={place:x} marks={(1 * 9 + 3) * 9 + 4:x} mp=0 records=1 log={log}"
    history = read_run(line, {0: guest}).history
    assert history == (Mark(0), Delivery(SMI, 1, 0x200, 0), Mark(2), Mark(3))


def test_a_processor_that_waits_for_a_sipi_is_seen_to() -> None:
    guest = first_guest(SMM)
    line = "run 0 0 end=runs reason=0 errno=0 rip=fff0 marks=1 mp=2 records=0 log="
    assert read_run(line, {0: guest}).ending == "waits"


def test_rsm_is_one_instruction() -> None:
    test = make_test(SMM)
    program = assemble(test, {})
    at = next(index for index, instruction in enumerate(test.code) if instruction.op is Op.RSM)
    code = program.chunks[program.stubs[SMI][0]]
    assert code[program.addresses[at] - program.stubs[SMI][0] :] == b"\x0f\xaa"


def test_what_an_smi_interrupts_behind_an_init_is_in_front_of_its_section() -> None:
    test = make_test(SMM)
    program = assemble(test, {})
    assert {program.place(rip) for rip in (RESET_VECTOR, 0, 0x20)} == {test.init}


def test_an_nmi_behind_an_init_begins_the_way_again_and_is_taken_at_its_end() -> None:
    program = assemble(make_test(SMM), {})
    offset, segment = (int.from_bytes(program.chunks[IVT_NMI][at : at + 2], "little") for at in (0, 2))
    assert segment * 16 + offset == EARLY
    assert program.chunks[EARLY] == enter_firmware(2) + program.chunks[FIRMWARE][len(enter_firmware(1)) :]
    first, end = program.stubs[INIT]
    taken = take_early_nmi(end, program.stubs[2][0], STACKS["main"])
    assert program.chunks[first][: end - first].endswith(taken)


def test_an_nmi_that_nothing_handles_is_lost_behind_an_init() -> None:
    text = SMM.replace("nmi:\n    mark    n\n    iretq\n", "").replace(" nmi,", "")
    program = assemble(make_test(text), {})
    first, end = program.stubs[INIT]
    assert program.chunks[EARLY] == enter_firmware(2) + b"\xf4\xeb\xfd"
    assert program.chunks[first][: end - first].endswith(leave_firmware())


def test_what_came_too_early_again_and_again_is_a_failure() -> None:
    run = read_run("run 0 0 end=early reason=0", {0: first_guest(SMM)})
    assert "16-bit code" in run.failure


def test_rsm_leaves_the_count_of_values_shown_in_smram() -> None:
    text = SMM.replace("init:\n    mark    i\n    spin\n", "").replace(", init", "")
    test = make_test(text.replace("    mark    t", "    jmp out\n    nop\n    show    rax").replace("rsm", "out: rsm"))
    at = next(index for index, instruction in enumerate(test.code) if instruction.op is Op.RSM)
    program = assemble(test, {test.smi: at})
    assert program.addresses[at] % PAGE == 0
    start = program.stubs[SMI][0]
    code = program.chunks[start]
    front = lead(test, at)
    assert code[program.addresses[at] - start - len(front) :] == front + b"\x0f\xaa"
    assert program.place(program.addresses[at] - 1) == at
    jump = next(index for index, instruction in enumerate(test.code) if instruction.op is Op.JMP)
    over = int.from_bytes(code[program.addresses[jump] - start + 1 :][:4], "little")
    assert program.addresses[jump] + 5 + over == program.addresses[at] - len(front)
    assert lead(make_test(text), at - 2) == b""
