"""From the harness's lines to histories and endings."""

from __future__ import annotations

from iretrace.live.explain import Explainer, for_some_value
from iretrace.live.guests import Guest
from iretrace.live.observed import MORE, Late, Run, digits, read_run
from iretrace.live.walk import Delivery, Mark
from iretrace.verdict import Outcome
from tests.live.guests import TWO_NMIS, first_guest

N, S = Mark(0), Mark(1)


def line(guest: Guest, log: str, marks: int, **changes: str) -> str:
    """A line as the harness prints it; the guest spins at main."""
    rip = f"{guest.program.addresses[0]:x}"
    fields = {"end": "runs", "reason": "0", "errno": "0", "rip": rip, "marks": f"{marks:x}", "mp": "0"}
    fields |= {"records": str(log.count(";"))} | changes | {"log": log}
    return f"run {guest.number} 3 " + " ".join(f"{name}={value}" for name, value in fields.items())


def read(log: str, marks: int, **changes: str) -> Run:
    guest = first_guest()
    return read_run(line(guest, log.format(*guest.program.addresses), marks, **changes), {0: guest})


def test_marks_are_digits() -> None:
    assert digits((1 * 9 + 2) * 9 + 1) == (0, 1, 0)


def test_a_line_becomes_deliveries_and_marks_in_order() -> None:
    run = read("2:{0:x}:2:0:0;1:{0:x}:102:0:1;", 1 * 9 + 2)
    assert run.history == (Delivery(2, 0, 0, 0), N, Delivery(1, 0, 0x100, 0), S)
    assert (run.outcome(), run.place) == (Outcome(("n", "s"), "spins"), 0)


def test_the_resume_flag_is_not_looked_at() -> None:
    assert read("2:{0:x}:10002:0:0;", 1).history == (Delivery(2, 0, 0, 0), N)


def test_a_halted_guest_is_halted() -> None:
    assert read("", 0, mp="3").ending == "halted"


def test_a_triple_fault_is_a_shutdown() -> None:
    assert read("", 0, end="exit", reason="8").ending == "shutdown"


def test_a_guest_that_stays_elsewhere_loops() -> None:
    guest = first_guest()
    assert read("", 0, rip=f"{guest.program.addresses[3]:x}").ending == "loops"


def test_a_failing_kvm_run_is_no_outcome() -> None:
    assert read("", 0, end="refused", errno="14").failure == "KVM_RUN fails with errno 14"


def test_what_comes_after_an_overflow_is_left_out() -> None:
    run = read("2:{0:x}:2:0:0;1:{0:x}:102:0:ffffffffffff0000;", 5)
    assert run.history == (Delivery(2, 0, 0, 0),)
    assert run.outcome() == Outcome((MORE,), "spins")


def test_an_nmi_that_comes_before_the_record_is_taken_is_put_behind_the_delivery_that_it_interrupts() -> None:
    guest = first_guest()
    start = guest.program.stubs[1][0]
    run = read(f"2:{start:x}:2:0:0;1:{{0:x}}:102:0:1;", 1 * 9 + 2)
    assert run.history == (Delivery(1, 0, 0x100, 0), Delivery(2, 4, 0, 0), N, S)


def test_two_nmis_before_the_record_is_taken_are_both_put_behind_it() -> None:
    guest = first_guest()
    start = guest.program.stubs[1][0]
    run = read(f"2:{start:x}:2:0:0;2:{start:x}:2:0:1;1:{{0:x}}:102:0:a;", 10 * 9 + 2)
    assert [event.vector for event in run.history if isinstance(event, Delivery)] == [1, 2, 2]


def test_what_is_ambiguous_in_the_log_is_left_out() -> None:
    guest = first_guest()
    start = guest.program.stubs[1][0]
    run = read(f"2:{{0:x}}:2:0:0;2:{start:x}:2:0:1;1:{{0:x}}:102:0:a;1:{{0:x}}:102:0:a;", 10 * 9 + 2)
    assert (run.history, run.complete) == ((Delivery(2, 0, 0, 0),), False)


def test_a_shutdown_loses_the_marks_behind_the_last_delivery() -> None:
    run = read("2:{0:x}:2:0:0;1:{0:x}:102:0:1;", 0, end="exit", reason="8")
    assert run.outcome() == Outcome(("n", MORE), "shutdown")


def test_an_nmi_that_comes_after_the_record_is_taken_leaves_its_marks_to_itself() -> None:
    guest = first_guest()
    inside = guest.program.stubs[1][1] - 4
    run = read(f"1:{{0:x}}:102:0:1;2:{inside:x}:2:0:0;", 1 * 9 + 2)
    assert run.history == (Delivery(1, 0, 0x100, 0), Delivery(2, 4, 0, 0), N, S)


def test_the_processor_explains_a_history_that_it_can_show() -> None:
    run = read("2:{0:x}:2:0:0;1:{0:x}:102:0:1;2:{0:x}:2:0:b;1:{0:x}:102:0:64;", 100 * 9 + 2)
    assert Explainer(run.guest.test).objection(run).why == ""


def test_the_processor_does_not_explain_a_lost_step() -> None:
    run = read("2:{0:x}:2:0:0;2:{0:x}:2:0:1;1:{0:x}:102:0:a;", 10 * 9 + 2)
    assert Explainer(run.guest.test).objection(run).why == "event 3, nmi at `spin`, cannot come here"


def test_the_processor_does_not_explain_a_lost_nmi() -> None:
    run = read("", 0)
    expected = "after these it cannot be that the guest spins and no more comes"
    assert Explainer(run.guest.test).objection(run).why == expected


