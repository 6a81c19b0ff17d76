"""From a request to results: every test, on every vCPU kind and host that is asked for, on one hypervisor."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from iretrace.check import check
from iretrace.cli.known import mark_known
from iretrace.explore.graph import Limits
from iretrace.litmus.grammar import VCPUS
from iretrace.litmus.test import Test
from iretrace.verdict import InputError, Result
from iretrace.world.protocol import Hypervisor


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for. vcpus and hosts: empty means the test's own. patches: (name, text), in order."""

    tree: Path
    tests: Sequence[Test]
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


Open = Callable[[str], Hypervisor]
"""The hypervisor for a vCPU kind."""


def tree_opener(request: Request) -> Open:
    """Reads the request's tree, with its patches, and runs it to the first VMRUN. InputError where that cannot be."""
    from iretrace.linux.hypervisor import TreeHypervisor
    from iretrace.linux.machine import Machine
    from iretrace.linux.tree import open_tree

    options = {name: integer(name, value) for name, value in request.options.items()}
    tree = open_tree(request.tree, request.patches)
    with unreadable_is_input_error():
        machine = Machine(tree, request.rules, options)

    def open_hypervisor(vcpu: str) -> Hypervisor:
        with unreadable_is_input_error():
            return TreeHypervisor(tree, machine=machine, vcpu=vcpu)

    return open_hypervisor


@contextmanager
def unreadable_is_input_error() -> Iterator[None]:
    """C that the reader does not know, in a function that every run needs, is for the user to hear of in one line."""
    from iretrace.linux.cursor import ParseError
    from iretrace.linux.hypervisor import describe
    from iretrace.linux.unmodelled import Unmodelled

    try:
        yield
    except Unmodelled as error:
        raise InputError(describe(error)) from error
    except ParseError as error:
        raise InputError(f"{error}; every run needs this function, and iretrace does not know this C yet") from error


def integer(name: str, value: str) -> int:
    """The value of an option: a number as in C, or y and n as in a kernel configuration."""
    if value in ("y", "n"):
        return int(value == "y")
    try:
        return int(value, 0)
    except ValueError:
        raise InputError(f"--option {name}={value}: write a number, y or n") from None


def unanswered_rules(request: Request) -> str:
    """The rows that the event path needs and that neither tree nor rules have; empty if none is missing."""
    from iretrace.linux.hypervisor import dry_run
    from iretrace.linux.tree import open_tree

    with unreadable_is_input_error():
        rows = dry_run(open_tree(request.tree, request.patches), request.rules)
    return "".join(f"{row}\n" for row in rows)


def run(request: Request, open_hypervisor: Open, progress: Callable[[str], None]) -> list[Result]:
    """A result for every task; empty when no test is about such a vCPU.

    Known bugs are shown as known, unless patches were applied: what a patch shows may be its own.
    """
    todo = tasks(request)
    hypervisors: dict[str, Hypervisor] = {}
    for vcpu in dict.fromkeys(task.vcpu for task in todo):
        progress(f"reading the tree for {vcpu}")
        hypervisors[vcpu] = open_hypervisor(vcpu)
    if request.jobs == 1 or len(todo) < 2:
        results = [_one(hypervisors, request.limits, task, progress) for task in todo]
    else:
        results = _many(hypervisors, request, todo, progress)
    return results if request.patches else mark_known(results)


def _one(hypervisors: Mapping[str, Hypervisor], limits: Limits, task: Task, progress: Callable[[str], None]) -> Result:
    def states(count: int) -> None:
        progress(f"{task}: {count:,} states")

    progress(str(task))
    return check(task.test, task.vcpu, task.host, hypervisors[task.vcpu], limits, states)


_IN_WORKER: Callable[[Task], Result] | None = None
"""Set before the workers are forked, so that they inherit the tree that has been read instead of reading it again."""


def _work(task: Task) -> Result:
    assert _IN_WORKER is not None, "workers are forked after it is set"
    return _IN_WORKER(task)


def _many(
    hypervisors: Mapping[str, Hypervisor], request: Request, todo: Sequence[Task], progress: Callable[[str], None]
) -> list[Result]:
    global _IN_WORKER
    _IN_WORKER = partial(_one, hypervisors, request.limits, progress=_silent)
    results: list[Result] = []
    try:
        with multiprocessing.get_context("fork").Pool(min(request.jobs, len(todo))) as pool:
            for result in pool.imap(_work, todo):
                results.append(result)
                progress(f"{len(results)} of {len(todo)} done")
    finally:
        _IN_WORKER = None
    return results


def _silent(_text: str) -> None:
    """Workers have no terminal of their own."""
