"""Senders: the tree's own code that raises an event on another CPU, one shared access at a time.

What a sender has done is the log of what its shared accesses found. The next step re-runs its function from the start:
logged accesses find again what they found, the next one finds the memory of now, and the run ends before the one after
it. So no C frame of a sender is kept, and whatever a tree's kvm_inject_nmi() and kvm_vcpu_kick() do is what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from iretrace.linux.notes import Later, Notes
from iretrace.linux.unmodelled import Unmodelled
from iretrace.verdict import CLine
from iretrace.world.protocol import NO_SENDER, SenderState

Log = tuple[int, ...]
"""What each shared access of a sender found (0 where the sender did not look): the state of a sender."""


class EventSender(NamedTuple):
    """The state of a sender that is not done: the kind of its event, and what it has done."""

    kind: str
    log: Log


class Reached(Exception):
    """The run of a sender ends here: before its next shared access."""


Changed = tuple[tuple[int, int], ...]
"""Words that are not what they were at first: (address, value)."""


@dataclass(frozen=True, slots=True)
class Access:
    """One shared access: the word's address, the bits accessed, and whether it may write them."""

    address: int
    mask: int
    write: bool

    def conflicts(self, address: int, mask: int, write: bool) -> bool:
        """Whether the order of this access and another one can matter."""
        return self.address == address and bool(self.mask & mask) and (self.write or write)


class Masks(NamedTuple):
    """The bits of a word that some accesses are of, and those of them that they may write."""

    all: int
    written: int

    def conflict(self, mask: int, write: bool) -> bool:
        """Whether the order of one of these accesses and another one of the word can matter."""
        return bool(mask & self.written or (write and mask & self.all))


NO_BITS = Masks(0, 0)


def add_access(masks: dict[int, Masks], address: int, mask: int, write: bool) -> None:
    """One access more."""
    known = masks.get(address, NO_BITS)
    if mask & ~(known.written if write else known.all):
        masks[address] = Masks(known.all | mask, known.written | mask if write else known.written)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a sender does where its access finds a word. after: its next access (None: it is done)."""

    log: Log
    word: int
    writes: tuple[tuple[int, int], ...]
    """Other words that it writes: (address, value); none of them is shared."""
    ipi: bool
    after: Access | None
    where: CLine
    """The statement that makes the access."""
    blocks: tuple[int, ...]
    """Basic blocks executed between its access and the next one, that of the access first."""

    def state(self, kind: str) -> SenderState:
        """The sender's state after the step."""
        return NO_SENDER if self.after is None else EventSender(kind, self.log)


Path = tuple[tuple[Access, Step], ...]
"""Steps of a sender one after the other, each with its access."""


class Recorder(dict[int, int]):
    """Memory that notes which words were read before they were written."""

    def __init__(self, words: Mapping[int, int]) -> None:
        super().__init__(words)
        self.seen: set[int] = set()
        self.written: set[int] = set()

    def get(self, key: int, default: Any = None) -> Any:
        """The word, noted as read."""
        if key not in self.written:
            self.seen.add(key)
        return super().get(key, default)

    def __getitem__(self, key: int) -> int:
        if key not in self.written:
            self.seen.add(key)
        return super().__getitem__(key)

    def __setitem__(self, key: int, value: int) -> None:
        self.written.add(key)
        super().__setitem__(key, value)

    def feed(self, key: int, value: int) -> None:
        """Change a word from outside of the run."""
        super().__setitem__(key, value)

    def peek(self, key: int) -> int:
        """A word, not noted as read."""
        return super().get(key, 0)


class SenderHost(Protocol):
    """What a run has to offer here; host.SenderRun does."""

    trace: list[int]
    ipi: bool

    def statement(self) -> CLine:
        """The C statement that is being executed, of the innermost function outside of headers."""


Hook = Callable[[SenderHost, int, int, bool, bool], None]
"""Called before each shared access with the run, address, mask, write, and blind: the old value is not looked at."""


