"""What host steps came to, told so that a later run need not execute them.

What a host step comes to depends on what it is asked, on the C and the rules that it executes, and on how its
hypervisor was opened. So it holds for another tree as well in which all this is the same: for most steps, where a patch
changes a few functions. Addresses, names and digests are the same in every process (memory.Space, explore.turns).

And a verdict that is reached by exploring steps stands where all its steps come to the same. For steps that do not hold
any more it is seen by executing them: fewer than there are, and nothing has to be explored.

A text of all this (linux.told writes it) is compressed lines of JSON: a header (_Header), an index of steps by their
keys, verdicts, nodes, states, ends (ENDS), what is asked, VMCBs, what is known of senders behind landings, and steps.
It was perhaps not written by us: what does not read as we would have written it is not there.
"""

from __future__ import annotations

import json
import re
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from iretrace.explore.turns import digest_of_plain, plain
from iretrace.linux.bodies import Bodies
from iretrace.linux.ctree import Pos
from iretrace.linux.leafs import Foundations, Leafs, foresee
from iretrace.linux.machine import Machine
from iretrace.linux.notes import BLOCKS, Lowered, Note, Uses
from iretrace.linux.registers import Found
from iretrace.linux.sender import EventSender
from iretrace.linux.states import State, States
from iretrace.linux.turning import Asked, Turn
from iretrace.linux.used import Moves
from iretrace.world.protocol import NO_SENDER, Cause, Debug, Landing, Packed, Pause, PauseKind, SenderState

MOST_BYTES = 256 << 20
"""A longer text is none of ours."""

BEHIND = 2
"""So many of the nodes that a step rests on are of what it does behind its last landing (turning.Passages.found)."""

UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)
"""What reading a text that is not ours comes to."""


@dataclass(slots=True)
class Opened:
    """What steps depend on beside what they are asked. setting: a digest of it. opening: on what it rests."""

    machine: Machine
    states: States
    setting: str
    opening: Uses


class Remembered(NamedTuple):
    """A verdict: what is to be told of it, the steps that it rests on, what else it rests on, and what its trace shows
    (TreeHypervisor.explain)."""

    told: Any
    steps: Sequence[Found]
    rests_on: frozenset[Note]
    shown: frozenset[Uses]


T = TypeVar("T")

Execute = Callable[[Asked, tuple[Landing, ...]], Found]
"""Works a step out."""


def setting_of(told: Any, start: Pause) -> str:
    """The digest of plain values and of the first pause."""
    state = start.private
    assert isinstance(state, State)
    return digest_of_plain(plain((told, _state_digest(state).hex(), start._replace(private=None)))).hex()


def _state_digest(state: State) -> bytes:
    return digest_of_plain((state.words, state.frames, state.interrupts, state.gif, state.sp))


class Keys:
    """Digests of what steps are asked."""

    def __init__(self) -> None:
        self._of_state = cache(_state_digest)
        self._of_asked = cache(self._asked_digest)

    def of(self, asked: Asked, schedule: tuple[Landing, ...]) -> str:
        """Of a step. asked: in general."""
        return digest_of_plain((self._of_asked(asked), schedule)).hex()

    def _asked_digest(self, asked: Asked) -> bytes:
        state, vmcb, ghcb, cause, senders, debug = asked
        assert isinstance(state, State)
        return digest_of_plain((self._of_state(state), vmcb, ghcb, int(cause), plain(senders), tuple(debug)))


ENDS = (
    "kind", "ghcb", "senders", "log", "ipi", "warm", "exit_reason", "debug", "host_area", "smram", "code_base", "host",
)  # fmt: skip
"""What of pauses is told apart: many have it in common."""


class Line(NamedTuple):
    """A step as it is told. What it came to: nodes that it rests on, functions that it was inside of at its start (as
    leafs), ENDS, state, VMCB, where a sender may land next, how it goes on then (Turn: place, and number of the rest),
    nodes of what the sender executes. What it was asked: state, VMCB, the rest, schedule. parent: the step without its
    last landing, or -1."""

    uses: Sequence[int]
    frames: Sequence[int]
    end: int
    state: int
    vmcb: int
    openings: Sequence[Sequence[int]]
    turns: Sequence[tuple[str, int]]
    landed: Sequence[int]
    start: int
    registers: int
    ask: int
    schedule: Sequence[Sequence[int]]
    parent: int


