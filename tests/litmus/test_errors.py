"""What the parser says about mistakes, and that it says nothing but that."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iretrace.litmus import corpus, grammar, parse
from iretrace.litmus.grammar import EVENTS
from iretrace.litmus.lex import listed
from iretrace.verdict import InputError

BASE = """\
test t
about x
vcpu sev-es
outside nmi
main:
    spin
nmi:
    mark n
    iretq
reach: nmi_pending
always n
"""

MISTAKES = [
    # unknown words
    ("spin", "spni", "6:5: unknown instruction 'spni'; write 'spin'"),
    ("spin", "NOP", "6:5: unknown instruction 'NOP'; write 'nop'"),
    ("vcpu sev-es", "vcpu sev-ess", "3:6: unknown vcpu kind 'sev-ess'; write 'sev-es'"),
    ("about x", "hots ticking", "2:1: unknown 'hots'; write 'host'"),
    ("about x", "host tickles", "2:6: unknown host 'tickles'; write 'tickless'"),
    ("outside nmi", "outside nmmi", "4:9: unknown event 'nmmi'; write 'nmi'"),
    (
        "vcpu sev-es\noutside nmi",
        "vcpu plain\noutside smi",
        "4:9: there is no section 'smi:' for it; write one that ends in rsm",
    ),
    (
        "vcpu sev-es\noutside nmi",
        "vcpu plain\noutside init",
        "4:9: there is no section 'init:' for it; write one that ends in spin",
    ),
    ("outside nmi", "outside irq", "4:9: there is no section 'irq:' to handle it; write one that ends in iretq"),
    ("outside nmi", "interrupts maybe", "4:12: unknown setting 'maybe'; write one of: on, off"),
    ("main:", "mian:", "5:1: unknown 'mian'; write 'main:'"),
    (
        "outside nmi",
        "outside sipi",
        "4:9: sipi to an encrypted guest belongs in a hold; write 'in LABEL: sipi', or drop 'sev-es' from vcpu",
    ),
    (
        "outside nmi\nmain:\n",
        "processor ap\noutside in x: init\nmain:\nx: nop\n",
        "5:12: label 'x' names no 'vmgexit ap_reset_hold'; write 'at' for 'in'",
    ),
    (
        "outside nmi\nmain:\n",
        "processor ap\noutside in x: signal\nmain:\nx: vmgexit ap_reset_hold\n",
        "5:15: signal in a hold is not supported yet; write init, sipi or nmi",
    ),
    (
        "main:\n",
        "main:\nvmgexit ap_reset_hold\n",
        "6:1: ap_reset_hold is for an application processor; write 'processor ap'",
    ),
    ("about x", "processor app", "2:11: unknown processor 'app'; write 'ap'"),
    ("nmi:\n", "smi:\niretq\nnmi:\n", "8:1: iretq in smi: finds no frame to pop; end smi: with rsm"),
    ("nmi:\n", "init:\niretq\nnmi:\n", "8:1: iretq in init: finds no frame to pop; end init: with spin or hlt"),
    (
        "nmi:\n",
        "init:\nrsm\nnmi:\n",
        "8:1: rsm outside of smi: raises #UD and there is no section 'ud:'; write one that ends in iretq",
    ),
    ("nmi_pending", "nmi_waiting", "10:8: unknown field 'nmi_waiting'; write 'nmi_pending'"),
    ("always n", "alwyas n", "11:1: unknown 'alwyas'; write 'always'"),
    ("always n", "always m", "11:8: no instruction marks 'm'; write 'mark m' where it happens"),
    (
        "spin",
        "vmgexit nmi",
        "6:13: unknown vmgexit 'nmi'; write one of: nmi_complete, cpuid, forward, ap_reset_hold, ap_reset_hold_msr",
    ),
    ("spin", "mov ds, ax", "6:9: unexpected 'ds'; write 'mov qword [rsp+8], 0', or 'mov ss, ax'"),
    ("spin", "mov ss, bx", "6:13: unexpected 'bx'; write 'mov ss, ax'"),
    ("spin", "int 0x21", "6:9: unexpected '0x21'; write 'int 0x20', the only int there is"),
    ("spin", "add rax, 8", "6:9: unexpected 'rax'; write 'add rsp, 8', the only add there is"),
    ("spin", "add rsp, 7", "6:14: '7' bytes are no whole words of this stack; write a multiple of 8 up to 248"),
    ("spin", "add rsp, 256", "6:14: '256' bytes are no whole words of this stack; write a multiple of 8 up to 248"),
    ("spin", "or qword rsp, 1", "6:14: unexpected 'rsp'; write 'or qword [rsp+16], TF'"),
    (
        "spin",
        "or qword [rsp+16], DF",
        (
            "6:24: 'DF' cannot stand here; write a number of at most 24 bits, TF, IF, RF, CS, SS, USER_CS, "
            "USER_SS, ABSENT_CS, ABSENT_SS"
        ),
    ),
    (
        "spin",
        "mov qword [rsp], 0x1000000",
        (
            "6:22: '0x1000000' cannot stand here; write a number of at most 24 bits, TF, IF, RF, CS, SS, USER_CS, "
            "USER_SS, ABSENT_CS, ABSENT_SS, or a label"
        ),
    ),
    (
        "spin",
        "and qword [rsp+16], TF",
        "6:25: unexpected 'TF'; write 'and qword [rsp+16], ~TF': it clears the bits behind ~",
    ),
    # labels
    ("spin", "jmp there\nspin", "6:9: label 'there' is not defined; write 'there:' in front of an instruction"),
    ("outside nmi", "outside at x: nmi", "4:12: label 'x' is not defined; write 'x:' in front of an instruction"),
    ("spin", "x: nop\nx: spin", "7:1: label 'x' is defined in line 6 already; choose another"),
    ("spin", "spin\nx:", "7:1: label 'x' names no instruction; write one below it"),
    ("spin", "x: nop\njmp x\nspin", "7:5: jmp goes forward only; write spin to wait for ever, it is the only loop"),
    ("spin", "x: jmp x\nspin", "6:12: jmp goes forward only; write spin to wait for ever, it is the only loop"),
    ("spin\nnmi:", "jmp x\nspin\nnmi:\nx:", "6:9: label 'x' is in another section; jump within one"),
    ("spin", "hlt: spin", "6:5: 'hlt' is a word of the language; choose another label"),
    ("mark n", "mark spin", "8:10: 'spin' is a word of the language; choose another mark"),
    (
        "spin",
        "mov qword [rsp], there\nspin",
        "6:22: label 'there' is not defined; write 'there:' in front of an instruction",
    ),
    ("spin", "TF: spin", "6:5: 'TF' is a word of the language; choose another label"),
    # a program that makes no sense
    ("main:\n    spin\n", "", "10:1: no main; write 'main:' and the program below it"),
    ("    spin\n", "", "5:1: section 'main:' is empty; end it with spin or hlt"),
    ("spin", "nop", "6:5: the program runs off the end of 'main:' here; end it with spin or hlt"),
    ("iretq", "nop", "9:5: the program runs off the end of 'nmi:' here; end it with iretq, spin or hlt"),
    ("spin", "iretq", "6:5: iretq in main: finds no frame to pop; end main: with spin or hlt"),
    ("nmi:", "df:", "9:5: iretq in df: returns nowhere, #DF is an abort; end df: with spin or hlt"),
    ("nmi:\n    mark n\n    iretq\n", "", "4:9: there is no section 'nmi:' to handle it; write one that ends in iretq"),
    ("spin", "skip\nspin", "6:5: skip makes sense in vc: only; write nop for an instruction that does nothing"),
    (
        "spin",
        "vmgexit forward\nspin",
        "6:5: vmgexit forward makes sense in vc: only; write the event, such as vmgexit cpuid",
    ),
    ("nmi:", "vc:\niretq\nnmi:", "8:1: iretq before skip finds the error code on the stack; write skip above it"),
    (
        "nmi:",
        "vc:\nskip\nskip\nspin\nnmi:",
        "9:1: second skip; write one, it steps over the instruction that raised #VC",
    ),
    (
        "nmi:",
        "vc:\nskip\nvmgexit forward\nspin\nnmi:",
        "9:1: vmgexit forward after skip: the error code is gone; write it above skip",
    ),
    ("spin", "int3\nspin", "6:5: there is no section 'bp:' to handle this; write one that ends in iretq"),
    (
        "vcpu sev-es\noutside nmi\nmain:\n    spin",
        "vcpu plain\noutside nmi\nmain:\nrdmsr efer\nspin\nsyscall:\nspin\nud:\nsyscall\nspin",
        "11:1: syscall in a test that accesses EFER: both use RCX; write two tests",
    ),
    ("spin", "clgi\nspin\nud:\niretq", "6:5: clgi of an encrypted guest raises #VC; write 'vc:' that deals with it"),
    (
        "vcpu sev-es\noutside nmi\nmain:\n    spin",
        "vcpu plain, sev-es\noutside nmi\nmain:\nvmgexit nmi_complete\nspin",
        "6:1: vmgexit is for encrypted guests; write another test for 'plain' without it",
    ),
    (
        "vcpu sev-es\noutside nmi\nmain:\n",
        "vcpu plain\noutside nmi\nvc:\nspin\nmain:\n",
        "5:1: 'plain' guests get no #VC; drop 'vc:', or write 'vcpu sev-es'",
    ),
    (
        "nmi:",
        "gp:\niretq\nnmi:",
        "8:1: iretq before add finds the error code on the stack; write 'add rsp, 8' above it",
    ),
    (
        "about x",
        "ist bp",
        "2:5: handler 'bp' runs on the stack that it interrupts; write one of: nmi, vc, df, db",
    ),
    ("about x", "ist df", "2:5: there is no section 'df:'; write it, or drop it from ist"),
    ("about x", "cold nmi", "2:6: handler 'nmi' has no stack of its own; write 'ist nmi', or 'cold main'"),
    ("about x", "frame nmi: here", "2:7: handler 'nmi' has no stack of its own; write 'ist nmi'"),
    ("about x", "frame here: nmi", "2:7: unknown stack 'here'; write one of: main, rsp0, nmi, vc, df, db"),
    ("about x", "frame main here", "2:12: unexpected 'here'; write 'frame STACK: LABEL'"),
    ("about x", "frame main: x", "2:13: label 'x' is not defined; write 'x:' in front of an instruction"),
    (
        "always n",
        "vc:\nmark v\nspin\nalways v",
        "11:1: section 'vc:' after reach and clauses; move it above them",
    ),
    (
        "reach: nmi_pending\nalways n",
        "vc:\nmark v\nspin\nalways v",
        "13:8: mark 'v' is made in vc: only, which no clause sees; write another mark",
    ),
    ("always n", "never n nothing", "11:9: 'nothing' stands alone in a clause; write marks or 'nothing'"),
    # things in the wrong place, or twice
    ("test t\n", "", "1:1: a test starts with its name; write 'test NAME' first"),
    ("vcpu sev-es\n", "", "11:1: no vcpu line; write 'vcpu sev-es' below the name"),
    ("about x", "vcpu sev-es", "3:1: second 'vcpu' line, the first is line 2; write one"),
    ("vcpu sev-es", "vcpu sev-es, sev-es", "3:14: vcpu kind 'sev-es' is listed twice; write it once"),
    ("spin", "spin\nhost ticking", "7:1: 'host' after the program; move the line above the first section"),
    ("main:", "always n\nmain:", "5:1: 'always' before the program; move the line below the last section"),
    ("always n", "main:\nspin", "11:1: second section 'main:', the first is line 5; write one"),
    ("always n", "nop", "11:1: 'nop' is in no section; write instructions below 'main:' or so"),
    ("always n", "reach: gif", "11:1: second 'reach' line, the first is line 10; write one"),
    # broken lines
    ("test t", "test", "1:5: the line ends too early; write the name of the test, such as nmi-at-hlt"),
    ("outside nmi", "outside", f"4:8: the line ends too early; {listed(EVENTS)}"),
    ("outside nmi", "outside nmi,", f"4:13: the line ends too early; {listed(EVENTS)}"),
    ("outside nmi", "outside nmi nmi", "4:13: unexpected 'nmi'; end the line before it"),
    ("spin", "spin 3", "6:10: unexpected '3'; end the line before it"),
    ("spin", "$spin", "6:5: unexpected '$'; write words, commas and colons, and comments after #"),
    ("spin", "sp\x1b[31min", "6:7: character U+001B is not allowed; write plain text"),
    ("about x", "about \u202e", "2:7: character U+202E is not allowed; write plain text"),
    ("nmi_pending", "nmi_pending or gif", "10:20: unexpected 'or'; write 'and' between two terms; there is no 'or'"),
    (
        "nmi_pending",
        "nmi_pending >= 010",
        "10:23: '010' is not a number here; write a decimal or 0x number of at most 32 bits",
    ),
    ("always n", "always: n", "11:7: unexpected ':'; write 'always MARK MARK' without it"),
    ("always n", "always", "11:7: the line ends too early; write marks in their order, or 'nothing'"),
    # too much
    ("test t", f"test {'t' * 65}", f"1:6: '{'t' * 37}...' is too long; write at most 64 characters"),
    ("outside nmi", f"outside nmi{', nmi' * 8}", "4:49: too many arrivals; write at most 8"),
    ("spin", "nop\n" * 63 + "spin", "71:5: too many instructions; write at most 64"),
    (
        "spin",
        "cpuid\n" + "nop\n" * 60 + "spin",
        "6:5: no room for the #VC handler that 'cpuid' needs; write at most 64",
    ),
    (
        "spin",
        "nop\n" * 61 + "hlt",
        "5:1: too many instructions with those implied by a last hlt; write at most 64 in all",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_a_mistake_is_told_with_its_place_and_what_to_write(old: str, new: str, message: str) -> None:
    assert old in BASE
    with pytest.raises(InputError) as caught:
        parse.parse(BASE.replace(old, new, 1), "t.litmus")
    assert str(caught.value) == f"t.litmus:{message}"


def test_the_text_without_mistakes_is_fine() -> None:
    assert parse.parse(BASE, "t.litmus").name == "t"


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_an_empty_file_is_told_how_to_begin(text: str) -> None:
    with pytest.raises(InputError, match=r"t\.litmus:1:1: no test in this file; write 'test NAME' first"):
        parse.parse(text, "t.litmus")


def test_a_file_beyond_the_size_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.litmus"
    path.write_bytes(b"#" * (grammar.MAX_BYTES + 1))
    with pytest.raises(InputError, match=r"big\.litmus:1:1: longer than 64 KiB"):
        parse.load(path)


def test_a_binary_file_is_refused_where_it_stops_being_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.litmus"
    path.write_bytes(b"test t\nab\xff\x00")
    with pytest.raises(InputError, match=r"binary\.litmus:2:3: not UTF-8 text"):
        parse.load(path)


@pytest.mark.parametrize("name", ["missing.litmus", ".", "/dev/zero", "a\0b"])
def test_what_is_no_regular_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        parse.load(tmp_path / name)


def check(text: str) -> None:
    """The parser accepts a text or raises an InputError of one printable line of bounded length."""
    try:
        parse.parse(text, "t.litmus")
    except InputError as error:
        message = str(error)
        assert re.match(r"t\.litmus:\d+:\d+: .+; \S", message), message
        assert message.isprintable()
        assert len(message) < 400


@settings(max_examples=150)
@given(st.text(max_size=200))
def test_any_text_is_accepted_or_refused_in_one_line(text: str) -> None:
    check(text)


SHIPPED = [path.read_text("utf-8") for path in sorted((Path(corpus.__file__).parent / "corpus").glob("*.litmus"))]

WORDS = [
    *grammar.RESERVED,
    *grammar.VIEW_FIELDS,
    *grammar.VCPUS,
    *grammar.HOSTS,
    *grammar.VMGEXITS,
    *grammar.COMPARISONS,
    *grammar.EVENTS,
    *("qword", "[", "]", "rsp", "rax", "+", "~", "8", "16"),
    *("n", "x", ":", ",", "#", "\n", "\t", " ", "0", "0x", "4294967296", "é", "\x00", "\ud800", "q" * 70),
]


@settings(max_examples=150)
@given(st.lists(st.sampled_from(WORDS), max_size=60))
def test_any_sequence_of_the_languages_words_is_accepted_or_refused_in_one_line(words: list[str]) -> None:
    check("test t\nvcpu sev-es\n" + " ".join(words))


@settings(max_examples=150)
@given(st.sampled_from(SHIPPED), st.integers(0, 2**32), st.integers(1, 6))
def test_any_change_to_a_valid_test_is_accepted_or_refused_in_one_line(text: str, seed: int, changes: int) -> None:
    dice = random.Random(seed)
    for _ in range(changes):
        lines = text.split("\n")
        at, other = dice.randrange(len(lines)), dice.randrange(len(lines))
        words = lines[at].split(" ")
        words[dice.randrange(len(words))] = dice.choice(WORDS)
        lines[at] = dice.choice([" ".join(words), lines[other], "", lines[at] * 2])
        text = "\n".join(lines)
    check(text)
