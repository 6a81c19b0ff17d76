from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from iretrace.linux.host import Passed
from iretrace.linux.notes import BLOCKS, Note, Notes, Uses
from iretrace.linux.registers import MOVED, Found
from iretrace.linux.sender import Access, Changed, EventSender, Masks, Path, Senders, Step
from iretrace.linux.turning import Before, Log, Passage, Passages, Stale, Turn, behind, taken
from iretrace.linux.unmodelled import Unmodelled
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import pack
from iretrace.verdict import CLine
from iretrace.world.protocol import NO_SENDER, Cause, Landing, Packed, Pause, PauseKind, SenderState

FLAG, COUNT = 8, 16
"""Two shared words: a sender sets the flag, and then adds one to the count."""

FRESH, HALF = EventSender("nmi", ()), EventSender("nmi", (1,))
NONE: frozenset[int] = frozenset()


class TwoSteps(Senders):
    """Senders that do so."""

    def __init__(self) -> None:
        super().__init__({})

    def versions(self) -> dict[str, int]:
        """Nothing is learnt."""
        return {"nmi": 1}

    def verify(self, kind: str, log: tuple[int, ...], found: int, changed: Changed) -> None:
        """No word matters but one."""
        if (99, 1) in changed:
            raise Unmodelled("it reads 99")

    def path(self, state: EventSender, memory: Mapping[int, int]) -> Path:
        """What is left of the two steps."""
        if memory[COUNT] > 99:
            raise Unmodelled("so many")
        flag, count = Access(FLAG, 1, True), Access(COUNT, 0xFF, True)
        where = CLine("a.c", 1)
        first = flag, Step((1,), 1, (), False, count, where, (50,))
        second = count, Step((1, 0), memory[COUNT] + 1, (), False, None, where, (51,))
        return (first, second)[len(state.log) :]


def uses(trace: Iterable[int], notes: Iterable[Note] = ()) -> Uses:
    return Uses(array(BLOCKS, trace).tobytes(), frozenset(notes))


def vmcb(rip: int) -> Packed:
    made: Packed = pack(Vmcb(rip=rip, asid=1))
    return made


def passage(*passed: Passed, looked: frozenset[int] = NONE, at: int = 0, quiet: Mapping[int, Masks] = {}) -> Passage:
    pause = Pause(PauseKind.ENTER, "private", vmcb(5), (), (), (), False, (), False, 0, ())
    return Passage(pause, (), looked, passed, dict(quiet), (0, 0), {"nmi": 1}, at, uses([100]))


def passages() -> Passages:
    return Passages(TwoSteps(), (FLAG, COUNT), Notes(), True, True)


def found(
    of: Passage,
    senders: tuple[SenderState, ...],
    log: Log = (),
    last: Landing | None = None,
    before: Before | None = None,
) -> Found:
    return passages().found(of, senders, log, last, before or Before(uses))


READS_FLAG = Passed(3, FLAG, 1, False, (0, 0), place=b"flag")
READS_COUNT = Passed(7, COUNT, 0xFF, False, (0, 0), place=b"count")


def test_a_landing_is_offered_where_the_order_can_matter_with_as_many_steps_as_it_takes() -> None:
    assert found(passage(READS_FLAG, READS_COUNT), (FRESH,)).pause.openings == ((3, 0, 1), (7, 0, 2))
    assert found(passage(READS_FLAG, READS_COUNT), (HALF,)).pause.openings == ((7, 0, 1),)
    assert found(passage(READS_FLAG, READS_COUNT), (NO_SENDER,)).pause.openings == ()


def test_behind_a_landing_places_are_those_of_the_step_that_asks_and_its_sender_is_not_offered_there_again() -> None:
    known = passage(READS_FLAG, READS_COUNT, at=3)
    one = found(known, (HALF, FRESH), (("start", 0),), (23, 0, 1))
    assert one.pause.openings == ((23, 1, 1), (27, 0, 1), (27, 1, 2))
    assert one.pause.senders == (HALF, FRESH)
    assert one.pause.log == (("start", 0),)
    assert found(known, (FRESH, FRESH), (), (23, 0, 1)).pause.openings[0] == (23, 1, 1)


def test_of_senders_that_are_equally_far_one_is_offered() -> None:
    assert found(passage(READS_COUNT), (HALF, HALF)).pause.openings == ((7, 0, 1),)
    assert found(passage(READS_FLAG), (FRESH, FRESH)).pause.openings == ((3, 0, 1), (3, 1, 1))


