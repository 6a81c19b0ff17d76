"""A Linux tree as a hypervisor: world.protocol.Hypervisor by executing the tree's C from source text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

from iretrace.linux.answers import ConditionId
from iretrace.linux.bodies import Bodies
from iretrace.linux.changes import NotedMemory, handling, view_changes
from iretrace.linux.comparison import Comparer
from iretrace.linux.debugger import Debugger
from iretrace.linux.events import EVENTS, senders_of
from iretrace.linux.host import KernelRun
from iretrace.linux.ioctls import Ioctls
from iretrace.linux.kept import UNREADABLE, Kept, Opened, Recalled, Remembered, setting_of
from iretrace.linux.ledger import Ledger
from iretrace.linux.machine import RUN, Machine, exit_handlers
from iretrace.linux.notes import Later, Uses
from iretrace.linux.physical import DebugRegisters
from iretrace.linux.program import PAUSE
from iretrace.linux.registers import Hidden
from iretrace.linux.sender import EventSender
from iretrace.linux.states import State
from iretrace.linux.stepping import HostSteps, How
from iretrace.linux.told import told
from iretrace.linux.tree import Tree
from iretrace.linux.turning import Asked
from iretrace.linux.unmodelled import Unmodelled, describe
from iretrace.linux.used import Used
from iretrace.linux.view import PENDING, Viewer
from iretrace.linux.vm import KINDS, Vm
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import SVM_EVTINJ_VALID, Vmcb
from iretrace.verdict import Assumption, CLine, InputError
from iretrace.world.protocol import (
    NO_HOST_DEBUG,
    NO_SENDER,
    Cause,
    Comparison,
    Debug,
    Executed,
    GuestDebug,
    Landing,
    Pause,
    Private,
    Processor,
    SenderState,
    Sent,
    View,
    VmmCall,
)

ASKS = {"nmi_allowed": "nmi_pending", "interrupt_allowed": "irq_pending"}
"""Operations of the vendor's table that examine a waiting event -> field of the view that says that it waits."""


