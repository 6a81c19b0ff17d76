"""Where the words of the model's stacks lie in a live guest, whose stacks are farther apart."""

from __future__ import annotations

from iretrace.litmus.test import VECTORS, Op, Test
from iretrace.live.layout import STACKS
from iretrace.machine.cpu import PAGE_WORDS, STACK_WORDS
from iretrace.world.guest import VECTOR_PAGES

FRAME_WORDS = 5
UNKNOWN = -1

KEEPS_RSP = frozenset({Op.NOP, Op.MARK, Op.MOV_RAX, Op.SHOW, Op.CLI, Op.STI})
"""What may come in front of an ADD whose word is to be known."""


def stack_address(word: int) -> int:
    """The address of a word of the model's memory."""
    return list(STACKS.values())[word // PAGE_WORDS] + 8 * (word % PAGE_WORDS - STACK_WORDS)


def stack_word(address: int) -> int:
    """The word of the model's memory that lies at an address, -1 if none does."""
    for page, top in enumerate(STACKS.values()):
        if top - 8 * STACK_WORDS <= address < top and address % 8 == 0:
            return page * PAGE_WORDS + STACK_WORDS - (top - address) // 8
    return -1


def goes_elsewhere(test: Test, index: int) -> bool:
    """Whether this ADD to RSP may lead to another stack."""
    return test.code[index].arg > STACK_WORDS // 2


def added(test: Test, start: int, index: int) -> int:
    """The bytes that an ADD to RSP adds, in the section that starts there; UNKNOWN if that depends on the way to it."""
    words = test.code[index].arg
    if not goes_elsewhere(test, index):
        return 8 * words
    word = _word_at(test, start, index)
    return stack_address(word + words) - stack_address(word) if word >= 0 else UNKNOWN


def _word_at(test: Test, start: int, index: int) -> int:
    """The word that RSP points to there, in a handler on a stack of its own that comes straight there; else UNKNOWN."""
    vector = next((vector for vector, first in test.handlers if first == start), UNKNOWN)
    if vector not in test.ist or vector == VECTORS["df"]:
        return UNKNOWN
    word = VECTOR_PAGES[vector] * PAGE_WORDS + STACK_WORDS - FRAME_WORDS
    before = test.code[start:index]
    if any(instruction.label or instruction.op not in KEEPS_RSP | {Op.ADD_RSP} for instruction in before):
        return UNKNOWN
    return word + sum(instruction.arg for instruction in before if instruction.op is Op.ADD_RSP)
