"""What the harness prints about a run, as the history that the guest has seen and the way it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from typing import NamedTuple

from iretrace.litmus.test import VECTORS, Op, Test
from iretrace.live.guests import Guest
from iretrace.live.machine_code import BASE, MAX_DIGITS, Program, counts_spins
from iretrace.live.walk import Delivery, Event, Mark, Walk
from iretrace.verdict import Outcome

MP_STATE_INIT_RECEIVED, MP_STATE_HALTED = 2, 3
EXIT_SHUTDOWN, EXIT_INTERNAL_ERROR = 8, 17
SHOWN_RECORDS = 48
SHOWN_VALUES = 64
WRAPPED = -1
"""Records: the first ones were overwritten."""
IF, TF_AND_IF = 0x200, 0x300

NEVER = 1 << 30
"""More events than any history has."""

MORE = "..."
"""Stands for the marks that the log did not hold."""


@dataclass(frozen=True, slots=True)
class Late:
    """An NMI came so many spins of the guest after it was sent. exits: the reasons of KVM's exits while it spun, the
    last one being that behind which it came; () if this kernel does not tell."""

    spins: int
    exits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a guest. complete: all of its history is known. ending: as in verdict.Outcome, or what went wrong."""

    guest: Guest
    repetition: int
    history: tuple[Event, ...]
    complete: bool
    ending: str
    place: int
    """The instruction at which it spins, is halted or loops, or -1."""
    after: tuple[int, ...] = ()
    """Of each arrival: how many events of the history certainly came before it; NEVER for one that was not sent."""
    late: Late | None = None
    reset: bool = False
    """It has shut down: all of its deliveries are known, and the marks and values behind the last one are not."""
    failure: str = ""
    """Not empty: the harness or KVM could not run the guest as it should; there is no outcome."""

    def outcome(self) -> Outcome:
        """The marks in order and how it ends."""
        marks = tuple(self.guest.test.marks[event.number] for event in self.history if isinstance(event, Mark))
        return Outcome(marks if self.complete else (*marks, MORE), self.ending)


def read_run(line: str, guests: Mapping[int, Guest]) -> Run:
    """A `run` line of the harness."""
    words = line.split()
    guest, repetition = guests[int(words[1])], int(words[2])
    fields = dict(word.partition("=")[::2] for word in words[3:])
    end, reason = fields["end"], int(fields["reason"])
    if end == "cold":
        return _failed(guest, repetition, f"the guest's pages cannot be mapped (exit {reason})")
    if end == "hangs":
        return _failed(guest, repetition, "the guest did not begin in time")
    if end == "early":
        return _failed(guest, repetition, "an NMI came in 16-bit code behind an INIT, again and again")
    if end == "refused":
        return _failed(guest, repetition, f"KVM_RUN fails with errno {fields['errno']}")
    rip = int(fields["rip"], 16)
    told = _history(guest, fields)
    ending = _ending(guest, end, reason, int(fields["mp"]), rip)
    after = _after(guest.test, fields.get("after", ""), told.shown_with)
    place = guest.program.place(rip)
    late = _late(guest, fields)
    return Run(guest, repetition, told.events, told.complete, ending, place, after, late, told.reset)


def _late(guest: Guest, fields: dict[str, str]) -> Late | None:
    """How late the NMI was that was sent last, where that is known: it was sent at a place, all others had been taken,
    and none was merged."""
    after, at = ([int(word) for word in fields.get(name, "").split(",") if word] for name in ("after", "at"))
    nmis = [number for number, arrival in enumerate(guest.test.outside) if arrival.kind == "nmi"]
    records = [record for record in _logged(fields) if record[0] == VECTORS["nmi"]]
    if not at or not nmis or len(records) != len(nmis) or not counts_spins(guest.test):
        return None
    last = max(nmis, key=lambda number: after[number])
    others = [after[number] for number in nmis if number != last]
    if at[last] < 0 or max(others, default=-1) >= after[last] or len(records[-1]) < 6:
        return None
    spins = records[-1][5] - at[last]
    if spins <= 0:
        return None
    exits = [text.split("@") for text in fields.get("exits", "").split(";") if text]
    spinning = [(reason, _spins(guest.test, guest.program, int(rip, 16))) for reason, rip in exits]
    behind = dropwhile(lambda one: not one[1], spinning)
    return Late(spins, tuple(reason for reason, _ in takewhile(lambda one: one[1], behind)))