def test_where_a_thread_goes_in_a_circle_a_sender_does_all_that_is_left() -> None:
    assert found(passage(READS_FLAG._replace(rest=True)), (FRESH,)).pause.openings == ((3, 0, 2),)


def test_a_turn_tells_the_place_the_shared_words_the_senders_and_the_log() -> None:
    (turn,) = found(passage(READS_FLAG), (FRESH, HALF), (("start", 1),)).pause.turns[:1]
    assert isinstance(turn, Turn)
    assert turn.senders == (HALF, HALF)
    assert turn.log == (("start", 1), ("start", 0))
    for other in (
        READS_FLAG._replace(place=b"else"),
        READS_FLAG._replace(words=(0, 1)),
        READS_FLAG._replace(ipi=True),
    ):
        assert found(passage(other), (FRESH, HALF)).pause.turns[0].place != turn.place  # type: ignore[attr-defined]
    set_already = READS_FLAG._replace(words=(1, 0))
    assert found(passage(set_already), (FRESH, HALF)).pause.turns[0].place == turn.place  # type: ignore[attr-defined]


def test_a_passage_that_did_not_watch_for_an_access_of_a_sender_is_stale() -> None:
    unseen = passage(READS_FLAG, quiet={COUNT: Masks(0xFF, 0)})
    with pytest.raises(Stale):
        found(unseen, (FRESH,))
    assert found(unseen, (NO_SENDER,)).pause.openings == ()
    other_bits = passage(READS_FLAG, quiet={COUNT: Masks(0xF00, 0xF00)})
    assert found(other_bits, (FRESH,)).pause.openings == ((3, 0, 1),)


def test_a_sender_that_reads_what_has_changed_is_not_taken_for_one_that_does_not() -> None:
    harmless = READS_FLAG._replace(changed={"nmi": ((98, 1),)})
    harmful = READS_FLAG._replace(changed={"nmi": ((99, 1),)})
    places = [found(passage(here), (FRESH,)).pause.turns[0].place for here in (READS_FLAG, harmless, harmful)]  # type: ignore[attr-defined]
    assert places[0] == places[1] != places[2]


def test_a_passage_from_before_more_was_known_of_a_sender_is_stale() -> None:
    before = replace(passage(READS_FLAG), versions={"nmi": 0})
    with pytest.raises(Stale):
        found(before, (FRESH,))
    assert found(before, (NO_SENDER,)).pause.openings == ()


def test_a_sender_that_is_not_modelled_ends_the_step_there() -> None:
    many = READS_COUNT._replace(words=(0, 100))
    one = found(passage(READS_FLAG, many), (FRESH,))
    assert one.pause.openings == ((3, 0, 1),)
    assert one.pause.unmodelled == "so many"


def test_a_step_is_taken_up_behind_a_landing_that_was_offered() -> None:
    parent = found(passage(READS_FLAG), (FRESH,))
    way = taken(parent, (3, 0, 1), uses)
    assert way is not None
    turn, _ = way
    assert turn == parent.pause.turns[0]
    assert taken(parent, (4, 0, 1), uses) is None
    assert behind(turn, Cause.VMEXIT) != behind(turn, Cause.WAKE)


def test_it_rests_on_the_registers_and_blocks_up_to_the_landing_of_its_sender_and_of_those_behind_it() -> None:
    rip, rflags = MOVED[0], MOVED[2]
    parent = found(passage(READS_FLAG, looked=frozenset({rflags})), (FRESH,), before=Before(uses, NONE, (uses([1]),)))
    way = taken(parent, (3, 0, 1), uses)
    assert way is not None
    behind_it = replace(passage(READS_COUNT, looked=frozenset({rip})), uses=uses([200]))
    one = found(behind_it, way[0].senders, way[0].log, (3, 0, 1), way[1])
    assert one.looked == {rip, rflags}
    assert set[int]().union(*(part.blocks() for part in one.uses)) == {1, 100, 50, 200}


def test_a_passage_is_found_for_the_registers_that_it_has_not_looked_at() -> None:
    known = passages()
    known.add("key", vmcb(5), passage(looked=frozenset({MOVED[0]})))
    assert known.find("key", vmcb(5)) is not None
    assert known.find("key", vmcb(6)) is None
    known.add("other", vmcb(5), passage())
    assert known.find("other", vmcb(6)) is not None
