"""What a litmus file means."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from iretrace.litmus import grammar, parse
from iretrace.litmus.test import VC_FORWARD, Arrival, Clause, Op
from iretrace.machine.ghcb import SVM_VMGEXIT_NMI_COMPLETE
from iretrace.machine.vmcb import SVM_EXIT_CPUID
from iretrace.world.protocol import View

FULL = """\
# a comment before the name
test everything
about Uses each form once; #VC is text here,
      # and so is this.
vcpu  sev-es
host  tickless, ticking
outside nmi, maybe nmi, at here: nmi
ist   nmi, vc
cold  main, nmi
interrupts on

main:
    cli
    sti             # a shadow
    here:
    there: mov ss, ax
    jmp     end
    pause
    cpuid
end: mark   m-1
    hlt
    spin
nmi:
    vmgexit nmi_complete
    mark    n
    iretq
vc:
    mark    v
    vmgexit cpuid
    vmgexit forward
    skip
    iretq
df:
    nop
    hlt

reach: nmi_pending and not nmi_masked and nmi_queued >= 2 and event_inj != 0x80000202
always    m-1 n
sometimes n n
never     nothing
"""


def small(main: str, rest: str = "", header: str = "") -> str:
    """A test around the lines that matter."""
    return f"test t\nvcpu sev-es\n{header}\nmain:\n{main}\nnmi:\nmark n\niretq\n{rest}"


def test_header_lines_become_fields() -> None:
    test = parse.parse(FULL, "x/full.litmus")
    assert (test.name, test.path) == ("everything", "x/full.litmus")
    assert test.about == "Uses each form once; #VC is text here, # and so is this."
    assert (test.vcpus, test.hosts) == (("sev-es",), ("tickless", "ticking"))
    assert (test.ist, test.cold, test.interrupts) == (frozenset({2, 29}), frozenset({"main", "nmi"}), True)


def test_a_frame_is_a_stack_and_where_it_returns_to() -> None:
    test = parse.parse(small("spin\nback: spin", header="ist nmi\nframe nmi: back"), "t.litmus")
    assert test.frame == ("nmi", test.main + 1)
    assert parse.parse(small("spin"), "t.litmus").frame is None


def test_arrivals_are_promised_possible_or_tied_to_a_label() -> None:
    test = parse.parse(FULL, "full.litmus")
    assert test.outside == (
        Arrival("nmi", True, -1, 7),
        Arrival("nmi", False, -1, 7),
        Arrival("nmi", True, 2, 7),
    )


def test_sections_lie_one_after_the_other() -> None:
    test = parse.parse(FULL, "full.litmus")
    assert (test.main, test.handlers) == (0, ((2, 9), (29, 12), (8, 17)))
    assert [i.op for i in test.code[:4]] == [Op.CLI, Op.STI, Op.MOV_SS, Op.JMP]
    assert test.code[9].line == 24


def test_operands_are_resolved() -> None:
    test = parse.parse(FULL, "full.litmus")
    assert test.code[3].arg == 6
    assert test.marks == ("m-1", "n", "v")
    assert [i.arg for i in test.code if i.op == Op.MARK] == [0, 1, 2]
    assert [i.arg for i in test.code if i.op == Op.VMGEXIT] == [SVM_VMGEXIT_NMI_COMPLETE, SVM_EXIT_CPUID, VC_FORWARD]


def test_an_instruction_keeps_its_first_label_and_its_text_without_needless_blanks() -> None:
    test = parse.parse(FULL, "full.litmus")
    assert (test.code[2].label, test.code[2].text) == ("here", "mov ss, ax")
    assert (test.code[6].label, test.code[6].text) == ("end", "mark m-1")


def test_reach_is_a_conjunction_of_comparisons() -> None:
    reach = parse.parse(FULL, "full.litmus").reach
    assert reach is not None
    assert reach.terms == (
        ("nmi_pending", "!=", 0),
        ("nmi_masked", "==", 0),
        ("nmi_queued", ">=", 2),
        ("event_inj", "!=", 0x80000202),
    )
    assert reach.text == "nmi_pending and not nmi_masked and nmi_queued >= 2 and event_inj != 0x80000202"


def test_clauses_list_marks_in_order_and_nothing_is_no_mark() -> None:
    clauses = parse.parse(FULL, "full.litmus").clauses
    assert clauses == (Clause("always", ("m-1", "n"), 38), Clause("sometimes", ("n", "n"), 39), Clause("never", (), 40))


def test_a_bare_test_is_tickless_quiet_and_has_interrupts_off() -> None:
    test = parse.parse("test t\nvcpu sev-es\nmain:\nspin", "t.litmus")
    assert (test.hosts, test.outside, test.interrupts) == (("tickless",), (), False)
    assert (test.ist, test.cold, test.reach, test.clauses) == (frozenset(), frozenset(), None, ())


def test_cpuid_without_a_handler_gets_that_of_linux() -> None:
    test = parse.parse(small("cpuid\nspin"), "t.litmus")
    start = dict(test.handlers)[29]
    assert [i.text for i in test.code[start:]] == ["vmgexit forward", "skip", "iretq"]


def test_a_handler_for_vc_that_is_written_stays() -> None:
    test = parse.parse(small("cpuid\nspin", "vc:\nspin"), "t.litmus")
    assert test.code[dict(test.handlers)[29]].op == Op.SPIN


def test_the_handler_that_the_parser_adds_may_have_a_stack_of_its_own() -> None:
    assert parse.parse(small("cpuid\nspin", header="ist vc"), "t.litmus").ist == frozenset({29})


def test_a_last_hlt_halts_again_when_woken() -> None:
    test = parse.parse(small("nop\nhlt"), "t.litmus")
    assert [(i.op, i.arg) for i in test.code[:3]] == [(Op.NOP, 0), (Op.HLT, 0), (Op.JMP, 1)]


def test_a_hlt_elsewhere_goes_on_behind_itself() -> None:
    assert [i.op for i in parse.parse(small("hlt\nspin"), "t.litmus").code[:2]] == [Op.HLT, Op.SPIN]


def test_windows_line_ends_and_tabs_are_fine() -> None:
    assert parse.parse(FULL.replace("\n", "\r\n").replace("    ", "\t"), "full.litmus").marks == ("m-1", "n", "v")


def test_reach_may_ask_about_every_field_of_the_view() -> None:
    assert grammar.VIEW_FIELDS == tuple(field.name for field in fields(View))


def test_every_instruction_has_a_mnemonic() -> None:
    operations = {*grammar.BARE.values(), *(op for op, _, _ in grammar.FIXED.values())}
    operations |= {Op.MOV_RAX, Op.TO_DR, Op.FROM_DR, Op.LOAD, Op.LOAD_BAD, Op.FROM_R11, Op.TO_R11}
    operations |= {Op.MOV_SS, Op.OR_STACK, Op.ANDN_STACK, Op.MOV_STACK, Op.ADD_RSP, Op.JMP, Op.MARK, Op.VMGEXIT}
    assert operations | {Op.LOOK_AT_HOLD} == set(Op)  # which comes with vmgexit ap_reset_hold


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "full.litmus"
    path.write_text(FULL, encoding="utf-8")
    assert parse.load(path).path == str(path)


PLAIN = """\
test plain
vcpu plain
outside irq, maybe signal, at here: nmi
ist db
interrupts on
main:
    pushfq
    or qword [rsp], TF
    popfq
    here: int3
    int 0x20
    clgi
    spin
