"""The text of `iretrace run`."""

from __future__ import annotations

from iretrace.report.live import Compared, Late, LiveReport, Observed, Strange, live_report
from iretrace.verdict import Outcome

GOOD, BAD = Outcome(("n", "n"), "spins"), Outcome(("n",), "spins")

EXPECTED = """\
kvm_amd of Linux 6.1

Test two-nmis
States 2
9 :> n n; spins
1 :> n; spins
always n n
Observation two-nmis Sometimes 9 1
Confirmed defect of KVM: n; spins (once): an NMI is lost
Model: ticking: holds
Model has 1 of 2 histories seen
Not in the model: n; spins (once): it does not end here
Hash abc

Not runnable here: they need an AMD host: vc-inside-nmi, nmi-inside-vc

Broke: QEMU aborted
1 test, 10 runs, 1 with a defect confirmed, 1 beyond the model, 2 not runnable here
"""


def observed(excuse: str = "") -> Observed:
    compared = Compared(["ticking: holds"], 2, [Strange(BAD, "it does not end here", 1, excuse)])
    strange = [Strange(BAD, "an NMI is lost", 1, excuse)]
    return Observed("two-nmis", "abc", [(GOOD, 9), (BAD, 1)], [("always", ("n", "n"))], strange, compared=compared)


def test_a_live_report_is_a_block_for_each_test() -> None:
    left_out = [("vc-inside-nmi", "they need an AMD host"), ("nmi-inside-vc", "they need an AMD host")]
    assert live_report(LiveReport("kvm_amd of Linux 6.1", [observed()], left_out, ["QEMU aborted"])) == EXPECTED


def test_what_broke_several_times_in_one_way_is_one_line() -> None:
    text = live_report(LiveReport("here", [], broken=["a: QEMU aborted", "b: QEMU aborted", "a: QEMU aborted"]))
    assert "\nBroke 2 times: a: QEMU aborted\nBroke: b: QEMU aborted\n" in text


def test_an_interrupted_report_says_what_it_lacks() -> None:
    one = Observed("two-nmis", "abc", [(GOOD, 9)], missing=7)
    text = live_report(LiveReport("here", [one], interrupted=True, not_run=["a", "b"], not_compared=["two-nmis"]))
    assert "Interrupted: 9 runs, 7 did not come\n" in text
    assert "Interrupted, not run: a, b\nInterrupted, not compared: two-nmis\n" in text
    assert text.endswith("interrupted, 1 test, 9 runs, 0 with a defect confirmed, 0 not runnable here, 2 not run\n")


def test_a_known_fault_of_the_emulation_is_no_defect() -> None:
    one = observed("known of QEMU 7.2: it loses NMIs")
    text = live_report(LiveReport("kvm_amd of Linux 6.1", [one]))
    assert "Emulation: n; spins (once): an NMI is lost\n    known of QEMU 7.2: it loses NMIs" in text
    assert not one.defect and not one.unclear


def test_whose_source_it_is_compared_with_is_told_at_the_top() -> None:
    text = live_report(LiveReport("kvm_amd of Linux 6.1.1", [], model="Linux 6.1.2"))
    assert text.startswith("kvm_amd of Linux 6.1.1\nbeside the model of Linux 6.1.2\n\n")


def test_histories_that_lack_the_same_are_one_line() -> None:
    twice = [Strange(BAD, "it does not end here", count) for count in (1, 4)]
    text = live_report(LiveReport("here", [Observed("t", "abc", [(BAD, 5)], compared=Compared([], 3, twice))]))
    assert "Model has 1 of 3 histories seen\nNot in the model: n; spins (5 times): it does not end here\nHash" in text


def test_a_test_without_any_outcome_is_unclear() -> None:
    one = Observed("two-nmis", "abc", [], failures=[("KVM_RUN fails with errno 14", 10)])
    assert one.unclear
    assert "Not run: KVM_RUN fails with errno 14 (10 times)" in live_report(LiveReport("here", [one]))


def test_a_late_nmi_confirms_a_lasso_of_the_model_if_one_exit_was_what_it_needed() -> None:
    late = [Late(GOOD, 2, 1234567, ["interrupt"]), Late(GOOD, 1, 9, ["interrupt", "interrupt"])]
    compared = Compared(["tickless: violated", "ticking: holds"], 1, lasso=True)
    text = live_report(LiveReport("here", [Observed("t", "abc", [(GOOD, 3)], compared=compared, late=late)]))
    confirmed, other = text[text.index("Lasso") : text.index("Model:")].split("Late: ")
    assert " ".join(confirmed.split()) == (
        "Lasso confirmed: n n; spins (2 times): an NMI absent for 1,234,567 spins with no exit of KVM between, "
        "present after the next exit (interrupt)"
    )
    assert "9 spins with interrupt between" in " ".join(other.split())
