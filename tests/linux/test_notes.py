"""What rests on what: who takes over what was worked out before rests on the same as who worked it out."""

from __future__ import annotations

import pytest

from iretrace.linux.notes import Later, Lowered, Notes
from tests.linux.csource import program_of


def test_who_asks_again_rests_on_what_working_it_out_has_looked_at() -> None:
    notes = Notes()

    def work_out() -> int:
        notes.note("struct box")
        return 7

    later: Later[int] = notes.later(work_out)
    for _ in range(2):
        notes.begin()
        assert later() == 7
        assert notes.reached(notes.noted()) == {later, "struct box"}


def test_what_is_worked_out_for_something_else_is_a_part_of_that() -> None:
    notes = Notes()
    inner = notes.later(lambda: notes.note("inner"))

    def work_out() -> None:
        inner()
        notes.note("outer")

    outer = notes.later(work_out)
    outer()
    assert notes.noted() == {outer}
    assert notes.reached(notes.noted()) == {outer, inner, "outer", "inner"}


def test_what_fails_is_worked_out_again_and_what_it_looked_at_counts() -> None:
    notes = Notes()

    def fail() -> None:
        notes.note("looked at")
        raise LookupError

    later = notes.later(fail)
    for _ in range(2):
        notes.begin()
        with pytest.raises(LookupError):
            later()
        assert "looked at" in notes.reached(notes.noted())


def test_parts_of_one_kind_of_node_can_be_left_out() -> None:
    notes = Notes()
    with notes.of(Lowered("f1")):
        notes.note("of f1")
    assert notes.reached(notes.noted()) == {Lowered("f1"), "of f1"}
    assert notes.reached(notes.noted(), but=Lowered) == {Lowered("f1")}


def test_a_node_may_rest_on_itself() -> None:
    notes = Notes()
    with notes.of("list"), notes.of("list"):
        notes.note("next")
    assert notes.reached(["list"]) == {"list", "next"}


def test_what_is_collected_is_nobody_elses() -> None:
    notes = Notes()
    notes.note("before")
    with notes.collecting() as noted:
        notes.note("first")
        assert notes.cut() == {"first"}
        notes.note("second")
    assert noted == {"second"}
    assert notes.noted() == {"before"}


def test_a_function_that_does_nothing_is_in_the_trace_all_the_same() -> None:
    program = program_of("static void nothing(void) { } int f(void) { nothing(); return 1; }")
    run = program.run()
    assert run.call("f") == 1
    names = {program.blocks[block].function for block in run.trace}
    assert names == {"f", "nothing"}
    assert len(program.blocks.functions(run.trace)) == 2
