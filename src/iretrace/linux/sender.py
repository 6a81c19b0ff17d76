"""Senders: the tree's own code that raises an event on another CPU, one shared access at a time.

What a sender has done is the log of what its shared accesses found. The next step re-runs its function from the start:
logged accesses find again what they found, the next one finds the memory of now, and the run ends before the one after
it. So no C frame of a sender is kept, and whatever a tree's kvm_inject_nmi() and kvm_vcpu_kick() do is what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from iretrace.linux.unmodelled import Unmodelled

Log = tuple[int, ...]
"""What each shared access of a sender found (0 where the sender did not look): the state of a sender."""


class Reached(Exception):
    """The run of a sender ends here: before its next shared access."""


@dataclass(frozen=True, slots=True)
class Access:
    """One shared access: the word's address, the bits accessed, and whether it may write them."""

    address: int
    mask: int
    write: bool

    def conflicts(self, address: int, mask: int, write: bool) -> bool:
        """Whether the order of this access and another one can matter."""
        return self.address == address and bool(self.mask & mask) and (self.write or write)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a sender does where its access finds a word. after: its next access (None: it is done)."""

    log: Log
    word: int
    writes: tuple[tuple[int, int], ...]
    """Other words that it writes: (address, value); none of them is shared."""
    ipi: bool
    after: Access | None
    blocks: tuple[int, ...]
    """Basic blocks executed between its access and the next one, that of the access first."""


class Recorder(dict[int, int]):
    """Memory that notes which words were read before they were written."""

    def __init__(self, words: Mapping[int, int]) -> None:
        super().__init__(words)
        self.read: set[int] = set()
        self.written: set[int] = set()

    def get(self, key: int, default: Any = None) -> Any:
        """The word, noted as read."""
        if key not in self.written:
            self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: int) -> int:
        if key not in self.written:
            self.read.add(key)
        return super().__getitem__(key)

    def __setitem__(self, key: int, value: int) -> None:
        self.written.add(key)
        super().__setitem__(key, value)


class SenderHost:
    """What a sender's run has to offer to the sender machinery: see hypervisor.SenderRun."""

    m: dict[int, int]
    trace: list[int]
    ipi: bool
    hook: Callable[[int, int, bool, bool], None]


class Sender:
    """The function that raises one kind of event, as a machine whose states are logs.

    start: runs the function once on a given memory with a given hook, which is called before each shared access with
    (address, mask, write, blind); blind: the old value is not looked at. private: whether an address is the sender's
    own (its stack). ignored: words that play no role for what KVM does.
    """

    def __init__(
        self,
        start: Callable[[dict[int, int], Callable[[SenderHost, int, int, bool, bool], None]], SenderHost],
        base: Mapping[int, int],
        own: Callable[[int], bool],
        ignored: Callable[[int], bool],
        describe: Callable[[int], str],
    ) -> None:
        self._start = start
        self._base = base
        self._own = own
        self._ignored = ignored
        self._describe = describe
        self._steps: dict[tuple[Log, int], Step] = {}
        self._first: Access | None = None
        self._known: dict[Log, Access | None] = {}
        self.stable: dict[int, int] = {}
        """Words that senders read but that are not shared: they must keep these values."""

    def access(self, log: Log) -> Access | None:
        """The next access of a sender; None: it is done."""
        if log not in self._known:
            self._known[log] = self._run(log, None)[0]
        return self._known[log]

    def step(self, log: Log, memory: Mapping[int, int]) -> Step:
        """The next step of a sender on a memory. Raises Unmodelled if it looks at a word that nobody declared shared."""
        access = self.access(log)
        if access is None:
            raise ValueError("the sender is done")
        found = memory.get(access.address, 0)
        step = self._steps.get((log, found))
        if step is None:
            step = self._steps[log, found] = self._make(log, access, found)
        for address, value in self.stable.items():
            if memory.get(address, 0) != value:
                raise Unmodelled(
                    f"a sender reads {self._describe(address)}, which changes while the vCPU runs",
                    row=f'[[shared]]\nname = "{self._describe(address)}"\nwhy = "senders on other CPUs access it"\n',
                )
        return step

    def path(self, log: Log, memory: Mapping[int, int]) -> tuple[Access, ...]:
        """The accesses of all steps that a sender still has to do, if it does them now, one after the other."""
        accesses: list[Access] = []
        overlay: dict[int, int] = {}
        access = self.access(log)
        while access is not None:
            accesses.append(access)
            found = overlay.get(access.address)
            if found is None:
                found = memory.get(access.address, 0)
            step = self._steps.get((log, found)) or self._make(log, access, found)
            overlay[access.address] = step.word
            log, access = step.log, step.after
        return tuple(accesses)

    def _make(self, log: Log, access: Access, found: int) -> Step:
        after, host, blind, mark, before = self._run(log, found)
        word = host.m.get(access.address, 0)
        own, ignored = self._own, self._ignored
        writes = []
        for address, value in host.m.items():
            if address != access.address and before.get(address, 0) != value and not own(address):
                if not ignored(address):
                    raise Unmodelled(
                        f"a sender writes {self._describe(address)}",
                        row=f'[[shared]]\nname = "{self._describe(address)}"\nwhy = "senders on other CPUs access it"\n',
                    )
                writes.append((address, value))
        new_log = (*log, 0 if blind else found & access.mask)
        self._known[new_log] = after
        step = Step(new_log, word, tuple(writes), host.ipi, after, tuple(host.trace[mark:]))
        self._steps[log, found] = step
        return step

    def _run(self, log: Log, found: int | None) -> tuple[Access | None, SenderHost, bool, int, dict[int, int]]:
        """Run up to the access after `log` (found is None), or through it to the one behind it."""
        memory = Recorder(self._base)
        count = 0
        reached: Access | None = None
        blind_step, mark, before = False, 0, {}
        touched: set[int] = set()

        def hook(host: SenderHost, address: int, mask: int, write: bool, blind: bool) -> None:
            nonlocal count, reached, blind_step, mark, before
            index, count = count, count + 1
            touched.add(address)
            if index < len(log):
                dict.__setitem__(memory, address, memory_word(address, mask, log[index]))
            elif index == len(log) and found is not None:
                dict.__setitem__(memory, address, found)
                host.ipi = False
                blind_step, mark, before = blind, max(len(host.trace) - 1, 0), dict(memory)
            else:
                reached = Access(address, mask, write)
                raise Reached

        def memory_word(address: int, mask: int, value: int) -> int:
            return dict.get(memory, address, 0) & ~mask | value

        host = self._start(memory, hook)
        for address in memory.read - touched:
            if not self._own(address):
                self.stable[address] = self._base.get(address, 0)
        return reached, host, blind_step, mark, before
