"""A live run goes on behind what breaks."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest

from iretrace.linux.debian import Unavailable
from iretrace.litmus.corpus import select
from iretrace.litmus.grammar import EVENTS
from iretrace.live.emulation import breaks, excuse, mend, unfit
from iretrace.live.explain import Explainer
from iretrace.live.guests import AT_COLD, CARRIED, KINDS, Guest, make_guests, pack, reason_not_to_run, where_else
from iretrace.live.harness import Broken
from iretrace.live.observed import Run, read_run
from iretrace.live.session import MAX_OF_A_TEST, Machine, Session, Start, run_tests
from tests.live.guests import TWO_NMIS, first_guest, make_test
from tests.live.test_observed import line

BREAKS_AT = 2


def excused(run: Run, version: str, alone: bool = False) -> str:
    """The excuse for what the processor could not show."""
    return excuse(run, Explainer(run.guest.test).objection(run), version, alone)


def halves(guests: Sequence[Guest]) -> Generator[str, None, None]:
    """A virtual machine that one guest breaks in the middle of its work."""
    for guest in guests:
        yield f"begin {guest.number}"
        if guest.number == BREAKS_AT:
            raise Broken("QEMU aborted")
        yield line(guest, "", 0)


def run(start: Start, why: str = "") -> Session:
    machine = Machine(start, breaks=lambda test: why)
    return run_tests([make_test(TWO_NMIS)], 10, machine, lambda text: None)


def test_one_guest_that_breaks_the_machine_is_tried_twice_and_left_out() -> None:
    session = run(halves)
    assert session.broken == ["two-nmis: QEMU aborted"] * 2
    assert len(session.seen[0].runs) == len(make_guests(make_test(TWO_NMIS), 10, 0)) - 1


def test_a_machine_that_never_comes_up_is_told_in_one_line() -> None:
    def never(guests: Sequence[Guest]) -> Generator[str, None, None]:
        yield "boot"
        raise Broken("module 2: Operation not supported")

    with pytest.raises(Unavailable, match="as far as its first guest: module 2"):
        run(never)


def test_a_machine_that_breaks_at_every_guest_is_given_up() -> None:
    def always(guests: Sequence[Guest]) -> Generator[str, None, None]:
        yield f"begin {guests[0].number}"
        raise Broken("QEMU aborted")

    assert "too many breaks" in run(always).broken[-1]


def test_a_guest_that_was_to_break_the_machine_is_tried_once() -> None:
    session = run(halves, "known of QEMU")
    assert session.broken == ["two-nmis: QEMU aborted (known of QEMU)"]
    assert len(session.seen[0].runs) == len(make_guests(make_test(TWO_NMIS), 10, 0)) - 1


def test_a_test_whose_guests_all_break_the_machine_as_was_to_be_expected_is_left_out() -> None:
    def always(guests: Sequence[Guest]) -> Generator[str, None, None]:
        yield f"begin {guests[0].number}"
        raise Broken("QEMU aborted")

    assert len(run(always, "known of QEMU").broken) == MAX_OF_A_TEST


def test_a_test_that_a_machine_is_unfit_for_is_left_out() -> None:
    machine = Machine(halves, unfit=lambda test: "it has no NMIs")
    session = run_tests([make_test(TWO_NMIS)], 10, machine, lambda text: None)
    assert (session.seen, session.left_out) == ([], [("two-nmis", "it has no NMIs")])


THREE = [make_test(TWO_NMIS.replace("two-nmis", name)) for name in ("first", "second", "third")]


def interrupted_at(test: str, runs: int) -> Session:
    """A session of three tests that is ended from outside after so many runs of one."""

    def until(guests: Sequence[Guest]) -> Generator[str, None, None]:
        for guest in guests:
            yield f"begin {guest.number}"
            for repetition in range(guest.repeat):
                if (guest.test.name, repetition) == (test, runs):
                    raise KeyboardInterrupt
                yield line(guest, "", 0)

    return run_tests(THREE, 2, Machine(until), lambda text: None)


def test_an_interrupted_session_keeps_what_has_come_and_names_the_rest() -> None:
    session = interrupted_at("second", 1)
    all_runs = sum(guest.repeat for guest in make_guests(THREE[0], 2, 0))
    first, second = session.seen
    assert (session.interrupted, session.not_run) == (True, ["third"])
    assert (len(first.runs), first.missing) == (all_runs, 0)
    assert (len(second.runs), second.missing) == (1, all_runs - 1)
    assert second.strange, "what has come is judged"


def test_an_end_while_runs_are_judged_loses_none_of_them() -> None:
    asked: list[str] = []

    def ends_once(_run: Run, _objection: object) -> str:
        asked.append("once")
        if len(asked) == 1:
            raise KeyboardInterrupt
        return ""

    def all_of_them(guests: Sequence[Guest]) -> Generator[str, None, None]:
        for guest in guests:
            yield f"begin {guest.number}"
            yield from (line(guest, "", 0) for _ in range(guest.repeat))

    session = run_tests(THREE, 2, Machine(all_of_them, excuse=ends_once), lambda text: None)
    assert (session.interrupted, session.not_run) == (True, [])
    assert [sum(seen.strange.values()) for seen in session.seen] == [len(seen.runs) for seen in session.seen]


def test_a_test_without_any_run_is_not_run() -> None:
    session = interrupted_at("second", 0)
    assert ([seen.test.name for seen in session.seen], session.not_run) == (["first"], ["second", "third"])


def test_a_guest_that_has_broken_its_machine_is_not_missing() -> None:
    def breaks_then_ends(guests: Sequence[Guest]) -> Generator[str, None, None]:
        yield f"begin {guests[0].number}"
        yield line(guests[0], "", 0)
        if guests[0].number < BREAKS_AT:
            raise Broken("QEMU aborted")
        raise KeyboardInterrupt

    machine = Machine(breaks_then_ends, breaks=lambda test: "known")
    [seen] = run_tests([make_test(TWO_NMIS)], 10, machine, lambda text: None).seen
    left = make_guests(make_test(TWO_NMIS), 10, 0)[BREAKS_AT:]
    assert (len(seen.runs), seen.missing) == (BREAKS_AT + 1, sum(guest.repeat for guest in left) - 1)


def test_what_may_break_the_machine_runs_last() -> None:
    ran: list[str] = []

    def noting(guests: Sequence[Guest]) -> Generator[str, None, None]:
        for guest in guests:
            ran.append(guest.test.name)
            yield f"begin {guest.number}"
            yield line(guest, "", 0)

    tests = [make_test(TWO_NMIS.replace("two-nmis", name)) for name in ("dangerous", "harmless")]
    machine = Machine(noting, breaks=lambda test: "yes" if test.name == "dangerous" else "")
    run_tests(tests, 1, machine, lambda text: None)
    assert list(dict.fromkeys(ran)) == ["harmless", "dangerous"]


def test_the_lost_nmis_are_strange() -> None:
    [seen] = run(halves).seen
    assert [why for _, why, _ in seen.strange] == ["after these it cannot be that the guest spins and no more comes"]


def test_a_test_for_encrypted_guests_only_is_left_out_with_the_reason() -> None:
    text = TWO_NMIS.replace("plain", "sev-es")
    assert reason_not_to_run(make_test(text)) == "for sev-es, which needs an AMD host"


def test_every_instruction_is_a_place_for_an_nmi() -> None:
    guests = make_guests(make_test(TWO_NMIS), 10, 0)
    places = [guest.cuts[guest.placed] for guest in guests if guest.placed >= 0 and guest.inside < 0]
    assert places == list(range(len(guests[0].test.code)))


def test_an_nmi_comes_inside_each_iretq_too() -> None:
    guests = make_guests(make_test(TWO_NMIS), 10, 0)
    inside = [guest.test.code[guest.inside].text for guest in guests if guest.inside >= 0]
    assert inside == ["iretq", "iretq"]


def test_an_nmi_comes_where_the_delivery_of_an_int_is_cut_off() -> None:
    text = TWO_NMIS.replace("main:\n", "main:\n    int3\n").replace("db:", "bp:")
    guests = make_guests(make_test(text), 10, 0)
    raised = [guest for guest in guests if guest.inside >= 0 and guest.test.code[guest.inside].text == "int3"]
    assert [guest.cuts for guest in raised] == [(0, -1)]


def test_behind_an_arrival_that_is_bound_to_a_place_another_comes_inside_the_iretq() -> None:
    text = TWO_NMIS.replace("outside nmi, nmi", "outside at here: nmi, nmi").replace("mark    n", "here: mark n")
    guests = [guest for guest in make_guests(make_test(text), 10, 0) if guest.cuts[0] == guest.cuts[1]]
    assert [guest.inside for guest in guests if guest.inside < 0] == [-1], "and one comes at the place itself"
    assert [guest.test.code[guest.inside].text for guest in guests if guest.inside >= 0] == ["iretq"]


CUT_OFF = """\
test cut-off
about NMIs and a signal come where a cold stack cuts a delivery off.
vcpu  plain
outside nmi, nmi, signal
cold  main

