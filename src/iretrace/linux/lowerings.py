"""What functions are lowered to, told so that a later run need not parse and lower them.

What a function is lowered to depends on the lookups and rules that lowering it has noted (linux.notes). Where all of
these are answered as they were, by a tree in which patches have changed functions only, it is taken over, with its
lines where they stand now. Python is made of it here: see irtext.

A text is compressed lines of JSON: a header, and a line for each function of its leafs (by number) and itself. It was
perhaps not written by us: what does not read as we would have written it is not there.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any

from iretrace.linux import irtext
from iretrace.linux.answers import Model, Site
from iretrace.linux.bodies import Bodies
from iretrace.linux.ctree import Pos
from iretrace.linux.ir import Lowered as Function
from iretrace.linux.kept import UNREADABLE, lines_of
from iretrace.linux.leafs import Foundations, Leafs, foresee, is_leaf, told_foundations
from iretrace.linux.machine import Machine
from iretrace.linux.notes import Lowered, Note
from iretrace.linux.primitives import PRIMITIVES
from iretrace.linux.program import Program
from iretrace.linux.used import Moves


@dataclass(slots=True)
class _Header(Foundations):
    """contents: of objects, by what tells each from others: leafs, whether it can be written, words by address."""

    contents: dict[str, tuple[list[int], bool, list[tuple[int, int | None]]]]
    functions: list[str]


class Lowerings:
    """What the functions of a machine's program have been lowered to in this process."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._told: dict[str, str] = {}
        machine.program.tell.append(self._tell)

    def _tell(self, name: str, lowered: Function) -> None:
        program = self._machine.program
        with suppress(_NoName):
            if program.c_name(name) is not None:
                told = irtext.Teller(lambda called: told_callee(program, called)).function(lowered)
                self._told[name] = json.dumps(told)

    def text(self, read: Mapping[str, str]) -> bytes:
        """All of them; empty if there is none. read: what was read of the tree."""
        machine = self._machine
        if machine.program.space.displaced or not self._told:
            return b""
        leafs: dict[Note, int] = {}

        def rests_on(node: Note) -> list[int]:
            notes = filter(is_leaf, machine.notes.reached([node]))
            return sorted(leafs.setdefault(note, len(leafs)) for note in notes if note != node)

        lines = [f"[{json.dumps(rests_on(Lowered(name)))}, {told}]" for name, told in self._told.items()]
        contents = {
            made.own: (rests_on(node), made.writable, [(at, _known(word)) for at, word in made.words.items()])
            for made, node in machine.program.globals.filled()
        }
        foundations = told_foundations(machine, leafs, read)
        header = {**foundations, "contents": contents, "functions": list(self._told)}
        return zlib.compress("\n".join((json.dumps(header), *lines)).encode(), 1)


class KeptLowerings:
    """Those of a text, as far as they hold for a machine. bodies_of: see kept.Kept. ValueError: the text is none, or of
    a tree that differs in more than functions."""

    def __init__(self, text: bytes, machine: Machine, bodies_of: Callable[[Mapping[str, str]], Bodies | None]) -> None:
        self._machine = machine
        lines = lines_of(text)
        self._header = header = _Header(**json.loads(lines[0]))
        bodies = bodies_of(header.read)
        if bodies is None:
            raise ValueError("another tree")
        foresee(machine, header)
        self._lines = dict(zip(header.functions, lines[1:], strict=True))
        self._leafs = Leafs(machine, header, bodies)

    def function(self, name: str) -> Function | None:
        """See program.Kept."""
        line = self._lines.get(name)
        if line is None:
            return None
        try:
            numbers, told = json.loads(line)
            rests_on = self._rests_on(numbers)
            if rests_on is None:
                return None
            notes, lines = rests_on
            with self._machine.notes.collecting():
                program = self._machine.program
                lowered = irtext.Reader(lambda callee: read_callee(program, callee, lines), lines).function(told)
        except UNREADABLE:
            return None
        for note in notes:
            self._machine.notes.note(note)
        return lowered

    def content(self, own: str) -> tuple[bool, Mapping[int, int | None]] | None:
        """See program.Kept."""
        if own not in self._header.contents:
            return None
        try:
            numbers, writable, words = self._header.contents[own]
            known = {int(at): None if word is None else int(word) for at, word in words}
            return None if self._rests_on(numbers) is None else (bool(writable), known)
        except UNREADABLE:
            return None

    def _rests_on(self, numbers: list[int]) -> tuple[list[Note], Moves] | None:
        """Some leafs, and where the lines are that they name; None: one of them means something else here."""
        notes: list[Note] = []
        lines: Moves = {}
        for number in numbers:
            note, moves = self._leafs.find(number)
            if moves is None:
                return None
            notes.append(note)
            lines.update(moves)
        return notes, lines


def _known(word: int | Callable[[], int]) -> int | None:
    return None if callable(word) else word


def told_callee(program: Program, called: str) -> Any:
    """What is called by a name in the program, for other processes."""
    found = program.c_name(called)
    if found is not None:
        return ["c", *found]
    if called in program.models:
        name, site = program.models[called]
        return ["python", name, site and [site.pos.path, site.pos.line, *astuple(site)[1:]]]
    if called in PRIMITIVES:
        return called
    raise _NoName


def read_callee(program: Program, told: Any, lines: Moves) -> str:
    """The name here of what was called there. It is pasted into Python. ValueError: nothing has such a name."""
    match told:
        case ["c", str(name), str(path)] if name.isidentifier() and name.isascii():
            return program.known_as(name, path)
        case ["python", str(name), site]:
            answer = program.rules.function(name, "")
            if isinstance(answer, Model):
                return program.model(name, answer, None if site is None else _site(site, lines))
        case str() if told in PRIMITIVES:
            return told
    raise ValueError("no callee")


def _site(told: Any, lines: Moves) -> Site:
    path, line, function, texts, bits, pointee = told
    pos = Pos(str(path), lines.get((path, line), int(line)))
    return Site(pos, str(function), tuple(map(str, texts)), tuple(map(int, bits)), tuple(map(int, pointee)))


class _NoName(Exception):
    """A function calls what has no name that another process knows."""
