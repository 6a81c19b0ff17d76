"""The oracle itself: small hypervisors made by hand, right ones acquitted, each mistake convicted."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.explore.graph import Limits
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.verdict import Result, Verdict
from tests.world.small import Small

HEADER = "test oracle\nabout A test of the oracle.\nvcpu sev-es\n"
MAIN = "main:\n    nop\n    spin\n"
COMPLETE_FIRST = "nmi:\n    vmgexit nmi_complete\n    mark n\n    iretq\n"
COMPLETE_LAST = "nmi:\n    mark n\n    vmgexit nmi_complete\n    iretq\n"
VC = "vc:\n    vmgexit forward\n    skip\n    iretq\n"
NEVER = "nmi:\n    mark n\n    iretq\n"


def judged(mistake: str, outside: str, code: str = MAIN + COMPLETE_LAST, host: str = "tickless") -> Result:
    """The verdict on a small hypervisor. outside: arrivals, and further header lines if need be."""
    test = parse(f"{HEADER}outside {outside}\n\n{code}", "oracle.litmus")
    return check(test, "sev-es", host, Small(mistake))


def holds(mistake: str, outside: str, code: str = MAIN + COMPLETE_LAST, host: str = "tickless") -> bool:
    return judged(mistake, outside, code, host).verdict is Verdict.HOLDS


def violated(mistake: str, outside: str, code: str = MAIN + COMPLETE_LAST, host: str = "tickless") -> bool:
    return judged(mistake, outside, code, host).verdict is Verdict.VIOLATED


# A right hypervisor. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", ["nmi", "nmi, nmi", "nmi, maybe nmi"])
@pytest.mark.parametrize("handler", [COMPLETE_FIRST, COMPLETE_LAST, NEVER])
@pytest.mark.parametrize("host", ["tickless", "ticking"])
def test_a_right_hypervisor_is_acquitted(outside: str, handler: str, host: str) -> None:
    assert holds("", outside, MAIN + handler, host)


def test_a_right_hypervisor_is_acquitted_with_three_nmis() -> None:
    assert holds("", "nmi, nmi, nmi")


SHIPPED = [
    test.name
    for test in select([])
    if "sev-es" in test.vcpus
    and not test.ap
    and sum(arrival.at < 0 for arrival in test.outside) < 3
    and {arrival.kind for arrival in test.outside} <= {"nmi"}
]
"""What the small hypervisor can do: NMIs for encrypted guests."""


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_test_convicts_a_right_hypervisor(name: str) -> None:
    (test,) = select([name])
    result = check(test, "sev-es", "tickless", Small())
    assert result.verdict is not Verdict.VIOLATED, result.reason
    assert result.verdict is Verdict.HOLDS or "vacuous" in result.reason


# NMI_COMPLETE. --------------------------------------------------------------------------------------------------------


def test_unmasking_at_the_next_exit_is_convicted_on_a_tickless_host() -> None:
    result = judged("defer", "nmi, nmi", MAIN + COMPLETE_FIRST)
    assert result.verdict is Verdict.VIOLATED
    assert result.trace is not None
    assert result.trace.loop


def test_unmasking_at_the_next_exit_is_acquitted_on_a_ticking_host() -> None:
    assert holds("defer", "nmi, nmi", MAIN + COMPLETE_FIRST, "ticking")


def test_unmasking_at_the_next_exit_is_acquitted_with_one_nmi() -> None:
    assert holds("defer", "nmi", MAIN + COMPLETE_FIRST)


def test_ignoring_nmi_complete_is_convicted_on_any_host() -> None:
    assert violated("deaf", "nmi, nmi")
    assert violated("deaf", "nmi, nmi", host="ticking")


def test_ignoring_nmi_complete_is_acquitted_if_the_guest_never_says_it() -> None:
    assert holds("deaf", "nmi, nmi", MAIN + NEVER)


def test_an_nmi_complete_that_is_not_paired_is_harmless() -> None:
    main = "main:\n    vmgexit nmi_complete\n    vmgexit nmi_complete\n    spin\n"
    assert holds("", "nmi, nmi", main + COMPLETE_LAST)


def test_an_error_as_the_answer_to_nmi_complete_is_convicted() -> None:
    assert "answered with an error" in judged("error", "nmi").reason


def test_an_nmi_before_nmi_complete_is_convicted() -> None:
    assert violated("nest", "nmi, nmi")


def test_intercepting_the_iret_of_an_encrypted_guest_is_convicted() -> None:
    assert "#VC for its IRET" in judged("iret", "nmi", MAIN + COMPLETE_LAST + VC).reason


def test_intercepting_iret_is_convicted_without_a_vc_handler_too() -> None:
    assert violated("iret", "nmi, nmi")


# Counting NMIs. -------------------------------------------------------------------------------------------------------


def test_a_queue_limit_of_always_one_is_convicted_with_two_nmis() -> None:
    assert holds("one", "nmi")
    assert violated("one", "nmi, nmi")


def test_a_queue_limit_of_always_two_is_convicted_with_three_nmis() -> None:
    assert holds("two", "nmi, nmi")
    assert violated("two", "nmi, nmi, nmi")


@pytest.mark.parametrize("mistake", ["lose", "double", "invent"])
def test_a_lost_doubled_or_invented_nmi_is_convicted(mistake: str) -> None:
    assert violated(mistake, "nmi")


def test_an_nmi_that_need_not_come_may_not_be_invented() -> None:
    assert holds("", "maybe nmi")
    assert violated("double", "maybe nmi")


@pytest.mark.parametrize("outside", ["nmi", "nmi, nmi"])
def test_a_merely_late_hypervisor_is_acquitted(outside: str) -> None:
    assert holds("late", outside)


# Shadows. -------------------------------------------------------------------------------------------------------------

STI = "main:\n    sti\n    shadow: nop\n    spin\n" + COMPLETE_LAST
PUSH = "main:\n    sti\n    push rax\n    spin\n" + COMPLETE_LAST


def test_an_nmi_injected_in_a_shadow_is_acquitted() -> None:
    assert holds("", "at shadow: nmi", STI)
    assert holds("", "nmi, nmi", STI)


def test_an_nmi_held_in_a_shadow_whose_end_is_not_noticed_is_convicted() -> None:
    assert violated("shadow", "nmi\ncold main", PUSH)


def test_a_verdict_that_hangs_on_a_disputed_rule_is_undetermined_and_names_it() -> None:
    result = judged("shadow", "at shadow: nmi", STI)
    assert result.verdict is Verdict.UNDETERMINED
    assert result.reason.startswith("violated if not shadow_blocks_exit, holds if shadow_blocks_exit")
    assert result.trace is not None


# HLT. -----------------------------------------------------------------------------------------------------------------

HLT = "main:\n    hlt\n    mark woken\n    spin\n" + COMPLETE_LAST
IDLE = "main:\n    hlt\n" + COMPLETE_LAST


@pytest.mark.parametrize("outside", ["nmi", "nmi, nmi", "maybe nmi"])
@pytest.mark.parametrize("code", [HLT, IDLE])
@pytest.mark.parametrize("host", ["tickless", "ticking"])
def test_a_hypervisor_that_looks_again_before_it_sleeps_is_acquitted(outside: str, code: str, host: str) -> None:
    assert holds("", outside, code, host)


def test_a_masked_nmi_does_not_wake_and_need_not() -> None:
    assert holds("", "nmi, nmi", "main:\n    spin\nnmi:\n    mark n\n    hlt\n")


def test_sleeping_without_a_look_at_pending_nmis_is_convicted() -> None:
    result = judged("sleep", "nmi", HLT)
    assert result.verdict is Verdict.VIOLATED
    assert "sleeps for ever" in result.reason


def test_a_lost_wake_up_between_look_and_sleep_is_convicted() -> None:
    assert "sleeps for ever" in judged("race", "nmi", HLT).reason


def test_a_lost_wake_up_is_convicted_on_a_ticking_host_too() -> None:
    """A sleeping vCPU is not in guest mode; no tick ends its sleep."""
    assert violated("race", "nmi", IDLE, "ticking")


def test_ending_hlt_without_an_event_is_convicted_where_the_guest_can_tell() -> None:
    assert "mark woken" in judged("insomnia", "nmi", HLT).reason


def test_an_idle_loop_that_never_sleeps_is_convicted() -> None:
    """The processor alone halts for ever; that the guest marks nothing does not make the same of it."""
    assert "loops for ever" in judged("insomnia", "maybe nmi", IDLE).reason


# Deliveries that are cut off. -----------------------------------------------------------------------------------------

COLD = "\nist   nmi\ncold  nmi"


@pytest.mark.parametrize("outside", ["nmi", "nmi, nmi"])
def test_a_delivery_that_is_done_again_is_acquitted(outside: str) -> None:
    assert holds("", outside + COLD)


def test_each_cold_page_is_resolved_by_itself() -> None:
    code = "main:\n    cpuid\n    mark m\n    spin\n" + COMPLETE_LAST + VC
    assert holds("", "nmi\nist   nmi, vc\ncold  nmi, vc, main", code)


def test_ignoring_exitintinfo_loses_the_nmi_and_is_convicted() -> None:
    assert violated("forget", "nmi" + COLD)


def test_making_an_event_pending_that_is_also_injected_again_is_convicted() -> None:
    assert violated("again", "nmi" + COLD)


BEHIND_DF = "\nist   df\ncold  df"
UNBALANCED = "main:\n    cpuid\n    spin\n" + COMPLETE_LAST
UNBALANCED += "vc:\n    vmgexit forward\n    skip\n    push rax\n    iretq\ndf:\n    mark d\n    spin\n"
"""#DF on a cold page: the #VC handler returns by what it has pushed."""


