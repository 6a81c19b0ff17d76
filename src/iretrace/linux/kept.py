"""What host steps came to, told so that a later run need not execute them.

What a host step comes to depends on what it is asked, on the C and the rules that it executes, and on how its
hypervisor was opened. So it holds for another tree as well in which all this is the same: for most steps, where a patch
changes a few functions. Addresses, names and digests are the same in every process (memory.Space, explore.turns).

A text of them is compressed lines of JSON: a header (_Header), then nodes, states, ends (ENDS) and steps, see _Told. It
was perhaps not written by us: what does not read as we would have written it is not there.
"""

from __future__ import annotations

import json
import marshal
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Any

from iretrace.explore.turns import WITHOUT_REFERENCES, plain
from iretrace.linux.bodies import Bodies
from iretrace.linux.ctree import Pos
from iretrace.linux.machine import Machine
from iretrace.linux.notes import BLOCKS, Lowered, Note, Uses
from iretrace.linux.registers import Found, Memo
from iretrace.linux.rules import Row, Traced
from iretrace.linux.sender import EventSender
from iretrace.linux.states import State, States
from iretrace.linux.turning import Turn
from iretrace.linux.used import SEPARATOR, Definition, Moves, Query
from iretrace.linux.vm import KINDS
from iretrace.world.protocol import NO_SENDER, Debug, Landing, Packed, Pause, PauseKind, SenderState

MOST_BYTES = 256 << 20
"""A longer text is none of ours."""

UNREADABLE = (ValueError, KeyError, TypeError, IndexError)
"""What reading a text that is not ours comes to."""


@dataclass(slots=True)
class Opened:
    """What steps depend on beside what they are asked. setting: a digest of it. opening: on what it rests."""

    machine: Machine
    states: States
    setting: str
    opening: Uses


def setting_of(told: Any) -> str:
    """The digest of plain values."""
    return _digest(plain(told)).hex()


def _digest(value: Any) -> bytes:
    return blake2b(marshal.dumps(value, WITHOUT_REFERENCES), digest_size=16).digest()


def _state_digest(state: State) -> bytes:
    return _digest((state.words, state.frames, state.interrupts, state.gif, state.sp))


class Keys:
    """Digests of what steps are asked."""

    def __init__(self) -> None:
        self._states: dict[State, bytes] = {}

    def of(self, asked: tuple[Any, ...], schedule: tuple[Landing, ...]) -> str:
        """Of a step."""
        state = asked[0]
        assert isinstance(state, State)
        known = self._states.get(state)
        if known is None:
            known = self._states[state] = _state_digest(state)
        _, vmcb, ghcb, cause, senders, debug = asked
        return _digest((known, vmcb, ghcb, int(cause), plain(senders), tuple(debug), schedule)).hex()


# Telling. -----------------------------------------------------------------------------------------------------------


def told(opened: Opened, steps: Memo[Found], read: Mapping[str, str]) -> bytes:
    """The text of all steps that this process has worked out; empty if it has none. read: what was read of the tree."""
    return _Told(opened).all(steps, read)


ENDS = (
    "kind", "ghcb", "senders", "log", "ipi", "warm", "exit_reason", "debug", "host_area", "smram", "code_base", "host",
)  # fmt: skip
"""What of pauses is told apart: many have it in common."""


