"""Instructions that move something to RAX, or RAX to a debug register."""

from __future__ import annotations

from iretrace.litmus.draft import Statement
from iretrace.litmus.grammar import (
    BAD_ADDRESSES,
    DEBUG_REGISTERS,
    MAX_NUMBER,
    MAX_OFFSET,
    RAX_VALUES,
    RESERVED,
    STACK_TOPS,
)
from iretrace.litmus.lex import NUMBER, WORD, Token, nearest, quote
from iretrace.litmus.test import Op
from iretrace.litmus.words import Words
from iretrace.machine.cpu import PAGE_WORDS, STACK_WORDS

WAYS = "'mov rax, W0', 'mov rax, dr6', 'mov rax, r11', 'mov rax, [rsp+8]', 'mov rax, [unmapped]' or 'mov dr0, rax'"


def read_offset(words: Words) -> int:
    """A distance on the stack in bytes."""
    at = words.take("a number of bytes, such as 8")
    if not NUMBER.fullmatch(at.text) or int(at.text, 0) % 8 or int(at.text, 0) > MAX_OFFSET:
        what = f"{quote(at.text)} bytes are no whole words of this stack; write a multiple of 8 up to {MAX_OFFSET}"
        words.source.fail_at(at, what)
    return int(at.text, 0)


def read_move(words: Words, token: Token, labels: tuple[Token, ...]) -> Statement:
    """What follows `mov` or `lea` where RAX or a debug register comes next."""
    to = words.take(WAYS)
    words.sign(",", f"',' behind {quote(to.text)}")
    if to.text in DEBUG_REGISTERS:
        words.sign("rax", f"'mov {to.text}, rax': debug registers are loaded from RAX")
        return Statement(Op.TO_DR, token, None, f"mov {to.text}, rax", labels, DEBUG_REGISTERS[to.text])
    if to.text == "r11":
        words.sign("rax", "'mov r11, rax'")
        return Statement(Op.TO_R11, token, None, "mov r11, rax", labels)
    if token.text == "lea":
        return _read_lea(words, token, labels)
    if words.peek() == "r11":
        words.take(WAYS)
        return Statement(Op.FROM_R11, token, None, "mov rax, r11", labels)
    if words.peek() in DEBUG_REGISTERS:
        register = words.take(WAYS).text
        return Statement(Op.FROM_DR, token, None, f"mov rax, {register}", labels, DEBUG_REGISTERS[register])
    if words.peek() == "[":
        return _read_load(words, token, labels)
    value, text = _read_sum(words)
    return Statement(Op.MOV_RAX, token, None, f"mov rax, {text}", labels, value)


def _read_load(words: Words, token: Token, labels: tuple[Token, ...]) -> Statement:
    """`[rsp+N]`, `[unmapped]` or `[noncanonical]`."""
    words.take(WAYS)
    at = words.one_of(("rsp", *BAD_ADDRESSES), "address")
    if at.text in BAD_ADDRESSES:
        words.sign("]", f"'[{at.text}]'")
        return Statement(Op.LOAD_BAD, token, None, f"mov rax, [{at.text}]", labels, BAD_ADDRESSES.index(at.text))
    offset = 0
    if words.peek() == "+":
        words.take("+")
        offset = read_offset(words)
    words.sign("]", "'[rsp+8]'")
    place = f"[rsp+{offset}]" if offset else "[rsp]"
    return Statement(Op.LOAD, token, None, f"mov rax, {place}", labels, offset // 8)


def _read_lea(words: Words, token: Token, labels: tuple[Token, ...]) -> Statement:
    """`[STACK - N]`, a word of a stack, or `[LABEL]`, an instruction."""
    wanted = "'lea rax, [main_stack - 8]' or 'lea rax, [LABEL]'"
    words.sign("[", wanted)
    what = words.word(wanted)
    if what.text in STACK_TOPS:
        words.sign("-", f"'{what.text} - 8', the first word that is pushed there")
        at = words.take("a number of bytes, such as 8")
        if not NUMBER.fullmatch(at.text) or int(at.text, 0) % 8 or not 0 < int(at.text, 0) <= 8 * STACK_WORDS:
            what_now = f"{quote(at.text)} bytes are no whole words of a stack; write a multiple of 8"
            words.source.fail_at(at, f"{what_now} from 8 to {8 * STACK_WORDS}")
        words.sign("]", wanted)
        address = STACK_TOPS[what.text] * PAGE_WORDS + STACK_WORDS - int(at.text, 0) // 8
        return Statement(Op.MOV_RAX, token, None, f"lea rax, [{what.text} - {at.text}]", labels, address)
    words.sign("]", wanted)
    if what.text in RESERVED:
        words.source.fail_at(what, f"{quote(what.text)} is no label; write {wanted}")
    return Statement(Op.MOV_RAX, token, what, f"lea rax, [{what.text}]", labels)


def _read_sum(words: Words) -> tuple[int, str]:
    """A number, or names of parts of DR7 or EFER with + between them: (value, text)."""
    parts = [words.take("a number, or parts of DR7 such as W0")]
    while words.peek() == "+":
        words.take("+")
        parts.append(words.take("a part of DR7 such as GD, or SVME"))
    value = 0
    for part in parts:
        if part.text in RAX_VALUES:
            value |= RAX_VALUES[part.text]
        elif NUMBER.fullmatch(part.text) and int(part.text, 0) <= MAX_NUMBER and len(parts) == 1:
            value = int(part.text, 0)
        elif WORD.fullmatch(part.text):
            words.source.fail_at(part, f"unknown value {quote(part.text)}; {nearest(part.text, RAX_VALUES)}")
        else:
            what = f"write a number of at most 32 bits, or parts of DR7 or EFER: {', '.join(RAX_VALUES)}"
            words.source.fail_at(part, f"{quote(part.text)} cannot stand here; {what}")
    return value, " + ".join(part.text for part in parts)
