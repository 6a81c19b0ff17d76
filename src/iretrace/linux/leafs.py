"""What texts for other processes rest on in the end (lowerings, told): lookups, rows of rules, functions; and names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from iretrace.linux.bodies import Bodies
from iretrace.linux.closure import SEPARATOR
from iretrace.linux.machine import Machine
from iretrace.linux.memory import owner_of
from iretrace.linux.notes import Lowered, Note
from iretrace.linux.rules import Row, Traced
from iretrace.linux.used import Definition, Moves, Query
from iretrace.linux.vm import KINDS


def is_leaf(note: Note) -> bool:
    """Whether this is one: anything else is made of others."""
    return isinstance(note, Query | Row | Traced | Lowered)


@dataclass(slots=True)
class Foundations:
    """What the header of a text says of who told it. read: of the tree. objects: Space.all, addresses: of Program.
    leafs: as words, definitions: of the lookups among them, by their names."""

    read: dict[str, str]
    objects: list[tuple[str, int, int]]
    addresses: list[tuple[str, int, str, str]]
    leafs: list[list[str]]
    definitions: dict[str, tuple[str, str, list[int]]]


def told_foundations(machine: Machine, leafs: Collection[Note], read: Mapping[str, str]) -> dict[str, Any]:
    """That of a machine. leafs: all that the text has numbers of, in their order."""
    queries = {_name(note.words) for note in leafs if isinstance(note, Query)}
    return {
        "read": read,
        "objects": [told for told in machine.program.space.all() if owner_of(told[0]) not in KINDS],
        "addresses": machine.program.addresses(),
        "leafs": list(map(_told, leafs)),
        "definitions": {name: machine.definitions.find(name) for name in sorted(queries)},
    }


def foresee(machine: Machine, told: Foundations) -> None:
    """Let the objects and functions of whoever told a text have the addresses here that they have there. ValueError:
    others are there."""
    for made in told.objects:
        machine.program.space.foresee(*made)
    for function in told.addresses:
        machine.program.adopt_address(*function)


class Leafs:
    """The leafs of a text by their numbers. bodies: what has changed since; None: perhaps anything."""

    def __init__(self, machine: Machine, told: Foundations, bodies: Bodies | None) -> None:
        self._machine = machine
        self._told = told
        self._bodies = bodies
        self._known: dict[int, tuple[Note, Moves | None]] = {}

    def find(self, number: int) -> tuple[Note, Moves | None]:
        """A leaf, and where the lines are that it names; None: it means something else here. What does not read as one
        raises ValueError or what Python does."""
        known = self._known.get(number)
        if known is None:
            kind, *words = self._told.leafs[number]
            known = self._known[number] = self._note(kind, words), self._moves(kind, words)
        return known

    def _note(self, kind: str, words: list[str]) -> Note:
        match kind, words:
            case "query", _:
                return Query(tuple(words))
            case "row", [table, name]:
                return self._machine.rules.rows[table, name]
            case "traced", [name]:
                return Traced(name)
            case "function", [name]:
                return Lowered(name)
        raise ValueError(f"no leaf: {kind}")

    def _moves(self, kind: str, words: list[str]) -> Moves | None:
        if kind != "query":
            return {}
        name = _name(words)
        digest, path, lines = self._told.definitions[name]
        there = Definition(digest, path, tuple(lines))
        return self._machine.definitions.moves({name: there}, self._bodies)


def _told(note: Note) -> list[str]:
    """A leaf as words."""
    match note:
        case Query():
            return ["query", *note.words]
        case Row():
            return ["row", note.table, note.name]
        case Traced():
            return ["traced", note.name]
        case Lowered():
            return ["function", note.name]
    raise TypeError(f"no leaf: {note}")


def _name(words: Iterable[str]) -> str:
    """As Definitions name a lookup."""
    return SEPARATOR.join(words)
