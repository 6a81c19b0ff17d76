"""Which statement a counterexample cites: who declined the event, or who wrote what the processor went by."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.litmus.corpus import select
from iretrace.verdict import Verdict

CITED = [
    ("nmi-complete-first", "sev-es", "v6.1", "svm_nmi_blocked", "return True"),
    ("irq-before-iret", "plain", "v7.3", "svm_complete_interrupts", "svm.nmi_masked = 0"),
    ("smi-at-iret", "plain", "v7.3", "svm_complete_interrupts", "svm.nmi_masked = 0"),
    ("svme-off-keeps-gif", "plain", "v6.12", "enable_gif", "V_GIF_MASK"),
    ("vnmi-two-around-cpuid", "vnmi", "v7.3", "svm_enable_nmi_window", "svm.nmi_singlestep = 1"),
    ("iret-faults", "plain", "v7.3", "svm_enable_nmi_window", "svm.nmi_singlestep = 1"),
    ("gif-holds-two-nmis", "plain", "v7.3", "process_nmi", "vcpu.nmi_pending ="),
    ("vnmi-and-irq", "vnmi", "v7.3", "svm_inject_irq", "event_inj"),
    ("sev-es-int3-on-cold-stack", "sev-es", "v7.3", "svm_inject_exception", "event_inj"),
    ("hlt-in-nmi-for-ever", "plain", "v6.1", "leave_halt", "vcpu.mp_state ="),
    ("sev-es-vnmi-two-in-shadow", "sev-es-vnmi", "v7.3", "svm_enable_nmi_window", ""),
]
"""Test, vCPU, revision; the function and a part of the statement."""


@pytest.mark.parametrize(("name", "vcpu", "revision", "function", "text"), CITED, ids=lambda value: str(value)[:24])
def test_a_counterexample_cites_what_decided_it(name: str, vcpu: str, revision: str, function: str, text: str) -> None:
    (test,) = select([name])
    result = check(test, vcpu, "tickless", BuiltinHypervisor(revision, vcpu))
    assert result.verdict is Verdict.VIOLATED
    assert result.trace is not None and result.trace.cited is not None
    assert result.trace.cited.function == function
    assert text in result.trace.cited.text


def test_no_statement_is_cited_where_none_decided() -> None:
    """The processor itself raises #GP: KVM has done nothing about it."""
    (test,) = select(["user-clgi-is-ud"])
    result = check(test, "plain", "tickless", BuiltinHypervisor("v7.3", "plain"))
    assert result.trace is not None and result.trace.cited is None
