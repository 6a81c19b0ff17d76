"""The guests of a live run: each test at random moments, and with an event placed in front of each instruction."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from iretrace.litmus.test import Arrival, Op, Test
from iretrace.live.layout import CODE, STACKS
from iretrace.live.machine_code import (
    NotRunnable,
    Program,
    assemble,
    data_selector,
    efer_of,
    has_svm,
    msr_of,
    section_of,
)
from iretrace.live.real_mode import lasts
from iretrace.machine.cpu import KERNEL_CS, USER_CS

MAGIC = 0x65637274
MAX_ARRIVALS = 8
KINDS = {"nmi": 0, "irq": 1, "signal": 2, "guest-debug": 3, "kvm-nmi": 4, "save-restore": 5}
KINDS |= {"smi": 16, "init": 17, "sipi": 18}
DEBUGGERS = {"off": 0, "step": 1, "break": 2}
HELD = frozenset({"irq"})
"""Whose sender can be held up: it goes through the function that hold.h names."""

SENT = frozenset({"nmi", "irq", "smi", "init", "sipi"})
"""Messages of other processors and of devices; all else is the VMM's, which has an order."""

UNTIL_REST = 3
"""As in guest.h."""

RAISING = (Op.INT3, Op.INT)
"""Whose delivery can be cut off by a page of the stack that is taken away."""

CARRIED = ("events", "everything", "everything, into another vCPU")
"""What `save-restore` saves and restores: what the model has, what a VMM does, and what it does for a migration."""

ARRIVAL = struct.Struct("<8I")
"""As in guest.h."""

AT_COLD = 1
"""As in guest.h."""

RFLAGS, RFLAGS_IF = 0x2, 0x200


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest to run `repeat` times. placed: the arrival that is directed to a place, or -1."""

    number: int
    test: Test
    program: Program
    cuts: tuple[int, ...]
    """Of each arrival: the instruction that it precedes, or -1."""
    repeat: int
    placed: int = -1
    inside: int = -1
    """The IRETQ behind the place inside which the placed arrival comes, when its intercept is handled and before it
    executes; or the INT at the place, when the delivery that it asks for is cut off; -1 if it comes at the place."""
    held: int = -1
    """The arrival whose sender is held up inside KVM while the vCPU halts, gets an INIT or executes a HLT, or for which
    the vCPU is held up where KVM lets the guest have the debug registers; -1 if there is none."""
    last: int = -1
    """The arrival that comes when the guest has come to rest behind all others, or -1."""
    at_cold: bool = False
    """The placed arrival comes where a cold page of the stack is met, which may be in a delivery that it cuts off."""
    carried: int = 0
    """Of CARRIED: what a VMM saves and restores."""


def reason_not_to_run(test: Test, any_place: bool = False) -> str:
    """Why this test cannot run on a real KVM under emulated SVM; "" if it can. any_place: events can be placed without
    taking pages away."""
    if "plain" not in test.vcpus:
        return f"for {' and '.join(test.vcpus)}, which needs an AMD host"
    if len(test.outside) > MAX_ARRIVALS:
        return f"more than {MAX_ARRIVALS} arrivals"
    places = _cold_place(test)
    if any(at in breakpoints(test) for at in _bound(test)):
        return "an event cannot be placed where a breakpoint is, which comes before the fetch"
    for at in _bound(test):
        if at >= 0 and not any_place and places.setdefault(section_of(test, at), at) != at:
            return "arrivals at two places of one section, or at one beside a cold instruction"
    if _waits_for_sipi(test):
        return "an NMI that waits for a SIPI comes in 16-bit code, where a guest has nothing to take it with"
    try:
        assemble(test, {})
    except NotRunnable as error:
        return str(error)
    return ""


def _waits_for_sipi(test: Test) -> bool:
    """An NMI comes between an INIT and a SIPI."""
    kinds = [arrival.kind for arrival in test.outside]
    return {"init", "sipi"} <= set(kinds) and "nmi" in kinds[kinds.index("init") : kinds.index("sipi")]


def breakpoints(test: Test) -> frozenset[int]:
    """The instructions that may have a breakpoint of the guest's."""
    loads = [instruction for instruction in test.code if instruction.op is Op.MOV_RAX]
    if not any(word.startswith("X") for instruction in loads for word in instruction.text.split()):
        return frozenset()
    return frozenset(i.arg for i in loads if i.text.startswith("lea") and "_stack" not in i.text)


