from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import replace

from iretrace.linux.host import Turn
from iretrace.linux.notes import BLOCKS, Uses
from iretrace.linux.registers import MOVED, Found
from iretrace.linux.sender import Access, Step
from iretrace.linux.turning import Rest, Turns
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import pack
from iretrace.verdict import CLine
from iretrace.world.protocol import Cause, Landing, Packed, Pause, PauseKind

LANDING = (7, 0, 2)
PLACE: Turn = (b"place", (("start", 0),))
START, END, OTHER = ("start", 0), ("end", 0), ("start", 1)


def uses(blocks: Iterable[int]) -> Uses:
    return Uses(array(BLOCKS, blocks).tobytes(), frozenset())


def vmcb(rip: int) -> Packed:
    made: Packed = pack(Vmcb(rip=rip, asid=1))
    return made


def found(
    log: tuple[tuple[str, int], ...], openings: tuple[Landing, ...], turns: tuple[Turn, ...], looked: frozenset[int]
) -> Found:
    pause = Pause(PauseKind.ENTER, "private", vmcb(5), (), (), log, False, openings, False, 0, (), turns=turns)
    return Found(pause, (), looked, ((),) * len(openings), (uses([len(openings)]),))


NONE: frozenset[int] = frozenset()
PARENT = found((), (LANDING,), (PLACE,), NONE)
EXECUTED = found((START, END), ((7, 0, 1), (9, 1, 1)), ((b"a", (START,)), (b"b", (START, END, OTHER))), NONE)


def known(cause: Cause = Cause.VMEXIT, executed: Found = EXECUTED) -> Turns:
    turns = Turns(uses)
    turns.add(PARENT, cause, LANDING, vmcb(5), Rest(executed, LANDING[0], 1, uses([100])))
    return turns


def test_the_same_turn_is_found_with_places_and_log_of_the_step_that_asks() -> None:
    landing, before = (27, 0, 2), (OTHER, START)
    parent = found((OTHER,), ((3, 1, 1), landing), ((b"else", ()), (PLACE[0], before)), NONE)
    rest = known().find(parent, Cause.VMEXIT, landing, vmcb(6))
    assert rest is not None
    assert rest.pause.openings == ((27, 0, 1), (29, 1, 1))
    assert rest.pause.log == (OTHER, START, END)
    assert rest.pause.turns == ((b"a", before), (b"b", (*before, END, OTHER)))


def test_another_place_another_cause_or_a_landing_that_was_not_offered_is_not() -> None:
    turns = known()
    elsewhere = found((), (LANDING,), ((b"elsewhere", PLACE[1]),), NONE)
    assert turns.find(PARENT, Cause.VMEXIT, LANDING, vmcb(5)) is not None
    assert turns.find(elsewhere, Cause.VMEXIT, LANDING, vmcb(5)) is None
    assert turns.find(PARENT, Cause.WAKE, LANDING, vmcb(5)) is None
    assert turns.find(PARENT, Cause.VMEXIT, (8, 0, 2), vmcb(5)) is None
    assert turns.find(None, Cause.VMEXIT, LANDING, vmcb(5)) is None


def test_it_rests_on_the_registers_that_either_step_looked_at() -> None:
    rip, rflags = MOVED[0], MOVED[2]
    turns = known(executed=found((START,), (), (), frozenset({rip})))
    parent = found((), (LANDING,), (PLACE,), frozenset({rflags}))
    rest = turns.find(parent, Cause.VMEXIT, LANDING, vmcb(5))
    assert rest is not None
    assert rest.looked == {rip, rflags}
    assert turns.find(parent, Cause.VMEXIT, LANDING, vmcb(6)) is None


def test_it_rests_on_the_blocks_up_to_the_landing_of_its_sender_and_of_those_behind_it() -> None:
    step = Step((1,), 1, (), False, None, CLine("a.c", 1), (50, 51))
    parent = replace(PARENT, paths=(((Access(8, 1, True), step),),))
    rest = known().find(parent, Cause.VMEXIT, LANDING, vmcb(5))
    assert rest is not None
    assert [part.blocks() for part in rest.uses] == [{1}, {50, 51}, {100}]
