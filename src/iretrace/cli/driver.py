"""From a request to results: every test, on every vCPU kind and host that is asked for, on one hypervisor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from iretrace.check import check
from iretrace.cli.known import mark_known
from iretrace.cli.sources import BuiltinSource, Source, TreeSource
from iretrace.cli.stored import Stored, key
from iretrace.cli.workers import Work, results
from iretrace.explore.graph import Limits
from iretrace.litmus.corpus import source_text
from iretrace.litmus.grammar import VCPUS
from iretrace.litmus.test import Test
from iretrace.report.summary import Report
from iretrace.verdict import InputError, Result
from iretrace.world.protocol import Hypervisor


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for. tree: None for the built-in KVM, of this revision ("" is the newest). vcpus and hosts:
    empty means the test's own. patches: (name, text), in order."""

    tree: Path | None
    tests: Sequence[Test]
    revision: str = ""
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


def source_of(request: Request, progress: Callable[[str], None] = lambda _text: None) -> Source:
    """The tree, or the built-in KVM. InputError as theirs, and for what only a tree can be given."""
    if request.tree is None:
        if request.patches or request.rules:
            raise InputError("check: --patch and --rules need a TREE; the built-in KVM is not made of C")
        return BuiltinSource(request.revision, request.options)
    if request.revision:
        raise InputError("check: --revision is about the built-in KVM; leave out TREE, or leave out --revision")
    return TreeSource(request.tree, request.patches, request.rules, request.options, progress)


def run(request: Request, source: Source, progress: Callable[[str], None], stored: Stored | None = None) -> Report:
    """A result for every task; none when no test is about such a vCPU. stored: where results of earlier runs are.

    Known bugs are shown as known, unless patches were applied: what a patch shows may be its own.
    """
    todo = tasks(request)
    found: dict[int, Result] = {}
    names = [_key(source, request, task) for task in todo] if stored else []
    if stored is not None:
        progress("looking for results that can be reused")
        kept = {number: stored.find(name, source.still_reads) for number, name in enumerate(names)}
        found = {number: result for number, result in kept.items() if result is not None}
    reused = len(found)
    for number, (result, read) in _work(request, source, todo, found, progress):
        found[number] = result
        if stored is not None:
            stored.keep(names[number], result, read)
        progress(f"{len(found)} of {len(todo)} done")
    if stored is not None:
        stored.tidy()
    in_order = [found[number] for number in range(len(todo))]
    return Report(in_order if request.patches else mark_known(in_order), reused=reused)


def _key(source: Source, request: Request, task: Task) -> str:
    """Everything that a verdict depends on, but for what it reads of the tree, and the time limit."""
    return key(source.identity(), source_text(task.test), task.vcpu, task.host, request.limits.max_states)


def _work(
    request: Request, source: Source, todo: Sequence[Task], found: Mapping[int, Result], progress: Callable[[str], None]
) -> Iterator[tuple[int, tuple[Result, Mapping[str, str]]]]:
    """(number, (result, what it read)) of the tasks that have no result yet."""
    missing = [number for number in range(len(todo)) if number not in found]
    if not missing:
        return iter(())
    missing.sort(key=lambda number: -len(todo[number].test.outside))  # what takes longest begins first
    groups: dict[str, list[int]] = {}
    for number in missing:
        groups.setdefault(todo[number].vcpu, []).append(number)
    progress(f"reading {source.name}")
    source.read()

    def do(hypervisor: Hypervisor, number: int, say: Callable[[str], None]) -> tuple[Result, Mapping[str, str]]:
        task = todo[number]
        say(str(task))
        result = check(
            task.test, task.vcpu, task.host, hypervisor, request.limits, lambda count: say(f"{task}: {count:,} states")
        )
        return result, source.read_so_far()

    return results(Work(groups, source.open, do, request.jobs), progress)
