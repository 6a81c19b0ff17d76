"""Where two hypervisors part: one real run of each to their first difference, told as steps.

agreement.py finds a difference between sets of states; here one run of each side is picked out of the sets that leads
to it: to a state from which, on the same input, one side does what the other cannot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from iretrace.explore.graph import Edge, Kind
from iretrace.verdict import Step
from iretrace.world.agreement import Difference, Half, Label, Side
from iretrace.world.core import Phase
from iretrace.world.product import GUEST_LABEL, TICK_LABEL, WAKE_LABEL, Point
from iretrace.world.protocol import Cause
from iretrace.world.story import Story

Path = list[tuple[Point | None, Edge]]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of one side. stem: the steps that lead to the parting. last: what it does there; empty if no run is found
    on this side, since it has nothing that comes close."""

    stem: tuple[Step, ...]
    last: tuple[Step, ...]


def runs(sides: tuple[Side, ...], difference: Difference) -> tuple[Run, Run]:
    """A run of each side up to a difference that `agree` has found."""
    wanted = [difference.other, difference.other]
    wanted[difference.side] = difference.label
    halves = difference.before or (None, None)
    letter = difference.path[-1] if difference.path else ""
    first, second = (_run(side, half, letter, label) for side, half, label in zip(sides, halves, wanted, strict=True))
    return first, second


def _run(side: Side, before: Half | None, letter: str, label: Label | None) -> Run:
    start = _start(side)
    if before is None or start.target is None:
        return Run((), Story(side.product).tell([(None, start)]))
    lasts: dict[Point, Edge | None] = dict(_lasts(side, before, letter, label)) if label is not None else {}
    if not lasts:  # nothing comes close: at least the way to where they part
        lasts = dict.fromkeys(before)
    path = _way(side, start, lasts)
    if path is None:
        return Run((), ())
    at = path[-1][1].target
    assert isinstance(at, Point)
    story = Story(side.product)
    stem = story.tell(path)
    edge = lasts[at]
    return Run(stem, story.tell([(at, edge)]) if edge is not None else ())


def _start(side: Side) -> Edge:
    step = side.product.vcpu.start(len(side.product.test.outside))
    target = Point(step.core, step.senders, 0, ()) if step.core >= 0 else None
    return Edge(Kind.RUN, step.label, target, defect=step.defect, unmodelled=step.unmodelled)


def _lasts(side: Side, before: Half, letter: str, label: Label) -> Iterator[tuple[Point, Edge]]:
    """States of a set and the edge by this input that leads to what is looked for, perhaps after senders went on."""
    for point in sorted(before):
        for edge, after in _by_input(side, point):
            if edge.label[0] != letter:  # type: ignore[index]
                continue
            if any(side.label(reached) == label for reached in side.closed([after])):
                yield point, edge
                break


def _way(side: Side, start: Edge, wanted: dict[Point, Edge | None]) -> Path | None:
    """The shortest path to one of these states."""
    assert isinstance(start.target, Point)
    came: dict[Point, tuple[Point | None, Edge]] = {start.target: (None, start)}
    queue = deque([start.target])
    while queue:
        point = queue.popleft()
        if point in wanted:
            path: Path = []
            at: Point | None = point
            while at is not None:
                before, edge = came[at]
                path.append((before, edge))
                at = before
            return path[::-1]
        for edge, after in (*_by_input(side, point), *_by_sender(side, point)):
            if after.core >= 0 and after not in came:
                came[after] = (point, edge)
                queue.append(after)
    return None


def _by_input(side: Side, point: Point) -> Iterator[tuple[Edge, Point]]:
    """What the next step of guest, host or tick can lead to."""
    product = side.product
    if point.core < 0:
        return
    core = product.core(point)
    if core.phase == Phase.HOST:
        for step in product.host_steps(point):
            after = side.made(step.core, step.senders, step.defect, step.unmodelled)
            yield Edge(Kind.RUN, step.label, after, defect=step.defect, unmodelled=step.unmodelled), after
    elif core.phase == Phase.BLOCKED:
        woken = product.vcpu.woken(point.core)
        if woken >= 0:
            after = point._replace(core=woken)
            yield Edge(Kind.RUN, WAKE_LABEL, after), after
    elif core.phase == Phase.GUEST and product.placed_here(point) < 0:
        if product.ticking:
            after = point._replace(core=product.vcpu.interrupted(point.core))
            yield Edge(Kind.TICK, TICK_LABEL, after), after
        did = product.did(point)
        after = side.made(-1 if did.defect else product.vcpu.after(point.core, did), point.senders, did.defect, "")
        yield Edge(Kind.RUN, GUEST_LABEL, after, defect=did.defect), after


def _by_sender(side: Side, point: Point) -> Iterator[tuple[Edge, Point]]:
    """What the senders can do where they run by themselves."""
    product = side.product
    core = product.core(point)
    if (core.phase == Phase.HOST and core.cause != Cause.RERUN) or core.phase == Phase.ENDED:
        return
    for number in product.sendable(point):
        step = product.sender_step(point, number)
        senders = (*point.senders[:number], step.sender, *point.senders[number + 1 :])
        after = side.made(step.core, senders, "", step.sent.unmodelled)
        yield Edge(Kind.OUTSIDE, ("send", number, 1), after), after
