from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest

from iretrace.linux.host import HostRun
from iretrace.linux.legs import Base, Leg, Milestone, Passed
from iretrace.linux.notes import BLOCKS, Note, Notes, Uses
from iretrace.linux.registers import MOVED, STALE, STALE_VALUE, Found, Hidden, Opaque, opaque
from iretrace.linux.sender import Access, Changed, EventSender, Masks, Path, Senders, Step
from iretrace.linux.turning import Before, Joined, Log, Passage, Passages, Stale, TakenUp, Turn, Way, behind, taken
from iretrace.linux.unmodelled import Unmodelled
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import pack
from iretrace.verdict import CLine
from iretrace.world.protocol import NO_HOST_DEBUG, NO_SENDER, Cause, Landing, Packed, Pause, PauseKind, SenderState
from tests.linux.csource import program_of

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
    return in_legs(Leg(passed, quiet, uses([100])), looked=looked, at=at)


def in_legs(*legs: Leg, milestones: Sequence[Milestone] = (), looked: frozenset[int] = NONE, at: int = 0) -> Passage:
    pause = Pause(PauseKind.ENTER, "private", vmcb(5), (), (), (), False, (), False, 0, ())
    return Passage(pause, (), looked, legs, tuple(milestones), (0, 0), {"nmi": 1}, at, uses([100]))


def milestone(at: int, key: bytes = b"", words: Mapping[int, int] = {}, *kept: int) -> Milestone:
    frames = (("f1", 2, kept),)
    return Milestone(at, key, tuple(words), tuple(words.values()), frames, {}, NO_HOST_DEBUG, (), False)


def passages() -> Passages:
    return Passages(TwoSteps(), (FLAG, COUNT), Notes(), True, True)


def found(
    of: Passage,
    senders: tuple[SenderState, ...],
    log: Log = (),
    last: Landing | None = None,
    before: Before | None = None,
) -> Found:
    return passages().found(of, TakenUp("key", senders, log, before or Before(uses)), last)


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
    known.add("key", vmcb(5), passage(looked=frozenset({MOVED[0]})), exits=False)
    assert known.find("key", vmcb(5)) is not None
    assert known.find("key", vmcb(6)) is None
    known.add("other", vmcb(5), passage(), exits=False)
    assert known.find("other", vmcb(6)) is not None


# Legs. -----------------------------------------------------------------------------------------------------------


def test_senders_may_land_in_every_leg() -> None:
    first, second = Leg((READS_FLAG,), {}, uses([1])), Leg((READS_COUNT,), {}, uses([2]))
    both = found(in_legs(first, second, milestones=[milestone(4)]), (FRESH,))
    assert both.pause.openings == found(passage(READS_FLAG, READS_COUNT), (FRESH,)).pause.openings


def test_an_access_that_one_leg_did_not_watch_for_makes_the_passage_stale() -> None:
    silent, watched = Leg((), {FLAG: Masks(1, 0)}, uses([1])), Leg((READS_COUNT,), {}, uses([2]))
    with pytest.raises(Stale):
        found(in_legs(silent, watched, milestones=[milestone(1)]), (FRESH,))


def test_what_follows_a_milestone_is_taken_over_with_the_numbers_of_accesses_there() -> None:
    legs = [Leg((READS_FLAG._replace(at=at),), {}, uses([at])) for at in (3, 7, 9)]
    other = in_legs(*legs, milestones=[milestone(4), milestone(8)])
    rest, behind_it = Joined(other, 0).rest(14)
    assert [here.at for leg in rest for here in leg.passed] == [17, 19]
    assert [one.at for one in behind_it] == [18]
    assert [leg.uses for leg in rest] == [uses([7]), uses([9])], "not on what comes before the milestone"
    assert Joined(other, 1).rest(8) == ([legs[2]], [])


