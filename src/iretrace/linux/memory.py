"""C memory: 8-byte aligned address -> unsigned 64-bit word, absent means the object's initial content (mostly 0).

Objects have fixed addresses with gaps between them, which come of their names: another process has them at the same
ones. An access outside every object is an error. The check is cheap because it happens only for words that are absent
or 0, and is remembered per word: generated code reads `m.get(a) or read[a]`, and says `write[a]` before it stores.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

from iretrace.linux.unmodelled import Unmodelled

FIRST = 1 << 32
"""Objects lie from here on; below is never valid."""

FUNCTIONS = 1 << 51
"""Addresses of functions start here, 16 bytes each; objects end here, so that they have physical addresses."""

STACKS = 1 << 54
"""Stack areas start here, one for each thread of control."""

PAGE = 4096

STACK_SIZE = 0x1_0000
MOST_STACKS = 64

MOST_ATTEMPTS = 8

LARGEST = 1 << 20
"""Bytes that one operation may touch."""

MASK = (1 << 64) - 1


def stack_area(number: int) -> int:
    """The first address of a thread's stack: 0 for the vCPU thread, others for senders."""
    return STACKS + number * STACK_SIZE


@dataclass(slots=True)
class Object:
    """An object of C. own: tells it from all others, in every process.

    words: initial content by word address, as values or functions that compute them when needed. Such words are not
    part of a run's memory and cannot be written.
    """

    name: str
    address: int
    size: int
    writable: bool = True
    words: dict[int, int | Callable[[], int]] = field(default_factory=dict)
    own: str = ""

    @property
    def end(self) -> int:
        """Behind it, and behind a gap."""
        return self.address + self.size + 64