def _bound(test: Test) -> tuple[int, ...]:
    """Of each arrival: the instruction that it is bound to, or -1. A debugger that steps the guest sees by itself when
    it is to go."""
    stepping = False
    places = []
    for arrival in test.outside:
        places.append(-1 if stepping and arrival.debugger == "off" else arrival.at)
        stepping = arrival.debugger == "step" or (stepping and arrival.debugger == "")
    return tuple(places)


def make_guests(test: Test, repeat: int, first: int) -> list[Guest]:
    """The guests of a test that can run, numbered from `first`: at random moments, and directed ones."""
    own = _bound(test)
    guests = [_guest(test, first, own, repeat)]
    taken = _cold_place(test) | {section_of(test, at): at for at in own if at >= 0}
    free = _one_of_each_kind(test.outside)
    for index, instruction in enumerate(test.code):
        place = taken.get(section_of(test, index), index)
        insides = [-1] if place == index else []
        if (instruction.op is Op.IRETQ and place <= index) or (instruction.op in RAISING and place == index):
            insides.append(index)
        for number in free:
            cuts = (*own[:number], place, *own[number + 1 :])
            for inside in insides:
                times = max(1 if inside < 0 else 3, repeat // 10)
                guests.append(_guest(test, first + len(guests), cuts, times, number, inside))
    guests += _at_cold(test, repeat, first + len(guests))
    guests += _held(test, repeat, first + len(guests))
    guests += _last(test, repeat, first + len(guests))
    return guests + _carried(test, guests)


def _carried(test: Test, guests: Sequence[Guest]) -> list[Guest]:
    """The same for a VMM that carries more than events, if it saves and restores anything."""
    if all(arrival.kind != "save-restore" for arrival in test.outside):
        return []
    number = itertools.count(guests[-1].number + 1)
    return [replace(guest, number=next(number), carried=how) for how in range(1, len(CARRIED)) for guest in guests]


def _at_cold(test: Test, repeat: int, first: int) -> list[Guest]:
    """With an event that comes where a cold page of the stack is met: of each kind, if there is such a page."""
    if not test.cold:
        return []
    guest = _guest(test, first, _bound(test), max(3, repeat // 5))
    free = enumerate(_one_of_each_kind(test.outside))
    return [replace(guest, number=first + n, placed=number, at_cold=True) for n, number in free]


def _meets_init(test: Test) -> bool:
    """An INIT comes at a place, where the vCPU can wait for a sender that is held up before it sets its bit."""
    return any(arrival.kind == "init" and arrival.at >= 0 for arrival in test.outside)


def _held(test: Test, repeat: int, first: int) -> list[Guest]:
    """With a sender that is held up while the vCPU halts, or a vCPU that is when a debugger is to come."""
    ops = {instruction.op for instruction in test.code}
    free = _one_of_each_kind(test.outside)
    meets = Op.HLT in ops or _meets_init(test)
    numbers = [number for number in free if test.outside[number].kind in HELD] if meets else []
    if not ops.isdisjoint((Op.TO_DR, Op.FROM_DR)):
        numbers += [number for number in free if test.outside[number].kind == "guest-debug"]
    guest = _guest(test, first, _bound(test), repeat)
    guests = [replace(guest, number=first + n, held=number) for n, number in enumerate(numbers)]
    return guests + _init_held_at_hlt(test, repeat, first + len(guests))


def _init_held_at_hlt(test: Test, repeat: int, first: int) -> list[Guest]:
    """With a sender of an INIT that is held up behind its bit while the vCPU executes HLT."""
    free = [number for number in _one_of_each_kind(test.outside) if test.outside[number].kind == "init"]
    own = _bound(test)
    taken = _cold_place(test) | {section_of(test, at): at for at in own if at >= 0}
    found: list[Guest] = []
    for place, instruction in enumerate(test.code):
        section = section_of(test, place)
        if instruction.op is Op.HLT and section != test.init and taken.get(section, place) == place:
            for number in free:
                cuts = (*own[:number], place, *own[number + 1 :])
                found.append(replace(_guest(test, first + len(found), cuts, repeat), held=number))
    return found


def _last(test: Test, repeat: int, first: int) -> list[Guest]:
    """With an event that comes when all others have had their effect: the last of each kind, if there are others."""
    of_its_kind = {a.kind: n for n, a in enumerate(test.outside) if a.at < 0 and a.kind in SENT}
    guest = _guest(test, first, _bound(test), max(3, repeat // 5))
    numbers = of_its_kind.values() if len(test.outside) > 1 else ()
    return [replace(guest, number=first + n, last=number) for n, number in enumerate(numbers)]


def directed(test: Test, wanted: Sequence[int], repeat: int, first: int) -> Guest:
    """A guest whose arrivals precede these instructions (-1: they come at any time). One place in each section: what is
    wanted at another one comes at any time."""
    cuts = list(_bound(test))
    taken = _cold_place(test) | {section_of(test, at): at for at in cuts if at >= 0}
    for number, place in enumerate(wanted):
        free = test.outside[number].at < 0 <= place < len(test.code)
        if free and taken.setdefault(section_of(test, place), place) == place:
            cuts[number] = place
    return _guest(test, first, tuple(cuts), repeat)


def _guest(test: Test, number: int, cuts: tuple[int, ...], repeat: int, placed: int = -1, inside: int = -1) -> Guest:
    where = _cold_place(test) | {section_of(test, at): at for at in cuts if at >= 0}
    return Guest(number, test, assemble(test, where), cuts, repeat, placed, inside)


def _one_of_each_kind(outside: Sequence[Arrival]) -> list[int]:
    """The first arrival of each kind that is not bound to a place: the others of its kind are no different."""
    first: dict[tuple[str, str], int] = {}
    for number, arrival in enumerate(outside):
        if arrival.at < 0:
            first.setdefault((arrival.kind, arrival.debugger), number)
    return list(first.values())


def _cold_place(test: Test) -> dict[int, int]:
    """The instruction on a cold page, which it begins, with the section that it belongs to."""
    return {section_of(test, test.cold_code): test.cold_code} if test.cold_code >= 0 else {}


def segments_of(test: Test) -> tuple[int, int]:
    """The selectors in CS and SS when main begins."""
    return (USER_CS if test.cpl else KERNEL_CS), data_selector(test)


def lstar_of(guest: Guest) -> int:
    """Where SYSCALL leads; 0 in a test without it."""
    return guest.program.addresses[guest.test.syscall] if guest.test.syscall >= 0 else 0


def pack(guests: Sequence[Guest], seed: int) -> bytes:
    """The guests as guest.h has them."""
    return b"".join(_pack(guest, seed) for guest in guests)


def _pack(guest: Guest, seed: int) -> bytes:
    test, program = guest.test, guest.program
    rflags = RFLAGS | (RFLAGS_IF if test.interrupts else 0)
    head = struct.pack(
        "<15I",
        *(MAGIC, guest.number, guest.repeat, seed + guest.number, program.entry, rflags),
        *(msr_of(test), efer_of(test), *segments_of(test), lstar_of(guest)),
        *(int(has_svm(test)), int(lasts(test)), int(test.ap), len(test.outside)),
    )
    for number, (arrival, at) in enumerate(zip(test.outside, guest.cuts, strict=True)):
        cut = program.addresses[at] if at >= 0 else 0
        inside = where_else(guest) if number == guest.placed else 0
        debugger = DEBUGGERS.get(arrival.debugger, 0)
        stops_at = max(arrival.target, arrival.at if at < 0 else -1)
        target = program.addresses[stops_at] if stops_at >= 0 else 0
        bound = int(arrival.at >= 0)
        held = (1 + (arrival.kind in HELD and _meets_init(test))) if number == guest.held else 0
        held = UNTIL_REST if number == guest.last else held
        head += ARRIVAL.pack(KINDS[arrival.kind], int(arrival.promised), cut, bound, inside, debugger, target, held)
    head += bytes(ARRIVAL.size * (MAX_ARRIVALS - len(test.outside)))
    cold_code = program.addresses[test.cold_code] if test.cold_code >= 0 else 0
    head += struct.pack("<4I", _cold(test), cold_code, guest.carried, len(program.chunks))
    return head + b"".join(_chunk(address, data) for address, data in program.chunks.items())


def where_else(guest: Guest) -> int:
    """Where else than at its place the placed arrival comes, as in guest.h; 0 if it comes there."""
    if guest.at_cold:
        return AT_COLD
    return guest.program.addresses[guest.inside] if guest.inside >= 0 else 0


def _chunk(address: int, data: bytes) -> bytes:
    return struct.pack("<2I", address, len(data)) + data + bytes(-len(data) % 4)


def _cold(test: Test) -> int:
    """Bit n: the n-th stack page is cold."""
    return sum(1 << number for number, name in enumerate(STACKS) if name in test.cold)


def by_number(guests: Sequence[Guest]) -> Mapping[int, Guest]:
    """The guests by their numbers."""
    return {guest.number: guest for guest in guests}


assert CODE > max(STACKS.values()), "code and stacks do not overlap"