class _Told:
    """One text in the making. Whatever is told often is told once and has a number then."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._notes = opened.machine.notes
        self._program = opened.machine.program
        self._leafs: dict[Note, int] = {}
        self._nodes: dict[int, int] = {}
        self._node_lines: list[Any] = []
        self._states: dict[State, int] = {}
        self._state_lines: list[Any] = []
        self._ends: dict[Any, int] = {}
        self._functions: dict[str, list[int]] = {}
        for number, block in enumerate(self._program.blocks):
            self._functions.setdefault(block.name, []).append(number)
        self._places = [0] * len(self._program.blocks)
        for place, number in enumerate(number for blocks in self._functions.values() for number in blocks):
            self._places[number] = place

    def all(self, steps: Memo[Found], read: Mapping[str, str]) -> bytes:
        keys, index, lines = Keys(), dict[str, list[Any]](), list[Any]()
        for (asked, schedule), looked, values, found in steps.all():
            if found.way is None or not _is_plain(found.pause):
                continue
            index.setdefault(keys.of(asked, schedule), []).append([looked, values, len(lines)])
            lines.append(self._step(asked[0], found))
        if not lines or self._program.space.displaced:
            return b""
        notes = self._notes.reached([self._opened.opening], but=Lowered)
        opening = [self._leaf(note) for note in notes if isinstance(note, Query) and note.words[0] != "function"]
        functions = [self._function(name, blocks) for name, blocks in self._functions.items()]
        queries = {SEPARATOR.join(note.words) for note in self._leafs if isinstance(note, Query)}
        header = {
            "setting": self._opened.setting,
            "read": read,
            "opening": opening,
            "objects": [told for told in self._program.space.all() if told[0].partition("\t")[0] not in KINDS],
            "addresses": self._program.addresses(),
            "functions": functions,
            "leafs": [_told_note(note) for note in self._leafs],
            "definitions": {name: self._opened.machine.definitions.find(name) for name in sorted(queries)},
            "steps": index,
            "counts": [len(self._node_lines), len(self._state_lines), len(self._ends)],
        }
        parts = (header, *self._node_lines, *self._state_lines, *self._ends, *lines)
        text = "\n".join(json.dumps(part) for part in parts)
        return zlib.compress(text.encode(), 1)

    def _function(self, name: str, blocks: Sequence[int]) -> Any:
        """A function: its names, what lowering it has looked at, the places of its blocks."""
        infos = [self._program.blocks[block] for block in blocks]
        rests_on = [note for note in self._notes.reached([Lowered(name)]) if isinstance(note, Query | Row | Traced)]
        places = [[(pos.path, pos.line) for pos in info.statements] for info in infos]
        return [name, infos[0].function, infos[0].path, sorted(map(self._leaf, rests_on)), places]

    def _leaf(self, note: Note) -> int:
        return self._leafs.setdefault(note, len(self._leafs))

    def _node(self, note: Note) -> int:
        """The number of a node: a Uses as it is, any other with all that it is made of."""
        known = self._nodes.get(id(note))
        if known is None:
            notes: Iterable[Note]
            if isinstance(note, Uses):
                blocks, notes = note.blocks(), note.notes
            else:
                notes = self._notes.reached([note], but=Lowered)
                blocks, notes = self._program.executed(notes), [one for one in notes if _is_leaf(one)]
            parts = [self._node(part) for part in notes if not _is_leaf(part)]
            line = [
                sorted({self._places[block] for block in blocks}),
                sorted(parts),
                sorted(self._leaf(leaf) for leaf in notes if _is_leaf(leaf)),
            ]
            known = self._nodes[id(note)] = len(self._node_lines)
            self._node_lines.append(line)
        return known

    def _state(self, state: State) -> int:
        known = self._states.get(state)
        if known is None:
            known = self._states[state] = len(self._state_lines)
            words = [number for word in state.words for number in word]
            self._state_lines.append([words, state.frames, state.interrupts, state.gif, state.sp])
        return known

    def _step(self, start: State, found: Found) -> Any:
        pause = found.pause
        assert isinstance(pause.private, State)
        frames: Any = start.frames
        end = (*[getattr(pause, name) for name in ENDS], found.moved, tuple(sorted(found.looked)))
        return [
            [self._node(uses) for uses in found.uses],
            [self._leaf(Lowered(name)) for name, _, _ in frames],
            self._ends.setdefault(end, len(self._ends)),
            self._state(pause.private),
            pause.vmcb,
            pause.openings,
            [(turn.place.hex(), turn.senders, turn.log) for turn in pause.turns if isinstance(turn, Turn)],
            [self._node(self._program.uses(blocks)) for blocks in found.landed],
        ]


def _is_plain(pause: Pause) -> bool:
    """Whether it names no line and does not begin a run."""
    return not (pause.defects or pause.unmodelled or pause.sev_features or pause.launched[0] or pause.efer_passes)


def _is_leaf(note: Note) -> bool:
    return isinstance(note, Query | Row | Traced | Lowered)


def _told_note(note: Note) -> list[str]:
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


# Taking. ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Header:
    """See _Told.all."""

    setting: str
    read: dict[str, str]
    opening: list[int]
    objects: list[tuple[str, int, int]]
    addresses: list[tuple[str, int, str, str]]
    functions: list[tuple[str, str, str, list[int], list[list[tuple[str, int]]]]]
    leafs: list[list[str]]
    definitions: dict[str, tuple[str, str, list[int]]]
    steps: dict[str, list[tuple[list[int], list[int], int]]]
    counts: tuple[int, int, int]


class Kept:
    """The steps of a text, as far as they hold here. bodies_of: what patches have changed since what was read was like
    this, where they change bodies only. ValueError: the text is none, or is about other states than these."""

    def __init__(self, text: bytes, opened: Opened, bodies_of: Callable[[Mapping[str, str]], Bodies | None]) -> None:
        self._opened = opened
        self._program = opened.machine.program
        lines = _lines(text)
        self._header = header = _Header(**json.loads(lines[0]))
        if header.setting != opened.setting:
            raise ValueError("other states")
        nodes, states, ends = header.counts
        rest = iter(lines[1:])
        self._node_lines, self._state_lines, self._end_lines = (
            list(islice(rest, count)) for count in (nodes, states, ends)
        )
        self._step_lines = list(rest)
        self._nodes: dict[int, Uses | None] = {}
        self._states: dict[int, State] = {}
        self._ends: dict[int, tuple[Pause, tuple[tuple[int, int], ...], frozenset[int]]] = {}
        self._look_at_definitions(bodies_of(header.read))
        if any(leaf in self._changed for leaf in header.opening):
            raise ValueError("other types")
        for made in header.objects:
            self._program.space.foresee(*made)
        for function in header.addresses:
            self._program.adopt_address(*function)
        self._adopt()

    def _look_at_definitions(self, bodies: Bodies | None) -> None:
        """Which leafs mean something else here, and where lines have moved."""
        self._moves: Moves = {}
        self._leafs: list[Note] = []
        self._changed: set[int] = set()
        for number, (kind, *words) in enumerate(self._header.leafs):
            self._leafs.append(self._note(kind, words))
            if kind == "query":
                name = SEPARATOR.join(words)
                digest, path, lines = self._header.definitions[name]
                found = self._opened.machine.definitions.moves({name: Definition(digest, path, tuple(lines))}, bodies)
                if found is None:
                    self._changed.add(number)
                else:
                    self._moves.update(found)

    def _note(self, kind: str, words: list[str]) -> Note:
        if kind == "row":
            table, name = words
            return self._opened.machine.rules.rows[table, name]
        kinds: dict[str, Callable[[], Note]] = {
            "query": lambda: Query(tuple(words)),
            "traced": lambda: Traced(words[0]),
            "function": lambda: Lowered(words[0]),
        }
        return kinds[kind]()

    def _adopt(self) -> None:
        """Make the functions known that are here as they were there."""
        self._blocks: list[int] = []
        self._files: dict[str, tuple[str, str]] = {}
        gone = set[Note]()
        for name, function, path, rests_on, places in self._header.functions:
            if not self._changed.isdisjoint(rests_on):
                gone.add(Lowered(name))
                self._blocks += [-1] * len(places)
                continue
            self._files[name] = function, path
            rows = [tuple([Pos(file, self._moves.get((file, line), line)) for file, line in row]) for row in places]
            self._blocks += self._program.adopt(name, function, path, rows)
            self._opened.machine.notes.parts.setdefault(Lowered(name), {self._leafs[leaf] for leaf in rests_on})
        self._changed |= {number for number, note in enumerate(self._leafs) if note in gone}

    def find(self, key: str, vmcb: Packed) -> Found | None:
        """What a step of a key (Keys) came to, for the registers of a VMCB, if that holds here."""
        try:
            for looked, values, number in self._header.steps.get(key, ()):
                if [vmcb[register] for register in looked] == values:
                    return self._step(json.loads(self._step_lines[number]))
        except UNREADABLE:
            pass
        return None

    def _step(self, line: Any) -> Found | None:
        uses, frames, end, state, vmcb, openings, turns, landed = line
        nodes = [self._node(number) for number in (*landed, *uses)]
        if None in nodes or not self._changed.isdisjoint(frames):
            return None
        known = [node for node in nodes if node is not None]
        shared, moved, looked = self._end(end)
        pause = replace(
            shared,
            private=self._state(state),
            vmcb=tuple(vmcb),
            openings=tuple([tuple(landing) for landing in openings]),
            turns=tuple([Turn(bytes.fromhex(place), _senders(who), _tupled(log)) for place, who, log in turns]),
        )
        blocks = tuple([tuple(array(BLOCKS, node.trace)) for node in known[: len(landed)]])
        return Found(pause, moved, looked, blocks, tuple(known[len(landed) :]))

    def _end(self, number: int) -> tuple[Pause, tuple[tuple[int, int], ...], frozenset[int]]:
        known = self._ends.get(number)
        if known is None:
            *values, moved, looked = _tupled(json.loads(self._end_lines[number]))
            end = dict(zip(ENDS, values, strict=True))
            end["kind"], end["senders"] = PauseKind(end["kind"]), _senders(end["senders"])
            for name in ("debug", "host_area", "host"):
                end[name] = end[name] and Debug(*end[name])
            made = Pause(private=None, vmcb=(), openings=(), defects=(), **end)
            known = self._ends[number] = made, moved, frozenset(looked)
        return known

    def _node(self, number: int) -> Uses | None:
        """A node; None if what it rests on is not as it was."""
        if number not in self._nodes:
            self._nodes[number] = self._made(*json.loads(self._node_lines[number]))
        return self._nodes[number]

    def _made(self, blocks: list[int], parts: list[int], leafs: list[int]) -> Uses | None:
        here = [self._blocks[block] for block in blocks]
        nodes = [self._node(part) for part in parts]
        if -1 in here or None in nodes or not self._changed.isdisjoint(leafs):
            return None
        return self._program.uses(here, (*nodes, *[self._leafs[leaf] for leaf in leafs]))

    def _state(self, number: int) -> State:
        known = self._states.get(number)
        if known is None:
            words, frames, interrupts, gif, sp = json.loads(self._state_lines[number])
            for name, _, _ in frames:
                self._program.ready(name, *self._files[name])
            pairs = tuple(zip(words[::2], words[1::2], strict=True))
            known = self._states[number] = self._opened.states.intern(pairs, _tupled(frames), interrupts, gif, sp)
        return known


def _lines(text: bytes) -> list[str]:
    reader = zlib.decompressobj()
    try:
        lines = reader.decompress(text, MOST_BYTES).decode("ascii").split("\n")
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if reader.unconsumed_tail or not reader.eof:
        raise ValueError("not whole, or too long")
    return lines


def _tupled(value: Any) -> Any:
    return tuple([_tupled(part) for part in value]) if type(value) is list else value


def _senders(senders: Sequence[Any]) -> tuple[SenderState, ...]:
    return tuple([NO_SENDER if one is None else EventSender(one[0], _tupled(one[1])) for one in senders])
