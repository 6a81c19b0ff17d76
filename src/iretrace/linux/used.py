"""Which definitions of a tree a run used: an index that notes what is looked up, and digests of what it answered.

A verdict rests on nothing of a tree but the answers of its index, as they are after the preprocessor: macros are inside
them, and a definition that a nearer one hides is another answer. Where in its file a definition stands is no part of
its digest, so that a patch may move it: a function's digest counts its lines, `Definition.lines` says where they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple

from iretrace.linux import ctree
from iretrace.linux.bodies import Bodies
from iretrace.linux.closure import SEPARATOR
from iretrace.linux.ctree import CType, Pos
from iretrace.linux.index import Index
from iretrace.linux.notes import Note, Notes
from iretrace.linux.parse import ParseError
from iretrace.verdict import field_names


class Definition(NamedTuple):
    """What a query was answered. lines: those of a function's file that its nodes stand on, ascending."""

    digest: str
    path: str = ""
    lines: tuple[int, ...] = ()


Told = tuple[str, str, tuple[int, ...]]
"""A Definition, as it was kept."""

Used = dict[str, Definition]
"""By the name of their query."""

Moves = dict[tuple[str, int], int]
"""(path, line in one tree) -> line in another."""


class Query(NamedTuple):
    """The note of a lookup: its name and its arguments."""

    words: tuple[str, ...]


class NotingIndex(Index):
    """An index that notes its queries."""

    def __init__(self, notes: Notes, *arguments: Any, **named: Any) -> None:
        self.notes = notes
        super().__init__(*arguments, **named)

    def note(self, *query: str) -> None:
        """Note a query."""
        self.notes.note(Query(query))

    # The lookups of Index. Those that only others use (is_typedef) are in the answers of these.

    def function(self, name: str, path: str = "") -> ctree.Function | None:
        """As Index."""
        self.note("function", name, path)
        return super().function(name, path)

    def signature(self, name: str, path: str = "") -> ctree.Function | None:
        """As Index."""
        self.note("signature", name, path)
        return super().function(name, path)

    def struct(self, kind: str, tag: str, path: str = "") -> ctree.StructType | None:
        """As Index."""
        self.note("struct", kind, tag, path)
        return super().struct(kind, tag, path)

    def enum(self, tag: str, path: str = "") -> ctree.EnumType | None:
        """As Index."""
        self.note("enum", tag, path)
        return super().enum(tag, path)

    def typedef(self, name: str, path: str = "") -> CType | None:
        """As Index."""
        self.note("typedef", name, path)
        return super().typedef(name, path)

    def enumerator(self, name: str) -> tuple[ctree.EnumType, str] | None:
        """As Index."""
        self.note("enumerator", name)
        return super().enumerator(name)

    def variable(self, name: str, path: str = "") -> ctree.Declaration | None:
        """As Index."""
        self.note("variable", name, path)
        return super().variable(name, path)

    def declared(self, name: str, path: str = "") -> CType | None:
        """As Index."""
        self.note("declared", name, path)
        with self.notes.collecting():  # the body of a function is no part of the answer
            return super().declared(name, path)

    def macro(self, name: str, path: str = "") -> ctree.Expr | None:
        """As Index."""
        self.note("macro", name, path)
        return super().macro(name, path)

    def op_list(self, macro: str) -> tuple[str, ...]:
        """As Index."""
        self.note("op_list", macro)
        return super().op_list(macro)

    def functions_in(self, path: str) -> list[str]:
        """As Index."""
        self.note("functions_in", path)
        return super().functions_in(path)


