"""What a live run has shown, held against the model of the same kernel.

Verdicts need nothing of the run: another process finds them while the virtual machine runs, and gives way to it.
Histories are looked for when they have come, each test's in a process of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from iretrace.cli.driver import Request, run
from iretrace.cli.sources import Source
from iretrace.cli.stored import Stored
from iretrace.cli.workers import CONTEXT, Work, WorkerDied, results
from iretrace.explore.graph import Limits
from iretrace.litmus.test import Test
from iretrace.live.explain import Explainer, Objection
from iretrace.live.follow import NOT_KNOWN, Follower
from iretrace.live.guests import directed
from iretrace.live.observed import Run
from iretrace.live.session import Machine, Say, Seen, Session, distinct, run_more
from iretrace.live.witness import may_be, places
from iretrace.report.live import Compared, Strange
from iretrace.verdict import Outcome, Result, Verdict
from iretrace.world.protocol import Hypervisor

HOSTS = ("tickless", "ticking")
LIMITS = Limits(max_states=40_000)
"""For one verdict; the searches for histories have limits of their own."""

MOST_TRIED = 8
"""For one test: outcomes of the model that directed runs try to show."""

DIRECTED_REPEAT = 5

YIELDS = 10
"""How nice to the virtual machine those are that find verdicts beside it."""

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What the model says of a test. objections: to each history that it was asked about. ways: places of events (as in
    witness.places) for outcomes that were not seen."""

    objections: Sequence[Objection]
    ways: Sequence[tuple[int, ...]] = ()


class Model:
    """The verdicts of a request on a source, which are being found, and a place to ask more."""

    def __init__(self, request: Request, source: Source, reader: Connection) -> None:
        self.request, self.source = request, source
        self._reader = reader

    def verdicts(self, progress: Say) -> list[Result]:
        """Waits for them. Raises what their process raises."""
        while True:
            try:
                what, value = self._reader.recv()
            except EOFError:
                raise WorkerDied("the process that finds verdicts ended; is there enough memory?") from None
            if what == "failed":
                raise value
            if what == "done":
                return list(value)
            progress(f"verdicts of the model: {value}")

    def ask(self, tests: Sequence[About], progress: Say, tried: int = MOST_TRIED) -> Iterator[About]:
        """Ask for the histories that are open, and for ways to so many outcomes that were not seen. The tests as they
        have learnt of it."""

        def do(hypervisor: Hypervisor, number: int, say: Say) -> Asked:
            seen = tests[number].seen
            say(f"{seen.test.name}: looking for what was seen in the model")
            follower = Follower(seen.test, hypervisor)
            objections = [follower.objection(one) for one in tests[number].open()]
            found = [
                places(seen.test, hypervisor, outcome, seen.runs[0].guest)
                for outcome in (tests[number].unseen()[:tried] if seen.runs else [])
            ]
            return Asked(objections, [way for way in found if way])

        for number, asked in results(Work({"plain": range(len(tests))}, self._open, do, self.request.jobs), progress):
            tests[number].learn(asked)
            yield tests[number]

    def _open(self, vcpu: str) -> Hypervisor:
        """In the process that starts the others, which it ends when it is ended."""
        _end_with_parent()
        return self.source.open(vcpu)


def request_for(tree: Path | None, tests: Sequence[Test], options: Mapping[str, str], jobs: int) -> Request:
    """For the verdicts of these tests. Hosts with and without a tick: where they differ, time matters."""
    return Request(tree, tests, vcpus=["plain"], hosts=HOSTS, options=options, limits=LIMITS, jobs=jobs)


@contextmanager
def model(request: Request, source: Source, stored: Stored | None = None) -> Iterator[Model]:
    """The model; while this goes on, its verdicts are being found. Nothing of it is left behind."""
    source.read()
    reader, writer = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_find, args=(request, source, stored, writer, os.getpid()))
    process.start()
    writer.close()
    try:
        yield Model(request, source, reader)
    finally:
        process.terminate()
        process.join()
        reader.close()


