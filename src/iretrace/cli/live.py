"""`iretrace run`: litmus tests on a real KVM, and what it shows held against the processor and against the model."""

from __future__ import annotations

import argparse
import hashlib
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from iretrace.cli.compared import Model, compare, model, request_for
from iretrace.cli.driver import source_of
from iretrace.cli.known import shown_live
from iretrace.cli.stored import Stored, cache_directory
from iretrace.litmus.corpus import select
from iretrace.litmus.test import Test
from iretrace.live.bare import build_firmware, run_bare
from iretrace.live.emulation import OPTIONS, breaks, excuse, mend, unfit
from iretrace.live.guests import pack
from iretrace.live.harness import build_harness, workplace
from iretrace.live.host import host_kernel, run_here
from iretrace.live.own import build, with_modules
from iretrace.live.packages import Kernel, find_kernel
from iretrace.live.qemu import boot, qemu_version
from iretrace.live.session import Machine, Seen, Session, Start, run_tests, runnable
from iretrace.report.live import Compared, Late, LiveReport, Observed, Strange
from iretrace.verdict import InputError, Outcome

Say = Callable[[str], None]

DEFAULT_KERNEL = "6.1"
ALONE = "qemu-machine"
ECHO = 1.0
"""Seconds in which a second signal to end is the same one: `timeout` signals a process and its group."""


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
    _end_in_order()
    compared: dict[str, Compared] = {}
    with workplace() as directory:
        place = _place(arguments, directory, progress)
        with _model_of(arguments, tests, place) as model:
            session = run_tests(tests, arguments.repeat, place.machine(), progress)
            if model and not session.interrupted:
                try:
                    for name, said in compare(session, place.machine(), model, progress):
                        compared[name] = said
                except KeyboardInterrupt:
                    session.interrupted = True
    not_compared = [seen.test.name for seen in session.seen if arguments.compare and seen.test.name not in compared]
    return LiveReport(
        place.say,
        _observed(session, compared, place),
        session.left_out,
        session.broken,
        "QEMU" if place.alone else "KVM",
        session.interrupted,
        session.not_run,
        not_compared,
        _said_of(model, place) if model else "",
    )


def _model_of(
    arguments: argparse.Namespace, tests: Sequence[Test], place: Place
) -> AbstractContextManager[Model | None]:
    """The model that the user wants, which begins to look for verdicts; or None."""
    if not arguments.compare:
        return nullcontext()
    able, _ = runnable(tests, place.machine())
    request = request_for(arguments.compare, able, OPTIONS if place.qemu else {}, arguments.jobs)
    return model(request, source_of(request), Stored(cache_directory()))


def _said_of(model: Model, place: Place) -> str:
    """Its name, and that it is not what has run: Debian does not have the source of every kernel that it has."""
    name = model.source.name
    return name if name == f"Linux {place.linux}" else f"{name}, not of the Linux {place.linux} that ran"


def _end_in_order() -> None:
    """An end from outside, by SIGINT or SIGTERM, is an end in order: what has come is told, and nothing is left behind.
    Who asks a second time gets the end alone."""
    last = -ECHO

    def end(_number: int, _frame: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= ECHO:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


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
            seen.missing,
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