class Definitions:
    """The definitions of one tree by query name. facts: what is worked out from whole files, by a name of its own."""

    def __init__(self, index: NotingIndex, facts: Mapping[str, object]) -> None:
        self._index = index
        self._known: dict[str, Definition] = {name: Definition(_digest([repr(value)])) for name, value in facts.items()}
        self._facts = tuple(facts)
        self._moves: dict[str, tuple[Told, Moves | None]] = {}

    def facts(self) -> tuple[str, ...]:
        """The digests of the facts."""
        return tuple([self._known[name].digest for name in self._facts])

    def used(self, notes: Iterable[Note]) -> Used:
        """Everything whose lookup was noted, and all facts."""
        names = (*self._facts, *sorted(SEPARATOR.join(note.words) for note in notes if isinstance(note, Query)))
        return {name: self.find(name) for name in names}

    def find(self, name: str) -> Definition:
        """What a query of that name is answered."""
        if name not in self._known:
            self._known[name] = self._answer(*name.split(SEPARATOR))
        return self._known[name]

    def moves(self, uses: Mapping[str, Told], bodies: Bodies | None = None) -> Moves | None:
        """Where the lines of these definitions of another tree stand here; None if one of them is not the same.

        bodies: the other tree is this one without its patches, and they change no more than this."""
        moves: Moves = {}
        for name, there in uses.items():
            asked, here = self._moves.get(name, (None, None))
            if asked is not there:
                here = self._moved(name, Definition(*there), bodies)
                self._moves[name] = there, here
            if here is None:
                return None
            moves.update(here)
        return moves

    def _moved(self, name: str, there: Definition, bodies: Bodies | None) -> Moves | None:
        if bodies is not None and not bodies.concern(tuple(name.split(SEPARATOR)), there.path):
            self._known.setdefault(name, there)
            return {(there.path, line): line for line in there.lines}
        here = self.find(name)
        if here.digest != there.digest or len(here.lines) != len(there.lines):
            return None
        return {(there.path, old): new for old, new in zip(there.lines, here.lines, strict=True)}

    def _answer(self, kind: str, *arguments: str) -> Definition:
        ask: Callable[..., Any] | None = getattr(Index, kind, None) if kind in LOOKUPS else None
        if ask is None:
            return Definition("unknown")
        with self._index.notes.collecting():
            try:
                answer = ask(self._index, *arguments)
            except (ParseError, TypeError, RecursionError) as error:
                return Definition(_digest([f"{type(error).__name__}: {error}"]))
        if kind == "signature" and isinstance(answer, ctree.Function):
            return Definition(_digest(_words((answer.name, answer.pos.path, answer.type), {})))
        return self._described(answer)

    def _described(self, answer: Any) -> Definition:
        """The digest of an answer, its places counted among the lines of its own file that it stands on."""
        if not isinstance(answer, ctree.Function):
            return Definition(_digest(_words(answer, {})))
        path = answer.pos.path
        last = Pos(path, answer.last_line)
        lines = sorted({pos.line for pos in (last, *_places(answer)) if pos.path == path})
        text = (self._index.tree.text(path) or "").split("\n")
        shown = [text[line - 1].strip() for line in lines if 0 < line <= len(text)]
        numbers = {Pos(path, line): number for number, line in enumerate(lines)}
        told = (replace(answer, last_line=0), last)
        return Definition(_digest([*_words(told, numbers), *shown]), path, tuple(lines))


LOOKUPS = frozenset(
    "function signature struct enum typedef enumerator variable declared macro op_list functions_in".split()
)


def _digest(words: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _words(node: Any, numbers: Mapping[Pos, int]) -> Iterator[str]:
    """A syntax tree as words, depth first; nodes of different shape never give the same words."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, Pos):
            number = numbers.get(item)
            yield str(item) if number is None and numbers else f"line {number}"
        elif isinstance(item, tuple | list):
            yield f"({len(item)}"
            stack.extend(reversed(item))
        elif is_dataclass(item):
            kind: Any = type(item)
            yield str(kind.__name__)
            stack.extend(getattr(item, part) for part in reversed(field_names(kind)))
        else:
            yield repr(item)


def _places(node: Any) -> Iterator[Pos]:
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, Pos):
            yield item
        elif isinstance(item, tuple | list):
            stack.extend(item)
        elif is_dataclass(item):
            kind: Any = type(item)
            stack.extend(getattr(item, part) for part in field_names(kind))
