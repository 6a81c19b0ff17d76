"""From a request to results: every test, on every vCPU kind and host that is asked for, on one hypervisor."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from iretrace.check import KNOB, Walk, check, told_again
from iretrace.cli.known import mark_known
from iretrace.cli.moved import relocated
from iretrace.cli.sources import BuiltinSource, Recalled, Source, TreeSource
from iretrace.cli.stored import Lookup, Origin, Shared, Shelf, Stored, keeps, key, same_of
from iretrace.cli.told import UNREADABLE, read_told, tell
from iretrace.cli.workers import Aside, Work, results
from iretrace.explore.graph import Limits
from iretrace.litmus.corpus import shipped, source_text
from iretrace.litmus.grammar import VCPUS
from iretrace.litmus.test import Test
from iretrace.report.summary import Report
from iretrace.verdict import InputError, Ledger, Result, Verdict
from iretrace.world.protocol import Hypervisor


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for. tree: None for the built-in KVM, of this revision ("" is the newest). rev: the revision
    of a git repository that the tree is; "" if it is none. vcpus and hosts:
    empty means the test's own. patches: (name, text), in order."""

    tree: Path | None
    tests: Sequence[Test]
    revision: str = ""
    rev: str = ""
    patches: Sequence[tuple[str, str]] = ()
    vcpus: Sequence[str] = ()
    hosts: Sequence[str] = ()
    rules: Sequence[Path] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    jobs: int = 1


class Task(NamedTuple):
    """One verdict to find."""

    test: Test
    vcpu: str
    host: str

    def __str__(self) -> str:
        return f"{self.test.name} {self.vcpu} {self.host}"


def tasks(request: Request) -> list[Task]:
    """What there is to do, in the order of the report. InputError for a vCPU kind that does not exist."""
    for vcpu in request.vcpus:
        if vcpu not in VCPUS:
            raise InputError(f"--vcpu {vcpu}: no such kind; write one of: {', '.join(VCPUS)}")
    return [
        Task(test, vcpu, host)
        for test in request.tests
        for vcpu in test.vcpus
        if vcpu in request.vcpus or not request.vcpus
        for host in request.hosts or test.hosts
    ]


def scoped(request: Request, *sources: Source) -> tuple[Request, list[str]]:
    """The request without the vCPU kinds that a source does not have, and a sentence on each of them."""
    wanted = {task.vcpu for task in tasks(request)}
    lacking = [(vcpu, source) for source in sources for vcpu in sorted(wanted) if source.lacks(vcpu)]
    if not lacking:
        return request, []
    left = [vcpu for vcpu in VCPUS if vcpu in wanted - {vcpu for vcpu, _ in lacking}]
    remarks = [f"{source.name}: {vcpu} is not in scope: {source.lacks(vcpu)}" for vcpu, source in lacking]
    return replace(request, vcpus=left, tests=request.tests if left else ()), remarks


def source_of(request: Request, progress: Callable[[str], None] = lambda _text: None) -> Source:
    """The tree without the patches, or the built-in KVM. InputError as theirs, and for what only a tree can get."""
    if request.tree is None:
        if request.patches or request.rules:
            raise InputError("check: --patch and --rules need a TREE; the built-in KVM is not made of C")
        if request.rev:
            raise InputError("check: --rev needs a TREE that is a git repository; --revision is for the built-in KVM")
        return BuiltinSource(request.revision, request.options)
    if request.revision:
        raise InputError("check: --revision is about the built-in KVM; leave out TREE, or leave out --revision")
    return TreeSource(request.tree, (), request.rules, request.options, progress, rev=request.rev)


NOTHING_READ = Shared("", None)


class Found(NamedTuple):
    """A result, what it read, and the definitions that it used, in parts. same: these, wherever they stand."""

    result: Result
    read: Shared = NOTHING_READ
    used: Sequence[Shared] = ()
    same: str = ""


class Ran(NamedTuple):
    """The results of a request on one source, in the order of the tasks. reused: how many are of earlier runs.

    same: of the definitions that each result used, "" where that is not known."""

    results: list[Result]
    reused: int
    same: list[str]


def run(
    request: Request, source: Source, progress: Callable[[str], None], stored: Stored | None = None, anew: bool = False
) -> Report:
    """A result for every task, known bugs shown as known; else as `verdicts`. Meanwhile the source looks ahead."""
    request, remarks = scoped(request, source)
    one = begun(request, source, progress, stored, anew)
    if stored is None or not one.missing():
        ran = finished(one, progress)
    else:
        progress(f"reading {source.name}")
        source.read()
        with Aside(partial(source.look_ahead, stored)):
            ran = finished(one, progress)
    return Report(mark_known(ran.results), reused=ran.reused, remarks=remarks)


