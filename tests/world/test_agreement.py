"""The search for differences between two hypervisors, on small ones made by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from iretrace.litmus import test as litmus_test
from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.subset import unpack
from iretrace.world.agreement import Agreement, agree
from iretrace.world.protocol import Comparison, Private
from tests.world.small import MISTAKES, Small, State
from tests.world.test_oracle import BEHIND_DF, HEADER, UNBALANCED


@dataclass(frozen=True)
class Comparable(Small):
    """A small hypervisor that can be held against another."""

    def compare(self, private: Private) -> Comparison:
        assert isinstance(private, tuple)
        state = unpack(State, private)
        events = (("nmi.pending", state.pending), ("nmi.masked", state.masked), ("nmi.injected", state.injected))
        return Comparison(
            requests=frozenset({"NMI"} if state.requested else ()),
            nmi_queued=state.queued,
            mp_state=state.halted,
            events=tuple((name, value) for name, value in events if value),
            debug_registers=(),
        )


def litmus(name: str) -> litmus_test.Test:
    return select([name])[0]


def compared(name: str, mistake: str, host: str = "tickless") -> Agreement:
    return agree(litmus(name), "sev-es", host, Comparable(name="right"), Comparable(mistake, "wrong"))


@pytest.mark.parametrize("host", ["tickless", "ticking"])
@pytest.mark.parametrize("name", ["nmi-complete-then-spin", "nmi-at-hlt", "nmi-on-cold-stack"])
def test_a_hypervisor_agrees_with_itself(name: str, host: str) -> None:
    made = compared(name, "", host)
    assert made.agreed
    assert made.pairs > 10


SEEN_ELSEWHERE = {
    "nmi-at-hlt": ("sleep", "race", "insomnia", "poll", "circle"),
    "two-nmis-on-cold-stack": ("forget", "again", "cold"),
    "nmi-in-sti-shadow": ("shadow",),
    "three-nmis": ("two",),
}
"""Tests, and the mistakes that only they can show."""

ELSEWHERE = {"behind", *(mistake for mistakes in SEEN_ELSEWHERE.values() for mistake in mistakes)}
SEEN_BY = {"nmi-complete-then-spin": tuple(m for m in MISTAKES if m and m not in ELSEWHERE), **SEEN_ELSEWHERE}


@pytest.mark.parametrize(("name", "mistake"), [(name, m) for name, many in SEEN_BY.items() for m in many])
def test_a_mistake_makes_a_difference(name: str, mistake: str) -> None:
    made = compared(name, mistake)
    assert made.differences
    assert str(made.differences[0])


def test_an_exit_that_only_one_side_asks_for_makes_a_difference() -> None:
    test = parse(f"{HEADER}outside nmi{BEHIND_DF}\n\n{UNBALANCED}", "agreement.litmus")
    assert agree(test, "sev-es", "tickless", Comparable(), Comparable("behind", "wrong")).differences


def test_the_shortest_way_to_the_difference_is_told() -> None:
    (difference,) = compared("nmi-complete-then-spin", "nest").differences
    assert difference.path.count("host") == 2
    assert "event_inj" in str(difference)


def test_a_step_more_in_the_same_work_is_no_difference() -> None:
    """Where one side looks at a shared cell once more, senders land in more places, and nothing else comes out."""

    class Nosy(Comparable):
        def _fold(self, run: object) -> None:
            run.access("queue", "request", "wake", "kick")  # type: ignore[attr-defined]
            super()._fold(run)  # type: ignore[arg-type]

    assert agree(litmus("nmi-complete-then-spin"), "sev-es", "tickless", Comparable(), Nosy(name="nosy")).agreed
