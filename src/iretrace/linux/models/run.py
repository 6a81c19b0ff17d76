"""What models ask of a run, and how they access its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from iretrace.linux.answers import Site
from iretrace.linux.memory import ReadCheck, WriteCheck
from iretrace.linux.physical import DebugRegisters
from iretrace.world.protocol import PauseKind


class KvmRun(Protocol):
    """What models need of a run; host.HostRun is it."""

    m: dict[int, int]
    read: ReadCheck
    write: WriteCheck
    cells: frozenset[int]
    """Addresses of 8-byte words that hold shared members."""
    cpu: int
    """0: the vCPU thread; 1: a sender on another CPU."""
    task: int
    """The address of `current`."""
    interrupts: bool
    gif: bool
    ipi: bool
    """A physical interrupt is pending for the vCPU's CPU."""
    warm: bool
    ghcb: int
    """The address of the GHCB object."""
    smram: int
    """The address of the guest's SMM state-save area."""
    physical: DebugRegisters
    """The debug registers of the vCPU thread's CPU."""

    def shared(self, address: int, mask: int, write: bool) -> None:
        """Announces an access of a shared word."""

    def blind(self, address: int, mask: int) -> None:
        """Announces a change of a shared word whose old value is not looked at."""

    def finding(self, what: str, site: Site) -> None:
        """Notes a WARN or BUG that was reached."""

    def interrupts_are_on(self) -> None:
        """The host takes interrupts (again)."""

    def allocate(self, size: int) -> int:
        """Zeroed memory, page-aligned if a page or more."""

    def feature(self, number: int, who: str) -> bool:
        """Whether a CPU feature is there, for "host", "kvm" or "guest"."""

    def member(self, struct: str, name: str) -> int:
        """Offset of a member in bytes."""

    def call(self, name: str, *args: int) -> Any:
        """Calls a C function."""

    def hand_over(self, kind: PauseKind) -> None:
        """The vCPU thread is about to pause: the last place of the step where senders can land."""


def load_bits(run: KvmRun, address: int, bits: int) -> int:
    """*address, `bits` wide; an access of a shared cell if it is one."""
    word, shift = address & ~7, (address & 7) * 8
    mask = (1 << bits) - 1
    if word in run.cells:
        run.shared(word, mask << shift, False)
    return load_word(run, word) >> shift & mask


def store_bits(run: KvmRun, address: int, bits: int, value: int) -> None:
    """*address = value, `bits` wide; the same."""
    word, shift = address & ~7, (address & 7) * 8
    mask = (1 << bits) - 1 << shift
    if word in run.cells:
        run.blind(word, mask)
    put(run, word, mask, value << shift)


def load_word(run: KvmRun, word: int) -> int:
    """An aligned word of 64 bits, which nobody is told of."""
    return run.m.get(word) or run.read[word]


def put(run: KvmRun, word: int, mask: int, bits: int) -> None:
    """Change some bits of a word, which nobody is told of."""
    run.m[word] = (run.m.get(word) or run.write[word]) & ~mask | bits & mask


def read_modify_write(run: KvmRun, address: int, bits: int, change: Callable[[int], int], blind: bool = False) -> int:
    """One atomic access; the old value, which the caller must not use if `blind`."""
    word, shift = address & ~7, (address & 7) * 8
    mask = (1 << bits) - 1
    if word in run.cells:
        if blind:
            run.blind(word, mask << shift)
        else:
            run.shared(word, mask << shift, True)
    old = load_word(run, word) >> shift & mask
    put(run, word, mask << shift, change(old) << shift)
    return old
