"""What the guest sees, what a VMCB says, and the steps of a trace of a plain guest, in words."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.machine.vmcb import Vmcb
from iretrace.world.words import event_name, exit_name, say, vmrun
from tests.world.plain import Plain

TEST = parse(
    "test t\nabout Words.\nvcpu plain\noutside nmi\n\nmain:\n    mark m\n    spin\nnmi:\n    iretq\n", "t.litmus"
)
VALID = 1 << 31
DR6 = 0xFFFF_4FF0


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ((1, 2, 0, 0, 0), "an NMI at main"),
        ((1, 0x30, 1, 0x200, 0), "an IRQ at main+1 with IF"),
        ((1, 0x20, 1, 0, 0), "int 0x20 at main+1"),
        ((1, 1, 2, 0x300, DR6), "#DB at nmi with IF TF, DR6 0xffff4ff0"),
        ((1, 1, 2, 0, 0xFFFF_0FF0), "#DB at nmi, DR6 0xffff0ff0 (its reset value)"),
        ((1, 14, 0, 0, 2), "#PF at main, error code 0x2"),
        ((1, 0x55, 0, 0, 0), "vector 0x55 at main"),
        ((2, 0, 0, 0, 0), "mark m"),
        ((3, 0, 1, 0x100, 0), "RFLAGS with TF, stored by pushfq at main+1"),
        ((3, 0, 1, 0, 0), "RFLAGS with neither IF nor TF, stored by pushfq at main+1"),
    ],
)
def test_observations(shown: tuple[int, ...], words: str) -> None:
    assert say(TEST, shown) == words


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (0, ""),
        (2 << 8 | 2, ""),
        (VALID | 2 << 8, "an NMI"),
        (VALID | 0x30, "an IRQ"),
        (VALID | 3 << 8 | 1, "#DB"),
        (VALID | 4 << 8 | 3, "int 0x3"),
    ],
)
def test_events(event: int, name: str) -> None:
    assert event_name(event) == name


def test_exits() -> None:
    assert exit_name(Vmcb(exit_code=0x74)) == "IRET"
    assert exit_name(Vmcb(exit_code=0x7E)) == "0x7e"
    assert exit_name(Vmcb(exit_code=0x400, exit_int_info=VALID | 2 << 8 | 2)) == "NPF, while delivering an NMI"


def test_vmrun() -> None:
    assert vmrun(Vmcb(), False) == "VMRUN, nothing injected"
    armed = Vmcb(event_inj=VALID | 0x30, intercept_word3=1 << 20, rflags=0x102)
    assert vmrun(armed, False) == "VMRUN, injects an IRQ; IRET is intercepted; TF is set"
    assert vmrun(armed, True) == "VMRUN, injects an IRQ; IRET is intercepted"
    assert vmrun(Vmcb(int_ctl=1 << 11), False) == "VMRUN, nothing injected; a virtual NMI is pending"


def told(mistake: str, name: str) -> list[str]:
    (test,) = select([name])
    result = check(test, "plain", "tickless", Plain(mistake))
    assert result.trace is not None
    return [step.what for step in (*result.trace.stem, *result.trace.loop)]


def test_a_trace_tells_the_intercept_the_step_and_the_trap() -> None:
    steps = told("eat", "step-over-iret")
    assert "iretq  (nmi+4): #VMEXIT(IRET)" in steps
    assert "VMRUN, nothing injected; TF is set" in steps
    assert "#VMEXIT(#DB) at main" in steps


def test_a_trace_tells_the_return_for_a_signal() -> None:
    program = (
        "test t\nabout A signal.\nvcpu plain\noutside nmi, signal\n\nmain:\n    spin\nnmi:\n    mark n\n    iretq\n"
    )
    result = check(parse(program, "t.litmus"), "plain", "tickless", Plain("signal"))
    assert result.trace is not None
    assert "returns to userspace: a signal is pending (-EINTR); the VMM calls KVM_RUN again" in [
        step.what for step in result.trace.stem
    ]
