"""A host step in progress: the vCPU thread's run, senders that land in it, and where further landings can matter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from functools import cache, lru_cache
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from iretrace.explore.landings import NEVER, Landings
from iretrace.explore.turns import digest, stack
from iretrace.linux.answers import Site
from iretrace.linux.machine import RUN
from iretrace.linux.notes import Note
from iretrace.linux.physical import DebugRegisters
from iretrace.linux.program import PAUSE, Program, Run
from iretrace.linux.registers import Opaque, name_of
from iretrace.linux.sender import Changed, EventSender, Hook, Masks, Senders, add_access
from iretrace.linux.unmodelled import Unmodelled
from iretrace.verdict import CLine
from iretrace.world.protocol import NO_SENDER, Debug, Landing, PauseKind, SenderState

MOST_ACCESSES = 2048
"""So many accesses of shared cells between two hand-overs are a loop that does not wait: the longest of other steps
have some three hundred."""

MANY_ACCESSES = 400
"""From so many accesses on it is looked whether the step goes in a circle."""

ENDLESS = "the vCPU thread does not come to a hand-over: its loop neither waits nor goes in a circle"

MOST_ORDERS = 4096
"""So many sets of words that a memory has are remembered in their order."""

NO_STATE = frozenset(
    "program m trace read write fuel cells allocator features members lines physical sender senders log ipi"
    " passed quiet first begun noted behind in_order findings _schedule _reduce _count _landed _next _last _kinds"
    " _touched _turned _been _suspect".split()
)
"""What of a run plays no role for how it goes on, or is told apart (Passed)."""


class Passed(NamedTuple):
    """An access of a shared word, before which senders may land. at: its number. words: the shared words, in order of
    their addresses. deaf: an IPI would not be taken now. place: all else that decides how the step goes on, as a
    digest. changed: see Senders. rest: it is the last one of a thread that goes in a circle, and stands for what
    senders do then."""

    at: int
    address: int
    mask: int
    write: bool
    words: tuple[int, ...] = ()
    ipi: bool = False
    deaf: bool = False
    place: bytes = b""
    changed: Mapping[str, Changed] = MappingProxyType({})
    rest: bool = False


class Circle(Unmodelled):
    """The vCPU thread is where it has been before, in the state that it had there: in a step that is how it ends."""

    def __init__(self) -> None:
        super().__init__("the vCPU thread goes in a circle where it cannot be left")


class KernelRun(Run):
    """What the models ask of a run; the vCPU thread's unless cpu says otherwise."""

    cpu = 0
    task = 0
    ghcb = 0
    smram = 0
    allocator: Callable[[int], int]
    features: Callable[[int, str], bool]
    members: Callable[[str, str], int]
    lines: Callable[[Site], CLine]

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.interrupts = True
        self.gif = True
        self.ipi = False
        self.warm = False
        self.findings: list[tuple[str, CLine]] = []
        self.paused = PauseKind.USERSPACE
        self.physical = DebugRegisters()
        self.host: Debug | None = None

    def finding(self, what: str, site: Site) -> None:
        """Notes a WARN or BUG that was reached."""
        text = ", ".join(site.texts[:1])
        self.findings.append((f"{what} reached: {text}" if text else f"{what} reached", self.lines(site)))

    def allocate(self, size: int) -> int:
        """Zeroed memory, page-aligned if a page or more."""
        return self.allocator(size)

    def feature(self, number: int, who: str) -> bool:
        """Whether a CPU feature is there."""
        return self.features(number, who)

    def member(self, struct: str, name: str) -> int:
        """Offset of a member in bytes."""
        return self.members(struct, name)

    def blind(self, address: int, mask: int) -> None:
        """A shared word is about to be changed, by a primitive that does not tell what it found."""
        self.shared(address, mask, True)

    def hand_over(self, kind: PauseKind) -> None:
        """The vCPU thread is about to pause."""
        self.paused = kind

    def interrupts_are_on(self) -> None:
        """The host is itself again after an exit, for the first time: its debug registers are noted."""
        if self.host is None:
            self.host = self.physical.now()


