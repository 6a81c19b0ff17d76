"""In which order a guest has marked and shown, between two deliveries.

The log has the marks in order, and the values in order, but not which came first where there are both. The program
tells: between two deliveries the guest does what its text says, from the handler's first instruction on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iretrace.litmus.test import Instruction, Op, Test
from iretrace.live.machine_code import Program, section_of, sections_of
from iretrace.live.stacks import stack_word

LOST = -1
"""A place that the walk does not know, or from which it does not go on."""

MAX_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery through the IDT, or an SMI. place: the instruction that the saved RIP means, or -1. flags: TF and IF
    as saved.

    debugged: a debugger of the VMM was attached; whose TF was pushed is not known, so it is not in flags."""

    vector: int
    place: int
    flags: int
    error: int
    debugged: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark by its number in Test.marks."""

    number: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A value that `show` has shown, as the model has it: an address is an instruction, or a word of its memory."""

    value: int


Event = Delivery | Mark | Shown


class Walk:
    """A way through the text of a test, held to what the log has of it."""

    def __init__(self, test: Test) -> None:
        self._test = test
        self._labels = {instruction.label: index for index, instruction in enumerate(test.code) if instruction.label}
        self._sections = sections_of(test)
        calls = [index for index, instruction in enumerate(test.code) if instruction.op is Op.SYSCALL]
        self._behind_syscall = calls[0] + 1 if len(calls) == 1 else LOST
        self._at = test.main
        self._returns: list[tuple[int, int]] = []
        """(vector, place) of each delivery that has not been returned from."""

    def deliver(self, vector: int, place: int) -> None:
        """A delivery that interrupts this place. On a stack of its own it overwrites the frames that are there."""
        while self._returns and section_of(self._test, place) != self._handler(self._returns[-1][0]):
            self._returns.pop()
        if vector in self._test.ist:
            self._returns = [(v, LOST if v == vector else p) for v, p in self._returns]
        self._returns.append((vector, place))
        self._at = self._handler(vector)

    def _handler(self, vector: int) -> int:
        return next((start for start, handled in self._sections.items() if handled == vector), LOST)

    def between(self, marks: Sequence[int], values: Sequence[int], program: Program) -> list[Event] | None:
        """These marks and values in the order in which they came; None if the text does not tell."""
        events: list[Event] = [Mark(number) for number in marks]
        shown: list[Event] = [Shown(_of_the_model(value, program)) for value in values]
        return self._ordered(events, shown) if events and shown else events + shown

    def _ordered(self, marks: list[Event], shown: list[Event]) -> list[Event] | None:
        events: list[Event] = []
        for _ in range(MAX_STEPS):
            if not marks and not shown:
                return events
            if self._at == LOST:
                return None
            instruction = self._test.code[self._at]
            waiting = {Op.MARK: marks, Op.SHOW: shown}.get(instruction.op)
            if waiting == [] or (waiting is marks and marks[0] != Mark(instruction.arg)):
                return None
            if waiting:
                events.append(waiting.pop(0))
            self._step(instruction)
        return None

    def _step(self, instruction: Instruction) -> None:
        behind = self._at + 1
        if instruction.op in (Op.IRETQ, Op.RSM):
            self._at = self._returns.pop()[1] if self._returns else LOST
        elif instruction.op is Op.JMP:
            self._at = instruction.arg
        elif instruction.op is Op.SYSCALL:
            self._at = self._test.syscall
        elif instruction.op is Op.SYSRET:
            self._at = self._behind_syscall
        elif instruction.op is Op.SPIN or behind in self._sections or behind == len(self._test.code):
            self._at = LOST
        else:
            self._change_frame(instruction.op, instruction.text)
            self._at = behind

    def _change_frame(self, op: Op, text: str) -> None:
        """What is written where the frame's RIP is."""
        where, _, value = text.rpartition(", ")
        if op is Op.MOV_STACK and where.endswith("[rsp]") and value in self._labels and self._returns:
            self._returns[-1] = (self._returns[-1][0], self._labels[value])


def _of_the_model(value: int, program: Program) -> int:
    """A value as the model has it: 32 bits, and addresses in its own units."""
    if value in program.addresses:
        return program.addresses.index(value)
    word = stack_word(value)
    return word if word >= 0 else value & 0xFFFF_FFFF
