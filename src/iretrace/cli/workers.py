"""Verdicts found by several processes.

For each vCPU kind one process opens the hypervisor and forks one more for each verdict. So every verdict starts from a
hypervisor that has just been opened, and what it rests on (its ledger) does not depend on what else was asked for. What
a verdict had to read, those that start later find read already; they note it all the same.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Lock, Semaphore
from typing import Any, Generic, TypeVar

CONTEXT = multiprocessing.get_context("fork")
"""Children inherit what has been read already."""

PATIENCE = 0.02
"""Seconds between two looks for children that have ended."""

HELD = (signal.SIGTERM,)
"""Held back while a child starts: it must be on the list of those to end, and ready to end."""

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
    lesson: Callable[[Done], Any] = lambda _done: None
    """What of a result makes jobs of its group faster that start later."""
    learn: Callable[[Any], None] = lambda _lesson: None
    """Does in the group's process what a lesson says. It must change nothing but how long those jobs take."""


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
    """(number, what it came to) for each job as it ends. Raises what a job or an opening raises, or WorkerDied."""
    reader, writer = CONTEXT.Pipe(duplex=False)
    line = _Line(writer, CONTEXT.Lock())
    slots = CONTEXT.Semaphore(work.processes)
    groups = [CONTEXT.Process(target=_group, args=(work, name, slots, line)) for name in work.groups]
    try:
        for process in groups:
            process.start()
        yield from _listen(sum(map(len, work.groups.values())), reader, groups, progress)
    finally:
        for process in groups:
            process.terminate()
        for process in groups:
            process.join()


def _listen(
    wanted: int, reader: Connection, groups: Sequence[BaseProcess], progress: Callable[[str], None]
) -> Generator[tuple[int, Any], None, None]:
    while wanted:
        alive = [process.sentinel for process in groups if process.is_alive()]
        if not alive and not reader.poll():
            raise WorkerDied("a process ended without a result; is there enough memory?")
        if reader not in wait([reader, *alive]):
            continue
        what, number, value = reader.recv()
        if what == "progress":
            progress(value)
        elif what == "failed":
            raise value
        else:
            wanted -= 1
            yield number, value


def _group(work: Work[Any, Any], name: str, slots: Semaphore, line: _Line) -> None:
    """A group's process."""
    children: list[BaseProcess] = []

    def end(_signal: int, _frame: object) -> None:
        for child in children:
            child.terminate()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, end)
    try:
        with slots:
            opened = work.open(name)
    except Exception as error:
        line.send_error(error)
        return
    gc.freeze()  # what was opened stays, and need not be looked through again by each child
    waiting = list(work.groups[name])
    teachers: list[Connection] = []
    while waiting or children:
        if waiting and slots.acquire(timeout=PATIENCE):
            reader, writer = CONTEXT.Pipe(duplex=False)
            child: BaseProcess = CONTEXT.Process(target=_job, args=(work, opened, waiting.pop(0), line, writer))
            signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
            child.start()
            children.append(child)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
            writer.close()
            teachers.append(reader)
        if not waiting:
            wait([*teachers, *(child.sentinel for child in children)])
        for teacher in [teacher for teacher in teachers if teacher.poll()]:
            teachers.remove(teacher)
            _learn(work, teacher)
        for ended in [child for child in children if not child.is_alive()]:
            children.remove(ended)
            if ended.exitcode:  # told before another one can begin
                line.send_error(WorkerDied(f"a process ended with {ended.exitcode}; is there enough memory?"))
            slots.release()


def _learn(work: Work[Any, Any], teacher: Connection) -> None:
    """Learn from a job's process, unless it has failed."""
    with teacher, suppress(EOFError):
        work.learn(teacher.recv())


def _job(work: Work[Any, Any], opened: Any, number: int, line: _Line, teacher: Connection) -> None:
    """A job's process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    try:
        done = work.do(opened, number, lambda text: line.send("progress", number, text))
        line.send("done", number, done)
        teacher.send(work.lesson(done))
    except Exception as error:
        line.send_error(error)
