"""Values by number, so that states are small, and cheap to hash and to compare."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Interned(Generic[T]):
    """Values and their numbers, in the order in which they were first seen."""

    def __init__(self) -> None:
        self._number: dict[T, int] = {}
        self.values: list[T] = []

    def __call__(self, value: T) -> int:
        """The number of a value."""
        number = self._number.get(value)
        if number is None:
            number = self._number[value] = len(self.values)
            self.values.append(value)
        return number
