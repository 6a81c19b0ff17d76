"""Agreement: two hypervisors under equal guests, equal arrivals and equal schedules must do the same.

A product search over pairs of *sets* of states. The two sides do not cut their work in equal pieces: one may access a
shared cell twice where the other does it once, so that a sender lands in more places there. What must be equal is what
can come out. So each side carries the set of all its states that the inputs so far can have led to, and the sets are
split by what is compared at every VMRUN, sleep and return to userspace: the guest's processor, the VMCB fields that
events are made of, requests, queued NMIs, mp_state and KVM_GET_VCPU_EVENTS. A class that one side has and the other
lacks is a difference. While a sender is half-way only its being so is compared, not what it has done already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from iretrace.litmus.test import Test
from iretrace.machine.cpu import Cpu
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import pack
from iretrace.world.core import FINISHED, UNSTARTED, Phase
from iretrace.world.product import Point, Product
from iretrace.world.protocol import Cause, ComparableHypervisor

COMPARED_ALWAYS = (
    "event_inj",
    "event_inj_err",
    "int_ctl",
    "int_state",
    "intercept_cr",
    "intercept_dr",
    "intercept_exception",
    "intercept_word3",
    "intercept_word4",
    "intercept_word5",
)
COMPARED_UNPROTECTED = ("rip", "rflags", "cpl", "ss", "dr6", "dr7", "efer")
"""Register state that the hypervisor can read and write: not an SEV-ES guest's."""

Label = tuple[tuple[str, Hashable], ...]
"""What is compared of a state, as (name, value)."""

DEFECT = "defect"
UNMODELLED = "unmodelled"
PROGRESS = {UNSTARTED: "", FINISHED: "done"}
UNKNOWN: Label = (("ends", UNMODELLED),)
MAX_PAIRS = 200_000

Half = frozenset[Point]
"""The states that one side can be in."""