def test_an_nmi_behind_an_event_that_is_injected_again_needs_an_exit() -> None:
    assert holds("", "nmi" + BEHIND_DF, UNBALANCED)
    assert violated("behind", "nmi" + BEHIND_DF, UNBALANCED)


def test_a_nested_page_fault_that_is_never_resolved_is_convicted() -> None:
    assert judged("cold", "nmi" + COLD).reason == "no guest instruction ever retires again"


# Defects whatever the history. ----------------------------------------------------------------------------------------


def test_a_loop_in_which_no_guest_instruction_retires_is_convicted() -> None:
    assert judged("stall", "nmi").reason == "no guest instruction ever retires again"


def test_a_thread_in_a_circle_keeps_no_guest_out_for_ever() -> None:
    reason = judged("kept", "nmi").reason
    assert reason.startswith("the guest is kept out of guest mode, as the vCPU thread goes in a circle, for ever")


def test_a_thread_that_goes_in_a_circle_while_the_guest_is_halted_is_acquitted() -> None:
    result = judged("poll", "nmi", HLT)
    assert result.verdict is Verdict.HOLDS
    assert result.outcomes == judged("", "nmi", HLT).outcomes


def test_a_circle_that_an_nmi_does_not_end_is_convicted() -> None:
    assert "sleeps for ever" in judged("circle", "nmi", HLT).reason


