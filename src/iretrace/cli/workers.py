"""Verdicts found by several processes.

Each process opens the hypervisor of a vCPU kind and finds one verdict of that kind after the other; when none is left,
it goes on with another kind. What a hypervisor has worked out for one verdict it need not work out for the next; what a
verdict rests on (its ledger) does not depend on that, nor on which process found it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Lock
from typing import Any, Generic, TypeVar

NO_JOB = ("", -1)
"""The order to close what was opened."""

CONTEXT = multiprocessing.get_context("fork")
"""Children inherit what has been read already."""

Opened = TypeVar("Opened")
Done = TypeVar("Done")


class WorkerDied(Exception):
    """A process ended without a result: the system ended it, perhaps for want of memory."""


@dataclass(frozen=True, slots=True)
class Work(Generic[Opened, Done]):
    """What is to be done. groups: the numbers of the jobs of each group, in the order in which they start."""

    groups: Mapping[str, Sequence[int]]
    open: Callable[[str], Opened]
    """Opens what the jobs of a group share."""
    do: Callable[[Opened, int, Callable[[str], None]], Done]
    """Does a job; the third argument says what is going on."""
    processes: int = 1
    close: Callable[[Mapping[str, Opened]], None] = lambda _opened: None
    """Ends what was opened for groups, by their names, when the process has no more jobs."""


@dataclass(frozen=True, slots=True)
class _Line:
    """To the first process: one message at a time."""

    writer: Connection
    lock: Lock

    def send(self, what: str, number: int, value: Any) -> None:
        with self.lock:
            self.writer.send((what, number, value))

    def send_error(self, error: Exception) -> None:
        if os.environ.get("IRETRACE_DEBUG") == "1":
            error.add_note(traceback.format_exc())
        try:
            self.send("failed", -1, error)
        except Exception:
            self.send("failed", -1, RuntimeError(f"{type(error).__name__}: {error}"))


def results(work: Work[Opened, Done], progress: Callable[[str], None]) -> Generator[tuple[int, Done], None, None]:
    """(number, what it came to) for each job as it ends. Raises what a job, an opening or a closing raises, or
    WorkerDied."""
    reader, writer = CONTEXT.Pipe(duplex=False)
    line = _Line(writer, CONTEXT.Lock())
    plan = _Plan({name: deque(numbers) for name, numbers in work.groups.items()})
    lanes = [_Lane(work, line) for _ in range(min(work.processes, plan.left()))]
    try:
        for lane in lanes:
            lane.process.start()
            lane.give(plan)
        yield from _listen(reader, lanes, plan, progress)
    finally:
        for lane in lanes:
            lane.process.terminate()
        for lane in lanes:
            lane.process.join()


class Aside(Generic[Done]):
    """Works something out in another process meanwhile: in a `with`, until its end at most."""

    def __init__(self, compute: Callable[[], Done]) -> None:
        self._reader, writer = CONTEXT.Pipe(duplex=False)
        line = _Line(writer, CONTEXT.Lock())
        self._process = CONTEXT.Process(target=_compute, args=(compute, line), daemon=True)
        self._process.start()
        writer.close()

    def __enter__(self) -> Aside[Done]:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def is_done(self) -> bool:
        """Whether `result` is there, be it an error."""
        return self._reader.poll()

    def result(self) -> Done:
        """What it came to, when that is there; to be called once. Raises what it raises, or WorkerDied."""
        try:
            what, _, value = self._reader.recv()
        except EOFError:
            raise WorkerDied("a process ended without a result; is there enough memory?") from None
        if what == "failed":
            raise value
        done: Done = value
        return done

    def stop(self) -> None:
        """Whether it is done or not: nobody waits for it."""
        self._process.terminate()
        self._process.join()


def _compute(compute: Callable[[], Any], line: _Line) -> None:
    """An Aside's process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        line.send("done", 0, compute())
    except Exception as error:
        line.send_error(error)


@dataclass(slots=True)
class _Plan:
    """The jobs that nobody does yet. opened: how many processes have opened a group."""

    waiting: Mapping[str, deque[int]]
    opened: Counter[str] = field(default_factory=Counter)

    def left(self) -> int:
        """How many."""
        return sum(map(len, self.waiting.values()))

    def next(self, own: Set[str]) -> str:
        """The group from which a process takes its next job that has opened these: one of them, else one that the
        fewest have, and of these the longest."""
        names = [name for name, numbers in self.waiting.items() if numbers]
        return min(names, key=lambda name: (name not in own, self.opened[name], -len(self.waiting[name])))


class _Lane:
    """A process that does one job after the other, as the first process sees it. job: which; -1 for none, that is, it
    is closing. ended: it has done that."""

    def __init__(self, work: Work[Any, Any], line: _Line) -> None:
        orders, self._orders = CONTEXT.Pipe(duplex=False)
        self.process: BaseProcess = CONTEXT.Process(target=_do_jobs, args=(work, orders, line))
        self.job = -1
        self.ended = False
        self._groups: set[str] = set()

    def give(self, plan: _Plan) -> None:
        """The next job, if there is one."""
        order = self._next(plan) if plan.left() else NO_JOB
        _, self.job = order
        with suppress(BrokenPipeError):  # it has died, which is heard of
            self._orders.send(order)

    def _next(self, plan: _Plan) -> tuple[str, int]:
        name = plan.next(self._groups)
        if name not in self._groups:
            self._groups.add(name)
            plan.opened[name] += 1
        return name, plan.waiting[name].popleft()


def _listen(
    reader: Connection, lanes: Sequence[_Lane], plan: _Plan, progress: Callable[[str], None]
) -> Generator[tuple[int, Any], None, None]:
    while working := [lane for lane in lanes if not lane.ended]:
        ready = wait([reader, *(lane.process.sentinel for lane in working)])
        if reader not in ready:
            (ended, *_) = (lane.process for lane in working if lane.process.sentinel in ready)
            ended.join()
            raise WorkerDied(f"a process ended with {ended.exitcode}; is there enough memory?")
        what, number, value = reader.recv()
        if what == "progress":
            progress(value)
        elif what == "failed":
            raise value
        elif what == "closed":
            next(lane for lane in lanes if lane.process.pid == number).ended = True
        else:
            next(lane for lane in lanes if lane.job == number).give(plan)
            yield number, value


def _do_jobs(work: Work[Any, Any], orders: Connection, line: _Line) -> None:
    """A lane's process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    opened: dict[str, Any] = {}
    gc.disable()  # a search keeps what it makes and makes no circles: it would be looked through again and again
    try:
        while (order := orders.recv()) != NO_JOB:
            name, number = order
            if name not in opened:
                opened[name] = work.open(name)
            line.send("done", number, work.do(opened[name], number, lambda text: line.send("progress", -1, text)))
        work.close(opened)
        line.send("closed", os.getpid(), None)
    except Exception as error:
        line.send_error(error)