def test_an_nmi_bound_to_a_place_comes_there() -> None:
    text = TWO_NMIS.replace("outside nmi, nmi", "outside at here: nmi").replace("    spin", "    nop\n    here: spin")
    guest = first_guest(text)
    early, there = (f"2:{guest.program.addresses[index]:x}:2:0:0;" for index in (0, 1))
    spins = {"rip": f"{guest.program.addresses[1]:x}"}
    step = f"1:{guest.program.addresses[1]:x}:102:0:1;"
    explainer = Explainer(guest.test)
    assert explainer.objection(read_run(line(guest, early + step, 11, **spins), {0: guest}))
    assert not explainer.objection(read_run(line(guest, there + step, 11, **spins), {0: guest}))


def late_line(exits: str, at: str = "-1,5", after: str = "0,1") -> str:
    """The second NMI was sent at a place in the first one's handler, and came when main had spun."""
    guest = first_guest()
    log = "2:{0:x}:2:0:0:5;2:{0:x}:2:0:1:3ed;".format(*guest.program.addresses)
    return line(guest, log, 10) + f" after={after}, at={at}, exits={exits}"


def test_an_nmi_that_needed_an_exit_is_late_by_the_spins_until_then() -> None:
    guest = first_guest()
    spin, handler = guest.program.addresses[0], guest.program.addresses[1]
    exits = f"iret@{handler:x};interrupt@{spin:x};iret@{handler:x};interrupt@{spin:x};"
    run = read_run(late_line(exits), {0: guest})
    assert run.late == Late(1000, ("interrupt",))


def test_an_nmi_that_was_sent_while_the_guest_ran_is_not_called_late() -> None:
    assert read_run(late_line("", at="-1,-1"), {0: first_guest()}).late is None


def test_of_two_nmis_that_may_both_have_been_waiting_none_is_called_late() -> None:
    assert read_run(late_line("", after="1,1"), {0: first_guest()}).late is None


def test_an_nmi_that_came_after_the_second_was_taken_cannot_have_merged_with_it() -> None:
    guest = first_guest(TWO_NMIS.replace("outside nmi, nmi", "outside nmi, nmi, nmi"))
    twice = "2:{0:x}:2:0:0;1:{0:x}:102:0:1;2:{0:x}:2:0:b;1:{0:x}:102:0:64;".format(*guest.program.addresses)
    marks = 100 * 9 + 2
    anywhere = read_run(line(guest, twice, marks) + " after=0,0,0,", {0: guest})
    at_last = read_run(line(guest, twice, marks) + " after=0,0,4,", {0: guest})
    explainer = Explainer(guest.test)
    assert not explainer.objection(anywhere)
    assert explainer.objection(at_last).why == "after these it cannot be that the guest spins and no more comes"


def test_a_shutdown_is_explained_or_not_whatever_was_marked_before() -> None:
    log = "2:{0:x}:2:0:0;1:{0:x}:102:0:1;2:{0:x}:2:0:b;1:{0:x}:102:0:64;"
    run = read(log, 0, end="exit", reason="8", records="-1024")
    assert (run.complete, run.reset) == (False, True)
    expected = "after these it cannot be that the guest shutdown and no more comes"
    assert Explainer(run.guest.test).objection(run).why == expected


def test_a_log_that_was_overwritten_tells_nothing() -> None:
    run = read("2:{0:x}:2:0:0;", 1, records="-1")
    assert (run.history, run.complete, run.reset) == ((), False, False)


DEBUGGED = TWO_NMIS.replace("outside nmi, nmi", "outside guest-debug step, guest-debug off, nmi, nmi")
HELD = "2:{0:x}:102:0:0;1:{0:x}:102:0:1;2:{0:x}:2:0:b;1:{0:x}:102:0:64;"


def debugged(acts: str) -> Run:
    guest = first_guest(DEBUGGED)
    log = HELD.format(*guest.program.addresses)
    return read_run(line(guest, log, 100 * 9 + 2) + f" debugger={acts}", {0: guest})


def test_the_tf_that_is_pushed_while_a_debugger_is_attached_is_not_compared() -> None:
    run = debugged(f"1:0:{first_guest(DEBUGGED).program.addresses[0]:x};0:1:0;")
    assert run.history[0] == Delivery(2, 0, 0, 0, debugged=True)
    assert Explainer(run.guest.test).objection(run).why == ""


def test_the_tf_that_is_pushed_after_the_debugger_has_gone_is_compared() -> None:
    assert (
        "nmi at `spin` with TF pushed" in Explainer(first_guest(DEBUGGED).test).objection(debugged("1:0:0;0:0:0;")).why
    )


def test_a_delivery_that_was_not_logged_when_the_debugger_went_came_while_it_was_there() -> None:
    stub, _ = first_guest(DEBUGGED).program.stubs[2]
    assert Explainer(first_guest(DEBUGGED).test).objection(debugged(f"1:0:0;0:0:{stub:x};")).why == ""


def test_only_disputed_rules_that_were_consulted_are_varied() -> None:
    asked: list[int] = []

    def ask(knobs: int) -> tuple[str, int]:
        asked.append(knobs)
        return f"no {knobs}", 0b11

    assert for_some_value(ask, lambda text: int(text[-1]) == 2) == "no 2", "the one that goes farthest"
    assert sorted(asked) == [0, 1, 2, 3]
    assert for_some_value(lambda knobs: ("" if knobs == 2 else "no", 0b11), len) == ""
    assert for_some_value(lambda knobs: ("no", 0), len) == "no"
