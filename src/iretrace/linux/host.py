"""A host step in progress: the vCPU thread's run, senders that land in it, and where further landings can matter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from types import FrameType
from typing import Any

from iretrace.explore.landings import NEVER, Landings
from iretrace.explore.turns import digest, stack
from iretrace.linux.answers import Site
from iretrace.linux.machine import RUN
from iretrace.linux.notes import Note
from iretrace.linux.physical import DebugRegisters
from iretrace.linux.program import PAUSE, Program, Run
from iretrace.linux.registers import name_of
from iretrace.linux.sender import EventSender, Hook, Path, Senders
from iretrace.linux.unmodelled import Unmodelled
from iretrace.verdict import CLine
from iretrace.world.protocol import NO_SENDER, Debug, Landing, PauseKind, SenderState

MOST_ACCESSES = 2048
"""So many accesses of shared cells between two hand-overs are a loop that does not wait: the longest of other steps
have some three hundred."""

MANY_ACCESSES = 400
"""From so many accesses on it is looked whether the step goes in a circle."""

ENDLESS = "the vCPU thread does not come to a hand-over: its loop neither waits nor goes in a circle"

NO_STATE = frozenset(
    "program m trace read write fuel cells allocator features members lines physical sender senders log ipi openings"
    " paths passed noted behind turns logged findings _schedule _reduce _count _landed _next _last _paths _watching"
    " _turned _been _suspect".split()
)
"""What of a run plays no role for how it goes on, or is told apart (HostRun._turn)."""


Turn = tuple[bytes, tuple[tuple[str, int], ...]]
"""See HostRun.turns."""


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

    For each opening: paths, what its sender does then; turns, everything that decides how the step goes on if that
    landing is made, as a digest, and the log up to there. Of when the last landing was over: logged and passed, how
    long log and trace were; noted and behind, what was noted up to then, and since.
    """

    def __init__(
        self,
        program: Program,
        sender: Senders,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        reduce: bool,
    ) -> None:
        super().__init__(program)
        self.sender = sender
        self.senders: list[SenderState] = list(senders)
        self.log: list[tuple[str, int]] = []
        self.openings: list[Landing] = []
        self.paths: list[Path] = []
        self.turns: list[Turn] = []
        self.logged = 0
        self.passed = 0
        self.noted: set[Note] = set()
        self.behind: set[Note] = set()
        self._turned: set[Turn] = set()
        self._been: set[bytes] = set()
        self._suspect = False
        self._follow(schedule)
        self._reduce = reduce
        self._count = 0
        self._paths: list[tuple[int, Path]] | None = None
        self._watching = any(state is not NO_SENDER for state in senders)

    def perform(self, vcpu: int, again: bool) -> Any:
        """The step: KVM_RUN from its start, or on from where the thread paused. A thread that goes in a circle for ever
        is not resumed, so that of its C frames nothing is kept."""
        try:
            return self.call(RUN, vcpu) if again else self.resume()
        except Circle:
            self.frames, self.paused = (), PauseKind.LOOP
            return PAUSE

    def shared(self, address: int, mask: int, write: bool) -> None:
        """A shared word is about to be accessed: senders land, and openings are noted."""
        k = self._count
        self._count = k + 1
        if k >= MOST_ACCESSES:
            raise Unmodelled(ENDLESS)
        if k == self._next:
            self._land(k)
        if (self._suspect or k >= MANY_ACCESSES) and self._next == NEVER:
            self._look_for_circle()
        if not self._watching or k < self._last[0]:
            return
        if not self._reduce:
            self._open_all(k)
            return
        self._open(k, address, mask, write)

    def hand_over(self, kind: PauseKind) -> None:
        """The last place where senders can land: nothing conflicts with it, so only `reduce=False` offers it."""
        super().hand_over(kind)
        k = self._count
        if k == self._next:
            self._land(k)
        if self._watching and not self._reduce:
            self._open_all(k)

    def _land(self, k: int) -> None:
        super()._land(k)
        self._paths = None
        self.logged, self.passed = len(self.log), len(self.trace)
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

    def _open(self, k: int, address: int, mask: int, write: bool) -> None:
        paths = self._paths
        if paths is None:
            paths = self._paths = self._remaining()
        for number, path in paths:
            if (k, number) == self._last:
                continue
            for steps, (access, _) in enumerate(path, 1):
                if access.conflicts(address, mask, write):
                    self.openings.append((k, number, steps))
                    self.paths.append(path[:steps])
                    turn = self._turn(number, path[:steps])
                    self.turns.append(turn)
                    self._suspect |= turn in self._turned
                    self._turned.add(turn)
        if write:
            self._paths = None

    def _look_for_circle(self) -> None:
        """Nothing lands any more: a state that was there before comes again for ever. To be called by shared().

        Every place in the circle has been passed since the last landing, so that its openings are noted. What a sender
        still has to do may be nothing that the circle accesses; as no hand-over follows, it may be done here."""
        here = self._place(dict(self.m), (tuple(self.senders), self.ipi), sys._getframe(2))
        if here not in self._been:
            self._been.add(here)
            return
        for number, path in self._remaining() if self._watching else ():
            self.openings.append((self._count - 1, number, len(path)))
            self.paths.append(path)
            self.turns.append(self._turn(number, path))
        raise Circle

    def _turn(self, number: int, landing: Path) -> Turn:
        """See turns: the thread's state, memory and senders as they are after a landing. To be called by _open()."""
        memory, ipi, state = dict(self.m), self.ipi, self.senders[number]
        for access, step in landing:
            memory[access.address] = step.word
            memory.update(step.writes)
            if step.ipi:
                ipi = not (self.interrupts and self.gif)
        assert isinstance(state, EventSender)
        done = landing[-1][1]
        senders = (*self.senders[:number], (done.log, done.after is None), *self.senders[number + 1 :])
        events = (("start", not state.log), ("end", done.after is None))
        log = (*self.log, *((what, number) for what, happens in events if happens))
        # Of this run's own frames _turn(), _open() and shared() are no part of where it stands.
        return self._place(memory, (senders, ipi, tuple(self.findings)), sys._getframe(3)), log

    def _place(self, memory: dict[int, int], state: Hashable, frame: FrameType) -> bytes:
        """Where the thread stands, with what memory and in what state, as a digest."""
        own = (self.physical.now(), *(item for item in vars(self).items() if item[0] not in NO_STATE))
        words = [(word, value if type(value) is int else name_of(value)) for word, value in memory.items()]
        words.sort()
        return digest(stack(frame, HostRun.perform.__code__, name_of), words, (state, own), name_of)

    def _remaining(self) -> list[tuple[int, Path]]:
        """What each unfinished sender would do if it went on now. Of started ones that are equally far one will
        do: they cannot be told apart from here on."""
        known: dict[SenderState, Path] = {}
        paths = []
        for number, state in enumerate(self.senders):
            if state is NO_SENDER:
                continue
            assert isinstance(state, EventSender)
            if state in known and state.log:
                continue
            if state not in known:
                known[state] = self.sender.path(state, self.m)
            paths.append((number, known[state]))
        return paths

    def _open_all(self, k: int) -> None:
        for number, state in enumerate(self.senders):
            if state is not NO_SENDER:
                self.openings.append((k, number, 1))


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