def test_a_loop_between_kernel_and_userspace_is_convicted() -> None:
    assert judged("busy", "nmi, nmi").reason == "no guest instruction ever retires again"


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        ("warn", "WARN reached"),
        ("refuse", "refuses this VMRUN"),
        ("shutdown", "KVM_EXIT_SHUTDOWN although"),
    ],
)
def test_a_defect_is_convicted_with_its_cause(mistake: str, cause: str) -> None:
    assert cause in judged(mistake, "nmi").reason


OVERFLOW = "main:\n    spin\nnmi:\n    cpuid\n    iretq\nvc:\n    cpuid\n    skip\n    iretq\n"
"""#VC in the #VC handler, on one stack, until it overflows; and there is no handler for that."""


def test_a_guest_that_shuts_down_is_no_defect() -> None:
    result = judged("", "nmi, nmi", OVERFLOW)
    assert result.verdict is Verdict.HOLDS, result.reason
    assert {outcome.ending for outcome in result.outcomes} == {"shutdown"}


def test_a_shutdown_that_is_not_intercepted_is_convicted() -> None:
    assert "the host's processor shuts down" in judged("open", "nmi", OVERFLOW).reason


# Placed arrivals, traces, limits. -------------------------------------------------------------------------------------

PLACED = "main:\n    mark a\n    here: mark b\n    there: mark c\n    spin\n" + COMPLETE_LAST


