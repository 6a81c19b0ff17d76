"""Machine code and tables of real guests."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from iretrace.litmus.corpus import shipped
from iretrace.litmus.parse import parse
from iretrace.litmus.test import VECTORS, Instruction, Op
from iretrace.live.guests import lstar_of, make_guests, reason_not_to_run, segments_of
from iretrace.live.layout import ARMED, IDT, MAIN_STUB, PAGE, PAGE_TABLE, STACKS, SYSCALL, TSS, UNMAPPED
from iretrace.live.machine_code import (
    NotRunnable,
    assemble,
    counts_spins,
    encode,
    msr_of,
)
from iretrace.live.stacks import stack_word
from iretrace.machine.cpu import PAGE_RSP0, PAGE_WORDS, STACK_WORDS
from iretrace.world.guest import VECTOR_PAGES
from tests.live.guests import TWO_NMIS, make_test

INSTRUCTIONS = {
    "nop": (Op.NOP, 0, "nop"),
    "cli": (Op.CLI, 0, "cli"),
    "sti": (Op.STI, 0, "sti"),
    "hlt": (Op.HLT, 0, "hlt"),
    "mov ss, ax": (Op.MOV_SS, 0, "mov ss, esi"),
    "iretq": (Op.IRETQ, 0, "iretq"),
    "pause": (Op.PAUSE, 0, "pause"),
    "cpuid": (Op.CPUID, 0, "cpuid"),
    "mark m": (Op.MARK, 2, "lea r15, [r15+r15*8+3]"),
    "spin": (Op.SPIN, 0, "loop ."),
    "push rax": (Op.PUSH, 0, "push rax"),
    "pushfq": (Op.PUSHFQ, 0, "pushfq"),
    "popfq": (Op.POPFQ, 0, "popfq"),
    "int3": (Op.INT3, 0, "int3"),
    "int 0x20": (Op.INT, 0x20, "int 0x20"),
    "or qword [rsp+16], TF": (Op.OR_STACK, 2 << 24 | 0x100, "or qword ptr [rsp+16], 0x100"),
    "mov qword [rsp+8], CS": (Op.MOV_STACK, 1 << 24 | 0x10, "mov qword ptr [rsp+8], 0x10"),
    "stgi": (Op.STGI, 0, "stgi"),
    "clgi": (Op.CLGI, 0, "clgi"),
    "ud2": (Op.UD2, 0, "ud2"),
    "mov rax, 7": (Op.MOV_RAX, 7, "mov eax, 7"),
    "lea rax, [nmi_stack - 8]": (Op.MOV_RAX, 32 + 29, "lea rax, [0x12ff8]"),
    "mov dr7, rax": (Op.TO_DR, 7, "mov dr7, rax"),
    "mov rax, dr6": (Op.FROM_DR, 6, "mov rax, dr6"),
    "mov rax, [rsp+8]": (Op.LOAD, 1, "mov rax, [rsp+8]"),
    "mov rax, [unmapped]": (Op.LOAD_BAD, 0, f"mov rax, [{UNMAPPED}]"),
    "mov rax, [noncanonical]": (Op.LOAD_BAD, 1, "mov rax, [r13]"),
    "rdmsr efer": (Op.RDMSR, 0xC000_0080, "rdmsr"),
    "wrmsr efer": (Op.WRMSR, 0xC000_0080, "wrmsr"),
    "vmrun rax": (Op.VMRUN, 0, "vmrun"),
    "show rax": (Op.SHOW, 0, "stosq"),
    "int1": (Op.INT1, 0, "int1"),
    "syscall": (Op.SYSCALL, 0, "syscall"),
    "sysretq": (Op.SYSRET, 0, "sysretq"),
    "mov rax, r11": (Op.FROM_R11, 0, "mov rax, r11"),
    "mov r11, rax": (Op.TO_R11, 0, "mov r11, rax"),
}


@pytest.mark.skipif(not shutil.which("as"), reason="no assembler to compare with (apt install binutils)")
def test_every_instruction_is_what_the_assembler_makes_of_it(tmp_path: Path) -> None:
    lines = [assembly for _, _, assembly in INSTRUCTIONS.values()]
    # The size of immediates is fixed here, and the assembler takes the shortest, so these are compared by their sense.
    (tmp_path / "a.s").write_text(".intel_syntax noprefix\n" + "\n".join(lines) + "\n")
    subprocess.run(["as", "-o", tmp_path / "a.o", tmp_path / "a.s"], check=True)
    expected = _disassembled(tmp_path / "a.o", "elf64-x86-64")
    code = b"".join(encode(Instruction(op, arg, text, 1), 0, [0], {}) for text, (op, arg, _) in INSTRUCTIONS.items())
    (tmp_path / "b.bin").write_bytes(code)
    assert _disassembled(tmp_path / "b.bin", "binary") == expected


def _disassembled(path: Path, form: str) -> list[str]:
    """Mnemonics and operands, without addresses."""
    command = ["objdump", "-D", "-b", form, "-m", "i386:x86-64", "-M", "intel", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [line.split("\t", 1)[1] for line in text.splitlines() if ":\t" in line]
    return [" ".join("jmp ." if line.startswith("jmp") else line for line in text.split()) for text in found]


def test_cleared_bits_become_an_inverted_mask() -> None:
    code = encode(Instruction(Op.ANDN_STACK, 2 << 24 | 0x100, "and qword [rsp+16], ~TF", 1), 0, [0], {})
    assert code == bytes.fromhex("4881642410fffeffff")


def test_a_label_is_an_address_of_the_guest() -> None:
    instruction = Instruction(Op.MOV_STACK, 1, "mov qword [rsp], next", 1)
    assert encode(instruction, 0, [0x20000, 0x20008], {"next": 1})[-4:] == (0x20008).to_bytes(4, "little")


def test_the_cut_begins_a_page() -> None:
    test = make_test(TWO_NMIS)
    program = assemble(test, {1: 3})
    assert program.addresses[3] % PAGE == 0
    assert program.addresses[2] % PAGE != 0


def test_main_begins_with_the_store_that_tells_so() -> None:
    program = assemble(make_test(TWO_NMIS), {})
    chunk = program.chunks[program.entry]
    assert chunk.startswith(b"\xc7\x04\x25" + ARMED.to_bytes(4, "little"))
    assert program.place(program.entry) == 0


def test_a_saved_rip_in_front_of_a_handler_is_at_its_first_instruction() -> None:
    program = assemble(make_test(TWO_NMIS), {})
    start, end = program.stubs[2]
    assert program.place(start) == program.place(end - 4) == program.place(end) == 1


def test_a_rip_between_instructions_is_nowhere() -> None:
    program = assemble(make_test(TWO_NMIS), {})
    assert program.place(program.addresses[0] + 1) == -1


def test_vectors_without_handler_are_not_present() -> None:
    idt = assemble(make_test(TWO_NMIS), {}).chunks[IDT]
    present = [vector for vector in range(256) if idt[vector * 16 + 5] & 0x80]
    assert present == [1, 2]


def test_only_what_the_test_says_has_a_stack_of_its_own() -> None:
    idt = assemble(make_test(TWO_NMIS.replace("outside", "ist   nmi\noutside", 1)), {}).chunks[IDT]
    assert (idt[2 * 16 + 4], idt[1 * 16 + 4]) == (1, 0)


def test_no_two_parts_of_a_guest_overlap() -> None:
    for test in shipped():
        if not reason_not_to_run(test):
            ends = 0
            for address, data in sorted(assemble(test, {}).chunks.items()):
                assert address >= ends, test.name
                ends = address + len(data)


def test_encrypted_guests_cannot_be_assembled() -> None:
    with pytest.raises(NotRunnable, match="what only encrypted guests can do"):
        assemble(next(test for test in shipped() if test.name == "nmi-complete-then-spin"), {})


def test_a_guest_that_enters_one_of_its_own_is_not_run() -> None:
    code = "main:\nmov rax, EFER + SVME\nwrmsr efer\nvmrun rax\nspin\n"
    with pytest.raises(NotRunnable, match="has no contract"):
        assemble(parse(f"test t\nabout A hypervisor.\nvcpu plain\n\n{code}", "t.litmus"), {})


def test_a_record_is_taken_by_the_second_instruction_of_a_stub() -> None:
    program = assemble(make_test(TWO_NMIS), {})
    start, _ = program.stubs[2]
    code = program.chunks[start]
    assert code[6 : program.claimed[2] - start] == bytes.fromhex("4d0fc1c6")


def test_a_guest_that_writes_an_msr_has_its_number_in_rcx_and_spins_without_counting() -> None:
    text = TWO_NMIS.replace("    spin", "    mov rax, EFER\n    wrmsr efer\n    spin", 1)
    test = make_test(text)
    assert (msr_of(test), counts_spins(test)) == (0xC000_0080, False)
    assert (msr_of(make_test(TWO_NMIS)), counts_spins(make_test(TWO_NMIS))) == (0, True)


def test_an_add_that_leads_to_another_stack_leads_there_in_a_live_guest_too() -> None:
    [test] = [test for test in shipped() if test.name == "iret-on-cold-stack"]
    assert reason_not_to_run(test) == ""
    [(nmi, start)] = [handler for handler in test.handlers if handler[0] == VECTORS["nmi"]]
    program, rsp = assemble(test, {}), STACKS["nmi"] - 40
    first = program.stubs[nmi][0]
    for at in (start + 1, start + 2):
        offset = program.addresses[at] - first
        rsp += int.from_bytes(program.chunks[first][offset + 3 : offset + 7], "little")
    assert stack_word(rsp) == VECTOR_PAGES[VECTORS["df"]] * PAGE_WORDS + 20, "where the model's RSP is"


def test_an_add_to_an_rsp_that_is_not_known_is_left_out() -> None:
    for add, why in ((8, ""), (248, "RSP goes to another stack, which lies elsewhere in a live guest")):
        text = TWO_NMIS.replace("db:\n    mark    s\n", f"np:\n    add rsp, {add}\n    mark    s\n")
        assert reason_not_to_run(make_test(text)) == why, "the stack is main's"


USER = """\
test user
about A user program calls its kernel, and both may be interrupted.
vcpu  plain
outside nmi
cpl  3

