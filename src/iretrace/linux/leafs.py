"""What things rest on in the end, told apart from process to process: lookups, rows of rules, functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from iretrace.linux.closure import SEPARATOR
from iretrace.linux.notes import Lowered, Note
from iretrace.linux.rules import Row, Traced
from iretrace.linux.used import Query

if TYPE_CHECKING:
    from iretrace.linux.machine import Machine


def is_leaf(note: Note) -> bool:
    """Whether this is one: anything else is made of others."""
    return isinstance(note, Query | Row | Traced | Lowered)


def told_leaf(note: Note) -> list[str]:
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


def read_leaf(machine: Machine, kind: str, words: list[str]) -> Note:
    """The leaf of some words. KeyError, ValueError: there is none."""
    match kind, words:
        case "query", _:
            return Query(tuple(words))
        case "row", [table, name]:
            return machine.rules.rows[table, name]
        case "traced", [name]:
            return Traced(name)
        case "function", [name]:
            return Lowered(name)
    raise ValueError(f"no leaf: {kind}")


def name_of_query(words: Iterable[str]) -> str:
    """As Definitions name it."""
    return SEPARATOR.join(words)
