"""How the model shows an outcome that was not seen: where each event comes, so that a run can place it there."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

from iretrace.explore.monitor import EMPTY, Stamp
from iretrace.litmus.test import Test
from iretrace.live.follow import History, find
from iretrace.live.guests import Guest
from iretrace.live.observed import MORE, Run
from iretrace.live.walk import Mark
from iretrace.machine.cpu import SEEN_MARK
from iretrace.verdict import Outcome
from iretrace.world.core import UNSTARTED
from iretrace.world.product import Point, Product, marks_kept
from iretrace.world.protocol import Hypervisor

MOST_STATES = 10_000
"""Of the product, for one outcome."""


class Marks(History):
    """In place of the reference: the marks of an outcome. Whatever else the guest sees may come."""

    def observe(self, number: int, observation: Hashable) -> int:
        """The next mark, or none."""
        assert isinstance(observation, tuple)
        if number == EMPTY or observation[0] != SEEN_MARK:
            return number
        return super().observe(number, observation)

    def stamp(self, number: int, event: Stamp) -> int:
        """Arrivals are free."""
        return number


def places(test: Test, hypervisor: Hypervisor, outcome: Outcome, guest: Guest) -> tuple[int, ...]:
    """The instruction that each arrival precedes on one way to this outcome; () if none was found.

    -1 for those that a test binds to a place itself, and for those that come while the guest spins."""
    marks = tuple(Mark(test.marks.index(name)) for name in outcome.marks)
    run = Run(guest, 0, marks, len(marks) < marks_kept(test), outcome.ending, -1)
    product = Product(test, "plain", "ticking", hypervisor, 0)
    product.monitor = Marks(product, run)
    search = find(product, run, MOST_STATES)
    return _starts(product, search.way) if search.way else ()


def may_be(test: Test, came: Outcome, modelled: Outcome) -> bool:
    """Whether what came is this outcome of the model, which keeps only so many marks, or may be it, as far as the log
    holds what came. In a log that was overwritten nobody can tell whether an instruction ever retired."""
    kept, lost = marks_kept(test), came.marks[-1:] == (MORE,)
    if not lost:
        return (came.marks[:kept], came.ending) == (modelled.marks, modelled.ending)
    known = min(len(came.marks) - 1, len(modelled.marks))
    endings = ("loops", "held") if came.ending == "loops" else (came.ending,)
    return came.marks[:known] == modelled.marks[:known] and modelled.ending in endings


def _starts(product: Product, way: Sequence[Point]) -> tuple[int, ...]:
    """Of each arrival: where the guest was when it began."""
    begun = [-1] * len(product.test.outside)
    for before, after in pairwise(way):
        for number, arrival in enumerate(product.test.outside):
            if before.senders[number] == UNSTARTED != after.senders[number] and arrival.at < 0:
                begun[number] = product.rip(before)
    return tuple(begun)
