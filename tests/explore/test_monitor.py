"""Monitor sets: what explains a history, with a toy reference of two kinds of event, "a" going first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iretrace.explore.interned import Interned
from iretrace.explore.monitor import EMPTY, Monitor, Observation, Stamp

KINDS = ("a", "b")
Toy = tuple[frozenset[str], frozenset[str], frozenset[str]]
"""(in transit, of these: sender done, latched)."""


class TwoKinds:
    """A machine that takes "a" before "b" if both are there, and latches what was sent before it takes anything."""

    def start(self) -> Toy:
        return (frozenset(), frozenset(), frozenset())

    def moves(self, state: Toy) -> Iterator[tuple[Observation | None, Toy]]:
        transit, done, latched = state
        for kind in sorted(transit):
            yield None, (transit - {kind}, done - {kind}, latched | {kind})
        if latched and not done:
            first = min(latched)
            yield first, (transit, done, latched - {first})

    def stamp(self, state: Toy, event: Stamp) -> Toy:
        transit, done, latched = state
        what, number = event
        kind = KINDS[number]
        if what == "start":
            return (transit | {kind}, done, latched)
        return (transit, done | (transit & {kind}), latched)


START_A, START_B = ("start", 0), ("start", 1)
END_A, END_B = ("end", 0), ("end", 1)


def after(*history: Stamp | str) -> int:
    """The monitor set of a history of stamps and observations, or EMPTY."""
    monitor = Monitor(TwoKinds())
    at = monitor.start()
    for event in history:
        if at == EMPTY:
            return EMPTY
        at = monitor.observe(at, event) if isinstance(event, str) else monitor.stamp(at, event)
    return at


def test_the_right_order_is_explained() -> None:
    assert after(START_A, END_A, START_B, END_B, "a", "b") != EMPTY
    assert after(START_B, END_B, START_A, END_A, "a", "b") != EMPTY


def test_a_reordered_pair_is_not_explained() -> None:
    assert after(START_A, END_A, START_B, END_B, "b") == EMPTY


def test_an_order_that_an_unfinished_sender_can_bring_about_is_explained() -> None:
    assert after(START_A, START_B, END_B, "b", END_A, "a") != EMPTY


def test_an_invented_event_is_not_explained() -> None:
    assert after("a") == EMPTY
    assert after(START_A, END_A, "a", "a") == EMPTY


def test_an_event_cannot_be_seen_before_it_is_sent() -> None:
    assert after(START_B, END_B, "a") == EMPTY


def test_an_event_may_be_seen_before_its_sender_is_done() -> None:
    assert after(START_A, "a", END_A) != EMPTY


def test_a_set_is_closed_under_silent_moves() -> None:
    monitor = Monitor(TwoKinds())
    at = monitor.stamp(monitor.start(), START_A)
    assert {latched for _, _, latched in monitor.members(at)} == {frozenset(), frozenset({"a"})}


def test_equal_sets_have_the_same_number() -> None:
    monitor = Monitor(TwoKinds())
    first = monitor.start()
    again = monitor.observe(monitor.stamp(monitor.stamp(first, START_A), END_A), "a")
    assert again == first


def test_what_is_worked_out_once_stays() -> None:
    monitor = Monitor(TwoKinds())
    at = monitor.stamp(monitor.start(), START_A)
    assert monitor.stamp(monitor.start(), START_A) == at
    assert monitor.observe(at, "b") == monitor.observe(at, "b") == EMPTY


def test_what_the_reference_could_have_shown_can_be_told() -> None:
    monitor = Monitor(TwoKinds())
    at = monitor.stamp(monitor.stamp(monitor.start(), START_A), START_B)
    assert monitor.allowed(at) == ["a", "b"]
    assert monitor.allowed(monitor.start()) == []


def test_interned_values_are_numbered_in_order_and_once() -> None:
    interned: Interned[str] = Interned()
    assert [interned(value) for value in ("x", "y", "x")] == [0, 1, 0]
    assert interned.values == ["x", "y"]


@pytest.mark.parametrize("history", [(START_A, END_A), (START_B, END_B), (START_A, START_B, END_A, END_B)])
def test_stamps_never_empty_a_set(history: tuple[Stamp, ...]) -> None:
    """Whatever the reference does, others may send."""
    assert after(*history) != EMPTY