def _logged(fields: dict[str, str]) -> list[tuple[int, ...]]:
    """The records of the log: vector, RIP, RFLAGS, error code, marks, spins, how many values were shown."""
    texts = [text for text in fields["log"].split(";") if text]
    return [tuple(int(number, 16) for number in text.split(":")) for text in texts]


def _failed(guest: Guest, repetition: int, failure: str) -> Run:
    return Run(guest, repetition, (), False, "", -1, failure=failure)


def _after(test: Test, text: str, shown_with: list[int]) -> tuple[int, ...]:
    """How much of the history came before each arrival. Arrivals alike cannot be told apart: the earlier number stands
    for the earlier one. What is bound to a place comes there, whatever was logged."""
    counts = [int(word) for word in text.split(",") if word] or [0] * len(test.outside)
    after = [0] * len(counts)
    alike: dict[tuple[str, bool], list[int]] = {}
    for number, arrival in enumerate(test.outside):
        if arrival.at < 0:
            alike.setdefault((arrival.kind + arrival.debugger, arrival.promised), []).append(number)
    for (_, promised), numbers in alike.items():
        absent = 0 if promised else NEVER  # what is promised and has nobody to send it, as a signal without a VMM
        shown = [absent if counts[n] < 0 else max(shown_with[: counts[n]], default=0) for n in numbers]
        for number, events in zip(numbers, sorted(shown), strict=True):
            after[number] = events
    return tuple(after)


def _ending(guest: Guest, end: str, reason: int, mp_state: int, rip: int) -> str:
    """How the guest goes on, in the words of the model."""
    if end == "exit":
        if reason == EXIT_SHUTDOWN:
            return "shutdown"
        return "internal error of KVM" if reason == EXIT_INTERNAL_ERROR else f"exit {reason} to userspace"
    if mp_state == MP_STATE_HALTED:
        return "halted"
    if mp_state == MP_STATE_INIT_RECEIVED:
        return "waits"
    return "spins" if _spins(guest.test, guest.program, rip) else "loops"


def _spins(test: Test, program: Program, rip: int) -> bool:
    place = program.place(rip)
    return place >= 0 and test.code[place].op == Op.SPIN


def digits(number: int) -> tuple[int, ...]:
    """The marks that a guest has appended to r15, in order."""
    found: list[int] = []
    while number:
        number, digit = divmod(number, BASE)
        found.append(digit - 1)
    return tuple(reversed(found))


class _Told(NamedTuple):
    """What the log tells. shown_with: for each record, how many events it ends. complete, reset: as of a Run."""

    events: tuple[Event, ...]
    shown_with: list[int]
    complete: bool = False
    reset: bool = False