class Space:
    """The objects of a program, and the two checks that generated code uses."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._objects: list[Object] = []
        self._named: Counter[tuple[str, str]] = Counter()
        self._functions: dict[int, str] = {}
        self._foreseen: dict[str, Object] = {}
        self._stand_ins: dict[str, Object] = {}
        self.make: Callable[[str], None] = _make_nothing
        """Makes the object that has a name of its own, or lets one stand in for it."""
        self.displaced = False
        """Whether two names came to one address, so that one of them has another, by the order in which they came."""
        self.read = ReadCheck(self)
        self.write = WriteCheck(self)

    def allocate(self, name: str, size: int, owner: str = "", writable: bool = True) -> Object:
        """A new object, on a page of its own. owner: tells it from others of the name; of several the order counts."""
        self._named[owner, name] += 1
        own = f"{owner}\t{name}\t{self._named[owner, name]}"
        foreseen = self._foreseen.pop(own, None) or self._stand_ins.pop(own, None)
        if foreseen is not None:
            self._remove(foreseen)
        for attempt in range(MOST_ATTEMPTS):
            pages = (FUNCTIONS - FIRST - size) // PAGE
            address = FIRST + number_of(f"{own}\t{attempt}") % pages * PAGE
            made = Object(name, address, size, writable, own=own)
            if self._put(made):
                return made
            self.displaced = True
        raise Unmodelled(f"no room for {name} ({size} bytes)")

    def _put(self, made: Object) -> bool:
        """Whether there is room for an object, which is put there."""
        at = bisect_right(self._starts, made.address)
        before = self._objects[at - 1] if at else None
        after = self._objects[at] if at < len(self._objects) else None
        if (before is not None and before.end >= made.address) or (after is not None and made.end >= after.address):
            return False
        self._starts.insert(at, made.address)
        self._objects.insert(at, made)
        return True

    def _remove(self, made: Object) -> None:
        at = bisect_right(self._starts, made.address) - 1
        del self._starts[at], self._objects[at]

    def all(self) -> list[tuple[str, int, int]]:
        """What tells each object from the others, its address, its size."""
        return [(made.own, made.address, made.size) for made in self._objects]

    def foresee(self, own: str, address: int, size: int) -> None:
        """An object of another process, to be made here when it is looked for. ValueError: another one is there."""
        found = self._at(address)
        if found is not None and found.own == own:
            return
        made = Object(name_of(own), address, size, own=own)
        if not self._put(made):
            raise ValueError("another object is there")
        self._foreseen[own] = made

    def stand_in(self, own: str, writable: bool, words: Mapping[int, int | Callable[[], int]]) -> None:
        """Let one that was foreseen do for the object itself, until somebody makes that. words: as those of Object."""
        made = self._foreseen.pop(own)
        made.writable = writable
        made.words.update(words)
        self._stand_ins[own] = made

    def address_of_function(self, name: str) -> int:
        """The address of a function, by a name that no other one has."""
        for attempt in range(MOST_ATTEMPTS):
            address = FUNCTIONS + number_of(f"{name}\t{attempt}") % ((STACKS - FUNCTIONS) // 16) * 16
            if self._functions.setdefault(address, name) == name:
                return address
            self.displaced = True
        raise Unmodelled(f"no room for {name}()")

    def find(self, address: int) -> Object | None:
        """The object that an address lies in."""
        found = self._at(address)
        if found is None or found.own not in self._foreseen:
            return found
        self.make(found.own)
        return self._at(address) if found.own not in self._foreseen else None

    def _at(self, address: int) -> Object | None:
        number = bisect_right(self._starts, address) - 1
        if number >= 0:
            found = self._objects[number]
            if address < found.address + max(found.size, 1):
                return found
        return None

    def describe(self, address: int) -> str:
        """An address in words: "svm+0x10"."""
        found = self.find(address)
        if found is None:
            return f"{address:#x}"
        return f"{found.name}+{address - found.address:#x}"

    def check(self, address: int, writing: bool) -> Object | None:
        """The object of an access; None for stacks. Raises Unmodelled outside of all objects."""
        found = self.find(address)
        if found is None:
            if STACKS <= address < STACKS + MOST_STACKS * STACK_SIZE:
                return None
            what = "write" if writing else "read"
            if address < 4096 or address > MASK - 4096:
                raise Unmodelled(f"NULL dereference: {what} of address {address:#x}")
            raise Unmodelled(f"{what} of address {address:#x}, which is outside every object")
        if writing and not found.writable:
            raise Unmodelled(f"write to {self.describe(address)}, which is constant")
        return found


def name_of(own: str) -> str:
    """The name of the object that has this one as its own."""
    return own.partition("\t")[2].rpartition("\t")[0]


def owner_of(own: str) -> str:
    """And its owner (Space.allocate)."""
    return own.partition("\t")[0]


def _make_nothing(own: str) -> None:
    """Nobody knows how."""


def number_of(name: str) -> int:
    """A number of 64 bits that comes of a name alone."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class ReadCheck(dict[int, int]):
    """Word address -> initial content. m: memory of the active run, for reads that are not aligned."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        self.m: dict[int, int] = {}

    def __missing__(self, address: int) -> int:
        if address & 7:
            word, shift = address & ~7, 8 * (address & 7)
            following = self._word(word + 8) if self.space.find(word + 8) else 0
            return (self._word(word) | following << 64) >> shift & MASK
        found = self.space.check(address, False)
        value = 0 if found is None else found.words.get(address, 0)
        if callable(value):
            value = value()
        self[address] = value
        return value

    def _word(self, address: int) -> int:
        return self.m.get(address) or self[address]


class WriteCheck(dict[int, int]):
    """Word address -> 0 where writing is allowed."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space

    def __missing__(self, address: int) -> int:
        if address & 7:
            raise Unmodelled(f"misaligned write at {self.space.describe(address)}")
        found = self.space.check(address, True)
        if found is not None and self.space.read[address]:
            raise Unmodelled(f"write to {self.space.describe(address)}, whose initial value is not part of the state")
        self[address] = 0
        return 0


