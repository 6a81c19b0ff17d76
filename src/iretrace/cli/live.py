"""`iretrace run`: litmus tests on a real KVM, and what it shows held against the processor and against the model."""

from __future__ import annotations

import argparse
import hashlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from iretrace.cli.driver import Request, run, source_of
from iretrace.cli.known import shown_live
from iretrace.cli.stored import Stored, cache_directory
from iretrace.explore.graph import Limits
from iretrace.litmus.corpus import select
from iretrace.litmus.test import Test
from iretrace.live.bare import build_firmware, run_bare
from iretrace.live.emulation import OPTIONS, breaks, excuse, mend, unfit
from iretrace.live.explain import Explainer, Objection
from iretrace.live.follow import NOT_KNOWN, Follower
from iretrace.live.guests import Guest, directed, pack
from iretrace.live.harness import build_harness, workplace
from iretrace.live.host import host_kernel, run_here
from iretrace.live.observed import Run
from iretrace.live.own import build, with_modules
from iretrace.live.packages import Kernel, find_kernel
from iretrace.live.qemu import boot, qemu_version
from iretrace.live.session import Machine, Seen, Session, Start, distinct, run_more, run_tests
from iretrace.live.witness import places
from iretrace.report.live import Compared, Late, LiveReport, Observed, Strange
from iretrace.verdict import InputError, Outcome, Result, Verdict
from iretrace.world.protocol import Hypervisor

Say = Callable[[str], None]

DEFAULT_KERNEL = "6.1"
ALONE = "qemu-machine"
HOSTS = ("tickless", "ticking")
LIMITS = Limits(timeout=20.0)
"""For one verdict of the model; the histories have limits of their own."""

MOST_TRIED = 8
"""For one test: outcomes of the model that directed runs try to show."""

