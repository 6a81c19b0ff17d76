"""The tests of the machine notice when a rule changes: any statement, condition or number of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import pytest

from iretrace import machine
from tests.machine.mutants import applied, functions, mutants

MACHINE = [import_module(f"iretrace.machine.{found.name}") for found in iter_modules(machine.__path__)]
TESTS = [
    import_module(f"tests.machine.{file.stem}")
    for file in sorted(Path(__file__).parent.glob("test_*.py"))
    if file.stem not in ("test_data", "test_mutants")
]

SURVIVORS = {
    "deliver: shift at 26 of `for _attempt in range(4):`": "the bound is never met: #DF ends every chain before it",
    "try_to_deliver: swap at 45 of `if top % PAGE_WORDS < 5 + error_words or top >= MEMORY_WORDS:`": "a page start",
}
"""Changes that change nothing, and why."""


def calls(module: ModuleType) -> list[Callable[[], None]]:
    """The tests of a module as calls, one for each combination of parameters."""
    found: list[Callable[[], None]] = []
    for name, function in vars(module).items():
        if not name.startswith("test_"):
            continue
        marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
        choices = [[_arguments(mark.args[0], value) for value in mark.args[1]] for mark in marks]
        for chosen in product(*choices):
            found.append(partial(function, **{k: v for one in chosen for k, v in one.items()}))
    return found


def _arguments(names: str | tuple[str, ...], value: Any) -> dict[str, Any]:
    return {names: value} if isinstance(names, str) else dict(zip(names, value, strict=True))


def noticed(tests: list[Callable[[], None]]) -> bool:
    """Some test fails."""
    for test in tests:
        try:
            test()
        except Exception:
            return True
    return False


@pytest.mark.slow
def test_every_change_to_a_rule_is_noticed_by_some_test() -> None:
    tests = [call for module in TESTS for call in calls(module)]
    assert not noticed(tests)
    survivors = []
    for mutant in (m for module in MACHINE for function in functions(module) for m in mutants(function)):
        with applied(mutant):
            if not noticed(tests):
                survivors.append(mutant.what)
    assert sorted(survivors) == sorted(SURVIVORS)
    assert not noticed(tests)