class HasMemory(Protocol):
    """What the functions below need of a run."""

    m: dict[int, int]
    read: ReadCheck
    write: WriteCheck


class HasCells(Protocol):
    """What announcing an access needs of a run. cells: the words that other CPUs access."""

    cells: frozenset[int]

    def shared(self, address: int, mask: int, write: bool) -> None:
        """Announces an access of a shared word."""


def touch(run: HasCells, address: int, bit: int, width: int, write: bool) -> None:
    """Announce an access of `width` bits, `bit` bits after address, within a word, if the word is shared."""
    address += bit >> 3
    word = address & ~7
    if word in run.cells:
        run.shared(word, (1 << width) - 1 << 8 * (address & 7) + (bit & 7), write)


def load(run: HasMemory, address: int, bit: int, width: int) -> int:
    """`width` bits, `bit` bits after address, unsigned. Any alignment."""
    address += bit >> 3
    shift = 8 * (address & 7) + (bit & 7)
    word = address & ~7
    value, have = 0, 0
    while have < shift + width:
        value |= (run.m.get(word) or run.read[word]) << have
        have += 64
        word += 8
    return value >> shift & (1 << width) - 1


def store(run: HasMemory, address: int, bit: int, width: int, value: int) -> None:
    """Set `width` bits, `bit` bits after address. Any alignment."""
    address += bit >> 3
    shift = 8 * (address & 7) + (bit & 7)
    word = address & ~7
    mask = (1 << width) - 1
    value = (value & mask) << shift
    mask <<= shift
    m = run.m
    while mask:
        m[word] = (m.get(word) or run.write[word]) & ~mask & MASK | value & MASK
        mask >>= 64
        value >>= 64
        word += 8


def copy(run: HasMemory, to: int, source: int, size: int) -> int:
    """memcpy (and memmove: the source is read first). Returns `to`."""
    store_bytes(run, to, load_bytes(run, source, size), size)
    return to


def load_bytes(run: HasMemory, address: int, size: int) -> int:
    """Bytes as one little endian number."""
    if not size:
        return 0
    bounded(size)
    if (address | size) & 7:
        return load(run, address, 0, 8 * size)
    m, read = run.m, run.read
    value = 0
    for offset in range(0, size, 8):
        word = m.get(address + offset) or read[address + offset]
        if word:
            value |= word << 8 * offset
    return value


def store_bytes(run: HasMemory, address: int, value: int, size: int) -> None:
    """The low `size` bytes of value."""
    bounded(size)
    if (address | size) & 7:
        if size:
            store(run, address, 0, 8 * size, value)
        return
    m, write = run.m, run.write
    for offset in range(0, size, 8):
        write[address + offset]
        m[address + offset] = value & MASK
        value >>= 64


def bounded(size: int) -> None:
    """Refuse what a mistaken length would make endless."""
    if size > LARGEST:
        raise Unmodelled(f"an access of {size} bytes at once")


def fill(run: HasMemory, to: int, size: int) -> None:
    """Zero bytes."""
    store_bytes(run, to, 0, size)


def memset(run: HasMemory, to: int, byte: int, size: int) -> int:
    """memset."""
    bounded(size)
    store_bytes(run, to, int.from_bytes(bytes([byte & 0xFF]) * size, "little"), size)
    return to


def memcmp(run: HasMemory, a: int, b: int, size: int) -> int:
    """memcmp: the difference of the first bytes that differ."""
    bounded(size)
    for offset in range(size):
        difference = load(run, a + offset, 0, 8) - load(run, b + offset, 0, 8)
        if difference:
            return difference
    return 0


def strlen(run: HasMemory, address: int) -> int:
    """strlen."""
    length = 0
    while load(run, address + length, 0, 8):
        length += 1
    return length


def leave(run: HasMemory, frame: int, size: int) -> None:
    """Free a stack frame: its words are as if never written."""
    m = run.m
    for address in range(frame, frame + size, 8):
        if address in m:
            del m[address]