@dataclass(slots=True)
class _Header(Foundations):
    """See linux.told."""

    setting: str
    opening: list[int]
    functions: list[tuple[str, str, str, list[int], list[list[tuple[str, int]]]]]
    verdicts: list[str]
    counts: tuple[int, int, int, int, int, int]


class _Read(dict[int, T]):
    """Lines of one kind by their numbers: each is read once, when it is asked for. made: what it tells, of its JSON."""

    def __init__(self, lines: list[str], made: Callable[[Any], T]) -> None:
        self._lines = lines
        self._made = made

    def __missing__(self, number: int) -> T:
        made = self[number] = self._made(json.loads(self._lines[number]))
        return made


class Kept:
    """The steps of a text, as far as they hold here. bodies_of: what patches have changed since what was read was like
    this, where they change functions only. ValueError: the text is none, or is about other states than these."""

    def __init__(self, text: bytes, opened: Opened, bodies_of: Callable[[Mapping[str, str]], Bodies | None]) -> None:
        self._opened = opened
        self._program = opened.machine.program
        lines = lines_of(text)
        self._header = header = _Header(**json.loads(lines[0]))
        if header.setting != opened.setting:
            raise ValueError("other states")
        rest = iter(lines[2:])
        self._verdicts = dict(zip(header.verdicts, islice(rest, len(header.verdicts)), strict=True))
        nodes, states, ends, asks, vmcbs, senders = (list(islice(rest, count)) for count in header.counts)
        self._nodes = _Read(nodes, self._node)
        self._states = _Read(states, self._state)
        self._ends = _Read(ends, _end)
        self._asks = _Read(asks, _ask)
        self._vmcbs: _Read[Packed] = _Read(vmcbs, tuple)
        self._senders = _Read(senders, lambda told: (_senders(told[0]), _tupled(told[1])))
        self._steps = _Read(list(rest), lambda told: Line(*told))
        self._index_line = lines[1]
        self._openings: dict[int, dict[tuple[int, ...], tuple[str, int]]] = {}
        self._same: dict[int, tuple[Uses, ...] | None] = {}
        self._places = Renamed()
        self._look_at_definitions(bodies_of(header.read))
        if any(leaf in self._changed for leaf in header.opening):
            raise ValueError("other types")
        foresee(opened.machine, header)
        self._adopt()

    def _look_at_definitions(self, bodies: Bodies | None) -> None:
        """Which leafs mean something else here, and where lines have moved."""
        self._moves: Moves = {}
        self._leafs: list[Note] = []
        self._changed: set[int] = set()
        leafs = Leafs(self._opened.machine, self._header, bodies)
        for number in range(len(self._header.leafs)):
            leaf, moves = leafs.find(number)
            self._leafs.append(leaf)
            if moves is None:
                self._changed.add(number)
            else:
                self._moves.update(moves)

    def _adopt(self) -> None:
        """Make the functions known that are here as they were there."""
        self._blocks: list[int] = []
        self._files: dict[str, tuple[str, str]] = {}
        gone = set[Note]()
        for name, function, path, rests_on, places in self._header.functions:
            if not self._changed.isdisjoint(rests_on):
                gone.add(Lowered(name))
                self._program.rename(name)
                self._blocks += [-1] * len(places)
                continue
            self._files[name] = function, path
            rows = [tuple([Pos(file, self._moves.get((file, line), line)) for file, line in row]) for row in places]
            self._blocks += self._program.adopt(name, function, path, rows)
            self._opened.machine.notes.parts.setdefault(Lowered(name), {self._leafs[leaf] for leaf in rests_on})
        self._changed |= {number for number, note in enumerate(self._leafs) if note in gone}

    @cached_property
    def _index(self) -> dict[str, list[tuple[list[int], list[int], int]]]:
        """By the key of a step: registers that it has looked at, their values, number of the step."""
        index: dict[str, list[tuple[list[int], list[int], int]]] = json.loads(self._index_line)
        return index

    def find(self, key: str, vmcb: Packed, execute: Execute) -> Found | None:
        """What a step of a key (Keys) came to, for the registers of a VMCB, if that holds here. execute: works out one
        with fewer landings."""
        try:
            for looked, values, number in self._index.get(key, ()):
                if [vmcb[register] for register in looked] == values:
                    line = self._steps[number]
                    uses = self._uses(line) or self._behind(line, execute)
                    return None if uses is None else self._found(line, uses)
        except UNREADABLE:
            pass
        return None

    def recall(self, name: str, execute: Execute) -> Recalled | None:
        """What was told of a verdict, and what it rests on, if it stands here. execute: works a step out."""
        try:
            told, bits, rests_on, trace = json.loads(self._verdicts[name])
            others = self._nodes[rests_on]
            if others is None:
                return None
            uses = {others}
            for bit in re.finditer("1", f"{int(bits, 16):b}"[::-1]):
                same = self._is_same(bit.start(), execute)
                if same is None:
                    return None
                uses.update(same)
            shown = self._nodes[trace]
        except UNREADABLE:
            return None
        return Recalled(told, self._moves, uses if shown is None else uses | {shown}, shown is not None)

    def _is_same(self, number: int, execute: Execute) -> tuple[Uses, ...] | None:
        """On what a step rests that comes to the same here; None if it does not."""
        if number not in self._same:
            line = self._steps[number]
            uses = self._uses(line)
            if uses is None:
                uses = self._behind(line, execute)
            if uses is None:
                uses = self._executed(line, execute)
            elif not all(self._places.alike(place, place) for place, _ in line.turns):
                uses = None
            self._same[number] = uses
        return self._same[number]

    def _behind(self, line: Line, execute: Execute) -> tuple[Uses, ...] | None:
        """On what a step rests that is the same up to its last landing and changes nowhere behind it; None if that is
        not so. No function that has changed is on the stack there: they have other names (Program.rename)."""
        behind = [self._nodes[node] for node in (*line.uses[-BEHIND:], *line.landed)]
        if line.parent < 0 or None in behind or not self._changed.isdisjoint(line.frames):
            return None
        same = self._is_same(line.parent, execute)
        place, landed = self._landings(line.parent).get(tuple(line.schedule[-1]), ("", -1))
        sender = self._nodes[landed] if landed >= 0 else None
        if same is None or sender is None or not self._places.is_itself(place):
            return None
        return (*same, sender, *[node for node in behind[:BEHIND] if node is not None])

    def _landings(self, number: int) -> dict[tuple[int, ...], tuple[str, int]]:
        """Where a step can go on: by the landing, the place behind it, and the node of what is executed in it."""
        known = self._openings.get(number)
        if known is None:
            line = self._steps[number]
            told = zip(line.openings, line.turns, line.landed, strict=True)
            known = self._openings[number] = {tuple(at): (turn[0], node) for at, turn, node in told}
        return known

    def _executed(self, line: Line, execute: Execute) -> tuple[Uses, ...] | None:
        asked = Asked(self._states[line.start], self._vmcbs[line.registers], *self._asks[line.ask])
        here, there = execute(asked, _tupled(line.schedule)), self._found(line, ())
        if here.moved != there.moved or not here.looked <= there.looked:
            return None
        return here.uses if self._alike(here.of(asked.vmcb), there.of(asked.vmcb)) else None

    def _alike(self, here: Pause, there: Pause) -> bool:
        """Whether two pauses are the same but for the names of places."""
        if len(here.turns) != len(there.turns) or here._replace(turns=()) != there._replace(turns=()):
            return False
        for one, other in zip(here.turns, there.turns, strict=True):
            assert isinstance(one, Turn) and isinstance(other, Turn)
            if one[1:] != other[1:] or not self._places.alike(one.place.hex(), other.place.hex()):
                return False
        return True

    def _uses(self, line: Line) -> tuple[Uses, ...] | None:
        """On what a step rests; None if that is not as it was."""
        nodes = [self._nodes[number] for number in (*line.uses, *line.landed)]
        if None in nodes or not self._changed.isdisjoint(line.frames):
            return None
        return tuple([node for node in nodes[: len(line.uses)] if node is not None])

    def _found(self, line: Line, uses: tuple[Uses, ...]) -> Found:
        shared, moved, looked = self._ends[line.end]
        pause = shared._replace(
            private=self._states[line.state],
            vmcb=self._vmcbs[line.vmcb],
            openings=_tupled(line.openings),
            turns=tuple([Turn(bytes.fromhex(place), *self._senders[rest]) for place, rest in line.turns]),
        )
        nodes = [self._nodes[node] for node in line.landed]
        blocks = tuple([tuple(array(BLOCKS, node.trace)) for node in nodes if node is not None])
        return Found(pause, moved, looked, blocks, uses)

    def _node(self, told: Any) -> Uses | None:
        """A node; None if what it rests on is not as it was."""
        blocks, parts, leafs = told
        here = [self._blocks[block] for block in blocks]
        nodes = [self._nodes[part] for part in parts]
        if -1 in here or None in nodes or not self._changed.isdisjoint(leafs):
            return None
        return self._program.uses(here, (*nodes, *[self._leafs[leaf] for leaf in leafs]))

    def _state(self, told: Any) -> State:
        words, frames, interrupts, gif, sp = told
        for name, _, _ in frames:
            self._program.ready(name, *self._files[name])
        pairs = tuple(zip(words[::2], words[1::2], strict=True))
        return self._opened.states.intern(pairs, _tupled(frames), interrupts, gif, sp)


