"""Which rules of the processor which shipped tests exercise: python tools/coverage.py [RULE]... prints the table.

Each test is run on the built-in KVM, beside the machine alone. A rule is exercised if it does something there, or
answers something else than no or 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

from iretrace.check import check
from iretrace.kvm.hypervisor import KINDS, BuiltinHypervisor
from iretrace.kvm.revisions import REVISIONS
from iretrace.litmus.corpus import shipped
from iretrace.litmus.test import Test
from iretrace.subset import RULES

ROOMS = ("iretrace.machine.", "iretrace.world.")


@contextmanager
def noting(called: set[str]) -> Iterator[None]:
    """Every rule that does something is noted by its name."""
    replaced: list[tuple[ModuleType, str, Any]] = []
    for module in [m for name, m in sys.modules.items() if name.startswith(ROOMS)]:
        for name, value in list(vars(module).items()):
            if name in RULES and callable(value) and value.__name__ == name:
                replaced.append((module, name, value))
                setattr(module, name, _noted(value, name, called))
    try:
        yield
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def _noted(rule: Callable[..., Any], name: str, called: set[str]) -> Callable[..., Any]:
    @wraps(rule)
    def call(*arguments: Any) -> Any:
        result = rule(*arguments)
        if result is None or result:
            called.add(name)
        return result

    return call


def exercised(tests: Iterable[Test]) -> dict[str, list[str]]:
    """Rule -> the tests that exercise it, for every rule."""
    newest = list(REVISIONS)[-1]
    found: dict[str, list[str]] = {name: [] for name, rule in RULES.items() if rule.module.startswith(ROOMS)}
    for test in tests:
        called: set[str] = set()
        with noting(called):
            for kind in (kind for kind in test.vcpus if kind in KINDS):
                check(test, kind, test.hosts[0], BuiltinHypervisor(newest, kind))
        for name in called:
            found[name].append(test.name)
    return found


def main() -> int:
    """Command line entry."""
    wanted = set(sys.argv[1:])
    for name, tests in sorted(exercised(shipped()).items(), key=lambda item: (len(item[1]), item[0])):
        if not wanted or name in wanted:
            shown = tests if wanted else tests[:3]
            print(f"{len(tests):4}  {name}: {', '.join(shown)}{' ...' if len(shown) < len(tests) else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
