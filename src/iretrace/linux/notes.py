"""What rests on what: who works something out notes what it looked at, and who takes that over rests on the same.

A verdict must be able to tell which definitions and rules it used, also where somebody before it has worked out a part
of what it needs. So whatever is kept for later is a node: while it is worked out, what is looked at is noted as its
parts; whoever asks for it notes the node.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

Note = Hashable
"""A lookup in the tree's index, a rule's row, or a node."""


class Notes:
    """The notes of one machine. parts: node -> what was noted while it was worked out."""

    def __init__(self) -> None:
        self.parts: dict[Note, Set[Note]] = {}
        self._noted: set[Note] = set()

    def note(self, what: Note) -> None:
        """Whatever is being worked out rests on this."""
        self._noted.add(what)

    @contextmanager
    def collecting(self) -> Iterator[set[Note]]:
        """What is noted meanwhile is in the set, and nobody else's."""
        before, self._noted = self._noted, set()
        try:
            yield self._noted
        finally:
            self._noted = before

    def cut(self) -> set[Note]:
        """What `collecting` has noted so far, which begins anew."""
        noted = set(self._noted)
        self._noted.clear()
        return noted

    @contextmanager
    def of(self, node: Note) -> Iterator[None]:
        """What is noted meanwhile are parts of a node, on which rests whatever is being worked out."""
        self.note(node)
        with self.collecting() as noted:
            try:
                yield
            finally:
                self.parts[node] = noted | self.parts.get(node, frozenset())

    def later(self, compute: Callable[[], T]) -> Later[T]:
        """A value that is worked out when first asked for."""
        return Later(self, compute)

    def begin(self) -> None:
        """What was noted so far and belongs to no node is forgotten."""
        self._noted.clear()

    def noted(self) -> set[Note]:
        """What was noted and belongs to no node."""
        return set(self._noted)

    def reached(self, notes: Iterable[Note], but: type | None = None) -> set[Note]:
        """These and all their parts; without the parts of one kind of node."""
        waiting, found = set(notes), set[Note]()
        while waiting:
            found |= waiting
            parts = [self.parts[note] for note in waiting if note in self.parts and type(note) is not but]
            waiting = set[Note]().union(*parts) - found
        return found


class Later(Generic[T]):
    """A value that is worked out once. It is a node; who asks for it rests on what it rests on."""

    __slots__ = ("_compute", "_known", "_notes", "_value")

    def __init__(self, notes: Notes, compute: Callable[[], T]) -> None:
        self._notes = notes
        self._compute = compute
        self._known = False
        self._value: T

    def __call__(self) -> T:
        """The value. Raises what working it out raises, each time."""
        if self._known:
            self._notes.note(self)
            return self._value
        with self._notes.of(self):
            self._value = self._compute()
        self._known = True
        return self._value


BLOCKS = "I"
"""Type code of arrays of block numbers."""


class Uses(NamedTuple):
    """A node: the trace of an execution, as the bytes of an array of block numbers, and what was noted meanwhile."""

    trace: bytes
    notes: frozenset[Note]

    def blocks(self) -> array[int]:
        """The basic blocks."""
        return array(BLOCKS, self.trace)


@dataclass(frozen=True, slots=True)
class Lowered:
    """The note that a function was executed, by its name in the program: what lowering it has looked at counts."""

    name: str
