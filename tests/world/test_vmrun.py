"""VMRUN of a guest: #UD without SVME, and with it nobody is judged, as guests of guests are not modelled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from iretrace.check import check
from iretrace.kvm import svm_exits
from iretrace.kvm.debug import kvm_skip_emulated_instruction
from iretrace.kvm.exceptions import UD_VECTOR, kvm_queue_exception
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.kvm_host import AGAIN, Vcpu
from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.verdict import Result, Verdict

ENTERS = """test t
about A hypervisor enters its guest.
vcpu plain, vnmi
outside maybe nmi

main:
    mov rax, EFER + SVME
    wrmsr efer
    vmrun rax
    mark m
    spin
nmi:
    mark n
    iretq
ud:
    mark u
    spin
"""


def judged(program: str, vcpu: str = "plain", revision: str = "v7.3") -> Result:
    return check(parse(program, "t.litmus"), vcpu, "tickless", BuiltinHypervisor(revision, vcpu))


@pytest.mark.parametrize(("revision", "vcpu"), [("v6.1", "plain"), ("v6.12", "vnmi"), ("v7.3", "plain")])
def test_who_enters_a_guest_of_its_own_is_undetermined(revision: str, vcpu: str) -> None:
    result = judged(ENTERS, vcpu, revision)
    assert (result.verdict, "nested_svm_vmrun()" in result.reason) == (Verdict.UNDETERMINED, True)


def ud(vcpu: Vcpu) -> int:
    """Refuses VMRUN."""
    kvm_queue_exception(vcpu, UD_VECTOR)
    return AGAIN


@pytest.mark.parametrize("answer", [kvm_skip_emulated_instruction, ud])
def test_a_hypervisor_that_goes_on_behind_vmrun_is_not_judged(
    answer: Callable[[Vcpu], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svm_exits, "vmrun_interception", answer)
    result = judged(ENTERS)
    assert (result.verdict, "VMRUN with EFER.SVME set has no contract" in result.reason) == (Verdict.UNDETERMINED, True)


def test_a_hypervisor_that_skips_vmrun_without_svme_is_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svm_exits, "vmrun_interception", kvm_skip_emulated_instruction)
    test = next(iter(select(["vmrun-is-ud"])))
    result = check(test, "plain", "tickless", BuiltinHypervisor("v7.3", "plain"))
    assert (result.verdict, "the guest sees mark m" in result.reason) == (Verdict.VIOLATED, True)


def test_an_nmi_that_comes_at_vmrun_is_explained() -> None:
    """The reference stands before VMRUN, and takes what comes."""
    program = ENTERS.replace("outside maybe nmi", "outside at at_it: nmi").replace("    vmrun", "    at_it: vmrun")
    assert judged(program).verdict is Verdict.UNDETERMINED


def test_a_breakpoint_on_vmrun_comes_first() -> None:
    """APM vol. 2, Debug Exceptions: an instruction breakpoint is a fault."""
    watch = "    lea rax, [at_it]\n    mov dr0, rax\n    mov rax, X0\n    mov dr7, rax\n"
    program = ENTERS.replace("    vmrun", f"{watch}    at_it: vmrun")
    result = judged(f"{program}db:\n    mark d\n    done: spin\n")
    assert result.verdict is Verdict.HOLDS
