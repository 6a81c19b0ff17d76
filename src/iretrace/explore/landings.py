"""A step of one thread in which steps of others land: before its k-th access of what they share, as a schedule says."""

from __future__ import annotations

from collections.abc import Sequence

NEVER = 1 << 62


class Landings:
    """To be mixed in. What counts the accesses calls _land() at the one whose number _next is; _send() makes a step.

    _last: place and number of the schedule's last landing."""

    _schedule: Sequence[tuple[int, int, int]]
    _landed: int
    _next: int
    _last: tuple[int, int]

    def _follow(self, schedule: Sequence[tuple[int, int, int]]) -> None:
        """(before which access, whose steps, how many), in order."""
        self._schedule = schedule
        self._landed = 0
        self._next = schedule[0][0] if schedule else NEVER
        self._last = schedule[-1][:2] if schedule else (0, -1)

    def _land(self, k: int) -> None:
        """Let those land whose place is the k-th access."""
        while self._landed < len(self._schedule) and self._schedule[self._landed][0] == k:
            _, number, steps = self._schedule[self._landed]
            self._landed += 1
            for _ in range(steps):
                self._send(number)
        rest = self._schedule[self._landed :]
        self._next = rest[0][0] if rest else NEVER

    def _send(self, number: int) -> None:
        raise NotImplementedError
