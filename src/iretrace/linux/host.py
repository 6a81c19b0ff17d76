"""A host step in progress: the vCPU thread's run, senders that land in it, and where further landings can matter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any

from iretrace.explore.landings import NEVER, Landings
from iretrace.explore.turns import digest, stack
from iretrace.linux.answers import Site
from iretrace.linux.legs import Base, Leg, Milestone, Passed
from iretrace.linux.machine import RUN
from iretrace.linux.notes import Note
from iretrace.linux.physical import DebugRegisters
from iretrace.linux.program import LOWERS, PAUSE, Program, Run
from iretrace.linux.registers import Hidden, name_of, opaque_among
from iretrace.linux.sender import EventSender, Hook, Masks, Senders, add_access
from iretrace.linux.turning import Joined
from iretrace.linux.unmodelled import Unmodelled
from iretrace.verdict import CLine
from iretrace.world.protocol import NO_SENDER, Debug, Landing, Packed, PauseKind, SenderState

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
    " passed first begun landed behind noted in_order findings milestones legs known joined quiet _schedule _reduce"
    " _count _landed _next _last _kinds _touched _turned _been _suspect _resting _rested".split()
)
"""What of a run plays no role for how it goes on, or is told apart (Passed)."""


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

    kinds: of the senders that are around. Since the last landing was over: legs and milestones; first, the shared words
    then; landed, how long the trace was then. noted, behind: what was noted up to then, and outside of legs.
    """

    in_order: tuple[int, ...] = ()
    """The addresses of shared words (`cells`), ascending."""

    known: Callable[[Milestone], Joined | None] | None = None
    """How another run went on from a milestone, if that is known; without this, there are no milestones."""

    joined: Joined | None = None
    """What it told of the last milestone: this run goes on likewise, and is over."""

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
        self.landed = 0
        self.noted: set[Note] = set()
        self.behind: set[Note] = set()
        self.legs: list[Leg] = []
        self.milestones: list[Milestone] = []
        self._resting = False
        self._rested = 0
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
            result = self.call(RUN, vcpu) if again else self.resume()
            while self._resting:
                self._resting = False
                if self._reaches_known():
                    return PAUSE
                result = self.resume()
            return result
        except Circle:
            self.frames, self.paused = (), PauseKind.LOOP
            return PAUSE
        finally:
            if self.joined is None:
                self._end_leg()

    def rest(self) -> Any:
        """This may become a milestone: where nothing lands any more, and something might have since the last one."""
        nothing = len(self.passed) == self._rested
        if self.known is None or nothing or self._next != NEVER:
            return None
        if not self.program.can_resume(sys._getframe(2)):  # of the C function: C_rest is between it and this
            return None
        self._resting = True
        return PAUSE

    def _reaches_known(self) -> bool:
        """A milestone has been reached. Whether another run has gone on from there, so that this one is over."""
        attributes = vars(self)
        own = {name: attributes[name] for name in _counting(tuple(attributes))}
        physical, findings = self.physical.now(), tuple(self.findings)
        if opaque_among((*own.values(), *physical.dr)):
            return False  # of these none is renewed where another run goes on
        self._end_leg()
        key = self._place(frozenset(), (findings, self.ipi))
        words, values = _shared(tuple(self.m)), tuple(self.m.values())
        made = Milestone(self._count, key, words, values, self.frames, own, physical, findings, self.ipi)
        self.milestones.append(made)
        assert self.known is not None
        self.joined = self.known(made)
        return self.joined is not None

    def _end_leg(self) -> None:
        """What was executed since the last milestone is a leg."""
        uses = self.program.uses(self.trace[self.begun :], self.program.layout.notes.cut())
        self.legs.append(Leg(tuple(self.passed[self._rested :]), self.quiet, uses))
        self._rested, self.begun, self.quiet = len(self.passed), len(self.trace), {}

    def go_on(self, base: Base, hidden: Hidden, vmcb: Packed) -> None:
        """Stand where another run stood at a milestone, with the registers of a VMCB."""
        milestone = base.milestone
        vars(self).update(milestone.own)
        self.m, self.frames = milestone.memory(hidden, vmcb), milestone.stack(hidden, vmcb)
        self.physical.put(milestone.physical)
        self.ipi, self.findings = milestone.ipi, list(milestone.findings)
        self.senders, self.log = list(base.senders), list(base.log)
        self._count = milestone.at + base.shift
        self._follow(base.since)

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
        self.first = self._words()
        self.begun = self.landed = len(self.trace)
        self.noted |= self.program.layout.notes.cut()
        self.legs.clear()
        self.milestones.clear()

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
        memory = addresses, _plain(values_of(self.m))
        return digest(stack(frame, HostRun.perform.__code__, name_of, LOWERS), memory, (state, own), name_of)


@lru_cache(MOST_ORDERS)
def _shared(addresses: tuple[int, ...]) -> tuple[int, ...]:
    """The same addresses, as one object for all."""
    return addresses


@lru_cache(MOST_ORDERS)
def _in_order(addresses: tuple[int, ...], but: frozenset[int]) -> tuple[bytes, Callable[..., tuple[int, ...]]]:
    """A digest of the words of a memory but for some, and what makes their values of it in order of their addresses."""
    ordered = sorted(set(addresses) - but)
    return digest([], tuple(ordered), ()), itemgetter(*ordered)


def _plain(values: tuple[int, ...]) -> tuple[Any, ...]:
    """Words of memory, opaque ones told by their names."""
    hidden = opaque_among(values)
    if not hidden:
        return values
    plain: list[Any] = list(values)
    for at in hidden:
        plain[at] = name_of(plain[at])
    return tuple(plain)


@cache
def _counting(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those attributes of a run that decide how it goes on."""
    return tuple(sorted(set(names) - NO_STATE))


_OWN = frozenset(
    method.__code__
    for method in (HostRun.shared, HostRun._look_for_circle, HostRun._here, HostRun._place, HostRun._reaches_known)
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
