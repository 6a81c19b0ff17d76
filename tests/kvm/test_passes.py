"""Host steps that are composed of known passes."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.passes import Entry, Landed, Once, Step
from iretrace.litmus.corpus import select


@pytest.mark.parametrize(("name", "kind"), [("nmi-at-hlt", "plain"), ("sev-es-nmi-at-cold-hlt", "sev-es")])
def test_a_step_of_known_passes_comes_to_what_its_execution_comes_to(name: str, kind: str) -> None:
    kvm = BuiltinHypervisor("v7.3", kind)
    passes = kvm._passes
    composed = passes.step
    several = 0

    def compared(first: int, entry: Entry, schedule: Landed) -> Step:
        nonlocal several
        step = composed(first, entry, schedule)
        once = Once(passes._kvm)
        executed = once.step(once.states(passes.states.values[first]), entry, schedule)
        assert executed.result == step.result
        assert once.states.values[executed.after] == passes.states.values[step.after]
        several += len(once.states.values) > 3
        return step

    passes.step = compared  # type: ignore[method-assign]
    (test,) = select([name])
    check(test, kind, "tickless", kvm)
    assert several > 5


def test_each_pass_is_executed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kvm = BuiltinHypervisor("v7.3", "sev-es")
    execute = kvm._passes._execute
    made: list[object] = []

    def noted(*arguments: object) -> object:
        made.append(arguments)
        return execute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kvm._passes, "_execute", noted)
    (test,) = select(["nmi-complete-then-spin"])
    check(test, "sev-es", "tickless", kvm)
    assert len(made) == len(set(made))