main:
    spin
nmi:
    iretq
"""


def test_an_event_of_each_kind_comes_where_a_cold_stack_is_met() -> None:
    guests = [guest for guest in make_guests(make_test(CUT_OFF), 10, 0) if guest.at_cold]
    assert [(guest.placed, guest.cuts) for guest in guests] == [(0, (-1, -1, -1)), (2, (-1, -1, -1))]
    warm = make_test(CUT_OFF.replace("cold  main\n", ""))
    assert not any(guest.at_cold for guest in make_guests(warm, 10, 0))


def test_the_harness_is_told_where_else_an_event_comes() -> None:
    guests = make_guests(make_test(CUT_OFF), 10, 0)
    [at_cold, *_] = [guest for guest in guests if guest.at_cold]
    inside = next(guest for guest in guests if guest.inside >= 0)
    assert (where_else(guests[0]), where_else(at_cold)) == (0, AT_COLD)
    assert where_else(inside) == inside.program.addresses[inside.inside] > AT_COLD


DEBUGGED = """\
test debugged
about A debugger comes while the guest accesses a debug register.
vcpu  plain
outside guest-debug break there

main:
    mov rax, dr0
    there: spin
"""


def test_a_vcpu_is_held_up_where_a_debugger_may_come_and_the_guest_has_debug_registers() -> None:
    for text, held in ((DEBUGGED, [0]), (DEBUGGED.replace("mov rax, dr0", "nop"), [])):
        assert [guest.held for guest in make_guests(make_test(text), 10, 0) if guest.held >= 0] == held
    bound = DEBUGGED.replace("outside guest", "outside at there: guest")
    assert all(guest.held < 0 for guest in make_guests(make_test(bound), 10, 0))


def test_an_interrupts_sender_is_held_up_where_the_guest_halts() -> None:
    halting = SHADOW.replace("    nop", "    hlt")
    assert [guest.held for guest in make_guests(make_test(halting), 10, 0) if guest.held >= 0] == [0]
    assert [guest.held for guest in make_guests(make_test(SHADOW), 10, 0) if guest.held >= 0] == []
    bound = halting.replace("outside irq", "outside at here: irq").replace("    hlt", "    here: hlt")
    assert [guest.held for guest in make_guests(make_test(bound), 10, 0) if guest.held >= 0] == []


def test_what_a_vmm_saves_is_events_or_everything_or_goes_to_another_vcpu() -> None:
    guests = make_guests(make_test(TWO_NMIS.replace("nmi, nmi", "nmi, save-restore")), 10, 3)
    assert [guest.number for guest in guests] == list(range(3, 3 + len(guests)))
    first, second, third = ([guest.cuts for guest in guests if guest.carried == how] for how in range(3))
    assert first == second == third
    assert {CARRIED[guest.carried] for guest in guests} == set(CARRIED)
    assert {guest.carried for guest in make_guests(make_test(TWO_NMIS), 10, 0)} == {0}


def test_the_last_event_of_each_kind_comes_when_the_guest_is_at_rest() -> None:
    [test] = select(["iret-returns-to-itself"])
    lasts = [guest.last for guest in make_guests(test, 10, 0) if guest.last >= 0]
    assert [(test.outside[number].kind, test.outside[number].at) for number in lasts] == [("nmi", -1)]
    one = make_test(TWO_NMIS.replace("outside nmi, nmi", "outside nmi"))
    assert all(guest.last < 0 for guest in make_guests(one, 10, 0)), "a place at main's spin is the same"


def test_an_inits_sender_is_held_up_where_the_guest_executes_hlt() -> None:
    [test] = select(["init-at-hlt"])
    [held] = [guest for guest in make_guests(test, 10, 0) if guest.held >= 0]
    assert (test.code[held.cuts[held.held]].text, held.repeat) == ("hlt", 10)
    assert held.cuts[held.held] < test.init, "not the HLT that comes behind the INIT"


def test_an_interrupts_sender_is_held_up_where_an_init_comes() -> None:
    [test] = select(["irq-races-init"])
    assert [guest.held for guest in make_guests(test, 10, 0) if guest.held >= 0] == [0]


def test_guests_are_numbered_one_after_the_other() -> None:
    numbers = [guest.number for guest in make_guests(make_test(SHADOW.replace("    nop", "    hlt")), 10, 7)]
    assert numbers == list(range(7, 7 + len(numbers)))


def test_guests_are_packed_one_behind_the_other_in_words() -> None:
    guest = first_guest()
    assert len(pack([guest, guest], 1)) == 2 * len(pack([guest], 1))
    assert len(pack([guest], 1)) % 4 == 0


SHADOW = """\
test shadow
about An interrupt is held by the shadow of STI.
vcpu  plain
outside irq

