"""One instruction of a litmus program: its mnemonic and operands."""

from __future__ import annotations

from iretrace.litmus.draft import Statement
from iretrace.litmus.grammar import (
    BARE,
    CLAUSES,
    DEBUG_REGISTERS,
    FIXED,
    MAX_VALUE,
    MNEMONICS,
    RESERVED,
    VALUES,
    VMGEXITS,
)
from iretrace.litmus.lex import NUMBER, WORD, Token, nearest, quote
from iretrace.litmus.moves import read_move, read_offset
from iretrace.litmus.test import VECTORS, Op
from iretrace.litmus.words import Words
from iretrace.machine.cpu import MSR_EFER

ON_STACK = {
    "or": (Op.OR_STACK, "or qword [rsp+16], TF"),
    "and": (Op.ANDN_STACK, "and qword [rsp+16], ~TF"),
    "mov": (Op.MOV_STACK, "mov qword [rsp+8], 0"),
}
"""Instructions that change a word on the stack: what they are, and an example."""

FIXED_ARGS = {Op.INT: VECTORS["int"], Op.RDMSR: MSR_EFER, Op.WRMSR: MSR_EFER}
"""Instruction.arg of those whose operand is always the same."""

STACK_SHIFT = 24
"""Instruction.arg of these: the offset in words from here on, the number below."""


def read_instruction(words: Words, labels: tuple[Token, ...]) -> Statement:
    """The instruction that begins at the next word. Raises InputError if there is none such."""
    token = words.word("an instruction")
    name = token.text
    if name not in MNEMONICS:
        known = (*MNEMONICS, *CLAUSES, "reach:")
        words.source.fail_at(token, f"unknown instruction {quote(name)}; {nearest(name, known)}")
    if name in BARE:
        return Statement(BARE[name], token, None, name, labels)
    if name in FIXED:
        op, operands, text = FIXED[name]
        for expected in operands:
            words.sign(expected, f"'{text}', the only {name} there is")
        return Statement(op, token, None, text, labels, FIXED_ARGS.get(op, 0))
    if name in ("mov", "lea") and words.peek() in ("rax", "r11", *DEBUG_REGISTERS):
        return read_move(words, token, labels)
    if name == "lea":
        words.source.fail_at(token, "lea loads RAX only; write 'lea rax, [main_stack - 8]' or 'lea rax, [LABEL]'")
    if name == "add":
        return _read_add(words, token, labels)
    if name in ON_STACK:
        return _read_on_stack(words, token, labels)
    if name == "jmp":
        op, operand = Op.JMP, words.new_name("label")
    elif name == "mark":
        op, operand = Op.MARK, words.new_name("mark")
    else:
        op, operand = Op.VMGEXIT, words.one_of(VMGEXITS, "vmgexit")
    return Statement(op, token, operand, f"{name} {operand.text}", labels)


def _read_add(words: Words, token: Token, labels: tuple[Token, ...]) -> Statement:
    """`add rsp, N`."""
    for expected in ("rsp", ","):
        words.sign(expected, "'add rsp, 8', the only add there is")
    offset = read_offset(words)
    return Statement(Op.ADD_RSP, token, None, f"add rsp, {offset}", labels, offset // 8)


def _read_on_stack(words: Words, token: Token, labels: tuple[Token, ...]) -> Statement:
    """`mov ss, ax`, or mov, or, and of `qword [rsp+N]`."""
    op, example = ON_STACK[token.text]
    if token.text == "mov" and words.peek() == "ss":
        for expected in ("ss", ",", "ax"):
            words.sign(expected, "'mov ss, ax'")
        return Statement(Op.MOV_SS, token, None, "mov ss, ax", labels)
    wanted = f"'{example}', or 'mov ss, ax'" if token.text == "mov" else f"'{example}'"
    for expected in ("qword", "[", "rsp"):
        words.sign(expected, wanted)
    offset = 0
    if words.peek() == "+":
        words.take(wanted)
        offset = read_offset(words)
    for expected in ("]", ","):
        words.sign(expected, wanted)
    if op == Op.ANDN_STACK:
        words.sign("~", f"{wanted}: it clears the bits behind ~")
    place = f"[rsp+{offset}]" if offset else "[rsp]"
    tilde = "~" if op == Op.ANDN_STACK else ""
    value = words.take(wanted)
    text = f"{token.text} qword {place}, {tilde}{value.text}"
    arg = offset // 8 << STACK_SHIFT
    if op == Op.MOV_STACK and WORD.fullmatch(value.text) and value.text not in RESERVED:
        return Statement(op, token, value, text, labels, arg)
    return Statement(op, token, None, text, labels, arg | _value(words, value, op))


def _value(words: Words, token: Token, op: Op) -> int:
    """The number that a token means."""
    if token.text in VALUES:
        return VALUES[token.text]
    if not NUMBER.fullmatch(token.text) or int(token.text, 0) > MAX_VALUE:
        label = ", or a label" if op == Op.MOV_STACK else ""
        what = f"write a number of at most 24 bits, {', '.join(VALUES)}{label}"
        words.source.fail_at(token, f"{quote(token.text)} cannot stand here; {what}")
    return int(token.text, 0)
