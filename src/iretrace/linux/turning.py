"""How a step goes on from its start, or from behind a landing: executed once, whoever else is around.

What the vCPU thread does until the next landing does not depend on how far senders are that do not land. So a passage,
from the start of a step or from behind a landing up to a hand-over in which nothing lands, is executed once for all
steps that come to the same place with the same memory; where senders may land in it is worked out from the accesses
that it has passed. Its places are told by a digest of all that decides how the thread goes on (host.Passed).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from iretrace.explore.turns import digest_of_plain
from iretrace.linux.legs import Base, Leg, Milestone, Passed
from iretrace.linux.notes import Later, Notes, Uses
from iretrace.linux.registers import Found, Memo, general
from iretrace.linux.sender import Access, EventSender, Path, Senders
from iretrace.linux.unmodelled import Unmodelled, describe
from iretrace.world.protocol import NO_SENDER, Cause, Debug, Landing, Packed, Pause, PauseKind, Private, SenderState

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

    def general(self) -> Asked:
        """The same of any values of the registers (registers.general)."""
        return self._replace(vmcb=general(self.vmcb))


class Stale(Exception):
    """A passage was executed before all that a sender accesses was known: where that lands, it does not tell."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What a step comes to from its start, or from behind a landing at an access (`at`), if nothing lands. pause:
    without senders. moved, looked: see Found. first: see HostRun. versions: see Senders, before it was executed.
    uses: on what it rests."""

    pause: Pause
    moved: tuple[tuple[int, int], ...]
    looked: frozenset[int]
    legs: tuple[Leg, ...]
    milestones: tuple[Milestone, ...]
    first: Words
    versions: Mapping[str, int]
    at: int
    uses: Uses
    offers: dict[SenderState, Later[list[Offer]]] = field(default_factory=dict)
    """What was worked out already, by how far a sender is."""

    def passed(self) -> list[Passed]:
        """The accesses in it that could conflict with those of senders that are around."""
        return [here for leg in self.legs for here in leg.passed]

    def is_quiet(self, access: Access) -> bool:
        """Whether a sender's access conflicts with none of the others."""
        masks = (leg.quiet.get(access.address) for leg in self.legs)
        return not any(mask is not None and mask.conflict(access.mask, access.write) for mask in masks)

    def base(self, at: int) -> Milestone | None:
        """The last milestone before an access."""
        return next((milestone for milestone in reversed(self.milestones) if milestone.at <= at), None)


class Joined(NamedTuple):
    """A passage that has been where a run is, and the number of the milestone there among its own."""

    passage: Passage
    number: int

    def rest(self, at: int) -> tuple[list[Leg], list[Milestone]]:
        """Legs and milestones behind that one, with the access there as number `at`."""
        by = at - self.passage.milestones[self.number].at
        legs, milestones = self.passage.legs[self.number + 1 :], self.passage.milestones[self.number + 1 :]
        return [leg.later(by) for leg in legs], [milestone.later(by) for milestone in milestones]


class Way(NamedTuple):
    """How a step was found: by a passage, by how far the accesses there are behind those here, and from where the
    landings before it can be executed again (None: from the start of the step)."""

    passage: Passage
    shift: int
    base: Base | None

    def then(self, landing: Landing, pause: Pause) -> Base | None:
        """From where one more landing can be executed. pause: what the step came to without it."""
        milestone = self.passage.base(landing[0] - self.shift)
        if milestone is not None:
            return Base(milestone, self.shift, pause.senders, pause.log, (landing,))
        return self.base and self.base._replace(since=(*self.base.since, landing))