class Pair(NamedTuple):
    """One state of the search: the states of both sides that look alike."""

    first: Half
    second: Half


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that only one side can do. path: the inputs that lead there. only: who. label: what it does there.

    other: what comes closest on the other side. side: 0 or 1, who. before: what both can be in when the last of the
    inputs comes, None at the start."""

    path: tuple[str, ...]
    only: str
    label: Label
    other: Label | None
    side: int = 0
    before: Pair | None = None

    def __str__(self) -> str:
        way = ", ".join(self.path) or "at the start"
        if self.other is None:
            return f"{way}: only {self.only}: {_said(self.label)}"
        theirs = dict(self.other)
        mine = [(name, value, theirs.get(name)) for name, value in self.label if theirs.get(name) != value]
        fields = ", ".join(f"{name} {_value(value)} (else {_value(other)})" for name, value, other in mine)
        return f"{way}: only {self.only}: {fields}"

    def side_by_side(self, names: tuple[str, str]) -> str:
        """What differs on both sides, which are called so, the first one first."""
        if self.other is None:
            return f"only {names[self.side]} can do this: {_said(self.label)}"
        both = dict(self.label), dict(self.other)
        differ = [name for name in both[0] if both[0][name] != both[1].get(name)]
        told = [", ".join(f"{name}={_value(side.get(name))}" for name in differ) for side in both]
        first, second = told if self.side == 0 else reversed(told)
        return f"{names[0]} has {first}; {names[1]} has {second}"


@dataclass(slots=True)
class Agreement:
    """What came out. pairs: states of the search. unmodelled: what either side does not model, met on the way.

    sides: the two hypervisors, to ask them about the difference."""

    pairs: int = 0
    differences: list[Difference] = field(default_factory=list)
    unmodelled: list[str] = field(default_factory=list)
    gave_up: bool = False
    sides: tuple[Side, ...] = ()

    @property
    def agreed(self) -> bool:
        """Everything was looked at, and nothing differs."""
        return not (self.differences or self.unmodelled or self.gave_up)


def agree(
    test: Test,
    vcpu: str,
    host: str,
    first: ComparableHypervisor,
    second: ComparableHypervisor,
    most_differences: int = 1,
    max_pairs: int = MAX_PAIRS,
    left_out: frozenset[str] = frozenset(),
) -> Agreement:
    """Search for a difference; the shortest ones, at most so many. left_out: what is not compared, by its name."""
    sides = (Side(test, vcpu, host, first, left_out), Side(test, vcpu, host, second, left_out))
    made = Agreement(sides=sides)
    parents: dict[Pair, tuple[Pair | None, str]] = {}
    queue: deque[Pair] = deque()

    def meet(before: Pair | None, letter: str, results: tuple[Half, Half]) -> None:
        classes = tuple(side.classes(half) for side, half in zip(sides, results, strict=True))
        for label in [*classes[0], *(label for label in classes[1] if label not in classes[0])]:
            halves = tuple(found.get(label, frozenset()) for found in classes)
            if not all(halves):
                only = 0 if halves[0] else 1
                if UNKNOWN in classes[1 - only] or label == UNKNOWN:
                    continue  # what is not modelled is not known to differ; it is listed
                close = _closest(label, classes[1 - only])
                path = (*_path(parents, before), letter) if letter else ()
                made.differences.append(Difference(path, sides[only].name, label, close, only, before))
                continue
            pair = Pair(*halves)
            if pair not in parents:
                parents[pair] = (before, letter)
                queue.append(pair)

    meet(None, "", (sides[0].start(), sides[1].start()))
    while queue and len(made.differences) < most_differences:
        pair = queue.popleft()
        made.pairs += 1
        if made.pairs > max_pairs:
            made.gave_up = True
            break
        for letter in ("guest", "tick", "host", "wake"):
            results = tuple(side.after(half, letter) for side, half in zip(sides, pair, strict=True))
            if any(results):
                meet(pair, letter, (results[0], results[1]))
    del made.differences[most_differences:]
    made.unmodelled = sorted({f"{side.name}: {what}" for side in sides for what in side.unmodelled})
    return made


class Side:
    """One of the two hypervisors with its guest and its senders."""

    def __init__(
        self, test: Test, vcpu: str, host: str, hypervisor: ComparableHypervisor, left_out: frozenset[str]
    ) -> None:
        self.hypervisor = hypervisor
        self._left_out = left_out
        self.name = hypervisor.name
        self.product = Product(test, vcpu, host, hypervisor)
        self._calls = not any(arrival.debugger for arrival in test.outside)
        """The VMM makes its calls. A debugger's, which stop the guest at every instruction, are left out."""
        self.product.monitor.start()  # never asked: the two are compared with each other, not with the processor
        self.unmodelled: set[str] = set()
        self._defects: dict[Point, str] = {}
        self._labels: dict[tuple[int, bool], Label] = {}
        self._vmcb_fields = [
            (name, number)
            for number, name in enumerate(Vmcb.__annotations__)
            if name in COMPARED_ALWAYS or (name in COMPARED_UNPROTECTED and not self.product.vcpu.machine.sev_es)
        ]

    def start(self) -> Half:
        """After the first VMRUN."""
        step = self.product.vcpu.start(len(self.product.test.outside))
        return self.closed([self.made(step.core, step.senders, step.defect, step.unmodelled)])

    def after(self, half: Half, letter: str) -> Half:
        """Everything that the next step of guest, host or tick can lead to, with senders free to go on after it."""
        return self.closed(after for point in half for after in self._moves(point, letter))

    def _moves(self, point: Point, letter: str) -> Iterator[Point]:
        if point in self._defects:
            return
        core = self.product.core(point)
        if core.phase == Phase.HOST and letter == "host":
            called = self.product.ioctl(point) if core.cause == Cause.RERUN and self._calls else None
            if called is not None:
                target = called.target if isinstance(called.target, Point) else point._replace(core=-1)
                yield self.made(target.core, target.senders, called.defect, called.unmodelled)
                return
            for step in self.product.host_steps(point):
                yield self.made(step.core, step.senders, step.defect, step.unmodelled)
        elif core.phase == Phase.BLOCKED and letter == "wake":
            woken = self.product.vcpu.woken(point.core)
            if woken >= 0:
                yield point._replace(core=woken)
        elif core.phase == Phase.GUEST and self.product.placed_here(point) < 0:
            if letter == "tick" and self.product.ticking:
                yield point._replace(core=self.product.vcpu.interrupted(point.core))
            elif letter == "guest":
                did = self.product.did(point)
                after = -1 if did.defect else self.product.vcpu.after(point.core, did)
                yield self.made(after, point.senders, did.defect, "")

    def made(self, core: int, senders: tuple[int, ...], defect: str, unmodelled: str) -> Point:
        """The point, or one that stands for a run that ends here."""
        if unmodelled:
            self.unmodelled.add(unmodelled)
        if core >= 0:
            return Point(core, senders, 0, ())
        end = Point(-1, senders, 0, (int(bool(defect)),))
        self._defects[end] = DEFECT if defect else UNMODELLED
        return end

    def closed(self, points: Iterable[Point]) -> Half:
        """These, and all that senders can make of them where they can run by themselves."""
        found = set(points)
        todo = list(found)
        while todo:
            point = todo.pop()
            for after in self._sends(point):
                if after not in found:
                    found.add(after)
                    todo.append(after)
        return frozenset(found)

    def _sends(self, point: Point) -> Iterator[Point]:
        if point in self._defects:
            return
        core = self.product.core(point)
        if (core.phase == Phase.HOST and core.cause != Cause.RERUN) or core.phase == Phase.ENDED:
            return
        for number in self.product.sendable(point):
            step = self.product.sender_step(point, number)
            ends = step.sender == FINISHED and self._calls
            left = self.product.vcpu.finished(number) if ends else step.sender
            senders = (*point.senders[:number], left, *point.senders[number + 1 :])
            yield self.made(step.core, senders, "", step.sent.unmodelled)

    # What is compared. ------------------------------------------------------------------------------------------

    def classes(self, half: Half) -> dict[Label, Half]:
        """The states by what is compared of them."""
        found: dict[Label, set[Point]] = {}
        for point in half:
            found.setdefault(self.label(point), set()).add(point)
        return {label: frozenset(points) for label, points in found.items()}

    def label(self, point: Point) -> Label:
        """What is compared of a state."""
        if point in self._defects:
            return (("ends", self._defects[point]),)
        core = self.product.core(point)
        half_way = any(sender >= 0 for sender in point.senders)
        # After the guest's shutdown nothing runs any more; the reset that KVM does then, and what lands in the middle
        # of it, are not compared.
        ended = core.phase == Phase.ENDED
        half_way = half_way or ended
        running = core.phase == Phase.HOST and core.cause != Cause.RERUN
        key = (point.core, half_way or running)
        known = self._labels.get(key)
        if known is None:
            known = self._labels[key] = self._core_label(point, not (half_way or running))
        progress = () if ended else tuple(PROGRESS.get(sender, "begun") for sender in point.senders)
        return (("senders", progress), *known)

    def _core_label(self, point: Point, whole: bool) -> Label:
        core = self.product.core(point)
        cpu = self.product.cpu(point)
        if not whole:
            cpu.intr_pending = 0
        label: list[tuple[str, Hashable]] = [("phase", Phase(core.phase).name), ("cause", Cause(core.cause).name)]
        names = list(Cpu.__annotations__)
        label.extend((f"cpu.{name}", value) for name, value in zip(names, pack(cpu), strict=True))
        if core.phase == Phase.BLOCKED and whole:
            label.append(("awake", self.hypervisor.runnable(self.product.vcpu.private(point.core))))
        if whole:
            vmcb = self.product.vcpu.vmcbs.values[core.vmcb]
            label.extend((f"vmcb.{name}", vmcb[number]) for name, number in self._vmcb_fields)
            compared = self.hypervisor.compare(self.product.vcpu.private(point.core))
            label.append(("requests", tuple(sorted(compared.requests))))
            label.append(("nmi_queued", compared.nmi_queued))
            label.append(("mp_state", compared.mp_state))
            label.append(("events", compared.events))
            label.append(("debug_registers", compared.debug_registers))
        return tuple((name, value) for name, value in label if name not in self._left_out)


def _closest(label: Label, others: Iterable[Label]) -> Label | None:
    """The label of the other side that has most in common with this one."""
    return max(others, key=lambda other: len(set(label) & set(other)), default=None)


def _path(parents: dict[Pair, tuple[Pair | None, str]], pair: Pair | None) -> tuple[str, ...]:
    path: list[str] = []
    while pair is not None:
        before, letter = parents[pair]
        if letter:
            path.append(letter)
        pair = before
    return tuple(reversed(path))


def _said(label: Label) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in label if value not in (0, (), ""))


def _value(value: Hashable) -> str:
    return hex(value) if isinstance(value, int) and value > 9 else str(value)