main:
    sti
    nop
    spin
irq:
    mark    i
    iretq
"""


def test_an_interrupt_in_a_shadow_is_a_known_fault_of_an_old_qemu_only() -> None:
    guest = first_guest(SHADOW)
    run = read_run(line(guest, f"30:{guest.program.addresses[1]:x}:202:0:0;", 1), {0: guest})
    assert excused(run, "7.2.22").startswith("known of QEMU 7.2.22: QEMU takes a virtual interrupt inside")
    assert excused(run, "11.1.0") == ""


NO_GATE = """\
test no-gate
about An NMI finds no gate.
vcpu  plain
outside nmi

main:
    spin
np:
    add rsp, 8
    mark n
    iretq
"""


def test_only_an_error_code_without_ext_is_a_known_fault() -> None:
    guest = first_guest(NO_GATE)
    without, with_it = (
        read_run(line(guest, f"b:{guest.program.addresses[0]:x}:2:{code:x}:0;", 1), {0: guest}) for code in (0x12, 0x13)
    )
    assert "lacks EXT" in excused(without, "11.1.3", alone=True)
    assert excused(with_it, "11.1.3", alone=True) == ""


def test_what_is_wrong_behind_an_excused_error_code_is_a_defect_all_the_same() -> None:
    def strange(*errors: int) -> list[tuple[str, bool]]:
        """What is wrong with #NPs with these error codes, and whether it is excused."""

        def runs(guests: Sequence[Guest]) -> Generator[str, None, None]:
            place = guests[0].program.addresses[0]
            log = "".join(f"b:{place:x}:2:{error:x}:{n:x};" for n, error in enumerate(errors))
            yield f"begin {guests[0].number}"
            yield line(guests[0], log, int("1" * len(errors), 9))

        machine = Machine(runs, lambda run, objection: excuse(run, objection, "11.1.3"), mend)
        [seen] = run_tests([make_test(NO_GATE)], 1, machine, lambda text: None).seen
        return [(why[:7], bool(fault)) for _, why, fault in seen.strange]

    assert strange(0x13) == []
    assert strange(0x12) == [("event 1", True)]
    assert strange(0x12, 0x12) == [("event 1", True), ("event 3", False)], "there is one NMI only"


