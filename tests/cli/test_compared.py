"""What was seen beside what the model says: the same however many processes ask it."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest

from iretrace.cli.compared import compare, model, request_for
from iretrace.cli.sources import BuiltinSource
from iretrace.live.guests import Guest
from iretrace.live.machine_code import assemble
from iretrace.live.observed import Run
from iretrace.live.session import Machine, Seen, Session
from iretrace.live.walk import Delivery, Mark
from iretrace.report.live import Compared
from iretrace.verdict import InputError
from tests.live.guests import make_test
from tests.live.test_observed import line

TEXT = """\
test {name}
about An NMI and an interrupt are there before main begins.
vcpu  plain
outside at start: nmi, maybe irq
interrupts on

main:
    start: spin
nmi:
    mark    n
    iretq
irq:
    mark    i
    iretq

sometimes n
sometimes n i
"""
pytestmark = pytest.mark.slow

NAMES = ("one", "two", "three")
IF = 0x200
NMI = (Delivery(2, 0, IF, 0), Mark(0))


def quiet(_text: str) -> None:
    """No progress."""


def session() -> Session:
    """Each test has run twice: once as the model has it, once without its NMI."""
    found = []
    for name in NAMES:
        test = make_test(TEXT.format(name=name))
        guest = Guest(0, test, assemble(test, {test.main: 0}), (0, -1), 1)
        runs = [Run(guest, 0, history, True, "spins", 0, (0, 0)) for history in (NMI, ())]
        found.append(Seen(test, {run.outcome(): 1 for run in runs}, runs=runs))
    return Session(found, [])


def shows_nothing(guests: Sequence[Guest]) -> Generator[str, None, None]:
    """A machine whose guests spin."""
    for guest in guests:
        yield f"begin {guest.number}"
        yield line(guest, "", 0)


def compared(jobs: int, machine: Machine, source: BuiltinSource | None = None) -> dict[str, Compared]:
    """Of the built-in KVM."""
    source, one = source or BuiltinSource("v6.12"), session()
    with model(request_for(None, [seen.test for seen in one.seen], {}, jobs), source) as beside:
        return dict(compare(one, machine, beside, quiet))


def test_the_same_comes_of_several_processes() -> None:
    one, three = (compared(jobs, Machine(shows_nothing)) for jobs in (1, 3))
    assert [one[name] for name in NAMES] == [three[name] for name in NAMES]
    assert sorted(one) == sorted(NAMES)


def test_what_the_model_lacks_and_what_was_not_seen_is_told() -> None:
    about = compared(2, Machine(shows_nothing))["two"]
    assert about.histories == 2
    assert [strange.why for strange in about.beyond] == ["in the model it is not the end that the guest spins"]
    assert [outcome.marks for outcome in about.unseen] == [("n", "i")]
    assert about.verdicts == ["tickless: holds", "ticking: holds"]


def test_what_was_not_seen_is_tried_for_with_its_events_at_their_places() -> None:
    tried: list[tuple[str, tuple[int, ...]]] = []

    def noting(guests: Sequence[Guest]) -> Generator[str, None, None]:
        tried.extend((guest.test.name, guest.cuts) for guest in guests)
        return shows_nothing(guests)

    compared(1, Machine(noting))
    assert {name for name, _ in tried} == set(NAMES)


def test_a_session_that_is_interrupted_while_it_tries_is_compared_as_far_as_it_came() -> None:
    def ended(guests: Sequence[Guest]) -> Generator[str, None, None]:
        yield f"begin {guests[0].number}"
        raise KeyboardInterrupt

    assert compared(1, Machine(ended))["one"].histories == 2


class Failing(BuiltinSource):
    """Cannot be opened."""

    def open(self, vcpu: str) -> None:  # type: ignore[override]
        """As a tree with C that nobody knows."""
        raise InputError("svm.c:1: wrong")


def test_what_is_wrong_with_the_tree_is_told() -> None:
    with pytest.raises(InputError, match=r"svm.c:1: wrong"):
        compared(1, Machine(shows_nothing), Failing())
