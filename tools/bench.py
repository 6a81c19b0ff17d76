"""How fast Iretrace is here: python -m tools.bench TREE, a Linux 6.1. Prints each measurement with the limit that it
should meet.

Seconds are those of the clock; on a machine that does other things as well, look at those of the CPU.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iretrace.check import check
from iretrace.cli.driver import Request, run
from iretrace.cli.sources import BuiltinSource, Source, TreeSource
from iretrace.linux.edits import SVM, Edit, make_patch
from iretrace.linux.tree import open_tree
from iretrace.litmus.corpus import select
from iretrace.verdict import InputError
from iretrace.world.protocol import Hypervisor, Pause
from tests.trees.edits import FIX_ON_6_1

JOBS = 2
"""Processes at once, as the limits mean it."""


NMI_WINDOW = Edit(
    SVM,
    "svm_enable_nmi_window",
    "if (!gif_set(svm))",
    "if (sev_es_guest(vcpu->kvm))\n\t\treturn;\n\n\tif (!gif_set(svm))",
)
EVERY_GUEST = Edit(
    SVM, "svm_vcpu_run", "trace_kvm_entry(vcpu", "vcpu->arch.nmi_injected &= true;\n\ttrace_kvm_entry(vcpu"
)
PATCHES: Mapping[str, tuple[Sequence[Edit], float]] = {
    "the mail's change to NMI_COMPLETE": (FIX_ON_6_1, 10),
    "the mail's change to the NMI window": ([NMI_WINDOW], 10),
    "both": ([*FIX_ON_6_1, NMI_WINDOW], 10),
    "a statement more in svm_vcpu_run()": ([EVERY_GUEST], 60),
}
"""Changes to Linux 6.1, and in how many seconds all tests should have been judged with them."""


class Timed:
    """A hypervisor that times its host steps, each twice: executed, and remembered."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self.executed: list[float] = []
        self.remembered: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hypervisor, name)

    def step(self, *arguments: Any) -> Pause:
        """As the hypervisor's own."""
        for times in (self.executed, self.remembered):
            began = time.perf_counter()
            pause = self._hypervisor.step(*arguments)
            times.append(time.perf_counter() - began)
        return pause


def show(what: str, value: float, unit: str, limit: float) -> None:
    """One line of the result; slower than it should be is said, not an error: machines differ."""
    print(f"{what:46} {value:10.1f} {unit:7} (limit {limit:g}){'' if value <= limit else '  OVER THE LIMIT'}")


def cpu() -> float:
    """Seconds of CPU of this process and of all that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def one_kind(source: Source) -> None:
    """Host steps, and the tests for SEV-ES, in this process."""
    began = time.perf_counter()
    source.read()
    timed = Timed(source.open("sev-es"))
    timed.start()
    opened = time.perf_counter()
    tests = [test for test in select([]) if "sev-es" in test.vcpus]
    results = [check(test, "sev-es", host, timed) for test in tests for host in test.hosts]
    done = time.perf_counter()
    show("reading and lowering the tree", opened - began, "s", 4)
    show("a host step, memoised, median", statistics.median(timed.remembered) * 1e6, "us", 200)
    executed = f"the same, executed, median of {len(timed.executed):,}"
    print(f"{executed:46} {statistics.median(timed.executed) * 1e6:10.1f} us      (no limit)")
    show(f"{len(results)} tests for sev-es on it", done - opened, "s", 30)
    print(f"{sum(result.states for result in results):,} states, {sum(result.edges for result in results):,} edges")


def everything(what: str, tree: Path | None, source: Source, limit: float) -> None:
    """All shipped tests for all kinds, as `check --jobs 2` does it."""
    began, used = time.perf_counter(), cpu()
    report = run(Request(tree, select([]), jobs=JOBS), source, lambda _text: None)
    show(f"{len(report.results)} verdicts, all kinds, on {what}", time.perf_counter() - began, "s", limit)
    print(f"{'':46} {cpu() - used:10.1f} s of CPU, --jobs {JOBS}")


def with_patches(tree: Path) -> None:
    """The command on the tree alone, and then with each of the patches as if it was the first one."""
    with tempfile.TemporaryDirectory() as scratch:
        alone, cache, patch = (Path(scratch) / name for name in ("alone", "cache", "a.patch"))
        show("check TREE, nothing kept", command(alone, tree), "s", 90)
        for what, (edits, limit) in PATCHES.items():
            shutil.rmtree(cache, ignore_errors=True)
            shutil.copytree(alone, cache)
            patch.write_text(make_patch(open_tree(tree), edits))
            show(f"with {what}", command(cache, tree, "--patch", str(patch)), "s", limit)
        show("the same again", command(cache, tree, "--patch", str(patch)), "s", 10)


def command(cache: Path, tree: Path, *arguments: str) -> float:
    """Seconds that `iretrace check` takes, with what is kept in a directory."""
    words = [sys.executable, "-m", "iretrace", "check", str(tree), "--jobs", str(JOBS), *arguments]
    began = time.perf_counter()
    done = subprocess.run(words, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True)
    if done.returncode not in (0, 1, 3):
        raise InputError(f"{' '.join(words)}: {done.stderr.strip()}")
    return time.perf_counter() - began


def main() -> int:
    """Command line entry."""
    if len(sys.argv) != 2:
        print("usage: python -m tools.bench TREE", file=sys.stderr)
        return 2
    tree = Path(sys.argv[1])
    try:
        everything("the built-in KVM", None, BuiltinSource(), 15)
        everything("the tree", tree, TreeSource(tree), 90)
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        show("memory of its largest process", largest / 1024, "MiB", 500)
        one_kind(TreeSource(tree))
        with_patches(tree)
    except (InputError, LookupError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