WATCHED = """\
test watched
about A word of the stack is watched.
vcpu  plain
outside nmi
ist   nmi, db

main:
    lea rax, [main_stack - 8]
    mov dr0, rax
    mov rax, W0
    mov dr7, rax
    push rax
    mark m
    spin
nmi:
    mark n
    iretq
db:
    mark d
    or  qword [rsp+16], RF
    iretq
"""


def test_breakpoints_need_a_qemu_that_arms_them() -> None:
    test = make_test(WATCHED)
    assert "arms no breakpoints at VMRUN" in unfit(test, "7.2.22")
    assert unfit(test, "11.1.3") == unfit(test, "7.2.22", alone=True) == unfit(make_test(TWO_NMIS), "7.2.22") == ""
    general_detect = make_test(WATCHED.replace("W0", "GD"))
    assert unfit(general_detect, "7.2.22", alone=True) == "known of QEMU 7.2.22: it has no general detect"


def test_a_watched_word_may_break_qemu() -> None:
    assert "touches a watched word" in breaks(make_test(WATCHED), "11.1.3")
    assert breaks(make_test(WATCHED.replace("W0", "X0")), "11.1.3") == ""


def test_an_event_cannot_be_placed_where_a_breakpoint_is() -> None:
    text = WATCHED.replace("W0", "X0").replace("lea rax, [main_stack - 8]", "lea rax, [there]")
    text = text.replace("    push rax", "    there: push rax")
    assert reason_not_to_run(make_test(text)) == ""
    assert "comes before the fetch" in reason_not_to_run(make_test(text.replace("outside", "outside at there:")))