@dataclass(slots=True)
class Replay:
    """One run of a sender: through the accesses of `log`, and through the next one if it is given what that finds."""

    log: Log
    found: int | None
    memory: Recorder
    count: int = 0
    next: Access | None = None
    blind: bool = False
    mark: int = 0
    before: dict[int, int] = field(default_factory=dict)
    where: CLine = field(default_factory=lambda: CLine("", 0))
    touched: set[int] = field(default_factory=set)

    def hook(self, host: SenderHost, address: int, mask: int, write: bool, blind: bool) -> None:
        """A shared access is about to happen."""
        number, self.count = self.count, self.count + 1
        self.touched.add(address)
        if number < len(self.log):
            self.memory.feed(address, self.memory.peek(address) & ~mask | self.log[number])
        elif number == len(self.log) and self.found is not None:
            self.memory.feed(address, self.found)
            self.blind, self.where = blind, host.statement()
            self.mark, self.before = max(len(host.trace) - 1, 0), dict(self.memory)
            host.ipi = False
        else:
            self.next = Access(address, mask, write)
            raise Reached


class Sender:
    """The function that raises one kind of event, as a machine whose states are logs.

    start: runs the function once on a memory with a hook, and notes what it executes. base: memory with everything that
    a sender reads beside shared cells. own: whether an address is the sender's own (its stack). ignored: word address
    -> bits that play no role for what KVM does. describe: an address in words.
    """

    def __init__(
        self,
        start: Callable[[Recorder, Hook], SenderHost],
        base: Mapping[int, int],
        own: Callable[[int], bool],
        ignored: Mapping[int, int],
        describe: Callable[[int], str],
        notes: Notes,
    ) -> None:
        self._start = start
        self._base = base
        self._own = own
        self._ignored = ignored
        self._describe = describe
        self._notes = notes
        self._steps: dict[tuple[Log, int], Later[Step]] = {}
        self._next: dict[Log, Later[Access | None]] = {}
        self.touched: dict[int, Masks] = {}
        """The words that its accesses that are known so far are of."""
        self._stable: dict[int, int] = {}
        self._harmless: set[tuple[Log, int, Changed]] = set()
        """Steps that are the same although words that the sender reads have changed: in bits that it does not use."""

    def access(self, log: Log) -> Access | None:
        """The next access of a sender; None: it is done."""
        found = self._next.get(log)
        if found is None:
            found = self._next[log] = self._notes.later(lambda: self._run(log, None)[0].next)
        return found()

    def step(self, log: Log, memory: Mapping[int, int]) -> Step:
        """The next step of a sender on a memory. Raises Unmodelled if it reads a changing word that is not shared."""
        access = self.access(log)
        if access is None:
            raise ValueError("the sender is done")
        found = memory.get(access.address, 0)
        step = self._step(log, access, found)
        self.verify(log, found, self.changed(memory))
        return step

    def changed(self, memory: Mapping[int, int]) -> Changed:
        """The words that a sender is known to read, beside shared ones, and that are not what they were at first."""
        get = memory.get
        return tuple(
            [
                (address, get(address, 0))
                for address, value in self._stable.items()
                if (get(address, 0) ^ value) & ~self._ignored.get(address, 0)
            ]
        )

    def verify(self, log: Log, found: int, changed: Changed) -> None:
        """Raises Unmodelled if a step that is known is another one where these words have changed."""
        if not changed or (log, found, changed) in self._harmless:
            return
        access = self.access(log)
        assert access is not None
        if self._make(log, access, found, dict(changed)) != self._step(log, access, found):
            raise self._undeclared("reads", changed[0][0])
        self._harmless.add((log, found, changed))

    def version(self) -> int:
        """Grows with what is known of the words that a sender reads."""
        return len(self._stable)

    def path(self, log: Log, memory: Mapping[int, int]) -> Path:
        """All steps that a sender still has to do, if it does them now, one after the other."""
        steps: list[tuple[Access, Step]] = []
        changed: dict[int, int] = {}
        access = self.access(log)
        while access is not None:
            found = changed.get(access.address)
            if found is None:
                found = memory.get(access.address, 0)
            step = self._step(log, access, found)
            changed[access.address] = step.word
            steps.append((access, step))
            log, access = step.log, step.after
        return tuple(steps)

    def _step(self, log: Log, access: Access, found: int) -> Step:
        known = self._steps.get((log, found))
        if known is None:
            known = self._steps[log, found] = self._notes.later(lambda: self._make(log, access, found, {}))
        step = known()
        if step.log not in self._next:
            self._next[step.log] = self._notes.later(lambda: known().after)
        return step

    def _make(self, log: Log, access: Access, found: int, changed: Mapping[int, int]) -> Step:
        """A step. changed: words that are not what they are in base."""
        replay, host = self._run(log, found, changed)
        writes: list[tuple[int, int]] = []
        for address, value in replay.memory.items():
            difference = replay.before.get(address, 0) ^ value
            if address == access.address or not difference or self._own(address):
                continue
            if difference & ~self._ignored.get(address, 0):
                raise self._undeclared("writes", address)
            writes.append((address, value))
        new = (*log, 0 if replay.blind else found & access.mask)
        word = replay.memory.peek(access.address)
        blocks = tuple(host.trace[replay.mark :])
        return Step(new, word, tuple(writes), host.ipi, replay.next, replay.where, blocks)

    def _run(
        self, log: Log, found: int | None, changed: Mapping[int, int] = MappingProxyType({})
    ) -> tuple[Replay, SenderHost]:
        replay = Replay(log, found, Recorder({**self._base, **changed}))
        host = self._start(replay.memory, replay.hook)
        if replay.next is not None:
            add_access(self.touched, replay.next.address, replay.next.mask, replay.next.write)
        for address in replay.memory.seen - replay.touched:
            if not self._own(address):
                self._stable[address] = self._base.get(address, 0)
        return replay, host

    def _undeclared(self, what: str, address: int) -> Unmodelled:
        row = '[[shared]]\nname = "STRUCT.MEMBER"\nwhy = "senders on other CPUs access it"\n'
        return Unmodelled(f"a sender {what} {self._describe(address)}, which no rule says to be shared", row=row)