def verdicts(
    request: Request, source: Source, progress: Callable[[str], None], stored: Stored | None = None, anew: bool = False
) -> Ran:
    """A result for every task; none when no test is about such a vCPU. stored: where results of earlier runs are.

    anew: reuse none of them."""
    return finished(begun(request, source, progress, stored, anew), progress)


class LookedUp(NamedTuple):
    """What is kept for the tasks of a request, by their numbers. found: results that need no run. last: what the others
    came to when they last ran, on whatever tree."""

    found: Mapping[int, Found]
    last: Mapping[int, Result | None]


NOTHING_KEPT = LookedUp({}, {})


@dataclass(frozen=True, slots=True)
class Begun:
    """A request on one source, for which nothing has been run yet. names: of the results, where they are kept. anew:
    none of them is reused. opened: by vCPU kind, hypervisors that need not be opened any more."""

    request: Request
    source: Source
    stored: Stored | None
    todo: Sequence[Task]
    names: Sequence[str]
    anew: bool = False
    kept: LookedUp = NOTHING_KEPT
    opened: Mapping[str, Hypervisor] = field(default_factory=dict)

    def texts(self, name: str) -> Sequence[bytes]:
        """What was kept of a name (Stored.texts), if it may be reused."""
        return () if self.stored is None or self.anew else self.stored.texts(name)

    def missing(self) -> list[int]:
        """The tasks that have to be run."""
        return [number for number in range(len(self.todo)) if number not in self.kept.found]


def begun(
    request: Request, source: Source, progress: Callable[[str], None], stored: Stored | None = None, anew: bool = False
) -> Begun:
    """What `verdicts` does before it runs anything."""
    one = prepared(request, source, stored, anew)
    return replace(one, kept=looked_up(one, progress))


def prepared(request: Request, source: Source, stored: Stored | None, anew: bool = False) -> Begun:
    """A request for which nothing has been looked up yet."""
    todo = tasks(request)
    names = [_key(source, request, task) for task in todo] if stored else []
    return Begun(request, source, stored, todo, names, anew)


def looked_up(begun: Begun, progress: Callable[[str], None]) -> LookedUp:
    """What is kept for a request."""
    source, stored, names = begun.source, begun.stored, begun.names
    if stored is None:
        return NOTHING_KEPT
    found: dict[int, Found] = {}
    if not begun.anew:
        progress("looking for results that can be reused")
        found = _reused(source, names, stored, progress)
    return LookedUp(found, {number: stored.newest(name) for number, name in enumerate(names) if number not in found})


def finished(begun: Begun, progress: Callable[[str], None]) -> Ran:
    """What `verdicts` does then: run what is missing, and keep it."""
    request, source, stored, todo = begun.request, begun.source, begun.stored, begun.todo
    found = dict(begun.kept.found)
    for number, new in _work(begun, progress):
        found[number] = new
        if stored is not None:
            stored.keep(begun.names[number], new.result, new.read, new.used, _origin(source, request, todo[number]))
        progress(f"{len(found)} of {len(todo)} done")
    if stored is not None:
        stored.tidy()
    in_order = [found[number] for number in range(len(todo))]
    return Ran([one.result for one in in_order], len(begun.kept.found), [one.same for one in in_order])


def _reused(source: Source, names: Sequence[str], stored: Stored, progress: Callable[[str], None]) -> dict[int, Found]:
    """The results that need no run: of a tree that reads the same, else of one whose definitions are the same."""
    found: dict[int, Found] = {}
    lookup = Lookup(stored, source.still_reads, source.still_uses, source.read_before)
    for number, name in enumerate(names):
        kept = lookup.find(name)
        if kept is not None:
            found[number] = Found(kept.result, same=kept.same)
    missing = [number for number in range(len(names)) if number not in found and stored.newest(names[number])]
    if missing:
        progress(f"reading {source.name}")
        source.read()
    for number in missing:
        kept = lookup.find_moved(names[number])
        if kept is not None:
            found[number] = Found(kept.result, same=kept.same)
    return found


def _origin(source: Source, request: Request, task: Task) -> Origin:
    """What finds a result again. Where the source has the first patches of a series only, the command judges each."""
    words = [*source.command(), *(["--each"] if 0 < len(source.patches) < len(request.patches) else [])]
    words += ["--test", task.test.name if task.test in shipped() else task.test.path]
    command = shlex.join([*words, "--vcpu", task.vcpu, "--host", task.host])
    return Origin(source_text(task.test), command, source.patches)


def _key(source: Source, request: Request, task: Task) -> str:
    """Everything that a verdict depends on, but for what it reads of the tree, and the time limit."""
    return key(source.identity(), source_text(task.test), task.vcpu, task.host, request.limits.max_states)


@dataclass(frozen=True, slots=True)
class Memory:
    """A result, and the way that its trace tells."""

    result: Result
    walk: Walk | None = None


