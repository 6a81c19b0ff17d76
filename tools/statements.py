"""Which C statements of the event path the shipped tests execute: python tools/statements.py TREE... prints a table.

The event path is everything that KVM_RUN, the handlers of exits, senders, KVM_SET_GUEST_DEBUG and the steps to the
first state reach, as `--dry` finds it. A statement counts once, however often it is executed; what this kernel
configuration compiles out does not count. With --functions the functions follow, those that are least executed first.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import defaultdict
from pathlib import Path

from iretrace.check import check
from iretrace.explore.graph import Limits
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.machine import Machine
from iretrace.linux.tree import open_tree
from iretrace.linux.unmodelled import Unmodelled
from iretrace.linux.vm import KINDS, lacks
from iretrace.litmus.corpus import shipped
from iretrace.verdict import CLine

CONTEXT = multiprocessing.get_context("fork")

Counted = dict[tuple[str, str], tuple[int, int]]
"""(file, function) -> statements that there are, and that were executed."""


def executed(root: Path, kind: str) -> set[CLine]:
    """The statements that the tests of a kind execute."""
    hypervisor = TreeHypervisor(open_tree(root), vcpu=kind)
    for test in shipped():
        if kind in test.vcpus:
            check(test, kind, test.hosts[0], hypervisor, Limits(timeout=60))
    return hypervisor.executed()


def there_are(root: Path) -> tuple[dict[tuple[str, str], set[CLine]], list[str]]:
    """The statements of each function of the event path, and the functions that cannot be lowered."""
    machine = Machine(open_tree(root))
    found: dict[tuple[str, str], set[CLine]] = {}
    failed = []
    for name, path in machine.closure().functions.items():
        try:
            found[path, name] = set(machine.program.statements_of(name, path))
        except Unmodelled:
            failed.append(name)
    return found, failed


def count(root: Path) -> tuple[Counted, list[str]]:
    """What there is and what is executed, by function."""
    version = open_tree(root).version
    kinds = [kind for kind in KINDS if not lacks(version, kind)]
    with CONTEXT.Pool(2) as pool:
        pending = [pool.apply_async(executed, (root, kind)) for kind in kinds]
        statements, failed = there_are(root)
        done = set().union(*(one.get() for one in pending))
    return {key: (len(lines), len(lines & done)) for key, lines in statements.items()}, failed


def table(root: Path, counted: Counted, failed: list[str], functions: bool) -> str:
    """The page."""
    files: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for (path, _), (all_of, done) in counted.items():
        files[path] = files[path][0] + all_of, files[path][1] + done
    total, met = (sum(pair[side] for pair in counted.values()) for side in (0, 1))
    entered = sum(done > 0 for _, done in counted.values())
    share = f"{met} of {total} statements ({100 * met // max(total, 1)} %), {entered} of {len(counted)} functions"
    by_size = sorted(files.items(), key=lambda one: -one[1][0])
    lines = [
        f"Linux {open_tree(root).version}: {share}; {len(failed)} functions cannot be lowered",
        *(f"{done:6} of {all_of:5}  {path}" for path, (all_of, done) in by_size),
    ]
    if functions:
        by_rate = sorted(counted.items(), key=lambda one: (one[1][1] / max(one[1][0], 1), -one[1][0]))
        lines += [f"{done:6} of {all_of:5}  {name}" for (_, name), (all_of, done) in by_rate]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Print a table for each tree."""
    for name in (argument for argument in arguments if argument != "--functions"):
        print(table(Path(name), *count(Path(name)), "--functions" in arguments), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
