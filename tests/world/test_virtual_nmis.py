"""Guests with virtual NMIs in the world: what opens their gate, what retires, what a counterexample tells."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.litmus.corpus import select
from iretrace.machine.cpu import NMI_VECTOR
from iretrace.machine.ghcb import SVM_VMGEXIT_NMI_COMPLETE
from iretrace.machine.vmcb import V_NMI_ENABLE_MASK, V_NMI_PENDING_MASK
from iretrace.subset import pack
from iretrace.verdict import Result, Verdict
from iretrace.world.core import Phase
from iretrace.world.doors import answer_vmgexit
from iretrace.world.guest import make_cpu, make_machine
from iretrace.world.vcpu import Vcpu
from tests.world.test_reference import History

HEADER = "test t\nabout A guest with virtual NMIs.\nvcpu sev-es-vnmi\noutside nmi, nmi\n"
COMPLETE_FIRST = "\nmain:\n    spin\nnmi:\n    vmgexit nmi_complete\n    mark n\n    iretq\n"


def masked_after_nmi_complete(kind: str) -> bool:
    (test,) = select(["sev-es-vnmi-nmi-complete"])
    machine, cpu = make_machine(test, kind, 0), make_cpu(test)
    cpu.nmi_masked = 1
    cpu.door = SVM_VMGEXIT_NMI_COMPLETE
    assert answer_vmgexit(machine, cpu)
    return cpu.nmi_masked != 0


def test_nmi_complete_opens_the_gate_only_without_virtual_nmis() -> None:
    assert masked_after_nmi_complete("sev-es-vnmi")
    assert not masked_after_nmi_complete("sev-es")
    assert not masked_after_nmi_complete("sev-es-debugswap")


def test_the_reference_waits_for_iret() -> None:
    assert History(COMPLETE_FIRST, HEADER).sent(0).nmi(0).sent(1).mark("n").nmi(0).mark("n").ends("spins at 0")


def test_an_nmi_between_nmi_complete_and_iret_is_not_explained() -> None:
    assert not History(COMPLETE_FIRST, HEADER).sent(0).nmi(0).sent(1).nmi(2).explained


@pytest.mark.parametrize(("pending", "retires"), [(0, True), (V_NMI_PENDING_MASK, False)])
def test_taking_a_virtual_nmi_retires_no_instruction(pending: int, retires: bool) -> None:
    (test,) = select(["vnmi-needs-no-exit"])
    vcpu = Vcpu(test, "vnmi", BuiltinHypervisor("v7.3", "vnmi"), 0)
    start = vcpu.start(len(test.outside))
    assert vcpu.core(start.core).phase == Phase.GUEST
    vmcb, cpu = vcpu.vmcb(start.core), vcpu.cpu(start.core)
    assert vmcb.int_ctl & V_NMI_ENABLE_MASK
    cpu.nmi_latched = int(pending != 0)
    core = vcpu.cores(vcpu.core(start.core)._replace(cpu=vcpu.cpus(pack(cpu))))
    did = vcpu.did(core)
    assert did.retired == retires
    assert (did.shown is not None and did.shown[1] == NMI_VECTOR) == (not retires)  # type: ignore[index]


def judged(name: str, kind: str) -> Result:
    (test,) = select([name])
    return check(test, kind, "tickless", BuiltinHypervisor("v7.3", kind))


def test_a_warn_of_the_builtin_kvm_is_a_violation_that_is_told_step_by_step() -> None:
    result = judged("sev-es-vnmi-two-in-shadow", "sev-es-vnmi")
    assert result.verdict is Verdict.VIOLATED
    assert result.trace is not None
    told = [(step.actor, step.what, step.where) for step in result.trace.stem]
    assert any(what == "VMRUN, nothing injected; a virtual NMI is pending" for _, what, _ in told)
    assert any(actor == "cpu" and where == "take_nmi: NMI Virtualization" for actor, _, where in told)


@pytest.mark.parametrize("name", ["vnmi-at-sti-hlt", "vnmi-two-in-shadow", "vnmi-two-around-cpuid"])
def test_a_shadow_that_holds_a_virtual_nmi_is_no_disputed_rule(name: str) -> None:
    assert not [used for used in judged(name, "vnmi").ledger.assumptions if "blocks_nmi" in used.what]
