"""SMM and INIT where other mechanisms are at work: trees that forget one for the other are convicted."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.litmus.corpus import select
from iretrace.verdict import Verdict
from tests.trees import edits
from tests.trees.edits import Edit, patched

pytestmark = pytest.mark.trees

CONVICTED = [
    ("user-smi-and-nmi", edits.CPL_STAYS),
    ("init-and-irq", edits.INIT_KEEPS_INJECTED_INTERRUPTS),
    ("init-drops-irq", edits.INIT_KEEPS_IRR),
    ("init-drops-irq", edits.INIT_KEEPS_THE_APIC_ENABLED),
    ("debugger-steps-into-smm", edits.SMRAM_HAS_THE_DEBUGGERS_TF),
]


@pytest.mark.parametrize(("name", "change"), CONVICTED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_tree_that_forgets_one_for_the_other_is_convicted(
    tree_7_3: Path, name: str, change: tuple[Edit, ...]
) -> None:
    (test,) = select([name])
    result = check(test, "plain", "tickless", TreeHypervisor(patched(tree_7_3, "combined.patch", change), vcpu="plain"))
    assert result.verdict is Verdict.VIOLATED, result.reason