@pytest.mark.parametrize("host", ["tickless", "ticking"])
def test_a_placed_nmi_comes_at_its_place(host: str) -> None:
    assert holds("", "at here: nmi", PLACED + "\nalways a n b c\n", host)
    assert holds("", "at here: nmi, at there: nmi", PLACED + "\nalways a n b n c\n", host)


def test_a_placed_nmi_that_is_lost_is_convicted() -> None:
    assert violated("lose", "at here: nmi", PLACED)


def test_an_nmi_placed_where_the_guest_never_comes_is_not_owed() -> None:
    code = "main:\n    jmp end\n    here: nop\n    end: spin\n" + COMPLETE_LAST
    assert holds("", "at here: nmi", code + "\nalways nothing\n")


def test_two_nmis_placed_at_once_are_both_delivered() -> None:
    assert holds("", "at here: nmi, at here: nmi", PLACED)
    assert violated("one", "at here: nmi, at here: nmi", PLACED)


def test_a_clause_that_the_processor_does_not_keep_is_a_violation_of_the_test() -> None:
    result = judged("", "nmi", MAIN + COMPLETE_LAST + "\nalways n n\n")
    assert result.reason == "`always n n` fails: this run ends with n"


def test_what_is_never_to_be_seen_convicts() -> None:
    assert "`never n` fails" in judged("", "nmi", MAIN + COMPLETE_LAST + "\nnever n\n").reason


def test_what_is_sometimes_to_be_seen_and_never_is_makes_a_test_vacuous() -> None:
    assert judged("", "nmi", MAIN + COMPLETE_LAST + "\nsometimes n n\n").reason.startswith("vacuous: no outcome shows")


def test_what_is_to_be_reached_and_never_is_makes_a_test_vacuous() -> None:
    result = judged("", "nmi", MAIN + COMPLETE_LAST + "\nreach: nmi_queued >= 2\n")
    assert (result.verdict, result.reason) == (
        Verdict.UNDETERMINED,
        "vacuous: no state satisfies `reach: nmi_queued >= 2`",
    )


def test_a_limit_makes_a_verdict_undetermined() -> None:
    test = parse(f"{HEADER}outside nmi\n\n{MAIN}{COMPLETE_LAST}", "oracle.litmus")
    result = check(test, "sev-es", "tickless", Small(), Limits(max_states=10))
    assert (result.verdict, result.reason) == (Verdict.UNDETERMINED, "stopped by the limit of 10 states")
    assert not result.exhausted.startswith("all")


def test_a_counterexample_starts_with_the_creation_of_the_vcpu_and_says_why() -> None:
    result = judged("one", "nmi, nmi")
    assert result.trace is not None
    assert result.trace.stem[0].where == "vcpu creation"
    assert result.trace.cause == result.reason


# Debug registers. -----------------------------------------------------------------------------------------------------


def test_a_guest_that_the_processor_holds_too_is_acquitted_if_the_hypervisor_gets_the_cpu_back() -> None:
    (test,) = select(["db-for-ever"])
    assert check(test, "plain", "ticking", BuiltinHypervisor("v7.3", "plain")).verdict is Verdict.HOLDS