def test_a_run_goes_on_as_a_passage_that_has_been_at_its_milestone() -> None:
    known, rip = passages(), MOVED[0]
    other = in_legs(Leg((), {}, uses([1])), Leg((), {}, uses([2])), milestones=[milestone(4, b"there")])
    known.add("key", vmcb(5), replace(other, looked=frozenset({rip})), exits=True)
    assert known.going_on(milestone(9, b"there"), vmcb(5), exits=True) is not None
    assert known.going_on(milestone(9, b"there"), vmcb(6), exits=True) is None, "it has looked at RIP"
    assert known.going_on(milestone(9, b"there"), vmcb(5), exits=False) is None, "of an exit more is told"
    assert known.going_on(milestone(9, b"elsewhere"), vmcb(5), exits=True) is None
    known.add("key", vmcb(5), replace(other, versions={"nmi": 0}), exits=True)
    assert known.going_on(milestone(9, b"there"), vmcb(6), exits=True) is None, "more is known of senders by now"


def test_a_circle_is_not_taken_over() -> None:
    known = passages()
    other = in_legs(Leg((), {}, uses([1])), Leg((), {}, uses([2])), milestones=[milestone(4, b"there")])
    circle = replace(other, pause=other.pause._replace(kind=PauseKind.LOOP))
    known.add("key", vmcb(5), circle, exits=False)
    assert known.going_on(milestone(9, b"there"), vmcb(5), exits=False) is None


def test_a_landing_is_executed_from_the_last_milestone_before_it() -> None:
    legs = [Leg((), {}, uses([number])) for number in range(3)]
    early, late = milestone(4), milestone(8)
    pause = passage().pause._replace(senders=(HALF,), log=(("start", 0),))
    way = Way(in_legs(*legs, milestones=[early, late]), 10, None)
    assert way.then((18, 0, 1), pause) == Base(late, 10, (HALF,), (("start", 0),), ((18, 0, 1),))
    assert way.then((17, 0, 1), pause) == Base(early, 10, (HALF,), (("start", 0),), ((17, 0, 1),))
    assert way.then((13, 0, 1), pause) is None, "from the start of the step"


def test_or_from_the_milestone_of_the_step_without_it_where_there_is_none() -> None:
    base = Base(milestone(4), 1, (FRESH,), (), ((6, 0, 1),))
    way = Way(passage(), 2, base)
    assert way.then((9, 0, 1), passage().pause) == base._replace(since=((6, 0, 1), (9, 0, 1)))


def test_a_milestone_gives_the_registers_of_another_step_hidden_as_they_were() -> None:
    looked: set[int] = set()
    rip = opaque(5, MOVED[0], looked)
    stand = milestone(4, b"", {8: rip, 16: 7, 24: opaque(STALE_VALUE, STALE, looked)}, rip, 3)
    hidden = Hidden({}, ())
    memory, [(_, _, kept)] = stand.memory(hidden, vmcb(6)), stand.stack(hidden, vmcb(6))
    assert {word: type(value) for word, value in memory.items()} == {8: Opaque, 16: int, 24: Opaque}
    assert [int.__int__(value) for value in (memory[8], memory[24], *kept)] == [6, STALE_VALUE, 6, 3]
    assert hidden.looked == looked == set()
    assert memory[8] + kept[0] == 12
    assert hidden.looked == {MOVED[0]}
    assert looked == set(), "the other step has looked at nothing"


def test_a_run_stands_at_a_milestone_as_the_other_one_stood_with_its_own_senders() -> None:
    run = HostRun(program_of("int f(void) { return 1; }"), TwoSteps(), (FRESH,), ((7, 0, 1),), True)
    warned, debug = ("WARN reached", CLine("a.c", 1)), NO_HOST_DEBUG._replace(dr7=1)
    stood = Milestone(4, b"", (8,), (9,), (("f1", 2, (3,)),), {"gif": False, "sp": 5}, debug, (warned,), True)
    run.go_on(Base(stood, 2, (HALF,), (("start", 0),), ((8, 0, 1),)), Hidden({}, ()), vmcb(5))
    assert (run.m, run.frames, run.gif, run.sp) == ({8: 9}, (("f1", 2, (3,)),), False, 5)
    assert (run.physical.now(), run.findings, run.ipi) == (debug, [warned], True)
    assert (run.senders, run.log) == ([HALF], [("start", 0)])
    assert (run._count, run._next, run._last) == (6, 8, (8, 0))
