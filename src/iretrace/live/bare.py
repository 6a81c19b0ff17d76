"""The machine alone: the guests of a live run directly on QEMU's processor, without KVM.

What QEMU's processor does is held against the rules of the processor as KVM is. A debugger outside of the machine
stops it where an event is to come, and sends the event as an MSI, written to the bus as a device would.
"""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from iretrace.linux.debian import Unavailable
from iretrace.litmus.test import VECTORS, Op
from iretrace.live.gdb import Debugger
from iretrace.live.guests import RFLAGS, RFLAGS_IF, Guest, lstar_of, segments_of
from iretrace.live.harness import Broken, end, last_line, spawn
from iretrace.live.layout import (
    FIRMWARE,
    IN_FIRMWARE,
    LOG,
    LOG_END,
    LOG_NEXT,
    MEMORY_END,
    RECORD_BYTES,
    VALUES,
)
from iretrace.live.machine_code import FIXED, SELF_JUMP, efer_of, msr_of, number_of, section_of
from iretrace.live.observed import EXIT_SHUTDOWN, MP_STATE_HALTED, SHOWN_RECORDS, SHOWN_VALUES
from iretrace.live.real_mode import lasts
from iretrace.machine.cpu import EFER_LMA

SOURCE = Path(__file__).with_name("bare.S")

MACHINE = "-machine q35,pit=off,hpet=off -cpu max,+svm -m 16".split()
MACHINE += "-nodefaults -no-user-config -display none".split()

MAIL, START, SHUT_DOWN = 0x8000, 1, 3
"""As in bare.S: state, RFLAGS, entry, RCX, EFER, CS, SS, LSTAR."""

MSI = 0xFEE00000
MESSAGES = {"nmi": 0x400, "irq": 0x30, "smi": 0x200, "init": 0x500, "sipi": 0x600 | FIRMWARE >> 12}
"""What a device writes for it. A signal is for a VMM, and here is none."""

RECORD = "<QQQIIQQ16s"
"""RIP, RFLAGS, marks, vector, error code, spins (counted down), where the next value shown goes, lasting marks."""

MASK = (1 << 64) - 1

QUIET = 0.01
"""Seconds in which a guest comes as far as it will."""

REACH = 0.01
"""Seconds in which a guest reaches an instruction, or does not reach it now."""

NMI = VECTORS["nmi"]

MAX_LOOKS = 40

START_LIMIT = 10.0
"""Seconds for the firmware."""


@dataclass(slots=True)
class Look:
    """Where a stopped guest is."""

    registers: dict[str, int]
    marks: int
    next: int
    """Where the next record goes."""
    log: bytes
    values: bytes
    mail: int

    @property
    def key(self) -> tuple[object, ...]:
        """What tells that it goes on."""
        return self.next, self.marks, self.registers["hlt"], self.mail


def build_firmware(directory: Path) -> Path:
    """Assemble bare.S into this directory; Unavailable if there is no compiler."""
    target = directory / "firmware"
    command = ["gcc", "-nostdlib", "-static", "-Wl,-Ttext=0xf0000,-e,0xf0000,--oformat=binary,--build-id=none"]
    try:
        done = subprocess.run(
            [*command, "-o", str(target), str(SOURCE)], capture_output=True, text=True, check=False, timeout=60
        )
    except FileNotFoundError:
        raise Unavailable("gcc not found; the program that starts guests needs it: apt install gcc") from None
    if done.returncode:
        raise Unavailable(f"gcc cannot build {SOURCE.name}: {done.stderr.strip().splitlines()[-1]}")
    return target


def run_bare(
    firmware: Path, guests: Sequence[Guest], seed: int, version: str, directory: Path
) -> Generator[str, None, None]:
    """Lines as those of harness.c. Broken when QEMU ends, or does not answer, before all guests have run."""
    complaints = directory / "complaints"
    command = ["qemu-system-x86_64", *MACHINE, *_one_by_one(version), "-bios", str(firmware), "-S", "-gdb", "stdio"]
    process = spawn(command, complaints, stdin=subprocess.PIPE)
    try:
        debugger = Debugger(process)
        debugger.physical_memory()
        for guest in guests:
            yield f"begin {guest.number}"
            _load(debugger, guest)
            for repetition in range(guest.repeat):
                chance = random.Random(f"{seed} {guest.number} {repetition}")
                yield _Run(debugger, guest, chance).line(repetition)
    except Broken as error:
        raise Broken(f"{error}{last_line(complaints)}") from None
    finally:
        end(process)


def _one_by_one(version: str) -> list[str]:
    """Each instruction is translated for itself, so that events can come before any."""
    numbers = [int(number) for number in version.split(".") if number.isdigit()]
    return ["-accel", "tcg", "-singlestep"] if numbers < [8, 1] else ["-accel", "tcg,one-insn-per-tb=on"]