nmi:
    mov qword [rsp+8], 0
    mov qword [rsp], here
    or  qword [rsp+16], 0x300
    and qword [ rsp + 16 ], ~IF
    mov qword [rsp+0], CS
    iretq
gp:
    add rsp, 16
    iretq
db:
    iretq
bp:
    iretq
ud:
    iretq
int:
    iretq
irq:
    iretq
"""


def test_plain_guests_have_all_events_and_handlers() -> None:
    test = parse.parse(PLAIN, "t.litmus")
    assert [(arrival.kind, arrival.promised, arrival.at) for arrival in test.outside] == [
        ("irq", True, -1),
        ("signal", False, -1),
        ("nmi", True, 3),
    ]
    assert [vector for vector, _ in test.handlers] == [2, 13, 1, 3, 6, 0x20, 0x30]
    assert test.ist == {1}


def test_operands_on_the_stack_are_an_offset_in_words_and_a_value() -> None:
    code = parse.parse(PLAIN, "t.litmus").code
    assert [(i.op, i.arg) for i in code[1:2] + code[4:5] + code[7:12] + code[13:14]] == [
        (Op.OR_STACK, 0x100),
        (Op.INT, 0x20),
        (Op.MOV_STACK, 1 << 24),
        (Op.MOV_STACK, 3),
        (Op.OR_STACK, 2 << 24 | 0x300),
        (Op.ANDN_STACK, 2 << 24 | 0x200),
        (Op.MOV_STACK, 0x10),
        (Op.ADD_RSP, 2),
    ]
    assert code[10].text == "and qword [rsp+16], ~IF"


def test_a_plain_guest_gets_no_vc_handler_for_cpuid() -> None:
    test = parse.parse("test t\nvcpu plain\nmain:\ncpuid\nspin\n", "t.litmus")
    assert test.handlers == ()
