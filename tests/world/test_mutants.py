"""A change to what the processor does for a hypervisor, on the observed side only, is noticed by the oracle too.

The rules here play no part in the reference: it has no hypervisor. Rules that both sides share are for the tests of
tests/machine; a mistake in one of those makes both sides wrong alike.
"""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.litmus.parse import parse
from iretrace.machine import boundary, guest, svm
from iretrace.verdict import Verdict
from tests.machine.mutants import Mutant, applied, functions, mutants
from tests.world.small import Small

HEADER = "test mutants\nabout A rule has changed.\nvcpu sev-es\noutside "
NMI = "nmi:\n    mark n\n    vmgexit nmi_complete\n    iretq\n"
SPIN = "main:\n    spin\n" + NMI
HLT = "main:\n    hlt\n    mark woken\n    spin\n" + NMI
OVERFLOW = "main:\n    spin\nnmi:\n    cpuid\n    iretq\nvc:\n    cpuid\n    skip\n    iretq\n"
COLD = "nmi\nist nmi\ncold nmi\n\n" + SPIN

ONE, TWO = "nmi\n\n" + SPIN, "nmi, nmi\n\n" + SPIN

CHANGES = {
    "vmrun: remove at 8 of `cpu.event_inj = vmcb.event_inj`": ONE,
    "vmrun: remove at 4 of `cpu.guest_mode = 1`": ONE,
    "vmexit: remove at 4 of `vmcb.event_inj = 0`": COLD,
    "vmexit: remove at 4 of `vmcb.exit_code = code`": TWO,
    "vmexit: remove at 4 of `vmcb.exit_int_info = 0`": COLD,
    "vmexit_stack_npf: remove at 4 of `vmcb.exit_int_info = event`": COLD,
    "vmexit_shutdown: remove at 8 of `vmexit(m, cpu, vmcb, SVM_EXIT_SHUTDOWN, 0, 0)`": "nmi\n\n" + OVERFLOW,
    "intr_exit_due: swap at 15 of `return True`": ONE,
    "take_intr_exit: remove at 4 of `vmexit(m, cpu, vmcb, SVM_EXIT_INTR, 0, 0)`": ONE,
    "take_injected: remove at 4 of `cpu.event_inj = 0`": ONE,
    "take_injected: remove at 8 of `deliver(m, cpu, vmcb, NMI, NMI_VECTOR, 0, rip)`": ONE,
    "automatic_exit: remove at 4 of `retire(cpu, wrap16(cpu.rip + 1))`": "nmi\n\n" + HLT,
    "automatic_exit: remove at 4 of `vmexit(m, cpu, vmcb, code, 0, 0)`": "nmi\n\n" + HLT,
    "vmgexit: remove at 4 of `ghcb.sw_exit_code = code`": TWO,
    "vmgexit: remove at 4 of `vmexit(m, cpu, vmcb, SVM_EXIT_VMGEXIT, 0, 0)`": TWO,
}
"""A change, and the litmus test that shows it."""

NAMES = {change.split(":")[0] for change in CHANGES}
CHANGING = [f for module in (boundary, guest, svm) for f in functions(module) if f.__name__ in NAMES]
MUTANTS = {mutant.what: mutant for function in CHANGING for mutant in mutants(function)}


def convicted(mutant: Mutant, program: str) -> bool:
    with applied(mutant):
        result = check(parse(HEADER + program, "mutants.litmus"), "sev-es", "tickless", Small())
    return result.verdict is Verdict.VIOLATED


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_rule_is_noticed(change: str) -> None:
    assert convicted(MUTANTS[change], CHANGES[change])


@pytest.mark.parametrize("program", [ONE, TWO, COLD, "nmi\n\n" + HLT, "nmi\n\n" + OVERFLOW])
def test_unchanged_rules_are_not(program: str) -> None:
    assert check(parse(HEADER + program, "mutants.litmus"), "sev-es", "tickless", Small()).verdict is Verdict.HOLDS
