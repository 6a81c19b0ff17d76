"""Marks and values, each in order, become one order by what the program does."""

from __future__ import annotations

from iretrace.live.guests import make_guests
from iretrace.live.observed import read_run
from iretrace.live.stacks import stack_address, stack_word
from iretrace.live.walk import Delivery, Event, Mark, Shown, Walk
from tests.live.guests import first_guest, make_test
from tests.live.test_observed import line

SHOWS = """\
test shows
about Main marks and shows, and so does its handler.
vcpu  plain
outside nmi

main:
    mark a
    mov rax, 7
    show rax
    mark b
    lea rax, [end]
    show rax
    mark c
    end: spin
nmi:
    mov rax, 9
    show rax
    mark n
    iretq
"""
A, B, C, N = (Mark(number) for number in range(4))
PROGRAM = make_guests(make_test(SHOWS), 1, 0)[0].program
END = PROGRAM.addresses[7]


def walk() -> Walk:
    return Walk(make_test(SHOWS))


def between(marks: list[int], values: list[int]) -> list[Event] | None:
    return walk().between(marks, values, PROGRAM)


def test_marks_and_values_come_as_the_text_has_them() -> None:
    assert between([0, 1, 2], [7, END]) == [A, Shown(7), B, Shown(7), C]


def test_an_address_is_an_instruction_or_a_word_of_a_stack() -> None:
    assert between([], [END, 0x12FF8, 0xFFFF_0FF0]) == [Shown(7), Shown(61), Shown(0xFFFF_0FF0)]


def test_words_of_stacks_and_addresses_are_the_same_thing() -> None:
    words = [page * 32 + word for page in range(5) for word in range(30)]
    assert [stack_word(stack_address(word)) for word in words] == words
    assert stack_word(0x11000) == stack_word(0x10FFC) == -1


def test_what_the_text_does_not_do_has_no_order() -> None:
    assert between([1], [7]) is None
    assert between([0, 1], [7, 7, 7, 7]) is None


def test_a_handler_returns_to_what_it_has_interrupted() -> None:
    way = walk()
    assert way.between([0], [7], PROGRAM) == [A, Shown(7)]
    way.deliver(2, 3)
    assert way.between([3, 1], [9, END], PROGRAM) == [Shown(9), N, B, Shown(7)]


def test_a_handler_that_was_left_is_not_returned_to_again() -> None:
    way = walk()
    way.deliver(2, 0)
    way.deliver(2, 2)
    assert way.between([3, 1], [9, 7], PROGRAM) == [Shown(9), N, Shown(7), B]


def test_a_frame_that_was_overwritten_tells_nothing() -> None:
    for marks, known in (([3, 3], True), ([3, 3, 3], False)):
        way = Walk(make_test(SHOWS.replace("outside", "ist nmi\noutside")))
        for place in (0, 10, 10):
            way.deliver(2, place)
        assert (way.between(marks, [9], PROGRAM) is not None) == known


def test_a_history_has_its_values_between_deliveries() -> None:
    guest = first_guest(SHOWS)
    at = guest.program.addresses[3]
    log, marks = f"2:{at:x}:2:0:1:0:1;", (((1 * 9 + 4) * 9 + 2) * 9) + 3
    run = read_run(line(guest, log, marks, shown="3", values=f"7,9,{END:x},0,"), {0: guest})
    assert run.history == (A, Shown(7), Delivery(2, 3, 0, 0), Shown(9), N, B, Shown(7), C)
    assert run.complete


def test_values_that_were_not_kept_end_the_history() -> None:
    guest = first_guest(SHOWS)
    run = read_run(line(guest, "", 1, shown="70", values="7," * 64), {0: guest})
    assert (run.history, run.complete) == ((), False)


CALLS = """\
test calls
about A user program calls its kernel, which marks and shows.
vcpu  plain
outside nmi
cpl  3

main:
    syscall
    mark a
    spin
syscall:
    mov rax, 7
    show rax
    mark b
    sysretq
nmi:
    mark n
    iretq
"""


def test_the_kernel_returns_behind_the_syscall() -> None:
    program = make_guests(make_test(CALLS), 1, 0)[0].program
    assert Walk(make_test(CALLS)).between([1, 0], [7], program) == [Shown(7), Mark(1), Mark(0)]


def test_where_sysret_leads_is_not_known_of_two_calls() -> None:
    program = make_guests(make_test(CALLS), 1, 0)[0].program
    twice = make_test(CALLS.replace("    spin", "    syscall\n    spin"))
    assert Walk(twice).between([1, 0], [7], program) is None
