"""How a step goes on from its start, or from behind a landing: executed once, whoever else is around.

What the vCPU thread does until the next landing does not depend on how far senders are that do not land. So a passage,
from the start of a step or from behind a landing up to a hand-over in which nothing lands, is executed once for all
steps that come to the same place with the same memory; where senders may land in it is worked out from the accesses
that it has passed. Its places are told by a digest of all that decides how the thread goes on (host.Passed).
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

from iretrace.explore.turns import WITHOUT_REFERENCES
from iretrace.linux.host import Passed
from iretrace.linux.notes import Later, Notes, Uses
from iretrace.linux.registers import Found, Memo
from iretrace.linux.sender import EventSender, Masks, Path, Senders
from iretrace.linux.unmodelled import Unmodelled, describe
from iretrace.world.protocol import NO_SENDER, Cause, Debug, Landing, Packed, Pause, Private, SenderState

Log = tuple[tuple[str, int], ...]

Words = tuple[int, ...]
"""Shared words, in order of their addresses."""


class Turn(NamedTuple):
    """What decides how a step goes on behind a landing: where its thread is (a digest), how far the senders are, and
    what has happened."""

    place: bytes
    senders: tuple[SenderState, ...]
    log: Log


class Asked(NamedTuple):
    """What a step is asked of, without the schedule; records are packed."""

    private: Private
    vmcb: Packed
    ghcb: Packed
    cause: Cause
    senders: tuple[SenderState, ...]
    debug: Debug


class Stale(Exception):
    """A passage was executed before all that a sender accesses was known: where that lands, it does not tell."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What a step comes to from its start, or from behind a landing at an access (`at`), if nothing lands. pause:
    without senders. moved, looked: see Found. passed, quiet, first: see HostRun. versions: see Senders, before it was
    executed. uses: on what it rests."""

    pause: Pause
    moved: tuple[tuple[int, int], ...]
    looked: frozenset[int]
    passed: tuple[Passed, ...]
    quiet: dict[int, Masks]
    first: Words
    versions: Mapping[str, int]
    at: int
    uses: Uses


class Passages:
    """The passages that are known, and where senders may land in them. in_order: the addresses of the shared words.
    reduce, merge: see TreeHypervisor."""

    def __init__(self, sender: Senders, in_order: tuple[int, ...], notes: Notes, reduce: bool, merge: bool) -> None:
        self._sender = sender
        self._in_order = in_order
        self._index = {address: number for number, address in enumerate(in_order)}
        self._notes = notes
        self._reduce = reduce
        self._merge = merge
        self._known: Memo[Passage] = Memo()
        self._paths: dict[tuple[SenderState, Words], Later[Path]] = {}

    def find(self, key: Hashable, vmcb: Packed) -> Passage | None:
        """The one of a key, for the registers of a VMCB."""
        return self._known.find(key, vmcb)

    def add(self, key: Hashable, vmcb: Packed, passage: Passage) -> None:
        """One more."""
        self._known.add(key, vmcb, passage.looked, passage)

    def found(
        self, passage: Passage, senders: tuple[SenderState, ...], log: Log, last: Landing | None, before: Before
    ) -> Found:
        """What a step comes to by a passage, with senders that are so far then, behind its last landing. Stale."""
        offered = Offered([], [], [])
        pause = passage.pause
        try:
            with self._notes.collecting() as noted:
                self._offer(offered, passage, senders, log, last)
        except Unmodelled as error:
            if not pause.unmodelled:
                pause = replace(pause, unmodelled=describe(error))
        turns = tuple(offered.turns) if self._merge else ()
        made = replace(pause, senders=senders, log=log, openings=tuple(offered.openings), turns=turns)
        uses = (*before.uses, passage.uses, before.node((), noted))
        return Found(made, passage.moved, passage.looked | before.looked, tuple(offered.paths), uses)

    def _offer(
        self, offered: Offered, passage: Passage, senders: tuple[SenderState, ...], log: Log, last: Landing | None
    ) -> None:
        """Where senders may land behind the last landing."""
        moved = last[0] - passage.at if last is not None else 0
        words = passage.first
        if any(passage.versions[kind] != version for kind, version in self._versions(senders)):
            raise Stale
        paths = self._remaining(passage, senders, words) if self._reduce else []
        for here in passage.passed:
            if not self._reduce:
                around = [number for number, state in enumerate(senders) if state is not NO_SENDER]
                offered.openings.extend((here.at + moved, number, 1) for number in around)
                continue
            if here.words != words:
                words = here.words
                paths = self._remaining(passage, senders, words)
            for number, path in paths:
                if last is not None and (here.at + moved, number) == last[:2] and not here.rest:
                    continue
                for steps, (access, _) in enumerate(path, 1):
                    if here.rest and steps < len(path):
                        continue
                    if here.rest or access.conflicts(here.address, here.mask, here.write):
                        landing = (here.at + moved, number, steps)
                        offered.add(landing, self._turn(here, senders, log, number, path[:steps]), path[:steps])

    def _remaining(self, passage: Passage, senders: tuple[SenderState, ...], words: Words) -> list[tuple[int, Path]]:
        """What each unfinished sender would do if it went on now. Of started ones that are equally far one will
        do: they cannot be told apart from here on."""
        paths: list[tuple[int, Path]] = []
        started: set[SenderState] = set()
        for number, state in enumerate(senders):
            if state is NO_SENDER or state in started:
                continue
            assert isinstance(state, EventSender)
            if state.log:
                started.add(state)
            path = self._path(state, words)
            for access, _ in path:
                quiet = passage.quiet.get(access.address)
                if quiet is not None and quiet.conflict(access.mask, access.write):
                    raise Stale
            paths.append((number, path))
        return paths

    def _versions(self, senders: tuple[SenderState, ...]) -> list[tuple[str, int]]:
        versions = self._sender.versions()
        return [(state.kind, versions[state.kind]) for state in senders if isinstance(state, EventSender)]

    def _path(self, state: EventSender, words: Words) -> Path:
        known = self._paths.get((state, words))
        if known is None:
            memory = dict(zip(self._in_order, words, strict=True))
            known = self._paths[state, words] = self._notes.later(lambda: self._sender.path(state, memory))
        return known()

    def _turn(self, here: Passed, senders: tuple[SenderState, ...], log: Log, number: int, landing: Path) -> Turn:
        words, ipi, state = list(here.words), here.ipi, senders[number]
        assert isinstance(state, EventSender)
        writes: dict[int, int] = {}
        for access, step in landing:
            words[self._index[access.address]] = step.word
            writes.update(step.writes)
            if step.ipi:
                ipi = here.deaf
        known = self._is_known(here, state, landing)
        told = marshal.dumps((here.place, words, sorted(writes.items()), ipi, known), WITHOUT_REFERENCES)
        done = landing[-1][1]
        events = (("start", not state.log), ("end", done.after is None))
        return Turn(
            blake2b(told, digest_size=16).digest(),
            (*senders[:number], done.state(state.kind), *senders[number + 1 :]),
            (*log, *((what, number) for what, happens in events if happens)),
        )

    def _is_known(self, here: Passed, state: EventSender, landing: Path) -> bool:
        """Whether the sender does there what it is known to do; where not, who lands hears of it (Sender.step)."""
        changed = here.changed.get(state.kind, ())
        if not changed:
            return True
        words, log = dict(zip(self._in_order, here.words, strict=True)), state.log
        for access, step in landing:
            try:
                self._sender.verify(state.kind, log, words[access.address], changed)
            except Unmodelled:
                return False
            words[access.address], log = step.word, step.log
        return True


class Offered(NamedTuple):
    """Landings, what each of them leads to, and what its sender does in it."""

    openings: list[Landing]
    turns: list[Turn]
    paths: list[Path]

    def add(self, opening: Landing, turn: Turn, path: Path) -> None:
        """One more."""
        self.openings.append(opening)
        self.turns.append(turn)
        self.paths.append(path)


class Before(NamedTuple):
    """What a step rests on up to its last landing. node: makes a node of basic blocks and notes."""

    node: Callable[..., Uses]
    looked: frozenset[int] = frozenset()
    uses: tuple[Uses, ...] = ()


def taken(parent: Found, landing: Landing, node: Callable[..., Uses]) -> tuple[Turn, Before] | None:
    """Where a step is behind its last landing, by what the same step with one landing less has come to. None: it did
    not offer that."""
    if not parent.pause.turns or landing not in parent.pause.openings:
        return None
    number = parent.pause.openings.index(landing)
    turn = parent.pause.turns[number]
    assert isinstance(turn, Turn)
    landed = node([block for _, step in parent.paths[number] for block in step.blocks])
    return turn, Before(node, parent.looked, (*parent.uses, landed))


def behind(turn: Turn, cause: Cause) -> Hashable:
    """The key of the passage behind a landing. Debug registers of the host are noted behind an exit only
    (TreeHypervisor._step)."""
    return turn.place, cause == Cause.VMEXIT
