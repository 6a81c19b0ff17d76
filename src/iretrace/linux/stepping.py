"""Host steps of a tree's KVM: from a hand-over to the next one, executed as little as will do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from iretrace.linux import memory
from iretrace.linux.handover import HandOver
from iretrace.linux.host import HostRun, KernelRun
from iretrace.linux.initial import Places
from iretrace.linux.kept import Kept, Keys, Recalled
from iretrace.linux.legs import Base, Milestone
from iretrace.linux.models.findings import Bug
from iretrace.linux.physical import DebugRegisters
from iretrace.linux.program import PAUSE, Retry
from iretrace.linux.records import ghcb_record, vmcb_record
from iretrace.linux.registers import MOVED, STALE, Found, Hidden, Memo, general
from iretrace.linux.sender import EventSender, Senders
from iretrace.linux.startup import Startup
from iretrace.linux.states import States
from iretrace.linux.turning import Asked, Before, Joined, Passage, Passages, Stale, TakenUp, behind, taken
from iretrace.linux.unmodelled import Unmodelled, describe
from iretrace.linux.vm import Vm
from iretrace.world.protocol import (
    NO_HOST_DEBUG,
    Cause,
    Landing,
    Packed,
    Pause,
    PauseKind,
    Private,
    SenderState,
)


class How(NamedTuple):
    """How much is executed: see TreeHypervisor."""

    reduce: bool = True
    merge: bool = True
    remember: bool = True


class HostSteps:
    """The host steps of one vCPU. first, places: its first state, and what is where in it. sender: see `settle`.

    blocks: the basic blocks that were executed so far. known: what steps came to; kept: what they came to in earlier
    runs; asked: those of them that were asked for since the ledger began. cells, in_order: the addresses of shared
    words."""

    sender: Senders

    def __init__(self, vm: Vm, first: KernelRun, places: Places, how: How) -> None:
        self.vm = vm
        self.program = vm.program
        self.processor = vm.processor()
        self.blocks = set(first.trace)
        task = vm.address("task")
        self.cells = frozenset(vm.words("shared")) | {task, task + 8}
        self.in_order = tuple(sorted(self.cells))
        self.vmcb = vmcb_record(lambda member: places.find(first, f"svm.vmcb->{member}"))
        self.ghcb = ghcb_record(lambda member: places.find(first, f"ghcb.{member}"))
        self._registers = {self.vmcb.fields[register][0]: register for register in MOVED}
        self.states = States(vm.program.space, first.m, self._masks())
        self.at = HandOver(vm, places, first, self.vmcb)
        self.startup = Startup(places, first)
        self._svm = vm.address("svm")
        self._how = how
        self._notes = vm.machine.notes
        self.known: Memo[Found] = Memo()
        self._own: Memo[Found] = Memo()
        self.kept: list[Kept] = []
        self.asked: dict[int, Found] = {}
        self._keys = Keys()

    def setting(self) -> tuple[Any, ...]:
        """What steps depend on beside what they are asked and what they execute."""
        return (
            *self.states.setting(),
            self.in_order,
            tuple(sorted(self._registers.items())),
            self.at.saved,
            tuple(self.vmcb.fields),
            tuple(self.ghcb.fields),
            self.processor,
            self._how,
            self._svm,
        )

    def settle(self, sender: Senders) -> None:
        """From now on senders are these."""
        self.sender = sender
        self._passages = Passages(sender, self.in_order, self._notes, self._how.reduce, self._how.merge)

    def step(self, asked: Asked, schedule: tuple[Landing, ...]) -> Pause:
        """See world.protocol.Hypervisor."""
        start = asked.general()
        found = self.known.find((start, schedule), asked.vmcb)
        if found is None:
            found = self._find_kept(start, asked.vmcb, schedule)
        if found is None:
            found = self._worked_out(start, asked, schedule)
        self.asked[id(found)] = found
        return found.of(asked.vmcb)

    def recall(self, name: str) -> Recalled | None:
        """What was kept of a verdict, if it stands here."""
        recalled = (kept.recall(name, self._again) for kept in self.kept)
        return next((one for one in recalled if one is not None), None)

    def _again(self, asked: Asked, schedule: tuple[Landing, ...]) -> Found:
        """What a step comes to that is not as it was kept."""
        return self._worked_out(asked.general(), asked, schedule)

    def _worked_out(self, start: Asked, asked: Asked, schedule: tuple[Landing, ...]) -> Found:
        """What a step comes to, worked out here, as all with fewer of its landings are."""
        found = self._own.find((start, schedule), asked.vmcb)
        if found is None:
            parent = self._worked_out(start, asked, schedule[:-1]) if schedule else None
            found = self._found(asked, schedule, parent)
            self._own.add((start, schedule), asked.vmcb, found.looked, found)
            self.known.add((start, schedule), asked.vmcb, found.looked, found)
        return found

    def _find_kept(self, start: Asked, vmcb: Packed, schedule: tuple[Landing, ...]) -> Found | None:
        """What an earlier run has found."""
        key = self._keys.of(start, schedule) if self.kept else ""
        for kept in self.kept:
            found = kept.find(key, vmcb, self._again)
            if found is not None:
                self.known.add((start, schedule), vmcb, found.looked, found)
                return found
        return None

    def _found(self, asked: Asked, schedule: tuple[Landing, ...], parent: Found | None) -> Found:
        """What a step comes to. parent: the same with one landing less, if that is known."""
        up = self._taken_up(asked, schedule, parent)
        last = schedule[-1] if schedule else None
        passage = self._passages.find(up.key, asked.vmcb) if up.key is not None else None
        if passage is not None:
            with suppress(Stale):
                return self._passages.found(passage, up, last)
        join = up.key is not None
        while True:
            passage, run = self._passage(asked, schedule, up.base, join)
            up = up._replace(senders=tuple(run.senders), log=tuple(run.log))
            if up.base is None:
                whole = self.program.uses(run.trace[: run.landed], run.noted)
                up = up._replace(before=Before(self.program.uses, uses=(whole,)))
            with suppress(Stale):
                found = self._passages.found(passage, up, last)
                if up.key is not None and not passage.pause.unmodelled:
                    self._passages.add(up.key, asked.vmcb, passage, exits=asked.cause == Cause.VMEXIT)
                return found
            join = False

    def _taken_up(self, asked: Asked, schedule: tuple[Landing, ...], parent: Found | None) -> TakenUp:
        """Where a step is behind its last landing, if that is known."""
        unknown = TakenUp(None, asked.senders, (), Before(self.program.uses))
        if not self._how.remember:
            return unknown
        if not schedule:
            return unknown._replace(key=(asked.private, asked.ghcb, asked.cause, asked.debug, general(asked.vmcb)))
        turned = taken(parent, schedule[-1], self.program.uses) if parent is not None else None
        if parent is None or turned is None:
            return unknown
        turn, before = turned
        base = parent.way and parent.way.then(schedule[-1], parent.pause)
        return TakenUp(behind(turn, asked.cause), turn.senders, turn.log, before, base)

    def _passage(
        self, asked: Asked, schedule: tuple[Landing, ...], base: Base | None, join: bool
    ) -> tuple[Passage, HostRun]:
        """A passage, by executing it from its base, or from the start of the step; and the run. join: only up to
        where another one has been that went on as this would."""
        hidden, versions = Hidden(self._registers, self.at.saved), self.sender.versions()

        def known(milestone: Milestone) -> Joined | None:
            if not join or STALE in hidden.looked:
                return None
            return self._passages.going_on(milestone, asked.vmcb, exits=asked.cause == Cause.VMEXIT)

        pause, moved, run = self.execute(
            asked, schedule, hidden, base=base, known=known if self._how.remember else None
        )
        looked = frozenset(MOVED if pause.unmodelled else hidden.looked)
        legs, milestones = run.legs, run.milestones
        if run.joined is not None:
            more_legs, more_milestones = run.joined.rest(milestones[-1].at)
            legs, milestones = legs + more_legs, milestones + more_milestones
            looked |= run.joined.passage.looked
        uses = self.program.uses((), {*run.behind, *(leg.uses for leg in legs)})
        at = schedule[-1][0] if schedule else 0
        made = Passage(pause, moved, looked, tuple(legs), tuple(milestones), run.first, versions, at, uses)
        return made, run

    def execute(
        self,
        asked: Asked,
        schedule: tuple[Landing, ...],
        hidden: Hidden,
        note: Callable[[dict[int, int]], dict[int, int]] = dict,
        base: Base | None = None,
        known: Callable[[Milestone], Joined | None] | None = None,
    ) -> tuple[Pause, tuple[tuple[int, int], ...], HostRun]:
        """The result, where registers were moved to, and the run. base: begin there. known: see HostRun."""
        run = self.run(asked.senders, schedule)
        run.known = known
        with self._notes.collecting() as run.behind:
            pause, moved = self._perform(run, asked, hidden, note, base)
        return pause, moved, run

    def _begin(self, run: HostRun, asked: Asked, hidden: Hidden, base: Base | None) -> None:
        """Put a run to the start of a step, or to a milestone in it."""
        private, vmcb, ghcb, cause, _, debug = asked
        run.physical = DebugRegisters(debug, self.processor.host_debug)
        if base is not None:
            run.go_on(base, hidden, vmcb)
            return
        self.states.restore(run, private)
        self.vmcb.write(run.m, vmcb)
        self.ghcb.write(run.m, ghcb)
        hidden.hide(run.m, stale=cause == Cause.VMEXIT)

    def _perform(
        self,
        run: HostRun,
        asked: Asked,
        hidden: Hidden,
        note: Callable[[dict[int, int]], dict[int, int]],
        base: Base | None,
    ) -> tuple[Pause, tuple[tuple[int, int], ...]]:
        private, vmcb, _, cause, _, _ = asked
        self._begin(run, asked, hidden, base)
        run.m = note(run.m)
        result = None
        try:
            with suppress(Bug):
                result = run.perform(self._svm, again=cause == Cause.RERUN and base is None)
            if run.joined is not None:
                self.blocks.update(run.trace)
                return run.joined.passage.pause, run.joined.passage.moved
            moved = hidden.reveal(run.m, enters=result is PAUSE and run.paused == PauseKind.ENTER)
            if cause != Cause.VMEXIT:
                run.host = None
            return self.pause(run, result), moved
        except Retry:
            unforeseen = Unmodelled("a function pauses through a call that was not foreseen (linux/sleepers.py)")
            return self.unmodelled(run, private, unforeseen, vmcb), ()
        except Unmodelled as error:
            return self.unmodelled(run, private, error, vmcb), ()

    def run(self, senders: tuple[SenderState, ...], schedule: tuple[Landing, ...]) -> HostRun:
        """A run, to be put somewhere."""
        kinds = frozenset(state.kind for state in senders if isinstance(state, EventSender))
        run = HostRun(self.program, self.sender, senders, schedule, self._how.reduce, kinds)
        self.vm.prepare(run)
        run.cells, run.in_order = self.cells, self.in_order
        return run

    def pause(self, run: HostRun, result: Any) -> Pause:
        """What a run has come to. result: of KVM_RUN, or PAUSE."""
        self.blocks.update(run.trace)
        code_base = 0
        kind = run.paused if result is PAUSE else PauseKind.USERSPACE
        if kind == PauseKind.ENTER:
            self.at.forget(run, self.states.base)
            code_base = 0 if self.vm.encrypted else self.startup.code_base(run, self.states.base)
        elif kind == PauseKind.USERSPACE:
            self.at.handle_signal(run)
        return Pause(
            kind=kind,
            private=self.states.of(run),
            vmcb=self.vmcb.read(run.m),
            ghcb=self.ghcb.read(run.m),
            senders=tuple(run.senders),
            log=tuple(run.log),
            ipi=run.ipi,
            openings=(),
            warm=run.warm,
            exit_reason=self.at.reason(run, result) if kind == PauseKind.USERSPACE else 0,
            defects=tuple(run.findings),
            debug=run.physical.now(),
            host_area=self.at.host_area(run) if kind == PauseKind.ENTER else NO_HOST_DEBUG,
            smram=self.at.saved_in_smram(run),
            code_base=code_base,
            host=run.host,
        )

    def unmodelled(self, run: HostRun, private: Private, error: Unmodelled, vmcb: Packed) -> Pause:
        """What it comes to where something is not modelled, from a state and a VMCB."""
        self.blocks.update(run.trace)
        return Pause(
            kind=PauseKind.USERSPACE,
            private=private,
            vmcb=vmcb,
            ghcb=self.ghcb.read(run.m),
            senders=tuple(run.senders),
            log=tuple(run.log),
            ipi=False,
            openings=(),
            warm=False,
            exit_reason=0,
            defects=(),
            unmodelled=describe(error),
            debug=run.physical.now(),
        )

    def _masks(self) -> dict[int, int]:
        """Word address -> bits that play no role for what KVM does, or are kept elsewhere."""
        masks = self.vm.words("masked")
        for word, mask in self.ghcb.words.items():
            masks[word] = masks.get(word, 0) | mask
        masks.update(dict.fromkeys(self._registers, memory.MASK))
        return masks
