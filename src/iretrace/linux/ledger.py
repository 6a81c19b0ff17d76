"""What the verdict that is being found rests on: statements, rules, definitions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from iretrace.linux.machine import Machine
from iretrace.linux.notes import Lowered, Note, Uses
from iretrace.linux.registers import Found
from iretrace.linux.used import Used
from iretrace.verdict import Assumption


class Basis(NamedTuple):
    """Basic blocks and functions that were executed; all notes, but for those of lowering these functions."""

    noted: set[Note]
    blocks: set[int]
    functions: list[Lowered]
    notes: set[Note]


class Ledger:
    """What was noted since begin(), and what opening a hypervisor has taken (`opened`). asked: the host steps since."""

    def __init__(self, machine: Machine, opened: Uses, asked: dict[int, Found]) -> None:
        self._machine = machine
        self._opened = opened
        self._asked = asked
        self._opening: tuple[set[Note], Used] | None = None
        self._basis: Basis | None = None
        self.begin()

    def begin(self) -> None:
        """Begin anew."""
        self._asked.clear()
        self._machine.notes.begin()
        self._machine.notes.note(self._opened)

    def statements(self) -> int:
        """How many distinct C statements were executed."""
        return self._machine.program.blocks.count_statements(self._found().blocks)

    def assumptions(self, vcpu: str) -> tuple[Assumption, ...]:
        """The rules used, for a kind of vCPU."""
        basis = self._found()
        rows: Iterable[set[Note]] = (self._machine.rests_on(function).rows for function in basis.functions)
        return self._machine.rules.assumptions(vcpu, set[Note]().union(basis.notes, *rows))

    def definitions(self) -> list[Used]:
        """The definitions used: for each function those that lowering it has looked at, those of opening, others."""
        basis = self._found()
        parts = [self._machine.rests_on(function).definitions for function in basis.functions]
        if self._opening is None:
            notes = self._machine.notes.reached([self._opened], but=Lowered)
            self._opening = notes, self._machine.definitions.used(notes)
        notes, opening = self._opening
        return [*parts, opening, self._machine.definitions.used(basis.notes - notes)]

    def _found(self) -> Basis:
        noted = self._machine.notes.noted().union(*(found.uses for found in self._asked.values()))
        if self._basis is None or self._basis.noted != noted:
            notes = self._machine.notes.reached(noted, but=Lowered)
            program = self._machine.program
            blocks = program.executed(notes)
            lowered = {note for note in notes if isinstance(note, Lowered)} | program.blocks.functions(blocks)
            self._basis = Basis(noted, blocks, sorted(lowered, key=lambda function: function.name), notes)
        return self._basis
