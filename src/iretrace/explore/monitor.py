"""Monitor sets: all the states of a reference that explain what has been observed so far.

The reference is a nondeterministic machine whose moves are silent or show an observation. A set is closed under
silent moves. When an observation empties it, nothing that the reference can do explains the run: that step is the
defect. Sets are numbered, so that a product state holds one small int.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, Protocol, TypeVar

Observation = Hashable
Stamp = tuple[str, int]
"""An event from outside as the history holds it: what ("start", "end") and which."""

RefState = TypeVar("RefState", bound=Hashable)

EMPTY = -1


class Reference(Protocol[RefState]):
    """The machine that explains."""

    def start(self) -> RefState:
        """Its first state."""
        ...

    def moves(self, state: RefState) -> Iterable[tuple[Observation | None, RefState]]:
        """What it can do next; None: silently."""
        ...

    def stamp(self, state: RefState, event: Stamp) -> RefState | None:
        """An event from outside is stamped into the history: what that makes of a state; None: it cannot happen
        there."""
        ...


class Monitor(Generic[RefState]):
    """Interned monitor sets over a reference."""

    def __init__(self, reference: Reference[RefState]) -> None:
        self._reference = reference
        self._sets: list[frozenset[RefState]] = []
        self._number: dict[frozenset[RefState], int] = {}
        self._moves: dict[RefState, tuple[tuple[Observation | None, RefState], ...]] = {}
        self._observed: dict[tuple[int, Observation], int] = {}
        self._stamped: dict[tuple[int, Stamp], int] = {}

    def start(self) -> int:
        """The set of the empty history."""
        return self._close({self._reference.start()})

    def members(self, number: int) -> frozenset[RefState]:
        """The states of a set."""
        return self._sets[number]

    def observe(self, number: int, observation: Observation) -> int:
        """The set after an observation, or EMPTY."""
        key = (number, observation)
        if key not in self._observed:
            after = {
                target
                for state in self._sets[number]
                for shown, target in self._moves_of(state)
                if shown is not None and shown == observation
            }
            self._observed[key] = self._close(after) if after else EMPTY
        return self._observed[key]

    def stamp(self, number: int, event: Stamp) -> int:
        """The set after an event from outside was stamped, or EMPTY."""
        key = (number, event)
        if key not in self._stamped:
            after = {self._reference.stamp(state, event) for state in self._sets[number]} - {None}
            self._stamped[key] = self._close({state for state in after if state is not None}) if after else EMPTY
        return self._stamped[key]

    def allowed(self, number: int) -> list[Observation]:
        """What the reference could have shown next, for explanations."""
        shown = {s for state in self._sets[number] for s, _ in self._moves_of(state) if s is not None}
        return sorted(shown, key=repr)

    def _moves_of(self, state: RefState) -> tuple[tuple[Observation | None, RefState], ...]:
        known = self._moves.get(state)
        if known is None:
            known = self._moves[state] = tuple(self._reference.moves(state))
        return known

    def _close(self, states: set[RefState]) -> int:
        pending = list(states)
        while pending:
            for shown, target in self._moves_of(pending.pop()):
                if shown is None and target not in states:
                    states.add(target)
                    pending.append(target)
        closed = frozenset(states)
        number = self._number.get(closed)
        if number is None:
            number = self._number[closed] = len(self._sets)
            self._sets.append(closed)
        return number
