"""How a step goes on behind a landing: worked out once for all steps that come to the same place with the same memory.

A step is executed anew for each schedule, and steps that begin differently (other senders have come further, another
exit, another test) often come to the same place: at a turn (HostRun.turns) everything that decides what follows is the
same. So what followed there the first time is taken over, with places counted from the landing and the log from there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace

from iretrace.linux.host import Turn
from iretrace.linux.notes import Uses
from iretrace.linux.registers import Found, Memo
from iretrace.world.protocol import Cause, Landing, Packed

Log = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Rest:
    """What a step came to behind its last landing. at: the access before which that was made. logged: see HostRun.
    uses: on what it rests."""

    found: Found
    at: int
    logged: int
    uses: Uses

    def of(self, landing: Landing, log: Log) -> Found:
        """The same for a step with its last landing elsewhere, and with another log up to there."""
        pause, moved = self.found.pause, landing[0] - self.at
        openings = tuple([(k + moved, number, steps) for k, number, steps in pause.openings])
        behind = pause.log[self.logged :]
        turns = tuple([_logged(turn, self.logged, log) for turn in pause.turns])
        made = replace(pause, openings=openings, turns=turns, log=log + behind)
        return Found(made, self.found.moved, self.found.looked, self.found.paths, (self.uses,))


def _logged(turn: Hashable, logged: int, log: Log) -> Turn:
    assert isinstance(turn, tuple)
    place, other = turn
    return place, log + other[logged:]


class Turns:
    """The turns that steps have taken so far. A step's parent: the same step with one landing less."""

    def __init__(self, uses: Callable[[Iterable[int]], Uses]) -> None:
        """uses: the node of basic blocks."""
        self._uses = uses
        self._known: Memo[Rest] = Memo()

    def find(self, parent: Found | None, cause: Cause, landing: Landing, vmcb: Packed) -> Found | None:
        """What a step comes to whose last landing another one has made where this one is then."""
        turn = _turn(parent, landing)
        if parent is None or turn is None:
            return None
        rest = self._known.find(_key(turn, cause), vmcb)
        if rest is None:
            return None
        found = rest.of(landing, turn[1])
        path = parent.paths[parent.pause.openings.index(landing)]
        landed = self._uses([block for _, step in path for block in step.blocks])
        return replace(found, looked=found.looked | parent.looked, uses=(*parent.uses, landed, *found.uses))

    def add(self, parent: Found | None, cause: Cause, landing: Landing, vmcb: Packed, rest: Rest) -> None:
        """What such a step came to when it was executed."""
        turn = _turn(parent, landing)
        if turn is not None:
            self._known.add(_key(turn, cause), vmcb, rest.found.looked, rest)


def _turn(parent: Found | None, landing: Landing) -> Turn | None:
    if parent is None or not parent.pause.turns or landing not in parent.pause.openings:
        return None
    turn = parent.pause.turns[parent.pause.openings.index(landing)]
    assert isinstance(turn, tuple)
    return turn


def _key(turn: Turn, cause: Cause) -> Hashable:
    """Debug registers of the host are noted behind an exit only (TreeHypervisor._step)."""
    return turn[0], cause == Cause.VMEXIT
