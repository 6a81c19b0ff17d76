"""Under which schedules of other CPUs' steps a step of the hypervisor comes to something different."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from itertools import zip_longest

from iretrace.world.core import Schedule
from iretrace.world.protocol import Landing, Pause

MayLand = Callable[[set[int], set[int], int], bool]
"""Whether a sender may land that has not begun: by those that have, those of them that are done, and its number."""


def differing(step: Callable[[Schedule], Pause], may_land: MayLand) -> list[tuple[Schedule, Pause]]:
    """A step under every schedule that makes a difference, short ones first.

    may_land: whether another sender may land.
    """
    results: dict[Hashable, tuple[Schedule, Pause]] = {}
    turns: set[Hashable] = set()
    schedules: deque[tuple[Schedule, frozenset[Landing]]] = deque([((), frozenset())])
    while schedules:
        schedule, instead = schedules.popleft()
        pause = step(schedule)
        results.setdefault(_all_but_openings(pause), (schedule, pause))
        landed = {landing[1] for landing in schedule}
        done = {number for what, number in pause.log if what == "end"}
        openings = frozenset(pause.openings)
        for landing, turn in zip_longest(pause.openings, pause.turns):
            if _continued(schedule, landing) in instead:
                continue
            if turn in turns or not (landing[1] in landed or may_land(landed, done, landing[1])):
                continue
            if turn is not None:
                turns.add(turn)
            schedules.append(((*schedule, landing), openings))
    return list(results.values())


def _continued(schedule: Schedule, landing: Landing) -> Landing | None:
    """The last landing and this one as one, if they are: the same sender at the same place."""
    if not schedule or schedule[-1][:2] != landing[:2]:
        return None
    return (landing[0], landing[1], schedule[-1][2] + landing[2])


def _all_but_openings(pause: Pause) -> Hashable:
    """What makes a difference after a host step."""
    return (
        pause.kind,
        pause.private,
        pause.vmcb,
        pause.ghcb,
        pause.senders,
        pause.log,
        pause.ipi,
        pause.warm,
        pause.debug,
        pause.host_area,
        pause.host,
        pause.exit_reason,
        pause.defects,
        pause.unmodelled,
    )