main:
    mov ss, ax
    syscall
    mark    m
    spin
syscall:
    mov     rax, r11
    show    rax
    sysretq
bp:
    iretq
nmi:
    mark    n
    iretq
"""


def test_syscall_leads_to_its_section_which_logs_nothing() -> None:
    guest = make_guests(make_test(USER), 10, 0)[0]
    assert guest.program.stubs.keys() == {MAIN_STUB, SYSCALL, 2, 3}
    assert guest.program.claimed.keys() == {2, 3}
    assert lstar_of(guest) == guest.program.addresses[4] in guest.program.chunks


def test_a_user_program_begins_with_its_own_selectors() -> None:
    assert segments_of(make_test(USER)) == (0x3B, 0x33)
    assert segments_of(make_test(TWO_NMIS)) == (0x10, 0x18)


def test_user_mode_may_use_the_gate_of_bp_only() -> None:
    idt = assemble(make_test(USER), {}).chunks[IDT]
    assert [vector for vector in range(256) if idt[vector * 16 + 5] == 0xEE] == [3]


def test_events_of_user_mode_come_to_the_stack_of_the_tss_which_is_the_models() -> None:
    assert int.from_bytes(assemble(make_test(USER), {}).chunks[TSS][4:12], "little") == STACKS["rsp0"]
    assert stack_word(STACKS["rsp0"] - 8) == PAGE_RSP0 * PAGE_WORDS + STACK_WORDS - 1


def test_user_programs_have_every_page_that_there_is() -> None:
    chunks = assemble(make_test(USER), {}).chunks
    entries = struct.unpack("<512Q", chunks[PAGE_TABLE])
    assert all(entry & 4 for entry in entries if entry)
    assert entries[UNMAPPED // PAGE] == entries[STACKS["rsp0"] // PAGE] == 0


def test_what_syscall_overwrites_is_not_used_beside_it() -> None:
    test = make_test(USER)
    assert not counts_spins(test)
    program = assemble(test, {})
    start, end = program.stubs[3]
    stub = program.chunks[start][: end - start]
    assert b"\x4d\x8b\x5c\x24" not in stub  # mov r11, [rsp+...]


def test_kernel_code_of_a_user_program_does_not_load_ss() -> None:
    text = USER.replace("    mov     rax, r11", "    mov ss, ax\n    mov     rax, r11")
    assert "MOV SS in kernel mode" in reason_not_to_run(make_test(text))


def test_flags_that_the_model_does_not_have_are_not_shown() -> None:
    text = USER.replace("    iretq\nnmi", "    or qword [rsp+16], TF\n    iretq\nnmi")
    assert "arithmetic flags" in reason_not_to_run(make_test(text))


COLD = """\
test cold
about An NMI may come where a page is touched for the first time.
vcpu  plain
outside nmi
cold  there

main:
    nop
    there: nop
    spin
nmi:
    mark    n
    iretq
"""


def test_a_cold_instruction_begins_a_page_in_every_guest() -> None:
    guests = make_guests(make_test(COLD), 10, 0)
    assert all(guest.program.addresses[1] % PAGE == 0 for guest in guests)
    assert {guest.cuts for guest in guests} == {(-1,), (1,), (3,), (4,)}


def test_an_event_beside_a_cold_instruction_cannot_be_placed() -> None:
    text = COLD.replace("outside nmi", "outside at next: nmi").replace("    spin", "    next: spin")
    assert "beside a cold instruction" in reason_not_to_run(make_test(text))
    assert reason_not_to_run(make_test(text.replace("at next", "at there"))) == ""
