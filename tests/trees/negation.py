"""Negates conditions of a tree one at a time and tells how a run notices.

What a run shows: its verdict, its counterexample, and every visible transition: what the hypervisor's view and the VMCB
were before a step of KVM or of a sender, and what they are after it. A run stops at the first transition that the run
without negation does not have. Every negation has a process of its own, forked when the tree has been read and lowered.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar

from iretrace.check import check
from iretrace.explore.graph import Limits
from iretrace.linux.answers import ConditionId
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.models.findings import Bug
from iretrace.linux.tree import open_tree
from iretrace.linux.unmodelled import Unmodelled
from iretrace.litmus.corpus import select
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import unpack
from iretrace.verdict import Assumption, InputError, Result
from iretrace.world.protocol import (
    NO_HOST_DEBUG,
    NO_SENDER,
    Cause,
    Debug,
    Executed,
    Landing,
    Pause,
    Private,
    Processor,
    SenderState,
    Sent,
    View,
)

TEST = "nmi-complete-then-spin"
LIMITS = Limits(max_states=5_000)
SECONDS = 8
"""How much processor time a run may take; without negation it takes about one second."""

A = TypeVar("A")
R = TypeVar("R")

Sight = Hashable
"""A visible transition."""


class Noticed(Exception):
    """The run shows what the run without negation does not show."""


class TooLong(Exception):
    """The C does not end."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a run without negation shows, and the conditions that it decides."""

    verdict: str
    trace: Hashable
    sights: frozenset[Sight]
    conditions: frozenset[ConditionId]


@dataclass
class Watched:
    """A hypervisor whose transitions are noted. expected: raise Noticed at any other; None: expect everything."""

    inner: TreeHypervisor
    expected: frozenset[Sight] | None
    sights: set[Sight] = field(default_factory=set)

    def note(self, sight: Sight) -> None:
        """A transition."""
        if self.expected is not None and sight not in self.expected:
            raise Noticed(f"a transition that is new: {sight}")
        self.sights.add(sight)

    def start(self) -> Pause:
        """See Hypervisor."""
        pause = self.inner.start()
        self.note(("start", self._hand_over(pause)))
        return pause

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
        """See Hypervisor."""
        before = (self.inner.view(private), cause, vmcb.exit_code, vmcb.exit_int_info, vmcb.int_state)
        pause = self.inner.step(private, vmcb, ghcb, cause, senders, schedule, debug)
        landed = tuple((number, steps) for _, number, steps in schedule)
        self.note(("step", before, landed, self._hand_over(pause)))
        return pause

    def send(self, private: Private, sender: SenderState) -> Sent:
        """See Hypervisor."""
        sent = self.inner.send(private, sender)
        after = (self.inner.view(sent.private), sent.sender is NO_SENDER, sent.ipi, bool(sent.unmodelled))
        self.note(("send", self.inner.view(private), after))
        return sent

    def _hand_over(self, pause: Pause) -> Hashable:
        """What can be seen of a hand-over. Where the VMSA lies is no matter, only that there is one."""
        vmcb = unpack(Vmcb, pause.vmcb)
        vmcb.vmsa_pa = int(vmcb.vmsa_pa != 0)
        rest = (pause.log, pause.ipi, pause.warm, pause.exit_reason, bool(pause.unmodelled))
        sentences = tuple(sentence for sentence, _ in pause.defects)
        return pause.kind, vmcb.pack(), pause.ghcb, rest, sentences, self.inner.view(pause.private)  # type: ignore[attr-defined]

    # The rest is the inner hypervisor's.

    @property
    def name(self) -> str:
        """See Hypervisor."""
        return self.inner.name

    @property
    def vcpu(self) -> str:
        """See Hypervisor."""
        return self.inner.vcpu

    @property
    def processor(self) -> Processor:
        """See Hypervisor."""
        return self.inner.processor

    def sender(self, kind: str) -> SenderState:
        """See Hypervisor."""
        return self.inner.sender(kind)

    def runnable(self, private: Private) -> bool:
        """See Hypervisor."""
        return self.inner.runnable(private)

    def view(self, private: Private) -> View:
        """See Hypervisor."""
        return self.inner.view(private)

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
        """See Hypervisor."""
        return self.inner.explain(private, vmcb, ghcb, cause, senders, schedule, debug)

    def new_ledger(self) -> None:
        """See Hypervisor."""
        self.inner.new_ledger()

    def statements(self) -> int:
        """See Hypervisor."""
        return self.inner.statements()

    def assumptions(self) -> tuple[Assumption, ...]:
        """See Hypervisor."""
        return self.inner.assumptions()