DIRECTED_REPEAT = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where tests run. say: in words. qemu, linux: the version, or "" if there is none."""

    say: str
    start: Start
    qemu: str = ""
    linux: str = ""

    @property
    def alone(self) -> bool:
        """No KVM."""
        return not self.linux

    def machine(self) -> Machine:
        """With what is known to be wrong with it."""
        if not self.qemu:
            return Machine(self.start)
        qemu, alone = self.qemu, self.alone
        return Machine(
            self.start,
            lambda run, objection: excuse(run, objection, qemu, alone),
            mend,
            lambda test: unfit(test, qemu, alone),
            lambda test: breaks(test, qemu, alone),
            any_place=alone,
        )


def run_live(arguments: argparse.Namespace, progress: Say) -> LiveReport:
    """What `iretrace run` is asked for. InputError where it cannot be had."""
    tests = select(arguments.tests)
    if arguments.compare and arguments.on == ALONE:
        raise InputError(f"--compare: on {ALONE} there is no kernel to compare with; leave one of the two out")
    signal.signal(signal.SIGTERM, _terminated)
    with workplace() as directory:
        place = _place(arguments, directory, progress)
        session = run_tests(tests, arguments.repeat, place.machine(), progress)
        compared = _compare(session, arguments.compare, place, progress) if arguments.compare else {}
    accused = "QEMU" if place.alone else "KVM"
    return LiveReport(place.say, _observed(session, compared, place), session.left_out, session.broken, accused)


def _terminated(_number: int, _frame: object) -> NoReturn:
    """An end from outside is an end in order: nothing is left behind."""
    raise KeyboardInterrupt


def _place(arguments: argparse.Namespace, directory: Path, progress: Say) -> Place:
    """InputError where this place cannot be had."""
    on, seed = arguments.on, arguments.seed
    kind, _, wanted = on.partition(":")
    if kind != "qemu" and on not in (ALONE, "host"):
        raise InputError(f"--on {on}: write qemu, qemu:KERNEL, {ALONE} or host")
    if kind != "qemu" and (arguments.kvm or arguments.build):
        raise InputError(f"--on {on}: a KVM of your own is loaded in a virtual machine; use --on qemu:KERNEL")
    if on == "host":
        release = host_kernel()
        harness = build_harness(directory)
        where = f"kvm_amd of this host, Linux {release}"
        return Place(where, lambda gs: run_here(harness, pack(gs, seed), directory), linux=release)
    version = qemu_version()
    if on == ALONE:
        firmware = build_firmware(directory)
        where = f"the processor of QEMU {version} alone, without KVM"
        return Place(where, lambda gs: run_bare(firmware, gs, seed, version, directory), version)
    kernel, whose = _kernel(arguments, wanted or DEFAULT_KERNEL, progress)
    harness = build_harness(directory)
    where = f"kvm_amd {whose} Debian's Linux {kernel.version}, on QEMU {version} (emulated SVM), vcpu plain"
    return Place(where, lambda gs: boot(kernel, harness, pack(gs, seed), directory), version, kernel.upstream)


def _kernel(arguments: argparse.Namespace, wanted: str, progress: Say) -> tuple[Kernel, str]:
    """(the kernel with the KVM that was asked for, whose it is)."""
    if arguments.kvm and arguments.build:
        raise InputError("--kvm and --build: give one of the two")
    kernel = find_kernel(wanted, progress)
    if arguments.kvm:
        return with_modules(kernel, arguments.kvm), f"from {arguments.kvm} in"
    if arguments.build:
        return build(kernel, arguments.build, progress), f"built from {arguments.build} in"
    return kernel, "of"


def _observed(session: Session, compared: dict[str, Compared], place: Place) -> list[Observed]:
    return [
        Observed(
            seen.test.name,
            hash_of(seen.test),
            sorted(seen.outcomes.items(), key=lambda item: (-item[1], item[0].marks)),
            [(clause.quantifier, clause.marks) for clause in seen.test.clauses],
            _strange(seen, place),
            sorted(seen.failures.items()),
            compared.get(seen.test.name),
            _late(seen),
        )
        for seen in session.seen
    ]


def _late(seen: Seen) -> list[Late]:
    """Alike ones together."""
    alike: dict[tuple[Outcome, tuple[str, ...]], list[int]] = {}
    for one in seen.runs:
        if one.late is not None:
            alike.setdefault((one.outcome(), one.late.exits), []).append(one.late.spins)
    return [Late(outcome, len(spins), max(spins), exits) for (outcome, exits), spins in alike.items()]


def _strange(seen: Seen, place: Place) -> list[Strange]:
    """Runs that the processor could not show, with the key of the known bug that this test shows on this kernel."""
    known = shown_live(seen.test.name, place.linux) if place.linux else ""
    return [Strange(outcome, why, count, fault, known) for (outcome, why, fault), count in seen.strange.items()]


def hash_of(test: Test) -> str:
    """Tells whether two runs are about the same test: of what it does, not of its comments."""
    code = [(instruction.text, instruction.label) for instruction in test.code]
    arrivals = [(arrival.kind, arrival.promised, arrival.at) for arrival in test.outside]
    stacks = (sorted(test.ist), sorted(test.cold))
    parts = (code, arrivals, test.main, test.handlers, *stacks, test.interrupts, test.cpl, test.syscall, test.cold_code)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


# The model of the same kernel. ------------------------------------------------------------------------------------


def _compare(session: Session, tree: Path, place: Place, progress: Say) -> dict[str, Compared]:
    """By test: what the model of this tree says, tickless and ticking, beside what was seen."""
    tests, options = [seen.test for seen in session.seen], OPTIONS if place.qemu else {}
    request = Request(tree=tree, tests=tests, vcpus=["plain"], hosts=HOSTS, options=options, limits=LIMITS)
    source = source_of(request)
    results = run(request, source, progress, Stored(cache_directory())).results
    source.read()
    hypervisor = source.open("plain")
    _try_for_more(session, results, hypervisor, place, progress)
    compared = {}
    for seen in session.seen:
        progress(f"{seen.test.name}: looking for what was seen in the model")
        follower = Follower(seen.test, hypervisor)
        explainer = Explainer(seen.test)
        histories = distinct(seen.runs)
        objections = [
            Strange(one.outcome(), lack.why, count, _excuse(one, lack, explainer, place))
            for one, count in histories
            if (lack := follower.objection(one))
        ]
        beyond = [one for one in objections if not one.why.startswith(NOT_KNOWN)]
        given_up = [one for one in objections if one.why.startswith(NOT_KNOWN)]
        mine = [result for result in results if result.test == seen.test.name]
        verdicts = [f"{result.host}: {_in_words(result)}" for result in mine]
        told = {result.host: result.verdict for result in mine}
        lasso = (told.get("tickless"), told.get("ticking")) == (Verdict.VIOLATED, Verdict.HOLDS)
        unseen = _unseen(seen, results)
        compared[seen.test.name] = Compared(verdicts, len(histories), beyond, given_up, unseen, lasso)
    return compared


def _excuse(one: Run, lack: Objection, explainer: Explainer, place: Place) -> str:
    """What is wrong with the machine that showed what the model lacks: of that which the processor could not show
    either, or, where it could, of that which the model's KVM could not."""
    return place.machine().excuse(one, explainer.objection(one) or lack)


def _unseen(seen: Seen, results: Sequence[Result]) -> list[Outcome]:
    """Outcomes of the model, as far as it was explored, that did not come; not those that need a host without ticks."""
    mine = [result for result in results if result.test == seen.test.name]
    possible = [one for one in mine if one.host == "ticking" or one.verdict is Verdict.HOLDS]
    modelled = {outcome for result in possible for outcome in result.outcomes}
    return sorted(modelled - set(seen.outcomes), key=lambda outcome: (outcome.marks, outcome.ending))


def _try_for_more(
    session: Session, results: Sequence[Result], hypervisor: Hypervisor, place: Place, progress: Say
) -> None:
    """Directed runs for what was not seen: each event at the place that it has on a way of the model to there."""
    guests: list[Guest] = []
    for seen in session.seen:
        for outcome in _unseen(seen, results)[:MOST_TRIED] if seen.runs else []:
            progress(f"{seen.test.name}: how the model comes to {' '.join(outcome.marks)}")
            wanted = places(seen.test, hypervisor, outcome, seen.runs[0].guest)
            if wanted:
                guests.append(directed(seen.test, wanted, DIRECTED_REPEAT, len(guests)))
    if guests:
        run_more(session, guests, place.machine(), progress)


def _in_words(result: Result) -> str:
    known = f", known as {result.known}" if result.known else ""
    because = f": {result.reason}" if result.verdict is not Verdict.HOLDS and result.reason else ""
    return f"{result.verdict}{known}{because}"