class Recalled(NamedTuple):
    """What was told of a verdict that stands, where the lines are now that it may name, and what it rests on here.
    as_shown: its trace shows nothing that has changed."""

    told: Any
    moves: Moves
    rests_on: set[Uses]
    as_shown: bool


class Renamed:
    """The names of places (Turn) here and there. Only which places are the same counts: in a function that has changed
    they have other names."""

    def __init__(self) -> None:
        self._here: dict[str, str] = {}
        self._there: dict[str, str] = {}

    def alike(self, here: str, there: str) -> bool:
        """Whether two names can be those of one place: neither was that of another one before."""
        return self._here.setdefault(here, there) == there and self._there.setdefault(there, here) == here

    def is_itself(self, name: str) -> bool:
        """Whether a name is that of the same place here and there."""
        return self._here.get(name) == name


def lines_of(text: bytes) -> list[str]:
    """The lines of a compressed text. ValueError: it is none."""
    reader = zlib.decompressobj()
    try:
        lines = reader.decompress(text, MOST_BYTES).decode("ascii").split("\n")
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if reader.unconsumed_tail or not reader.eof:
        raise ValueError("not whole, or too long")
    return lines


def _ask(told: Any) -> tuple[Packed, Cause, tuple[SenderState, ...], Debug]:
    """What a step is asked (Asked) beside its state and VMCB."""
    ghcb, cause, senders, debug = _tupled(told)
    return ghcb, Cause(cause), _senders(senders), Debug(*debug)


def _end(told: Any) -> tuple[Pause, tuple[tuple[int, int], ...], frozenset[int]]:
    """What pauses have in common, and of a step (Found): moved, looked."""
    *values, moved, looked = _tupled(told)
    end = dict(zip(ENDS, values, strict=True))
    end["kind"], end["senders"] = PauseKind(end["kind"]), _senders(end["senders"])
    for name in ("debug", "host_area", "host"):
        end[name] = end[name] and Debug(*end[name])
    return Pause(private=None, vmcb=(), openings=(), defects=(), **end), moved, frozenset(looked)


def _tupled(value: Any) -> Any:
    return tuple([_tupled(part) for part in value]) if type(value) is list else value


def _senders(senders: Sequence[Any]) -> tuple[SenderState, ...]:
    return tuple([NO_SENDER if one is None else EventSender(one[0], _tupled(one[1])) for one in senders])
