"""Every rule of the processor does something in some shipped test, but for those named here."""

from __future__ import annotations

import pytest

from iretrace.litmus.corpus import shipped
from tools.coverage import exercised

NOT_EXERCISED = {
    "bare_step": "the machine alone on the bench; the reference takes its steps one by one",
    "nmi_due": "as bare_step: the reference may be late, and asks for what holds an NMI itself",
    "shadow_blocks_nmi": "as nmi_due: in the reference a shadow may hold an NMI or not, at each occurrence",
    "lbr_virtualized": "KVM virtualizes LBRs for the encrypted guests of trees; the built-in one says nothing of it",
    "fault_exits": "the faults of a delivery are #NP, #PF and #DF, none of which KVM intercepts",
    "take_virtual_intr": "KVM intercepts VINTR wherever it sets V_IRQ",
}
"""Rule -> why no shipped test can exercise it."""


def test_a_rule_is_exercised_by_the_tests_that_need_it() -> None:
    chosen = [test for test in shipped() if test.name in ("ud2-without-gate", "nmi-at-hlt")]
    found = exercised(chosen)
    assert found["gate_error"] == ["ud2-without-gate"]
    assert found["automatic_exit"] == ["nmi-at-hlt"]
    assert found["general_detect"] == []


@pytest.mark.slow
def test_every_rule_is_exercised_by_some_shipped_test() -> None:
    found = exercised(shipped())
    assert {name for name, tests in found.items() if not tests} == set(NOT_EXERCISED)