class TreeHypervisor:
    """Linux `tree.version`, executed.

    rule_files: more rules (`--rules`). options: `--option` values. negate: a condition of the tree to invert.
    reduce: offer only landings that can matter; False offers every place (for tests of that claim). merge: tell which
    landings come to the same; False does not (for tests of that). remember: how a step went on behind a landing is
    taken over for steps that come to the same place; False executes each (for tests of that). machine: the tree as it
    has been read for another hypervisor, to share with that one (its rules and options hold). vcpu: the kind of its
    vCPU. Raises Unmodelled when the first state cannot be built; InputError for a kind that has none.
    """

    def __init__(
        self,
        tree: Tree,
        rule_files: Sequence[Path] = (),
        options: Mapping[str, int] | None = None,
        negate: ConditionId | None = None,
        reduce: bool = True,
        merge: bool = True,
        remember: bool = True,
        machine: Machine | None = None,
        vcpu: str = "sev-es",
    ) -> None:
        if vcpu not in KINDS:
            raise InputError(f"--vcpu {vcpu}: Linux trees run the kinds {' and '.join(KINDS)} so far")
        self.vcpu = vcpu
        self.machine = machine or Machine(tree, rule_files, options, negate)
        self._notes = self.machine.notes
        with self._notes.collecting() as noted:
            self._open(vcpu, How(reduce, merge, remember))
        opening = self.program.uses(self._steps.blocks, noted | self.machine.noted)
        self._ledger = Ledger(self.machine, opening, self._steps.asked)
        self._verdicts: dict[str, Remembered] = {}
        self._shown: set[Uses] = set()
        self._lines = cache(self.program.block_lines)
        setting = setting_of((vcpu, self.machine.definitions.facts(), self._steps.setting()), self._start)
        self._opened = Opened(self.machine, self._steps.states, setting, opening)

    def _open(self, vcpu: str, how: How) -> None:
        self.vm = Vm(self.machine, vcpu)
        self.program = self.machine.program
        self._sends: dict[tuple[Private, SenderState], Later[Sent]] = {}
        self._views: dict[Private, Later[View]] = {}
        run, self.places = self.vm.first_state()
        self._svm = self.vm.address("svm")
        self._viewer = Viewer(self.places, run, self._svm, self.machine.index.function(PENDING) is not None)
        self._comparer = Comparer(self.vm, self.places, run)
        self._debugger = Debugger(self.vm)
        self._ioctls = Ioctls(self.vm)
        self._steps = HostSteps(self.vm, run, self.places, how)
        self._start = self._first_pause(run.findings)

    # Protocol. --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """For the verdict table."""
        return f"Linux {self.machine.tree.version}"

    @property
    def processor(self) -> Processor:
        """The processor that it runs on."""
        return self._steps.processor

    def start(self) -> Pause:
        """The first VMRUN."""
        return self._start

    def start_ap(self) -> Pause:
        """The first VMRUN of a vCPU that is not the bootstrap processor: the first state but for what says which it is,
        as VMMs make it by KVM_SET_BOOT_CPU_ID and, since it need not be started, KVM_SET_MP_STATE."""
        state = self._start.private
        assert isinstance(state, State)
        run = self._quiet_run(state)
        run.frames = state.frames  # type: ignore[assignment]
        with self.program.noting(run):
            self._steps.startup.make_ap(run)
        return self._start._replace(private=self._steps.states.of(run))

    def sender(self, kind: str) -> SenderState:
        """A fresh sender."""
        if kind not in EVENTS:
            raise InputError(f"outside: {kind}: Linux trees know the outside events {', '.join(EVENTS)}")
        return EventSender(kind, ())

    def step(
        self,
        private: Private,
        vmcb: Vmcb,
        ghcb: Ghcb,
        cause: Cause,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        debug: Debug = NO_HOST_DEBUG,
    ) -> Pause:
        """Run from a hand-over to the next one."""
        asked = Asked(private, vmcb.pack(), ghcb.pack(), cause, senders, debug)  # type: ignore[attr-defined]
        return self._steps.step(asked, schedule)

    def send(self, private: Private, sender: SenderState) -> Sent:
        """One step of a sender outside of host steps."""
        key = private, sender
        known = self._sends.get(key)
        if known is None:
            known = self._sends[key] = self._notes.later(lambda: self._send(private, sender))
        return known()

    def set_guest_debug(self, private: Private, vmcb: Vmcb, ghcb: Ghcb, wanted: GuestDebug, debug: Debug) -> Pause:
        """KVM_SET_GUEST_DEBUG between two KVM_RUNs."""
        return self._ioctl(private, vmcb, ghcb, debug, lambda run: self._debugger.set(run, wanted))

    def vmm_call(self, private: Private, vmcb: Vmcb, ghcb: Ghcb, call: VmmCall, debug: Debug) -> Pause:
        """An ioctl about events between two KVM_RUNs."""
        return self._ioctl(private, vmcb, ghcb, debug, lambda run: self._ioctls.call(run, call))

    def _ioctl(self, private: Private, vmcb: Vmcb, ghcb: Ghcb, debug: Debug, call: Callable[[KernelRun], int]) -> Pause:
        packed, shared = vmcb.pack(), ghcb.pack()  # type: ignore[attr-defined]
        run = self._steps.run((), ())
        run.physical = DebugRegisters(debug, self._steps.processor.host_debug)
        self._steps.states.restore(run, private)
        self._steps.vmcb.write(run.m, packed)
        self._steps.ghcb.write(run.m, shared)
        try:
            result = call(run)
        except Unmodelled as error:
            return self._steps.unmodelled(run, private, error, packed)
        finally:
            self._notes.note(self.program.uses(run.trace))
        run.host = None
        return self._steps.pause(run, 0)._replace(exit_reason=result)

    def runnable(self, private: Private) -> bool:
        """Whether a sleeping vCPU thread has been woken: its task state says that it runs."""
        return self._steps.states.word(private, self.vm.address("task")) & 0xFFFF_FFFF == 0

    def view(self, private: Private) -> View:
        """The view of a state, by the tree's own functions."""
        known = self._views.get(private)
        if known is None:
            known = self._views[private] = self._notes.later(lambda: self._view(private))
        return known()

    def _view(self, private: Private) -> View:
        run = self._quiet_run(private)
        with self.program.noting(run):
            return self._viewer.view(lambda: run)

    def compare(self, private: Private) -> Comparison:
        """What agreement is about, beside the VMCB."""
        return self._comparer.compare(lambda: self._quiet_run(private))

    def explain(
        self,
        private: Private,
        vmcb: Vmcb,
        ghcb: Ghcb,
        cause: Cause,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        debug: Debug = NO_HOST_DEBUG,
    ) -> Executed:
        """The statements of a step, those that change the view, and what became of a waiting event."""
        asked = Asked(private, vmcb.pack(), ghcb.pack(), cause, senders, debug)  # type: ignore[attr-defined]
        noted: list[NotedMemory] = []

        def note(memory: dict[int, int]) -> dict[int, int]:
            noted.append(NotedMemory(memory, self._viewer.words(), self._statement))
            return noted[-1]

        refusals: list[tuple[str, int]] = []
        with ExitStack() as watching:
            for operation, waits in ASKS.items():
                seen = partial(_refused, refusals, waits)
                watching.enter_context(self.program.watched(*self.machine.target(operation), seen))
            pause, _, run = self._steps.execute(asked, schedule, Hidden({}, ()), note)
        uses = self.program.uses(run.trace, {*run.noted, *run.behind, *(leg.uses for leg in run.legs)})
        self._notes.note(uses)
        self._shown.add(uses)
        lines = tuple(chain.from_iterable(map(self._lines, run.trace)))
        changes = view_changes(self.view(private), noted[-1].writers, self._view_of(private))
        handlers = exit_handlers(self.machine.index) if cause == Cause.VMEXIT else ()
        before = self._view_of(private)(noted[-1].first)
        return Executed(lines, self._declined(refusals, pause), changes, handling(lines, handlers), before)

    def _statement(self, frame: FrameType) -> CLine | None:
        """The C statement that a Python frame belongs to."""
        for pos, function in self.program.places(frame):
            if not pos.path.endswith(".h"):
                return self.program.line(pos, function)
        return None

    def _view_of(self, private: Private) -> Callable[[dict[int, int]], View]:
        def view(words: dict[int, int]) -> View:
            def make() -> KernelRun:
                run = self._quiet_run(private)
                run.m = dict(words)
                return run

            return self._viewer.view(make)

        return view

    def new_ledger(self) -> None:
        """What statements(), assumptions() and definitions() tell is about what is asked from now on, and about what
        opening it has taken."""
        self._ledger.begin()
        self._shown.clear()

    def statements(self) -> int:
        """Distinct C statements executed."""
        return self._ledger.statements()

    def executed(self) -> set[CLine]:
        """The C statements executed so far."""
        return {line for block in self._steps.blocks for line in self.program.block_lines(block)}

    def conditions(self) -> set[ConditionId]:
        """Leaf conditions of the tree decided so far."""
        return self.program.blocks.conditions(self._steps.blocks)

    def assumptions(self) -> tuple[Assumption, ...]:
        """Rules used."""
        return self._ledger.assumptions(self.vm.vcpu)

    def definitions(self) -> list[Used]:
        """The definitions used: for each function those that lowering it has looked at, those that opening this has,
        and the others."""
        return self._ledger.definitions()

    def told_steps(self, read: Mapping[str, str]) -> bytes:
        """What its host steps came to, for take_steps() of another one. read: what was read of the tree."""
        return told(self._opened, self._steps.known, self._verdicts, read)

    def take_steps(self, text: bytes, bodies_of: Callable[[Mapping[str, str]], Bodies | None]) -> None:
        """Take over what another one has told, as far as it holds here. ValueError, see Kept."""
        try:
            self._steps.kept.append(Kept(text, self._opened, bodies_of))
        except UNREADABLE as error:
            raise ValueError(f"no steps of this hypervisor: {error}") from error

    def remember(self, name: str, told: Any) -> None:
        """What was asked since new_ledger() is all that a verdict rests on: to be told by told_steps()."""
        steps, shown = tuple(self._steps.asked.values()), frozenset(self._shown)
        self._verdicts[name] = Remembered(told, steps, frozenset(self._notes.noted()) - shown, shown)

    def recall(self, name: str) -> Recalled | None:
        """What another one has remembered of a verdict that stands here, too, else None. The ledger is of that then,
        but where the trace has to be told again (Recalled) without what it shows."""
        self.new_ledger()
        recalled = self._steps.recall(name)
        self.new_ledger()
        if recalled is None:
            return None
        for uses in recalled.rests_on:
            self._notes.note(uses)
        return recalled

    # Host steps. ------------------------------------------------------------------------------------------------

    def _first_pause(self, found: list[tuple[str, CLine]]) -> Pause:
        """Run KVM_RUN to the first VMRUN; the state there becomes what other states are compared with.

        found: the WARNs and BUGs that creating the vCPU reached."""
        self._steps.settle(senders_of(self.vm, self._steps.states, self._steps.cells))
        run = self._steps.run((), ())
        run.physical = DebugRegisters(self._steps.processor.host_debug, self._steps.processor.host_debug)
        run.findings = list(found)
        run.m = dict(self._steps.states.base)
        result = run.call(RUN, self._svm)
        if result is not PAUSE:
            raise Unmodelled(f"the first KVM_RUN returns {result} without entering the guest")
        self._steps.states.settle(run.m)
        run.m = dict(self._steps.states.base)
        run.host = None
        self._steps.settle(senders_of(self.vm, self._steps.states, self._steps.cells))
        return self._steps.pause(run, result)._replace(
            sev_features=self._steps.at.of_vmsa(run, "sev_features") | self.vm.snp_features,
            launched=(self._steps.at.of_vmsa(run, "rflags"), self._steps.at.of_vmsa(run, "dr7")),
            efer_passes=self._steps.at.efer_passes(run),
        )

    def _quiet_run(self, private: Private) -> KernelRun:
        run = self.vm.prepare(KernelRun(self.program))
        self._steps.states.restore(run, private)
        run.frames = ()
        return run

    def _declined(self, refusals: list[tuple[str, int]], pause: Pause) -> CLine | None:
        """The last statement that examined a waiting event and declined it, if none was injected after all."""
        if pause.unmodelled:
            return None
        view = self.view(pause.private)
        if view.event_inj & SVM_EVTINJ_VALID:
            return None
        blocks = [block for waits, block in refusals if getattr(view, waits)]
        lines = [line for block in blocks for line in self.program.block_lines(block)]
        return lines[-1] if lines else None

    # Senders. ---------------------------------------------------------------------------------------------------

    def _send(self, private: Private, sender: SenderState) -> Sent:
        run = self._quiet_run(private)
        assert isinstance(private, State)
        assert isinstance(sender, EventSender)
        run.frames = private.frames  # type: ignore[assignment]
        try:
            access = self._steps.sender.access(sender)
            if access is None:
                return Sent(private, NO_SENDER, False, "the event is dropped", CLine("", 0))
            step = self._steps.sender.step(sender, run.m)
        except Unmodelled as error:
            return Sent(private, NO_SENDER, False, "", CLine("", 0), describe(error))
        run.m[access.address] = step.word
        run.m.update(step.writes)
        self._steps.blocks.update(step.blocks)
        self._notes.note(self.program.uses(step.blocks))
        return Sent(self._steps.states.of(run), step.state(sender.kind), step.ipi, step.where.text, step.where)


def _refused(refusals: list[tuple[str, int]], waits: str, run: Any, result: Any) -> None:
    """Note where a function of the tree said no."""
    if result == 0:
        refusals.append((waits, run.trace[-1]))
