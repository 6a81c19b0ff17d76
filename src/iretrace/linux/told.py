"""The text of what host steps came to, and of which verdicts rest on them: see linux.kept."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

from iretrace.linux.kept import ENDS, Keys, Line, Opened, Remembered
from iretrace.linux.leafs import is_leaf, told_foundations
from iretrace.linux.notes import Lowered, Note, Uses
from iretrace.linux.registers import Found, Memo
from iretrace.linux.rules import Row, Traced
from iretrace.linux.states import State
from iretrace.linux.turning import Asked, Turn
from iretrace.linux.used import Query
from iretrace.world.protocol import Landing, Packed, Pause

T = TypeVar("T")


def told(opened: Opened, steps: Memo[Found], verdicts: Mapping[str, Remembered], read: Mapping[str, str]) -> bytes:
    """The text of all steps that this process has asked for; empty if it has worked out none. verdicts: those that rest
    on them, by name. read: what was read of the tree."""
    if opened.machine.program.space.displaced or all(found.way is None for _, _, _, found in steps.all()):
        return b""
    return _Told(opened).all(steps, verdicts, read)


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
        self._asks: dict[Any, int] = {}
        self._vmcbs: dict[Packed, int] = {}
        self._senders: dict[Any, int] = {}
        self._functions: dict[str, list[int]] = {}
        for number, block in enumerate(self._program.blocks):
            self._functions.setdefault(block.name, []).append(number)
        self._places = [0] * len(self._program.blocks)
        for place, number in enumerate(number for blocks in self._functions.values() for number in blocks):
            self._places[number] = place

    def all(self, steps: Memo[Found], verdicts: Mapping[str, Remembered], read: Mapping[str, str]) -> bytes:
        plain = [one for one in steps.all() if _is_plain(one[-1].pause)]
        numbers = {id(found): number for number, (_, _, _, found) in enumerate(plain)}
        keys, index, lines = Keys(), dict[str, list[Any]](), list[Any]()
        for (asked, schedule), looked, values, found in plain:
            index.setdefault(keys.of(asked, schedule), []).append([looked, values, len(lines)])
            registers = _registers(asked[1], dict(zip(looked, values, strict=True)))
            parent = steps.find((asked, schedule[:-1]), registers) if schedule else None
            lines.append(self._step(asked._replace(vmcb=registers), schedule, found, numbers.get(id(parent), -1)))
        judged = {
            name: self._verdict(one, numbers)
            for name, one in verdicts.items()
            if all(id(found) in numbers for found in one.steps)
        }
        notes = self._notes.reached([self._opened.opening], but=Lowered)
        opening = [self._leaf(note) for note in notes if isinstance(note, Query) and note.words[0] != "function"]
        functions = [self._function(name, blocks) for name, blocks in self._functions.items()]
        tables = (self._node_lines, self._state_lines, self._ends, self._asks, self._vmcbs, self._senders)
        header = {
            **told_foundations(self._opened.machine, self._leafs, read),
            "setting": self._opened.setting,
            "opening": opening,
            "functions": functions,
            "verdicts": list(judged),
            "counts": [len(table) for table in tables],
        }
        parts = (header, index, *judged.values(), *chain(*tables), *lines)
        text = "\n".join(json.dumps(part) for part in parts)
        return zlib.compress(text.encode(), 1)

    def _function(self, name: str, blocks: Sequence[int]) -> Any:
        """A function: its names, what lowering it has looked at, the places of its blocks."""
        infos = [self._program.blocks[block] for block in blocks]
        rests_on = [note for note in self._notes.reached([Lowered(name)]) if isinstance(note, Query | Row | Traced)]
        places = [[(pos.path, pos.line) for pos in info.statements] for info in infos]
        return [name, infos[0].function, infos[0].path, sorted(map(self._leaf, rests_on)), places]

    def _leaf(self, note: Note) -> int:
        return _number(self._leafs, note)

    def _node(self, note: Note) -> int:
        """The number of a node: a Uses as it is, any other with all that it is made of."""
        known = self._nodes.get(id(note))
        if known is None:
            blocks: Iterable[int]
            notes: Iterable[Note]
            if isinstance(note, Uses):
                blocks, notes = note.blocks(), note.notes
            else:
                notes = self._notes.reached([note], but=Lowered)
                blocks, notes = self._program.executed(notes), [one for one in notes if is_leaf(one)]
            parts = [self._node(part) for part in notes if not is_leaf(part)]
            line = [
                sorted({self._places[block] for block in blocks}),
                sorted(parts),
                sorted(self._leaf(leaf) for leaf in notes if is_leaf(leaf)),
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

    def _verdict(self, verdict: Remembered, numbers: Mapping[int, int]) -> Any:
        """What is remembered, the steps as bits of a number, and nodes: what else it rests on, what its trace shows."""
        steps = sum(1 << number for number in {numbers[id(found)] for found in verdict.steps})
        nodes = [self._node(self._program.uses((), notes)) for notes in (verdict.rests_on, verdict.shown)]
        return [verdict.told, f"{steps:x}", *nodes]

    def _step(self, asked: Asked, schedule: tuple[Landing, ...], found: Found, parent: int) -> Line:
        start, registers, ghcb, cause, senders, debug = asked
        pause = found.pause
        assert isinstance(start, State) and isinstance(pause.private, State)
        frames: Any = start.frames
        ask = ghcb, cause, senders, debug
        end = (*[getattr(pause, name) for name in ENDS], found.moved, tuple(sorted(found.looked)))
        return Line(
            uses=[self._node(uses) for uses in found.uses],
            frames=[self._leaf(Lowered(name)) for name, _, _ in frames],
            end=_number(self._ends, end),
            state=self._state(pause.private),
            vmcb=_number(self._vmcbs, pause.vmcb),
            openings=pause.openings,
            turns=[
                (turn.place.hex(), _number(self._senders, turn[1:])) for turn in pause.turns if isinstance(turn, Turn)
            ],
            landed=[self._node(self._program.uses(blocks)) for blocks in found.landed],
            start=self._state(start),
            registers=_number(self._vmcbs, registers),
            ask=_number(self._asks, ask),
            schedule=schedule,
            parent=parent,
        )


def _number(table: dict[T, int], value: T) -> int:
    """The number of a value in a table; it is added if it is not there."""
    return table.setdefault(value, len(table))


def _registers(vmcb: Packed, looked: Mapping[int, int]) -> Packed:
    """A VMCB whose registers are told apart (registers.general), with the values of those that were looked at."""
    return tuple([looked.get(field, value) for field, value in enumerate(vmcb)])


def _is_plain(pause: Pause) -> bool:
    """Whether it names no line and does not begin a run."""
    return not (pause.defects or pause.unmodelled or pause.sev_features or pause.launched[0] or pause.efer_passes)