def _find(request: Request, source: Source, stored: Stored | None, writer: Connection, parent: int) -> None:
    """Find verdicts. An end from outside, or of the process that has started this one, ends all that this starts."""
    signal.signal(signal.SIGINT, _ended)
    signal.signal(signal.SIGTERM, _ended)
    try:
        _end_with_parent()
        if os.getppid() != parent:
            return
        os.nice(YIELDS)
        _send(writer, "done", run(request, source, lambda text: _tell(writer, text), stored).results)
    except SystemExit:
        return
    except Exception as error:
        _send(writer, "failed", error)


def _tell(writer: Connection, text: str) -> None:
    """Only how far it is: nobody reads before the virtual machine is done, and a pipe does not hold much."""
    if text.endswith(" done"):
        _send(writer, "progress", text)


def _send(writer: Connection, what: str, value: Any) -> None:
    writer.send((what, value))


def _ended(_number: int, _frame: object) -> None:
    """Once is enough: what follows is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


def _end_with_parent() -> None:
    """SIGTERM when the process ends that has started this one (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class About:
    """What was seen of one test, beside what the model says of it."""

    def __init__(self, seen: Seen, verdicts: Sequence[Result]) -> None:
        self.seen = seen
        self.ways: Sequence[tuple[int, ...]] = ()
        self._verdicts = [one for one in verdicts if one.test == seen.test.name]
        self._objections: list[Objection] = []
        """To the first histories of those that came."""

    def unseen(self) -> list[Outcome]:
        """Outcomes of the model, as far as it was explored, that did not come; not those that need a host without
        ticks."""
        possible = [one for one in self._verdicts if one.host == "ticking" or one.verdict is Verdict.HOLDS]
        modelled = {outcome for result in possible for outcome in result.outcomes}
        unseen = {one for one in modelled if not any(may_be(self.seen.test, came, one) for came in self.seen.outcomes)}
        return sorted(unseen, key=lambda outcome: (outcome.marks, outcome.ending))

    def open(self) -> list[Run]:
        """Histories that the model was not asked for yet."""
        return [one for one, _ in distinct(self.seen.runs)][len(self._objections) :]

    def learn(self, asked: Asked) -> None:
        """What the model says of those."""
        self._objections += asked.objections
        self.ways = self.ways or asked.ways

    def compared(self, machine: Machine) -> Compared:
        """All of it."""
        explainer = Explainer(self.seen.test)
        lacks = [
            (lack, Strange(one.outcome(), lack.why, count, machine.excuse(one, explainer.objection(one) or lack)))
            for (one, count), lack in zip(distinct(self.seen.runs), self._objections, strict=False)
            if lack
        ]
        told = {result.host: result.verdict for result in self._verdicts}
        return Compared(
            [f"{result.host}: {_in_words(result)}" for result in self._verdicts],
            len(self._objections),
            [strange for lack, strange in lacks if not lack.why.startswith(NOT_KNOWN)],
            [strange for lack, strange in lacks if lack.why.startswith(NOT_KNOWN)],
            self.unseen(),
            (told.get("tickless"), told.get("ticking")) == (Verdict.VIOLATED, Verdict.HOLDS),
        )


def compare(session: Session, machine: Machine, beside: Model, progress: Say) -> Iterator[tuple[str, Compared]]:
    """(test, what the model says of it) for each test as it becomes known. Once more for those of which directed runs
    have tried to show what was not seen: each event at the place that it has on a way of the model to there."""
    verdicts = beside.verdicts(progress)
    tests = [About(seen, verdicts) for seen in session.seen]
    for about in beside.ask(tests, progress):
        yield about.seen.test.name, about.compared(machine)
    ways = [(about.seen.test, way) for about in tests for way in about.ways]
    guests = [directed(test, way, DIRECTED_REPEAT, number) for number, (test, way) in enumerate(ways)]
    if not guests:
        return
    run_more(session, guests, machine, progress)
    again = [about for about in tests if about.open() and not session.interrupted]
    for _ in beside.ask(again, progress, tried=0):
        pass
    for about in tests:
        if about.ways:
            yield about.seen.test.name, about.compared(machine)


def _in_words(result: Result) -> str:
    known = f", known as {result.known}" if result.known else ""
    because = f": {result.reason}" if result.verdict is not Verdict.HOLDS and result.reason else ""
    return f"{result.verdict}{known}{because}"
