"""How fast Iretrace is here: python tools/bench.py TREE. Prints each measurement with the limit that it should meet."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

from iretrace.cli.driver import Request, run, tree_opener
from iretrace.litmus.corpus import select
from iretrace.verdict import InputError
from iretrace.world.protocol import Hypervisor, Pause


class Timed:
    """A hypervisor that counts its host steps and the time that they take."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self.steps = 0
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hypervisor, name)

    def step(self, *arguments: Any) -> Pause:
        """As the hypervisor's own."""
        began = time.perf_counter()
        pause = self._hypervisor.step(*arguments)
        self.seconds += time.perf_counter() - began
        self.steps += 1
        return pause


def show(what: str, value: float, unit: str, limit: float) -> None:
    """One line of the result; slower than it should be is said, not an error: machines differ."""
    print(f"{what:42} {value:10.1f} {unit:7} (limit {limit:g}){'' if value <= limit else '  OVER THE LIMIT'}")


def main() -> int:
    """Command line entry."""
    if len(sys.argv) != 2:
        print("usage: python tools/bench.py TREE", file=sys.stderr)
        return 2
    request = Request(tree=Path(sys.argv[1]), tests=select([]))
    try:
        began = time.perf_counter()
        timed = Timed(tree_opener(request)("sev-es"))
        timed.start()
        opened = time.perf_counter()
        results = run(request, lambda _vcpu: timed, lambda _text: None)
        done = time.perf_counter()
    except InputError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    show("reading and lowering the tree", opened - began, "s", 4)
    show(f"a host step, mean of {timed.steps:,}", timed.seconds / max(1, timed.steps) * 1e6, "us", 200)
    show(f"{len(results)} shipped tests on it", done - opened, "s", 30)
    show("memory at its largest", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB", 500)
    print(f"{sum(result.states for result in results):,} states, {sum(result.edges for result in results):,} edges")
    return 0


if __name__ == "__main__":
    sys.exit(main())