class Senders:
    """The functions that raise events, by the kind of event; states are EventSender."""

    def __init__(self, senders: Mapping[str, Sender]) -> None:
        self._senders = senders

    def touched(self, kinds: Iterable[str]) -> dict[int, Masks]:
        """The words that senders of these kinds access, as far as that is known."""
        touched: dict[int, Masks] = {}
        for kind in kinds:
            for address, masks in self._senders[kind].touched.items():
                add_access(touched, address, masks.all, False)
                add_access(touched, address, masks.written, True)
        return touched

    def changed(self, kinds: Iterable[str], memory: Mapping[int, int]) -> dict[str, Changed]:
        """See Sender; of those kinds of senders for which there are such words."""
        return {kind: changed for kind in kinds if (changed := self._senders[kind].changed(memory))}

    def verify(self, kind: str, log: Log, found: int, changed: Changed) -> None:
        """See Sender."""
        self._senders[kind].verify(log, found, changed)

    def versions(self) -> dict[str, int]:
        """See Sender; of each kind."""
        return {kind: sender.version() for kind, sender in self._senders.items()}

    def access(self, state: EventSender) -> Access | None:
        """See Sender."""
        return self._senders[state.kind].access(state.log)

    def step(self, state: EventSender, memory: Mapping[int, int]) -> Step:
        """See Sender."""
        return self._senders[state.kind].step(state.log, memory)

    def path(self, state: EventSender, memory: Mapping[int, int]) -> Path:
        """See Sender."""
        return self._senders[state.kind].path(state.log, memory)
