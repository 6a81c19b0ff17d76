"""A change to what the processor does for a hypervisor, on the observed side only, is noticed by the oracle too.

The rules here play no part in the reference: it has no hypervisor. Rules that both sides share are for the tests of
tests/machine; a mistake in one of those makes both sides wrong alike.
"""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.machine import boundary, delivery, guest, svm
from iretrace.verdict import Verdict
from tests.machine.mutants import Mutant, applied, functions, mutants
from tests.world.plain import Plain
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

PLAIN_CHANGES = {
    "load_guest_state: remove at 4 of `cpu.rip = wrap16(vmcb.rip)`": "irq-at-sti-hlt",
    "load_guest_state: remove at 4 of `cpu.rflags = wrap32(vmcb.rflags)`": "nmi-iret-then-spin",
    "save_guest_state: remove at 4 of `vmcb.rip = cpu.rip`": "nmi-iret-then-spin",
    "save_guest_state: remove at 4 of `vmcb.rsp = cpu.rsp`": "nmi-iret-then-spin",
    "save_guest_state: remove at 4 of `vmcb.rflags = cpu.rflags`": "irq-at-sti-hlt",
    "exits_instead: remove at 4 of `vmexit(m, cpu, vmcb, number, 0, 0)`": "nmi-iret-then-spin",
    "exits_instead: remove at 4 of `vmcb.next_rip = wrap64(cpu.rip + 1)`": "irq-at-sti-hlt",
    "vintr_exits: remove at 4 of `vmexit(m, cpu, vmcb, SVM_EXIT_VINTR, 0, 0)`": "irq-at-sti",
    "virtual_intr_due: negate at 4 of `return vmcb.int_ctl & V_IGN_TPR_MASK != 0 "
    "or priority > vmcb.int_ctl & V_TPR_MASK`": "irq-at-sti",
    "take_injected: remove at 8 of `deliver(m, cpu, vmcb, INTR, vector, 0, rip)`": "irq-at-sti",
    "take_injected: remove at 8 of `deliver(m, cpu, vmcb, TRAP, vector, error, rip)`": "clgi-is-ud",
    "returns_behind: negate at 4 of `return kind == SVM_EVTINJ_TYPE_SOFT`": "int-on-cold-stack",
    "event_info: negate at 22 of `event_type: u32 = SVM_EVTINJ_TYPE_EXEPT if kind >= TRAP "
    "else kind << SVM_EVTINJ_TYPE_SHIFT`": "int-on-cold-stack",
    "dr6_as_read: negate at 4 of `if cpu.guest_mode and vmcb.intercept_dr >> INTERCEPT_DR6_READ & 1 != 0:`"
    "": "nmi-while-stepping",
}
"""The same for plain guests, with a shipped test."""

NAMES = {change.split(":")[0] for change in (*CHANGES, *PLAIN_CHANGES)}
CHANGING = [f for module in (boundary, delivery, guest, svm) for f in functions(module) if f.__name__ in NAMES]
MUTANTS = {mutant.what: mutant for function in CHANGING for mutant in mutants(function)}


def convicted(mutant: Mutant, program: str) -> bool:
    with applied(mutant):
        result = check(parse(HEADER + program, "mutants.litmus"), "sev-es", "tickless", Small())
    return result.verdict is Verdict.VIOLATED


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_rule_is_noticed(change: str) -> None:
    assert convicted(MUTANTS[change], CHANGES[change])


@pytest.mark.parametrize("change", PLAIN_CHANGES)
def test_a_changed_rule_of_plain_guests_is_noticed(change: str) -> None:
    (test,) = select([PLAIN_CHANGES[change]])
    with applied(MUTANTS[change]):
        result = check(test, "plain", "tickless", Plain())
    assert result.verdict is Verdict.VIOLATED


@pytest.mark.parametrize("program", [ONE, TWO, COLD, "nmi\n\n" + HLT, "nmi\n\n" + OVERFLOW])
def test_unchanged_rules_are_not(program: str) -> None:
    assert check(parse(HEADER + program, "mutants.litmus"), "sev-es", "tickless", Small()).verdict is Verdict.HOLDS
