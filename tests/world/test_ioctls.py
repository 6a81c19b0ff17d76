"""The doors to the VMM's ioctls: KVM_NMI is an arrival, saving and restoring events is nothing at all."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.litmus.test import Test as LitmusTest
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import Vmcb
from iretrace.verdict import InputError, Outcome, Verdict
from iretrace.world.alone import outcomes
from iretrace.world.protocol import Debug, Pause, Private, VmmCall
from tests.world.small import Small

PROGRAM = "test t\nabout A VMM.\nvcpu plain\noutside {}\n\nmain:\n    spin\nnmi:\n    mark n\n    iretq\n"


def litmus(outside: str) -> LitmusTest:
    return parse(PROGRAM.format(outside), "t.litmus")


class Forgetful(BuiltinHypervisor):
    """Does nothing when its VMM calls it."""

    def vmm_call(self, private: Private, vmcb: Vmcb, ghcb: Ghcb, call: VmmCall, debug: Debug) -> Pause:
        """As if it had not been called."""
        return super().vmm_call(self.start().private, vmcb, ghcb, VmmCall.SAVE_RESTORE, debug)


class Refusing(BuiltinHypervisor):
    """Lets all calls of its VMM fail."""

    def vmm_call(self, private: Private, vmcb: Vmcb, ghcb: Ghcb, call: VmmCall, debug: Debug) -> Pause:
        """-EINVAL"""
        return super().vmm_call(private, vmcb, ghcb, call, debug)._replace(exit_reason=-22)


def test_the_processor_takes_an_nmi_of_the_vmms_as_any_other() -> None:
    assert outcomes(litmus("kvm-nmi, kvm-nmi"), "plain") == (Outcome(("n", "n"), "spins"),)


def test_the_processor_does_not_notice_that_its_events_are_saved() -> None:
    assert outcomes(litmus("save-restore"), "plain") == (Outcome((), "spins"),)


def test_an_nmi_of_the_vmms_that_never_comes_is_a_defect() -> None:
    result = check(litmus("kvm-nmi"), "plain", "tickless", Forgetful("v7.3", "plain"))
    assert (result.verdict, "never comes" in result.reason) == (Verdict.VIOLATED, True)


def test_a_call_that_fails_is_a_defect() -> None:
    result = check(litmus("save-restore"), "plain", "tickless", Refusing("v7.3", "plain"))
    assert (result.verdict, result.reason) == (Verdict.VIOLATED, "KVM_SET_VCPU_EVENTS fails with errno 22")


def test_a_hypervisor_without_such_calls_is_not_judged() -> None:
    with pytest.raises(InputError, match="no sender for signal"):
        check(litmus("kvm-nmi"), "plain", "tickless", Small(vcpu="plain"))


def test_the_counterexample_tells_what_the_vmm_does() -> None:
    [test] = select(["events-saved-and-restored"])
    result = check(test, "plain", "tickless", BuiltinHypervisor("v6.1", "plain"))
    assert result.trace is not None
    told = [step.what for step in result.trace.stem if step.actor == "VMM"]
    assert told == ["saves what events there are, and restores them"]


def test_an_nmi_of_the_vmms_needs_a_handler() -> None:
    with pytest.raises(InputError, match="there is no section 'nmi:' to handle it"):
        parse("test t\nabout A VMM.\nvcpu plain\noutside kvm-nmi\n\nmain:\n    spin\n", "t.litmus")
