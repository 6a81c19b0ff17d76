"""States of a tree's KVM at hand-overs: what of its memory differs from the first one."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from iretrace.linux import memory
from iretrace.linux.host import KernelRun
from iretrace.linux.memory import Space
from iretrace.linux.unmodelled import Unmodelled
from iretrace.world.protocol import Private

LARGE_TABLE = 256
"""Objects with at least so many words that are not zero are taken for tables."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Hypervisor state at a hand-over; interned, so that equal states are the same object.

    words: (address, value) of memory words that differ from the first state, sorted. frames: paused C frames.
    interrupts, gif: whether the vCPU's CPU takes interrupts.
    """

    words: tuple[tuple[int, int], ...]
    frames: Hashable
    interrupts: bool
    gif: bool
    sp: int


class States:
    """The states of one vCPU. base: the words of the first one that are not zero.

    words: of the vCPU as it was created. masks: word address -> bits that play no role for what KVM does."""

    def __init__(self, space: Space, words: dict[int, int], masks: dict[int, int]) -> None:
        self.base = _not_zero(words)
        self.masks = masks
        self._space = space
        self._states: dict[Hashable, State] = {}
        self._stack: list[int] = []
        self._tables: dict[int, int] = {}

    def settle(self, words: dict[int, int]) -> None:
        """These words are what other states are compared with."""
        self.base = _not_zero(words)
        self._freeze_tables()
        self._stack = [word for word in self.base if is_stack(word)]

    def setting(self) -> tuple[Any, ...]:
        """What decides how a state is told."""
        return tuple(sorted(self.base.items())), tuple(sorted(self.masks.items())), tuple(sorted(self._tables.items()))

    def _freeze_tables(self) -> None:
        """Make large tables (the MSR permission map) constant: states stay small, and a write that changes one is not
        modelled (`of`)."""
        space = self._space
        tables: dict[int, list[int]] = {}
        for word in self.base:
            found = space.find(word)
            if found is not None:
                tables.setdefault(found.address, []).append(word)
        for address, words in tables.items():
            if len(words) < LARGE_TABLE:
                continue
            table = space.find(address)
            assert table is not None
            for word in words:
                value = self.base.pop(word)
                table.words[word] = space.read[word] = space.write[word] = self._tables[word] = value

    def of(self, run: KernelRun) -> State:
        """The state of a run at a hand-over."""
        base, masks, tables = self.base, self.masks, self._tables
        words = []
        for word, value in run.m.items():
            original = base.get(word, 0)
            if value != original:
                if word in tables:
                    if value == tables[word]:
                        continue
                    raise Unmodelled(f"{self._space.describe(word)}, a large table, changes during a run")
                mask = masks.get(word)
                if mask is not None:
                    value = value & ~mask | original & mask
                    if value == original:
                        continue
                words.append((word, value))
        for word in self._stack:
            if word not in run.m:
                words.append((word, 0))
        words.sort()
        return self.intern(tuple(words), run.frames, run.interrupts, run.gif, run.sp)

    def intern(self, *key: Any) -> State:
        """The one state with these fields."""
        known = self._states.get(key)
        if known is None:
            known = self._states[key] = State(*key)
        return known

    def restore(self, run: KernelRun, private: Private) -> None:
        """Put a run into a state."""
        assert isinstance(private, State)
        run.m = dict(self.base)
        run.m.update(private.words)
        run.frames = private.frames  # type: ignore[assignment]
        run.interrupts, run.gif, run.sp = private.interrupts, private.gif, private.sp

    def word(self, private: Private, address: int) -> int:
        """A word of memory in a state."""
        assert isinstance(private, State)
        return dict(private.words).get(address, self.base.get(address, 0))


def _not_zero(words: dict[int, int]) -> dict[int, int]:
    return {word: value for word, value in words.items() if value}


def is_stack(address: int) -> bool:
    """Whether a word lies on the stack of a C function."""
    return address >= memory.STACKS
