"""A live run: many tests on one kernel, in one virtual machine, or in more where one breaks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from iretrace.linux.debian import Unavailable
from iretrace.litmus.test import Test
from iretrace.live.explain import Explainer, Objection
from iretrace.live.guests import Guest, by_number, make_guests, reason_not_to_run
from iretrace.live.harness import Broken
from iretrace.live.observed import Run, read_run
from iretrace.verdict import Outcome

MAX_TRIES = 2
"""How often a guest may break its virtual machine until it is left out. Where it was to be expected: once."""

MAX_OF_A_TEST = 3
"""How many guests of a test may break theirs until the test is left out."""

MAX_BREAKS = 8
"""How many virtual machines may break, where it was not to be expected, until the rest is left out."""

Say = Callable[[str], None]
Start = Callable[[Sequence[Guest]], Generator[str, None, None]]
"""Runs guests; the lines that the harness prints."""

Excuse = Callable[[Run, Objection], str]
"""What is known to be wrong with the machine and is behind a strange run; "" if nothing is."""


def _nothing(_: object) -> str:
    return ""


def _no_excuse(_: Run, __: Objection) -> str:
    return ""


def _unmended(_: Run, __: Objection) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Machine:
    """What runs guests. mend: a run without what is excused, if that is known, so that the rest of it can be judged.
    unfit: why it cannot run a test; breaks: why a test may break it; "" if nothing is known.
    any_place: as for reason_not_to_run."""

    start: Start
    excuse: Excuse = _no_excuse
    mend: Callable[[Run, Objection], Run | None] = _unmended
    unfit: Callable[[Test], str] = _nothing
    breaks: Callable[[Test], str] = _nothing
    any_place: bool = False


@dataclass(slots=True)
class Seen:
    """What a test has shown. strange: (outcome, why the processor alone could not have shown it, excuse)."""

    test: Test
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    strange: dict[tuple[Outcome, str, str], int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    missing: int = 0
    """Runs that did not come because the whole was interrupted."""


@dataclass(slots=True)
class Session:
    """The results of a live run. left_out: (test, why it cannot run here). not_run: tests of which nothing came before
    an end from outside."""

    seen: list[Seen]
    left_out: list[tuple[str, str]]
    broken: list[str] = field(default_factory=list)
    interrupted: bool = False
    not_run: list[str] = field(default_factory=list)


def runnable(tests: Sequence[Test], machine: Machine) -> tuple[list[Test], list[tuple[str, str]]]:
    """The tests that can be run, and (test, why) for those that cannot."""
    whys = [(test, reason_not_to_run(test, machine.any_place) or machine.unfit(test)) for test in tests]
    return [test for test, why in whys if not why], [(test.name, why) for test, why in whys if why]


def run_tests(tests: Sequence[Test], repeat: int, machine: Machine, progress: Say) -> Session:
    """Run every test that can be run. Unavailable if not even the first virtual machine comes up."""
    able, left_out = runnable(tests, machine)
    session = Session([Seen(test) for test in able], left_out)
    guests: list[Guest] = []
    # What may break the machine comes last, so that the others need only one.
    for seen in sorted(session.seen, key=lambda seen: bool(machine.breaks(seen.test))):
        guests += make_guests(seen.test, repeat, len(guests))
    if guests:
        run_more(session, guests, machine, progress)
    return session


def run_more(session: Session, guests: Sequence[Guest], machine: Machine, progress: Say) -> None:
    """Run further guests of the session's tests, in a virtual machine of their own. An end from outside
    (KeyboardInterrupt) ends the runs; what has come by then is kept and judged."""
    runs: list[Run] = []
    coming = _Runs(guests, machine, session, progress)
    try:
        for run in coming:
            runs.append(run)
    except KeyboardInterrupt:
        session.interrupted = True
        _note_missing(session, runs, coming)
    by_test = {seen.test.name: [run for run in runs if run.guest.test is seen.test] for seen in session.seen}
    for seen in session.seen:
        for run in by_test[seen.test.name]:
            _count(seen, run)
    waiting = list(session.seen)
    while waiting:
        progress(f"{waiting[0].test.name}: what the processor alone can show")
        try:
            _explain(waiting[0], by_test[waiting[0].test.name], machine)
        except KeyboardInterrupt:
            if session.interrupted:
                raise
            session.interrupted = True  # it takes seconds for all tests; who asks again does not get them
        else:
            waiting.pop(0)


def _note_missing(session: Session, runs: Sequence[Run], coming: _Runs) -> None:
    """What had not come when the whole was interrupted. A test without any run has not been run."""
    came = {run.guest.test.name for run in runs}
    for seen in session.seen:
        seen.missing = coming.missing(seen.test)
        if seen.missing and not seen.runs and seen.test.name not in came:
            session.not_run.append(seen.test.name)
    session.seen = [seen for seen in session.seen if seen.test.name not in session.not_run]


class _Runs:
    """All runs of all guests. Where a virtual machine breaks, the next one goes on behind what broke it."""

    def __init__(self, guests: Sequence[Guest], machine: Machine, session: Session, progress: Say) -> None:
        self._guests, self._machine, self._session, self._progress = guests, machine, session, progress
        self._waiting = list(guests)
        """From the one that runs on."""
        self._came = 0
        """Runs of the one that runs."""
        self._broke: list[Guest] = []

    def __iter__(self) -> Iterator[Run]:
        known = by_number(self._guests)
        while self._waiting:
            current: Guest | None = None
            try:
                with closing(self._machine.start(self._waiting)) as lines:
                    for line in lines:
                        word, _, rest = line.partition(" ")
                        if word == "begin":
                            current = known[int(rest)]
                            self._begin(current)
                        elif word == "run":
                            self._came += 1
                            yield read_run(line, known)
                self._waiting, self._came = [], 0
            except Broken as error:
                self._go_on(current, error)
                self._came = 0

    def missing(self, test: Test) -> int:
        """Runs of a test that have not come yet."""
        mine = [guest for guest in self._waiting if guest.test is test]
        return sum(guest.repeat for guest in mine) - (self._came if mine and mine[0] is self._waiting[0] else 0)

    def _begin(self, guest: Guest) -> None:
        self._waiting, self._came = self._waiting[self._waiting.index(guest) :], 0
        self._progress(f"{guest.test.name}: {guest.number + 1} of {len(self._guests)}")

    def _go_on(self, current: Guest | None, error: Broken) -> None:
        """What is left to run."""
        broken = self._session.broken
        if current is None:
            if not broken:
                raise Unavailable(f"the virtual machine does not get as far as its first guest: {error}") from None
            broken.append(str(error))
            self._waiting = []
            return
        expected = self._machine.breaks(current.test)
        broken.append(f"{current.test.name}: {error}" + (f" ({expected})" if expected else ""))
        self._broke.append(current)
        again = not expected and self._broke.count(current) < MAX_TRIES
        self._waiting = self._waiting[0 if again else 1 :]
        if expected and sum(guest.test is current.test for guest in self._broke) >= MAX_OF_A_TEST:
            self._waiting = [guest for guest in self._waiting if guest.test is not current.test]
        if sum(not self._machine.breaks(guest.test) for guest in self._broke) >= MAX_BREAKS:
            broken.append(f"too many breaks; {len(self._waiting)} guests were not run")
            self._waiting = []


def _count(seen: Seen, run: Run) -> None:
    if run.failure:
        seen.failures[run.failure] = seen.failures.get(run.failure, 0) + 1
        return
    seen.runs.append(run)
    seen.outcomes[run.outcome()] = seen.outcomes.get(run.outcome(), 0) + 1


def _explain(seen: Seen, runs: Sequence[Run], machine: Machine) -> None:
    """Ask the patient reference about every history, each once."""
    explainer = Explainer(seen.test)
    found: list[tuple[tuple[Outcome, str, str], int]] = []
    for run, count in distinct(run for run in runs if not run.failure):
        found += [((run.outcome(), why, fault), count) for why, fault in _wrong(explainer, run, machine)]
    for strange, count in found:
        seen.strange[strange] = seen.strange.get(strange, 0) + count


def _wrong(explainer: Explainer, run: Run, machine: Machine) -> list[tuple[str, str]]:
    """What the processor could not show, with its excuse: the first thing, and the first one that has no excuse, as far
    as it is known how the run would be without what is excused."""
    found: list[tuple[str, str]] = []
    while objection := explainer.objection(run):
        fault = machine.excuse(run, objection)
        if not found or not fault:
            found.append((objection.why, fault))
        mended = machine.mend(run, objection) if fault else None
        if mended is None:
            break
        run = mended
    return found


def distinct(runs: Iterable[Run]) -> list[tuple[Run, int]]:
    """The runs that differ in what they show, and how often each came."""
    counts: dict[tuple[object, ...], int] = {}
    first: dict[tuple[object, ...], Run] = {}
    for run in runs:
        key = (run.history, run.complete, run.reset, run.ending, run.place, run.after)
        first.setdefault(key, run)
        counts[key] = counts.get(key, 0) + 1
    return [(run, counts[key]) for key, run in first.items()]
