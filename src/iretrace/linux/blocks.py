"""The basic blocks of a program: traces of runs are numbers of these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iretrace.linux.answers import ConditionId
from iretrace.linux.ctree import Pos
from iretrace.linux.notes import Lowered


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """A basic block: the function, its file and its name in the program, the places of its statements, its leaf
    conditions."""

    function: str
    path: str
    name: str
    statements: tuple[Pos, ...]
    conditions: tuple[ConditionId, ...]


class Blocks(list[BlockInfo]):
    """By their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._statements: dict[tuple[str, Pos], int] = {}
        self._numbers: list[tuple[int, ...]] = []
        """For each block the numbers of its statements."""

    def add(self, info: BlockInfo) -> int:
        """The number of a new block."""
        numbers = self._statements
        self.append(info)
        found = [numbers.setdefault((info.function, place), len(numbers)) for place in info.statements]
        self._numbers.append(tuple(found))
        return len(self) - 1

    def count_statements(self, blocks: Iterable[int]) -> int:
        """How many distinct C statements some blocks have."""
        return len(set[int]().union(*(self._numbers[block] for block in blocks)))

    def functions(self, blocks: Iterable[int]) -> set[Lowered]:
        """The functions of some blocks."""
        return {Lowered(name) for name in {self[block].name for block in blocks}}

    def conditions(self, blocks: Iterable[int]) -> set[ConditionId]:
        """The leaf conditions that were decided in some blocks."""
        return {condition for block in set(blocks) for condition in self[block].conditions}
