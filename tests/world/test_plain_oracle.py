"""The oracle on plain guests: a right hypervisor made by hand is acquitted, each mistake of it convicted."""

from __future__ import annotations

from itertools import product

import pytest

from iretrace.check import check
from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.litmus.test import Op
from iretrace.verdict import Result, Verdict
from tests.turns import FULL
from tests.world.plain import KINDS, MISTAKES, Plain

HEADER = "test oracle\nabout A test of the oracle.\nvcpu plain\noutside "
SERVICED = "irq, irq\ninterrupts on\n\nmain:\n    spin\nirq:\n    mark i\n    sti\n    spin\n"
TWICE = "irq, irq\ninterrupts on\n\nmain:\n    spin\nirq:\n    mark i\n    iretq\n"
STEPPED_HLT = (
    "nmi\n\nmain:\n    pushfq\n    or qword [rsp], TF\n    popfq\n    hlt\n    pushfq\n"
    "    and qword [rsp], ~TF\n    popfq\n    spin\nnmi:\n    mark n\n    iretq\ndb:\n    mark s\n    iretq\n"
)
IN_A_SHADOW = "irq\n\nmain:\n    sti\n    mark m\n    spin\nirq:\n    mark i\n    iretq\n"

DB_FOR_EVER = """test t
about A breakpoint on the frame of #DB.
vcpu plain
ist db

main:
    lea rax, [db_stack - 8]
    mov dr0, rax
    lea rax, [main_stack - 8]
    mov dr1, rax
    mov rax, W0 + W1
    mov dr7, rax
    push rax
    spin
db:
    iretq
"""

CONVICTS = {
    "lose": "nmi-iret-then-spin",
    "double": "nmi-iret-then-spin",
    "open": "nmi-iret-then-spin",
    "early": "nmi-iret-then-spin",
    "unstepped": "nmi-iret-then-spin",
    "lose irq": "irq-at-sti",
    "double irq": TWICE,
    "irq first": "irq-at-sti",
    "closed": "irq-at-sti",
    "rude": "irq-at-sti",
    "invent": "iret-sets-tf",
    "eat": "step-over-iret",
    "leak": "flags-around-nmi",
    "open fault": "iret-faults",
    "dr6": "nmi-while-stepping",
    "skip": "irq-at-sti-hlt",
    "stay": "irq-at-sti-hlt",
    "trapless": STEPPED_HLT,
    "gif": "clgi-is-ud",
    "ud": "stgi-is-ud",
    "forget": "irq-on-cold-stack",
    "soft": "int-on-cold-stack",
    "again": "nmi-redone-on-cold-stack",
    "signal": "nmi, signal\n\nmain:\n    spin\nnmi:\n    mark n\n    iretq\n",
    "svme": "nmi-iret-then-spin",
}
"""For each mistake the shipped test, or a program, that shows it."""


def judged(mistake: str, what: str, host: str = "tickless") -> Result:
    """The verdict of a shipped test, or of a program with its arrivals in front."""
    test = parse(HEADER + what, "oracle.litmus") if "\n" in what else select([what])[0]
    return check(test, "plain", host, Plain(mistake))


@pytest.mark.parametrize("host", ["tickless", "ticking"])
def test_a_guest_that_no_exit_can_end_holds_the_cpu(host: str) -> None:
    result = check(parse(DB_FOR_EVER, "t.litmus"), "plain", host, Plain("held"))
    assert result.reason.startswith("the guest holds the CPU")


def test_every_mistake_has_a_test_that_shows_it() -> None:
    assert {*CONVICTS, "", "shadow", "held"} == set(MISTAKES)


@pytest.mark.parametrize("mistake", CONVICTS)
def test_each_mistake_is_convicted(mistake: str) -> None:
    assert judged(mistake, CONVICTS[mistake]).verdict is Verdict.VIOLATED


@pytest.mark.parametrize("what", sorted(set(CONVICTS.values())))
def test_a_right_hypervisor_is_acquitted_of_the_same(what: str) -> None:
    """The reach condition of a shipped test may be about what only KVM does."""
    result = judged("", what)
    assert result.verdict is Verdict.HOLDS or "vacuous" in result.reason