def _remember(source: Source, hypervisor: Hypervisor, name: str, memory: Memory) -> None:
    """For other trees in which all host steps come to the same. What the ledger says of the hypervisor is asked
    there."""
    knobs = tuple([used for used in memory.result.ledger.assumptions if used.kind == KNOB])
    result = replace(memory.result, ledger=Ledger(0, knobs))
    source.remember(hypervisor, name, tell(replace(memory, result=result)))


def _recalled(source: Source, hypervisor: Hypervisor, name: str, task: Task) -> Memory | None:
    """The result that was remembered, if it is the one here."""
    began = time.monotonic()
    recalled = source.recall(hypervisor, name)
    if recalled is None:
        return None
    with suppress(*UNREADABLE):
        memory = read_told(Memory, recalled.told)
        result = _here(memory, recalled, hypervisor, task)
        if result is None:
            return None
        ledger = Ledger(hypervisor.statements(), (*hypervisor.assumptions(), *result.ledger.assumptions))
        return Memory(replace(result, ledger=ledger, seconds=time.monotonic() - began), memory.walk)
    return None


def _here(memory: Memory, recalled: Recalled, hypervisor: Hypervisor, task: Task) -> Result | None:
    """The result with the lines of this tree, its trace told again if it may show others."""
    result = memory.result
    if recalled.as_shown or memory.walk is None or result.trace is None:
        return relocated(result, recalled.moves)
    bare = replace(result.trace, stem=(), loop=(), cited=None)
    moved = relocated(replace(result, trace=bare), recalled.moves)
    return None if moved is None else told_again(*task, hypervisor, moved, memory.walk)


def _lowered_key(source: Source) -> str:
    """Everything that what functions are lowered to depends on, but for what it reads of the tree."""
    return key("lowered", source.identity())


def _steps_key(source: Source, vcpu: str) -> str:
    """Everything that a host step depends on, but for what it is asked and what it reads of the tree. Where functions
    of Python stand is told in numbers of instructions, which differ from version to version."""
    return key("steps", sys.hexversion, source.identity(), vcpu)


def take_lowered(begun: Begun) -> None:
    """Let the source take over what was kept of functions of C, and tell of others: before it opens anything."""
    if begun.stored is not None:
        begun.source.take_lowered(begun.texts(_lowered_key(begun.source)))


def open_kind(begun: Begun, vcpu: str) -> Hypervisor:
    """The hypervisor for a vCPU kind, which takes over the steps that were kept."""
    hypervisor = begun.source.open(vcpu)
    for text in begun.texts(_steps_key(begun.source, vcpu)):
        begun.source.take_steps(hypervisor, text)
    return hypervisor


def _work(begun: Begun, progress: Callable[[str], None]) -> Iterator[tuple[int, Found]]:
    """(number, what was found) for the tasks that have no result yet. Those that failed when they last ran begin
    first."""
    request, source, stored, todo = begun.request, begun.source, begun.stored, begun.todo
    missing = begun.missing()
    if not missing:
        return iter(())

    def order(number: int) -> tuple[bool, float, int]:
        """Failed ones, then what took longest or what nobody knows of, so that no process is left alone with it."""
        ran = begun.kept.last.get(number)
        failed = ran is not None and ran.verdict is Verdict.VIOLATED
        return not failed, -ran.seconds if ran else -math.inf, -len(todo[number].test.outside)

    missing.sort(key=order)
    groups: dict[str, list[int]] = {}
    for number in missing:
        groups.setdefault(todo[number].vcpu, []).append(number)
    progress(f"reading {source.name}")
    source.read()

    if not begun.opened:
        take_lowered(begun)
    shelf = Shelf()  # each process fills its own

    def do(hypervisor: Hypervisor, number: int, say: Callable[[str], None]) -> Found:
        task = todo[number]
        say(str(task))
        memory = _recalled(source, hypervisor, begun.names[number], task) if stored is not None else None
        if memory is None:
            walks: list[Walk] = []
            found = check(
                *task, hypervisor, request.limits, lambda count: say(f"{task}: {count:,} states"), walked=walks.append
            )
            memory = Memory(found, walks[0] if walks else None)
        result = memory.result
        if stored is not None and keeps(result) and not source.patches:
            _remember(source, hypervisor, begun.names[number], memory)
        used = [shelf.used(part) for part in source.used_by(hypervisor)]
        return Found(result, shelf.read(source.read_so_far()), used, same_of(used))

    def open_one(vcpu: str) -> Hypervisor:
        return begun.opened[vcpu] if vcpu in begun.opened else open_kind(begun, vcpu)

    def close(opened: Mapping[str, Hypervisor]) -> None:
        if stored is None:
            return
        told = {_steps_key(source, vcpu): source.steps_of(hypervisor) for vcpu, hypervisor in opened.items()}
        for name, text in (told | {_lowered_key(source): source.lowered()}).items():
            if text:
                stored.keep_text(name, text)

    return results(Work(groups, open_one, do, request.jobs, close), progress)