def _load(debugger: Debugger, guest: Guest) -> None:
    """The guest's memory; stacks and log are cleared by the firmware."""
    for address, data in guest.program.chunks.items():
        debugger.write(address, data)


class _Run:
    """One run of a guest."""

    def __init__(self, debugger: Debugger, guest: Guest, chance: random.Random) -> None:
        self._debugger = debugger
        self._guest = guest
        self._places: dict[int, list[int]] = {}
        """Address -> arrivals that come before the instruction there."""
        self._at_any_time: list[int] = []
        self._after: dict[int, int] = {}
        """Of each arrival that was sent: how many deliveries the guest had logged."""
        self._taken = 0
        """The place in the log when the last NMI was sent."""
        self._chance = chance
        self._lasts = lasts(guest.test)
        for number, (arrival, at) in enumerate(zip(guest.test.outside, guest.cuts, strict=True)):
            if arrival.kind not in MESSAGES or not (arrival.promised or at >= 0 or chance.random() < 0.5):
                continue
            if at < 0 and chance.random() < 0.5:
                at = chance.randrange(len(guest.test.code))
            if at >= 0:
                self._places.setdefault(guest.program.addresses[at], []).append(number)
            else:
                self._at_any_time.append(number)
        chance.shuffle(self._at_any_time)

    def line(self, repetition: int) -> str:
        """Run it."""
        self._start()
        if self._bound_to_the_start():
            self._go(START_LIMIT)
        if self._at_any_time and self._chance.random() < 0.5:
            self._go(REACH / 4)
        for number in self._at_any_time:
            self._go(2.0 ** -self._chance.randrange(7, 20))
            self._send(number)
        while self._places and self._go(REACH):
            pass
        self._send_what_is_late()
        look = self._settle()
        for address in self._places:
            self._debugger.breakpoint(address, there=False)
        return self._line(repetition, look)

    def _bound_to_the_start(self) -> bool:
        """Something has to come before main's first instruction, so nothing may come while its stub runs."""
        return any(arrival.at == self._guest.test.main for arrival in self._guest.test.outside)

    def _start(self) -> None:
        test, debugger = self._guest.test, self._debugger
        debugger.monitor("system_reset")
        rflags = RFLAGS | (RFLAGS_IF if test.interrupts else 0)
        entry = self._guest.program.entry
        state = (msr_of(test), efer_of(test) & ~EFER_LMA, *segments_of(test), lstar_of(self._guest))
        debugger.write(MAIL, struct.pack("<8Q", START, rflags, entry, *state))
        debugger.write(LOG_NEXT, struct.pack("<Q", LOG))
        debugger.write(IN_FIRMWARE, bytes(2))
        debugger.breakpoint(entry, there=True)
        if not debugger.go(START_LIMIT):
            raise Broken("QEMU does not come as far as the guest")
        debugger.breakpoint(entry, there=False)
        for address in self._places:
            debugger.breakpoint(address, there=True)

    def _go(self, seconds: float) -> bool:
        """Let it run; send what comes where it stops. Whether it stopped at such a place, if only for lack of time: the
        breakpoint has not said so yet, and what is sent next would come before what belongs there."""
        stopped = self._debugger.go(seconds)
        rip = self._debugger.registers().get("rip", 0)
        if not stopped and rip not in self._places:
            return False
        self._arrive_at(rip)
        return True

    def _arrive_at(self, address: int) -> None:
        if address in self._places:
            self._debugger.breakpoint(address, there=False)
        for number in self._places.pop(address, []):
            self._send(number)

    def _send_what_is_late(self) -> None:
        """What the test binds to a place comes there or not at all; the rest is only late."""
        for address, numbers in list(self._places.items()):
            late = [number for number in numbers if self._guest.test.outside[number].at < 0]
            self._places[address] = [number for number in numbers if number not in late]
            if not self._places[address]:
                self._arrive_at(address)
            for number in late:
                self._send(number)

    def _send(self, number: int) -> None:
        kind = self._guest.test.outside[number].kind
        if kind == "nmi":
            self._wait_for_the_last_nmi()
        here = self._next(self._debugger.registers()) or LOG
        self._after[number] = (here - LOG) // RECORD_BYTES
        self._debugger.write_word(MSI, MESSAGES[kind])
        self._taken = here if kind == "nmi" else self._taken

    def _wait_for_the_last_nmi(self) -> None:
        """Two NMIs in front of one instruction are one, for any processor: the second waits until the first is taken.

        Where it is not taken it is held, and the second merges into it, as the reference has it, too: it comes in front
        of the next instruction, or of this one, if this one may let the first in."""
        registers = self._debugger.registers()
        if self._next(registers) != self._taken:
            return
        program, code = self._guest.program, self._guest.test.code
        place = program.place(registers.get("rip", -1))
        if place >= 0 and self._may_let_in(place):
            return
        stops = {program.stubs[NMI][0]} if NMI in program.stubs else set()
        if 0 <= place < len(code) - 1:
            stops.add(program.addresses[place + 1])
        for address in stops:
            self._debugger.breakpoint(address, there=True)
        self._debugger.go(QUIET)
        for address in stops:
            self._debugger.breakpoint(address, there=False)

    def _may_let_in(self, place: int) -> bool:
        """Whether NMIs may be held in front of an instruction and not behind it: STGI, their handler's IRETQ."""
        test = self._guest.test
        own = dict(test.handlers).get(NMI) == section_of(test, place)
        return test.code[place].op is Op.STGI or (own and test.code[place].op is Op.IRETQ)

    def _next(self, registers: dict[str, int]) -> int:
        """Where the next record goes."""
        if self._lasts:
            return int.from_bytes(self._debugger.read(LOG_NEXT, 8), "little")
        return registers.get("r14", 0)

    def _has_run(self, before: int) -> bool:
        """Whether a guest that is not halted has had the processor since; a busy machine may give it to others."""
        return self._debugger.processor_time() - before > QUIET / 4 * 1e9

    def _settle(self) -> Look:
        """Run until looks in a row see the same, two if the guest is at rest, else more. The last look."""
        before, equal = self._look(), 0
        for _ in range(MAX_LOOKS):
            time = self._debugger.processor_time()
            sent = self._go(QUIET)
            look = self._look()
            if not (sent or look.registers["hlt"] or look.mail == SHUT_DOWN or self._has_run(time)):
                continue
            equal = equal + 1 if look.key == before.key and not sent else 0
            before = look
            if equal == (1 if self._at_rest(look) else 4):
                break
        return before

    def _look(self) -> Look:
        registers = self._debugger.registers()
        if "rip" not in registers:  # in the firmware, which has seen a second reset
            registers = {"rip": 0, "rfl": 0, "r14": 0, "r15": 0, "rdi": 0, "hlt": 0}
        mail = self._debugger.read(MAIL, 1)[0]
        values = self._debugger.read(VALUES, 8 * SHOWN_VALUES)
        log = self._debugger.read(LOG, RECORD_BYTES * SHOWN_RECORDS)
        marks = number_of(registers.get("xmm08", 0)) if self._lasts else registers["r15"]
        return Look(registers, marks, self._next(registers), log, values, mail)

    def _at_rest(self, look: Look) -> bool:
        rip = look.registers["rip"]
        if look.mail == SHUT_DOWN or look.registers["hlt"]:
            return True
        return rip < MEMORY_END and self._debugger.read(rip, 2) in (FIXED[Op.SPIN], SELF_JUMP)

    def _line(self, repetition: int, look: Look) -> str:
        at = look.registers
        shut_down = look.mail == SHUT_DOWN
        if self._lasts and any(self._debugger.read(IN_FIRMWARE, 2)):
            return f"run {self._guest.number} {repetition} end=early reason=0"
        how = f"end=exit reason={EXIT_SHUTDOWN}" if shut_down else "end=runs reason=0"
        state = MP_STATE_HALTED if at["hlt"] else 0
        where = f"rip={at['rip']:x} rflags={at['rfl']:x} marks={look.marks:x} mp={state}"
        records = list(struct.iter_unpack(RECORD, look.log))
        known = [record for record in records if record[0]]
        count = -1 if self._wrapped() else len(known) if shut_down else (look.next - LOG) // RECORD_BYTES
        log = "".join(
            f"{vector:x}:{rip:x}:{flags:x}:{error:x}:{self._marks(r15, lasting):x}:{-spins & MASK:x}:"
            f"{(values - VALUES) // 8:x};"
            for rip, flags, r15, vector, error, spins, values, lasting in known
        )
        head = f"run {self._guest.number} {repetition} {how} errno=0 {where}"
        after = "".join(f"{self._after.get(number, -1)}," for number in range(len(self._guest.test.outside)))
        values = "".join(f"{value:x}," for value in struct.unpack(f"<{SHOWN_VALUES}Q", look.values))
        shown = max(0, (at["rdi"] - VALUES) // 8)
        return f"{head} after={after} shown={shown} values={values} records={count} log={log}"

    def _marks(self, r15: int, lasting: bytes) -> int:
        return number_of(int.from_bytes(lasting, "little")) if self._lasts else r15

    def _wrapped(self) -> bool:
        return any(self._debugger.read(LOG_END - RECORD_BYTES, 8))