def test_a_lost_db_is_excused_where_the_event_was_placed_behind_the_access_only() -> None:
    guests = make_guests(make_test(WATCHED), 10, 0)
    for guest in guests:
        run = read_run(line(guest, f"2:{guest.program.addresses[5]:x}:2:0:0;", 2), {guest.number: guest})
        assert bool(excused(run, "11.1.3")) == (guest.cuts == (5,)), guest.cuts


GATE = """\
test gate
about A user program asks for what its gate refuses, and goes on behind it; INT1 is not refused.
vcpu  plain
cpl   3
cold  rsp0

main:
    int 0x20
    behind: int1
    spin
gp:
    add rsp, 8
    mov qword [rsp], behind
    iretq
db:
    iretq
"""


def _delivered(text: str, vector: int, place: int, error: int = 0) -> Run:
    guest = first_guest(text)
    return read_run(line(guest, f"{vector:x}:{guest.program.addresses[place]:x}:2:{error:x}:0;", 0), {0: guest})


def test_a_doubled_vector_in_the_error_code_of_a_refused_gate_is_a_fault_of_an_old_qemu() -> None:
    assert "has the vector doubled" in excused(_delivered(GATE, 0xD, 0, 0x202), "7.2.22", alone=True)
    assert excused(_delivered(GATE, 0xD, 0, 0x202), "11.1.3", alone=True) == ""
    assert excused(_delivered(GATE, 0xD, 0, 0x102), "7.2.22", alone=True) == ""


def test_a_refused_int_that_comes_behind_itself_is_excused_with_a_cold_stack_and_kvm_only() -> None:
    assert "the INT that its gate refuses" in excused(_delivered(GATE, 0xD, 1), "11.1.3")
    assert excused(_delivered(GATE, 0xD, 0), "11.1.3") == excused(_delivered(GATE, 0xD, 1), "11.1.3", alone=True) == ""
    assert excused(_delivered(GATE.replace("cold  rsp0\n", ""), 0xD, 1), "11.1.3") == ""


def test_int1_that_came_once_is_excused_with_a_cold_stack_only() -> None:
    assert "behind INT1 already" in excused(_delivered(GATE, 1, 2), "11.1.3")
    assert excused(_delivered(GATE.replace("cold  rsp0\n", ""), 1, 2), "11.1.3") == ""


def test_an_old_qemu_stops_at_int1() -> None:
    assert "takes INT1 for a breakpoint" in unfit(make_test(GATE), "7.2.22", alone=True)
    assert unfit(make_test(GATE), "11.1.3") == ""


def test_a_debugger_that_steps_the_guest_sees_by_itself_where_it_is_to_go() -> None:
    text = TWO_NMIS.replace("outside nmi", "outside at here: guest-debug step, at gone: guest-debug off")
    test = make_test(text.replace("    spin", "    here: nop\n    gone: spin", 1))
    assert reason_not_to_run(test) == ""
    assert make_guests(test, 10, 0)[0].cuts[:2] == (0, -1)


def test_a_debugger_that_waits_for_an_instruction_needs_breakpoints() -> None:
    text = TWO_NMIS.replace("outside nmi", "outside guest-debug break here")
    test = make_test(text.replace("    spin", "    here: spin", 1))
    assert "arms no breakpoints" in unfit(test, "7.2.22")


def test_every_event_of_the_language_comes() -> None:
    assert KINDS.keys() == set(EVENTS)


def test_a_machine_of_one_processor_has_no_application_processor() -> None:
    text = TWO_NMIS.replace("outside nmi", "processor ap\noutside init") + "init:\n    mark i\n    spin\n"
    assert "bootstrap processor" in unfit(make_test(text), "11.1.3", alone=True)
    assert unfit(make_test(text), "11.1.3") == ""


def test_a_machine_without_a_vmm_gets_none_of_its_nmis() -> None:
    test = make_test(TWO_NMIS.replace("outside nmi", "outside kvm-nmi"))
    assert "no VMM" in unfit(test, "11.1.3", alone=True)
    assert unfit(test, "11.1.3") == ""