class Offer(NamedTuple):
    """A landing of a sender in a passage: by its order among the accesses passed, before which access, and how many
    steps. rest: see Passed. place: where the thread is behind it. blocks: what the sender executes in it; after: how
    far it is then; events: what has happened to it. error: why what it would do is not modelled."""

    order: int
    at: int
    steps: int
    rest: bool = False
    place: bytes = b""
    blocks: tuple[int, ...] = ()
    after: SenderState = NO_SENDER
    events: tuple[str, ...] = ()
    error: str = ""


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
        self._milestones: Memo[Joined] = Memo()
        self._paths: dict[tuple[SenderState, Words], Later[Path]] = {}

    def find(self, key: Hashable, vmcb: Packed) -> Passage | None:
        """The one of a key, for the registers of a VMCB."""
        return self._known.find(key, vmcb)

    def add(self, key: Hashable, vmcb: Packed, passage: Passage, exits: bool) -> None:
        """One more. From its milestones on others may go on as it does. exits: see `behind`."""
        self._known.add(key, vmcb, passage.looked, passage)
        for number, milestone in enumerate(passage.milestones):
            self._milestones.add((milestone.key, exits), vmcb, passage.looked, Joined(passage, number))

    def going_on(self, milestone: Milestone, vmcb: Packed, exits: bool) -> Joined | None:
        """A passage that has been at a milestone, and which of its own that is. A thread that goes in a circle shows
        that by itself."""
        known = self._milestones.find((milestone.key, exits), vmcb)
        if known is None or known.passage.pause.kind == PauseKind.LOOP:
            return None
        return known if known.passage.versions == self._sender.versions() else None

    def found(self, passage: Passage, up: TakenUp, last: Landing | None) -> Found:
        """What a step comes to that is taken up there, behind its last landing, and goes on by a passage. Stale."""
        _, senders, log, before, base = up
        pause = passage.pause
        with self._notes.collecting() as noted:
            offers = self._offers(passage, senders) if self._reduce else _all_offers(passage, senders)
        if offers and offers[-1][1].error:
            if not pause.unmodelled:
                pause = pause._replace(unmodelled=offers[-1][1].error)
            offers.pop()
        moved = last[0] - passage.at if last is not None else 0
        openings: list[Landing] = []
        turns: list[Turn] = []
        landed: list[tuple[int, ...]] = []
        for number, offer in offers:
            opening = (offer.at + moved, number, offer.steps)
            if last is not None and opening[:2] == last[:2] and self._reduce and not offer.rest:
                continue
            openings.append(opening)
            if self._reduce and self._merge:
                after = (*senders[:number], offer.after, *senders[number + 1 :])
                turns.append(Turn(offer.place, after, (*log, *((what, number) for what in offer.events))))
                landed.append(offer.blocks)
        made = pause._replace(senders=senders, log=log, openings=tuple(openings), turns=tuple(turns))
        uses = (*before.uses, passage.uses, before.node((), noted))
        way = Way(passage, moved, base)
        return Found(made, passage.moved, passage.looked | before.looked, tuple(landed), uses, way)

    def _offers(self, passage: Passage, senders: tuple[SenderState, ...]) -> list[tuple[int, Offer]]:
        """Where which sender may land, in order. Of started ones that are equally far one will do: they cannot be told
        apart from here on. An error ends the list."""
        versions = self._sender.versions()
        offers: list[tuple[int, Offer]] = []
        started: set[SenderState] = set()
        for number, state in enumerate(senders):
            if state is NO_SENDER or state in started:
                continue
            assert isinstance(state, EventSender)
            if passage.versions[state.kind] != versions[state.kind]:
                raise Stale
            if state.log:
                started.add(state)
            known = passage.offers.get(state)
            if known is None:
                known = passage.offers[state] = self._notes.later(partial(self._offers_to, passage, state))
            offers += [(number, offer) for offer in known()]
        offers.sort(key=lambda one: (one[1].order, one[0], one[1].steps))
        errors = (count for count, (_, offer) in enumerate(offers, 1) if offer.error)
        return offers[: next(errors, len(offers))]

    def _offers_to(self, passage: Passage, state: EventSender) -> list[Offer]:
        """The landings of a sender in a passage. Stale."""
        offers: list[Offer] = []
        words: Words | None = None
        path: Path = ()
        for order, here in enumerate((Passed(0, 0, 0, False, passage.first), *passage.passed())):
            if here.words != words:
                words = here.words
                try:
                    path = self._path(passage, state, words)
                except Unmodelled as error:
                    return [*offers, Offer(order, here.at, 0, error=describe(error))]
            for steps, (access, _) in enumerate(path, 1):
                if steps == len(path) if here.rest else access.conflicts(here.address, here.mask, here.write):
                    offers.append(self._offer(order, here, state, path[:steps]))
        return offers

    def _path(self, passage: Passage, state: EventSender, words: Words) -> Path:
        """What a sender would do if it went on now. Stale if a passage has not watched for that."""
        known = self._paths.get((state, words))
        if known is None:
            memory = dict(zip(self._in_order, words, strict=True))
            known = self._paths[state, words] = self._notes.later(lambda: self._sender.path(state, memory))
        path = known()
        for access, _ in path:
            if not passage.is_quiet(access):
                raise Stale
        return path

    def _offer(self, order: int, here: Passed, state: EventSender, landing: Path) -> Offer:
        words, ipi, done = list(here.words), here.ipi, landing[-1][1]
        writes: dict[int, int] = {}
        for access, step in landing:
            words[self._index[access.address]] = step.word
            writes.update(step.writes)
            if step.ipi:
                ipi = here.deaf
        known = self._is_known(here, state, landing)
        place = digest_of_plain((here.place, words, sorted(writes.items()), ipi, known))
        events = (*(() if state.log else ("start",)), *(("end",) if done.after is None else ()))
        blocks = tuple([block for _, step in landing for block in step.blocks])
        return Offer(order, here.at, len(landing), here.rest, place, blocks, done.state(state.kind), events)

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


def _all_offers(passage: Passage, senders: tuple[SenderState, ...]) -> list[tuple[int, Offer]]:
    """Every place, for every sender, by one step."""
    around = [number for number, state in enumerate(senders) if state is not NO_SENDER]
    return [(number, Offer(0, here.at, 1)) for here in passage.passed() for number in around]


class Before(NamedTuple):
    """What a step rests on up to its last landing. node: makes a node of basic blocks and notes."""

    node: Callable[..., Uses]
    looked: frozenset[int] = frozenset()
    uses: tuple[Uses, ...] = ()


class TakenUp(NamedTuple):
    """A step behind its last landing, or at its start. key: tells the passage that begins there; None: that is not
    known. senders, log: how far they are, and what has happened. before: on what it rests. base: see Way."""

    key: Hashable
    senders: tuple[SenderState, ...]
    log: Log
    before: Before
    base: Base | None = None


def taken(parent: Found, landing: Landing, node: Callable[..., Uses]) -> tuple[Turn, Before] | None:
    """Where a step is behind its last landing, by what the same step with one landing less has come to. None: it did
    not offer that."""
    if not parent.pause.turns or landing not in parent.pause.openings:
        return None
    number = parent.pause.openings.index(landing)
    turn = parent.pause.turns[number]
    assert isinstance(turn, Turn)
    return turn, Before(node, parent.looked, (*parent.uses, node(parent.landed[number])))


def behind(turn: Turn, cause: Cause) -> Hashable:
    """The key of the passage behind a landing. Debug registers of the host are noted behind an exit only
    (HostSteps.execute)."""
    return turn.place, cause == Cause.VMEXIT