class HostRun(Landings, KernelRun):
    """A host step. Shared accesses are counted; before the k-th one the schedule lets senders take their steps.

    kinds: of the senders that are around. Since the last landing was over: passed, the accesses that could
    conflict with theirs; quiet, the others; first, the shared words then; begun, how long the trace was then. noted and
    behind: what was noted up to then, and since.
    """

    in_order: tuple[int, ...] = ()
    """The addresses of shared words (`cells`), ascending."""

    def __init__(
        self,
        program: Program,
        sender: Senders,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        reduce: bool,
        kinds: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(program)
        self.sender = sender
        self.senders: list[SenderState] = list(senders)
        self.log: list[tuple[str, int]] = []
        self.passed: list[Passed] = []
        self.quiet: dict[int, Masks] = {}
        self.first: tuple[int, ...] = ()
        self.begun = 0
        self.noted: set[Note] = set()
        self.behind: set[Note] = set()
        self._been: set[bytes] = set()
        self._turned: set[tuple[bytes, tuple[int, ...]]] = set()
        self._suspect = False
        self._follow(schedule)
        self._reduce = reduce
        self._kinds = kinds
        self._touched = sender.touched(kinds)
        self._count = 0

    def perform(self, vcpu: int, again: bool) -> Any:
        """The step: KVM_RUN from its start, or on from where the thread paused. A thread that goes in a circle for ever
        is not resumed, so that of its C frames nothing is kept."""
        self.first = self._words()
        try:
            return self.call(RUN, vcpu) if again else self.resume()
        except Circle:
            self.frames, self.paused = (), PauseKind.LOOP
            return PAUSE

    def shared(self, address: int, mask: int, write: bool) -> None:
        """A shared word is about to be accessed: senders land, and where they may is noted."""
        k = self._count
        self._count = k + 1
        if k >= MOST_ACCESSES:
            raise Unmodelled(ENDLESS)
        if k == self._next:
            self._land(k)
        if (self._suspect or k >= MANY_ACCESSES) and self._next == NEVER:
            self._look_for_circle()
        if k < self._last[0]:
            return
        if not self._reduce:
            self.passed.append(Passed(k, address, mask, write))
            return
        masks = self._touched.get(address)
        if masks is None or not masks.conflict(mask, write):
            add_access(self.quiet, address, mask, write)
            return
        here = self._here(k, address, mask, write)
        self.passed.append(here)
        turned = here.place, here.words
        self._suspect |= turned in self._turned
        self._turned.add(turned)

    def hand_over(self, kind: PauseKind) -> None:
        """The last place where senders can land: nothing conflicts with it, so only `reduce=False` offers it."""
        super().hand_over(kind)
        k = self._count
        if k == self._next:
            self._land(k)
        if not self._reduce:
            self.passed.append(Passed(k, 0, 0, False))

    def _land(self, k: int) -> None:
        super()._land(k)
        self.first, self.begun = self._words(), len(self.trace)
        self.noted |= self.program.layout.notes.cut()

    def _send(self, number: int) -> None:
        state = self.senders[number]
        if state is NO_SENDER:
            return
        assert isinstance(state, EventSender)
        if not state.log:
            self.log.append(("start", number))
        step = self.sender.step(state, self.m)
        access = self.sender.access(state)
        assert access is not None
        self.m[access.address] = step.word
        for address, value in step.writes:
            self.m[address] = value
        if step.ipi:
            self.ipi = not (self.interrupts and self.gif)
        self.trace += step.blocks
        self.senders[number] = step.state(state.kind)
        if step.after is None:
            self.log.append(("end", number))

    def _look_for_circle(self) -> None:
        """Nothing lands any more: a state that was there before comes again for ever. To be called by shared().

        Every place in the circle has been passed since the last landing. What a sender still has to do may be nothing
        that the circle accesses; as no hand-over follows, it may be done here."""
        here = self._place(frozenset(), self.ipi)
        if here not in self._been:
            self._been.add(here)
            return
        self.passed.append(self._here(self._count - 1, 0, 0, False)._replace(rest=True))
        raise Circle

    def _here(self, k: int, address: int, mask: int, write: bool) -> Passed:
        deaf = not (self.interrupts and self.gif)
        place = self._place(self.cells, tuple(self.findings))
        changed = self.sender.changed(self._kinds, self.m)
        return Passed(k, address, mask, write, self._words(), self.ipi, deaf, place, changed)

    def _words(self) -> tuple[int, ...]:
        get = self.m.get
        words = [get(cell, 0) for cell in self.in_order]
        return tuple([word if type(word) is int else word + 0 for word in words])  # of an opaque one: looked at

    def _place(self, but: frozenset[int], state: Hashable) -> bytes:
        """Where the thread stands, with what memory but for some words, and in what state, as a digest. shared() and
        what that calls here are no part of it."""
        frame = sys._getframe()
        while frame.f_code in _OWN:
            assert frame.f_back is not None
            frame = frame.f_back
        attributes = vars(self)
        own = (self.physical.now(), *[attributes[name] for name in _counting(tuple(attributes))])
        addresses, values_of = _in_order(tuple(self.m), but)
        values: tuple[Any, ...] = values_of(self.m)
        if Opaque in map(type, values):
            values = tuple([value if type(value) is int else name_of(value) for value in values])
        memory = addresses, values
        return digest(stack(frame, HostRun.perform.__code__, name_of), memory, (state, own), name_of)


@lru_cache(MOST_ORDERS)
def _in_order(addresses: tuple[int, ...], but: frozenset[int]) -> tuple[bytes, Callable[..., tuple[int, ...]]]:
    """A digest of the words of a memory but for some, and what makes their values of it in order of their addresses."""
    ordered = sorted(set(addresses) - but)
    return digest([], tuple(ordered), ()), itemgetter(*ordered)


@cache
def _counting(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those attributes of a run that decide how it goes on."""
    return tuple(sorted(set(names) - NO_STATE))


_OWN = frozenset(
    method.__code__ for method in (HostRun.shared, HostRun._look_for_circle, HostRun._here, HostRun._place)
)


class SenderRun(KernelRun):
    """A sender's run on another CPU; the hook says what each shared access finds."""

    cpu = 1

    def __init__(self, program: Program, hook: Hook) -> None:
        super().__init__(program)
        self.hook = hook

    def statement(self) -> CLine:
        """The C statement that is being executed, of the innermost function outside of headers."""
        places = list(self.program.places(sys._getframe()))
        inside = [place for place in places if not place[0].path.endswith(".h")]
        for pos, function in inside[:1] or places[:1]:
            return self.program.line(pos, function)
        return CLine("", 0)

    def shared(self, address: int, mask: int, write: bool) -> None:
        """A shared word is about to be accessed."""
        self.hook(self, address, mask, write, False)

    def blind(self, address: int, mask: int) -> None:
        """A shared word is about to be changed, by a primitive that does not tell what it found."""
        self.hook(self, address, mask, True, True)
