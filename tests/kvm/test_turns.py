from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from iretrace import kvm
from iretrace.check import check
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.kvm_host import Thread, Vcpu, VcpuSvm
from iretrace.litmus.corpus import select
from iretrace.verdict import Result
from tests.kept import functions, kept, reaching

DRIVERS = ("hypervisor.py", "host.py", "passes.py", "trace.py", "lines.py", "revisions.py", "differences.py")
"""Files that no step executes, or only outside of our KVM's own functions."""


def told(result: Result) -> tuple[object, ...]:
    """Everything of a result but how long it took."""
    found = result.verdict, result.reason, result.states, result.edges, result.outcomes
    return *found, result.trace, result.ledger


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "revision"),
    [
        ("nmi-and-irq", "plain", "v6.1"),
        ("irq-before-iret", "plain", "v7.3"),
        ("two-nmis-on-cold-stack", "sev-es", "v6.1"),
        ("vnmi-at-hlt", "vnmi", "v7.3"),
    ],
)
def test_merging_landings_changes_nothing(name: str, kind: str, revision: str) -> None:
    (test,) = select([name])
    each, merged = (BuiltinHypervisor(revision, kind, merge=merge) for merge in (False, True))
    assert told(check(test, kind, "tickless", merged)) == told(check(test, kind, "tickless", each))


@pytest.mark.parametrize(
    ("record", "references"),
    [(Thread, "cpu itself wanted"), (Vcpu, "kvm thread svm debug"), (VcpuSvm, "vmcb ghcb")],
)
def test_all_records_of_a_step_are_part_of_where_it_stands(record: Any, references: str) -> None:
    """HostRun._turn() packs these, but for struct kvm, which is constant."""
    assert [field.name for field in fields(record) if field.name not in record.field_names] == references.split()


def test_our_kvm_keeps_nothing_that_depends_on_state_while_it_accesses_shared_cells() -> None:
    folder = Path(kvm.__file__).parent
    known = functions(file for file in sorted(folder.glob("*.py")) if file.name not in DRIVERS)
    reach = reaching(known, {"shared"})
    assert "process_nmi" in reach and "gif_set" not in reach
    assert kept(known, reach, {"thread"}) == []
