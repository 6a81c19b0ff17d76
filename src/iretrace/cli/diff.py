"""`iretrace diff` and `check --diff`: the same tests on two hypervisors, and where their behaviour parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from iretrace.cli.driver import Request, Task, scoped, source_of, tasks, verdicts
from iretrace.cli.sources import Source
from iretrace.cli.stored import Stored
from iretrace.cli.workers import Work, results
from iretrace.report.differences import Compared, Differences, Parting
from iretrace.verdict import InputError
from iretrace.world.agreement import Agreement, agree
from iretrace.world.parting import runs
from iretrace.world.protocol import ComparableHypervisor

INTERCEPTS = ("cr", "dr", "exception", "word3", "word4", "word5")
LEFT_OUT = frozenset(("requests", "nmi_queued", "events", *(f"vmcb.intercept_{name}" for name in INTERCEPTS)))
"""What is inside the hypervisor, or what only a VMM that asks gets to see, and differs between versions. An intercept
that matters makes the runs part where it exits."""

Progress = Callable[[str], None]
Both = tuple[ComparableHypervisor, ComparableHypervisor]


def source_named(name: str, request: Request, progress: Progress) -> Source:
    """A tree, REPOSITORY@REV, or a revision of the built-in KVM. InputError: it is none of them."""
    from iretrace.kvm.revisions import REVISIONS

    if name in REVISIONS and not Path(name).exists():
        if request.rules:
            raise InputError(f"diff: --rules are for trees, and {name} is the built-in KVM")
        return source_of(replace(request, tree=None, revision=name), progress)
    repository, at, rev = name.rpartition("@")
    if at and not Path(name).exists():
        return source_of(replace(request, tree=Path(repository), rev=rev), progress)
    if "/" not in name and not Path(name).exists():
        raise InputError(
            f"diff: {name}: no tree, and no revision of the built-in KVM; these are {', '.join(REVISIONS)}"
        )
    return source_of(replace(request, tree=Path(name)), progress)


def differences(
    request: Request,
    sources: tuple[Source, Source],
    names: tuple[str, str],
    progress: Progress,
    stored: Stored | None,
    remarks: Sequence[str] = (),
) -> Differences:
    """Every task of the request on both; what used the same definitions does the same. InputError as theirs."""
    request, lacking = scoped(request, *sources)
    ran = tuple(verdicts(request, source, progress, stored) for source in sources)
    before, after = ran
    todo = tasks(request)
    alike = sources[0].identity() == sources[1].identity()
    found = {
        number: Compared(before.results[number], after.results[number])
        for number in range(len(todo))
        if alike and before.same[number] == after.same[number]
    }
    missing = [number for number in range(len(todo)) if number not in found]
    groups: dict[str, list[int]] = {}
    for number in missing:
        groups.setdefault(todo[number].vcpu, []).append(number)
    if missing:
        for source in sources:
            progress(f"reading {source.name}")
            source.read()

    def open_both(vcpu: str) -> Both:
        first, second = (cast(ComparableHypervisor, source.open(vcpu)) for source in sources)
        return first, second

    def do(both: Both, number: int, say: Progress) -> tuple[Parting | None, tuple[str, ...]]:
        say(f"comparing {todo[number]}")
        return _compare(todo[number], both)

    for number, (parting, unclear) in results(Work(groups, open_both, do, request.jobs), progress) if missing else ():
        found[number] = Compared(before.results[number], after.results[number], parting, unclear)
        progress(f"{len(found)} of {len(todo)} compared")
    return Differences(names, [found[number] for number in range(len(todo))], (*lacking, *remarks))


def _compare(task: Task, both: Both) -> tuple[Parting | None, tuple[str, ...]]:
    agreement = agree(task.test, task.vcpu, task.host, *both, left_out=LEFT_OUT)
    unclear = (*agreement.unmodelled, *(["too many states"] if agreement.gave_up else []))
    return (_parting(agreement), unclear) if agreement.differences else (None, unclear)


def _parting(agreement: Agreement) -> Parting:
    difference = agreement.differences[0]
    one, two = runs(agreement.sides, difference)
    return Parting(difference.side_by_side(("A", "B")), (one.stem, two.stem), (one.last, two.last))
