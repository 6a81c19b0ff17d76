"""The door to a debugger: what is compared while it is attached, what after it has gone, and who is refused."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.litmus.parse import parse
from iretrace.litmus.test import Test as LitmusTest
from iretrace.machine.cpu import DB_VECTOR, NMI_VECTOR, SEEN_DELIVERY, SEEN_MARK, X86_EFLAGS_IF, X86_EFLAGS_TF
from iretrace.verdict import InputError, Result
from iretrace.world.debugger import Attached, after_stop, is_debug_exception, wanted_of, without_tf
from tests.world.small import Small

HEADER = "test t\nabout A debugger.\nvcpu {}\noutside {}\n\nmain:\n"
STEPS = "    first: nop\n    second: nop\n    mark m\n    spin\n"
OWN_STEP = "    pushfq\n    or qword [rsp], TF\n    popfq\n    second: nop\n    spin\ndb:\n    mark d\n    spin\n"


def litmus(outside: str, program: str = STEPS, kind: str = "plain") -> LitmusTest:
    return parse(HEADER.format(kind, outside) + program, "t.litmus")


def judged(test: LitmusTest) -> Result:
    kind = test.vcpus[0]
    return check(test, kind, "tickless", BuiltinHypervisor("v7.3", kind))


def test_a_step_of_the_debuggers_is_not_compared_and_it_leaves_nothing_behind() -> None:
    assert str(judged(litmus("guest-debug step, guest-debug off")).verdict) == "holds"


def test_a_breakpoint_of_the_debuggers_stops_once() -> None:
    assert str(judged(litmus("at first: guest-debug break second")).verdict) == "holds"


def test_the_flags_that_the_guest_stores_are_compared_once_the_debugger_has_gone() -> None:
    program = "    first: nop\n    pushfq\n    spin\nnmi:\n    iretq\n"
    result = judged(litmus("guest-debug step, guest-debug off, nmi", program))
    assert "with TF, stored by pushfq" in result.reason


def test_a_guest_with_debug_exceptions_of_its_own_has_no_contract_meanwhile() -> None:
    result = judged(litmus("at second: guest-debug step", OWN_STEP))
    assert "a #DB of its own while a debugger is attached" in result.reason


def test_an_encrypted_guests_debugger_is_refused() -> None:
    assert str(judged(litmus("guest-debug step", kind="sev-es")).verdict) == "holds"


def test_a_hypervisor_without_debuggers_is_not_judged() -> None:
    with pytest.raises(InputError, match="no sender for signal"):
        check(litmus("guest-debug step", kind="sev-es"), "sev-es", "tickless", Small())


def test_what_the_vmm_asks_for() -> None:
    assert wanted_of(Attached.OFF, -1).control == 0
    assert wanted_of(Attached.STEP, -1).control == 3
    assert wanted_of(Attached.BREAK, 5) == (0x20001, (5, 0, 0, 0), 0x401)
    assert [after_stop(attached) for attached in Attached] == [0, 1, 3, 3]


def test_only_tf_is_taken_from_what_is_compared() -> None:
    shown = (SEEN_DELIVERY, NMI_VECTOR, 4, X86_EFLAGS_TF | X86_EFLAGS_IF, 0)
    assert without_tf(shown) == (SEEN_DELIVERY, NMI_VECTOR, 4, X86_EFLAGS_IF, 0)
    assert without_tf(None) is None


def test_a_debug_exception_is_known_from_others() -> None:
    assert is_debug_exception((SEEN_DELIVERY, DB_VECTOR, 0, 0, 0))
    assert not is_debug_exception((SEEN_DELIVERY, NMI_VECTOR, 0, 0, 0))
    assert not is_debug_exception((SEEN_MARK, DB_VECTOR, 0, 0, 0))
    assert not is_debug_exception(None)


@pytest.mark.parametrize(
    ("outside", "message"),
    [
        ("guest-debug stop", "unknown action 'stop'; write 'step'"),
        ("guest-debug break nowhere", "label 'nowhere' is not defined"),
        ("guest-debug", "the line ends too early"),
    ],
)
def test_a_mistake_is_told(outside: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        litmus(outside)
