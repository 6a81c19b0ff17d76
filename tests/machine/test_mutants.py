"""The tests of the machine notice when a rule changes: any statement, condition or number of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import pytest

from iretrace.machine import (
    boundary,
    breakpoints,
    cpu,
    debug,
    delivery,
    gates,
    guest,
    privilege,
    reset_hold,
    smm,
    stack,
    svm,
    swap,
    vnmi,
)
from tests.machine import (
    test_boundary,
    test_breakpoints,
    test_debug,
    test_delivery,
    test_gates,
    test_guest,
    test_interrupts,
    test_plain,
    test_privilege,
    test_reset_hold,
    test_smm,
    test_stack,
    test_stepping,
    test_svm,
    test_swap,
    test_vnmi,
)
from tests.machine.mutants import applied, functions, mutants

MACHINE = [
    boundary,
    breakpoints,
    cpu,
    debug,
    delivery,
    gates,
    guest,
    privilege,
    reset_hold,
    smm,
    stack,
    svm,
    swap,
    vnmi,
]
TESTS = [
    test_boundary,
    test_breakpoints,
    test_debug,
    test_delivery,
    test_gates,
    test_guest,
    test_interrupts,
    test_plain,
    test_privilege,
    test_reset_hold,
    test_smm,
    test_stack,
    test_stepping,
    test_svm,
    test_swap,
    test_vnmi,
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