def _history(guest: Guest, fields: dict[str, str]) -> _Told:
    """Deliveries, marks and values in order.

    The number that holds the marks overflows in a guest that marks on and on: what follows is left out.
    """
    count = int(fields["records"])
    logged = _logged(fields) if count != WRAPPED else []
    order, certain = _in_order(guest.program, logged)
    records = [logged[number] for number in order]
    # A shutdown resets the registers: the marks behind the last delivery are lost.
    reset = fields["end"] == "exit" and int(fields["reason"]) == EXIT_SHUTDOWN
    certain = certain and count != WRAPPED and (len(logged) < SHOWN_RECORDS if reset else count <= SHOWN_RECORDS)
    lost = reset or not certain
    values = tuple(int(word, 16) for word in fields.get("values", "").split(",") if word)
    made = _made(records, None if lost else (int(fields["marks"], 16), int(fields.get("shown", "0"))))
    known = _plausible([marks for marks, _ in made], len(guest.test.marks))
    known = min(known, sum(1 for _, count in made if count <= len(values)))
    debugged = _debugged(guest.program, fields)
    events: list[Event] = []
    shown_with = [0] * len(logged)
    before: tuple[tuple[int, ...], int] = ((), 0)
    walk = Walk(guest.test)
    for number, (marks, count) in enumerate(made[:known]):
        new = walk.between(marks[len(before[0]) :], values[before[1] : count], guest.program)
        before = (marks, count)
        if new is None:
            break
        events += new
        if number == len(records):
            return _Told(tuple(events), shown_with, complete=not lost, reset=certain and reset)
        delivery = _delivery(guest.program, records[number], any(order[number] in window for window in debugged))
        events.append(delivery)
        walk.deliver(delivery.vector, delivery.place)
        shown_with[order[number]] = len(events)
    return _Told(tuple(events), shown_with)


def _delivery(program: Program, record: tuple[int, ...], debugged: bool) -> Delivery:
    vector, rip, rflags, error = record[:4]
    return Delivery(vector, program.place(rip), rflags & (IF if debugged else TF_AND_IF), error, debugged)


def _debugged(program: Program, fields: dict[str, str]) -> list[range]:
    """The records of the deliveries while a debugger was attached. One that had not been logged when it went is one."""
    texts = [text.split(":") for text in fields.get("debugger", "").split(";") if text]
    acts = [(int(what), int(after), int(rip, 16)) for what, after, rip in texts]
    found = []
    for number, (what, begin, _) in enumerate(acts):
        ends = [after + (_not_logged_at(program, rip) >= 0) for _, after, rip in acts[number + 1 :]]
        if what:
            found.append(range(begin, min(ends, default=NEVER)))
    return found


def _made(records: list[tuple[int, ...]], at_the_end: tuple[int, int] | None) -> list[tuple[tuple[int, ...], int]]:
    """(all marks, how many values had been shown) at each delivery and at the end. None: not known for the end."""
    texts = [(record[4], record[6] if len(record) > 6 else 0) for record in records]
    texts.append(at_the_end or (texts[-1] if texts else (0, 0)))
    made = [(digits(marks), count) for marks, count in texts]
    for number in range(len(records), 0, -1):
        # A delivery inside a stub is logged with the marks of what came later: the earlier marks are right.
        (earlier, shown), (later, shown_later) = made[number - 1], made[number]
        made[number - 1] = (later if len(earlier) > len(later) else earlier, min(shown, shown_later))
    return made


def _plausible(so_far: list[tuple[int, ...]], marks: int) -> int:
    """How many of these, from the first on, continue the one before and consist of marks that there are."""
    before: tuple[int, ...] = ()
    for count, made in enumerate(so_far):
        if len(made) > MAX_DIGITS or made[: len(before)] != before or any(not 0 <= mark < marks for mark in made):
            return count
        before = made
    return len(so_far)


def _in_order(program: Program, records: list[tuple[int, ...]]) -> tuple[list[int], bool]:
    """(the numbers of the records in the order of the deliveries, as far as it is known; whether that is all of them).

    A delivery that comes before another could take a record is logged too early. Which of several was interrupted is
    not in the log."""
    ordered: list[int] = []
    waiting = list(range(len(records)))
    moved = -1
    while waiting:
        unlogged = _not_logged_at(program, records[waiting[0]][1])
        if unlogged >= 0 and unlogged != moved:
            later = [place for place, number in enumerate(waiting) if records[number][0] == unlogged]
            if len(later) != 1:
                return ordered, False
            ordered.append(waiting.pop(later[0]))
        ordered.append(waiting.pop(0))
        moved = unlogged
    return ordered, True


def _not_logged_at(program: Program, rip: int) -> int:
    """The vector whose delivery has not taken its record yet where this RIP is, or -1."""
    for vector, claimed in program.claimed.items():
        if program.stubs[vector][0] <= rip < claimed:
            return vector
    return -1