class Negations:
    """All negations of one tree."""

    def __init__(self, root: Path) -> None:
        self._lowered = TreeHypervisor(open_tree(root))
        judge(Watched(self._lowered, None))
        gc.freeze()
        ((_, shown),) = self._forked(_show, [None], 1)
        self.shown = shown
        """What the run shows without negation."""

    def text(self, condition: ConditionId) -> str:
        """The source line of a condition."""
        lines = (self._lowered.machine.tree.text(condition.path) or "").split("\n")
        return lines[condition.line - 1].strip()

    def run(self, conditions: Iterable[ConditionId], jobs: int = 2) -> Iterator[tuple[ConditionId, str]]:
        """(condition, how its negation is noticed, "" if it is not), in the order given."""
        return self._forked(_notice, list(conditions), jobs)

    def negated(self, condition: ConditionId | None) -> TreeHypervisor:
        """The tree with a condition negated. Spoils this process for anything else."""
        if condition is not None:
            self._lowered.program.invert(condition)
        return TreeHypervisor(self._lowered.machine.tree, machine=self._lowered.machine)

    def decided(self) -> frozenset[ConditionId]:
        """The conditions of creation and run."""
        return frozenset(self._lowered.conditions())

    def _forked(self, function: Callable[[A], R], arguments: Sequence[A], jobs: int) -> Iterator[tuple[A, R]]:
        """Every call in a new process that inherits this object."""
        global _INHERITED
        _INHERITED = self
        with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
            yield from zip(arguments, pool.imap(function, arguments), strict=True)


_INHERITED: Negations | None = None


def judge(hypervisor: Watched) -> Result:
    """The verdict of the test, each step of a sender by itself: the more is shown."""
    (test,) = select([TEST])
    return check(test, "sev-es", "tickless", hypervisor, LIMITS, at_once=False)


def _show(_: None) -> Shown:
    assert _INHERITED is not None
    watched = Watched(_INHERITED.negated(None), None)
    result = judge(watched)
    return Shown(result.verdict, told(result), frozenset(watched.sights), _INHERITED.decided())


def _notice(condition: ConditionId) -> str:
    """How the negation of a condition is noticed; "" if it is not."""
    assert _INHERITED is not None
    signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    expected = _INHERITED.shown
    try:
        watched = Watched(_INHERITED.negated(condition), expected.sights)
        result = judge(watched)
    except (Noticed, TooLong, Unmodelled, Bug, InputError) as notice:
        return f"{type(notice).__name__}: {notice}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if result.verdict != expected.verdict:
        return f"the verdict becomes {result.verdict}: {result.reason}"
    if told(result) != expected.trace:
        return "another counterexample"
    missing = len(expected.sights - watched.sights)
    return f"{missing} transitions are missing" if missing else ""


def told(result: Result) -> Hashable:
    """What others than KVM do in a counterexample, and how the view is then; not which statements KVM executes."""
    if result.trace is None:
        return None
    stem, loop = result.trace.stem, result.trace.loop
    return tuple(tuple((s.actor, s.what, s.view) for s in part if s.actor != "KVM") for part in (stem, loop))


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise TooLong(f"no end in {SECONDS} s")