BEYOND = {Op.TO_DR, Op.FROM_DR, Op.RDMSR, Op.WRMSR, Op.INT1}
"""Instructions that the small hypervisor knows nothing of: it neither keeps debug registers nor EFER, and takes an INT1
whose delivery is cut off for a single-step trap."""

SHIPPED = [
    test.name
    for test in select([])
    if "plain" in test.vcpus
    and test.name != "user-clgi-is-ud"  # no intercept helps there: privilege is checked first
    and not {instruction.op for instruction in test.code} & BEYOND
    and all(arrival.kind in KINDS for arrival in test.outside)
]
"""What the small hypervisor can do."""

LONG = () if FULL else (("nmi-and-signal", "ticking"),)
"""Takes as long as all the others; only with IRETRACE_FULL=1 in the environment."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "host"), [case for case in product(SHIPPED, ("tickless", "ticking")) if case not in LONG]
)
def test_no_shipped_test_convicts_a_right_hypervisor(name: str, host: str) -> None:
    result = judged("", name, host)
    assert result.verdict is Verdict.HOLDS or "vacuous" in result.reason, result.reason


# Reasons. -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "what", "reason"),
    [
        ("lose irq", "irq-at-sti", "an IRQ that the processor would deliver never comes: the guest spins for ever"),
        (
            "irq first",
            "nmi, irq\ninterrupts on\n\nmain:\n    spin\nnmi:\n    iretq\nirq:\n    iretq\n",
            "the guest sees an IRQ at main with IF; the processor could only show an NMI at main with IF",
        ),
        (
            "open fault",
            "iret-faults",
            "the guest sees #GP at nmi+2 with TF; the processor could only show #GP at nmi+2",
        ),
        ("dr6", "nmi-while-stepping", "DR6 0xffff0ff0 (its reset value); the processor could only show #DB at"),
        (
            "soft",
            "int-on-cold-stack",
            "the guest sees int 0x20 at main; the processor could only show int 0x20 at main+1",
        ),
        ("svme", "nmi-iret-then-spin", "the processor refuses this VMRUN: #VMEXIT(INVALID)"),
        (
            "eat",
            "step-over-iret",
            "the guest sees an NMI at main; the processor could only show #DB at main, DR6 0xffff4ff0",
        ),
    ],
)
def test_the_reason_says_what_the_guest_sees_and_what_it_should(mistake: str, what: str, reason: str) -> None:
    assert reason in judged(mistake, what).reason


def test_a_hypervisors_tf_that_pushfq_stores_is_a_leak() -> None:
    result = judged("leak", "nmi, nmi\n\nmain:\n    pushfq\n    pushfq\n    spin\nnmi:\n    iretq\ndb:\n    iretq\n")
    assert result.verdict is Verdict.VIOLATED


# Held, late and merged. -----------------------------------------------------------------------------------------------


def test_an_interrupt_is_not_owed_while_one_of_its_class_is_in_service() -> None:
    assert judged("", TWICE).verdict is Verdict.HOLDS
    assert judged("", SERVICED).verdict is Verdict.HOLDS


def test_an_interrupt_in_a_shadow_is_convicted_unless_the_shadow_may_delay_the_exit_that_lets_it_in() -> None:
    result = judged("shadow", IN_A_SHADOW)
    assert result.verdict is Verdict.UNDETERMINED
    assert "shadow_blocks_exit" in result.reason


def test_an_interrupt_that_if_holds_for_ever_is_not_owed() -> None:
    assert judged("", "irq\n\nmain:\n    spin\nirq:\n    mark i\n    iretq\n").verdict is Verdict.HOLDS


@pytest.mark.parametrize("outside", ["irq, signal", "nmi, signal", "signal, signal"])
def test_a_signal_changes_nothing(outside: str) -> None:
    handlers = "nmi:\n    mark n\n    iretq\nirq:\n    mark i\n    iretq\n"
    nmi, irq = handlers.split("irq:")
    used = (nmi if "nmi" in outside else "") + (f"irq:{irq}" if "irq" in outside else "")
    program = f"{outside}\ninterrupts on\n\nmain:\n    mark m\n    spin\n{used}"
    assert judged("", program).verdict is Verdict.HOLDS
