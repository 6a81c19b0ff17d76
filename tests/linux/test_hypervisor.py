"""A real tree as hypervisor: exits, events, sleeping, other CPUs landing in host steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.machine import dry_run
from iretrace.linux.models.table import MODELS
from iretrace.linux.rules import load_rules
from iretrace.linux.states import State
from iretrace.linux.tree import open_tree
from iretrace.machine.ghcb import SVM_VMGEXIT_NMI_COMPLETE, Ghcb
from iretrace.machine.vmcb import (
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_VALID,
    SVM_EXIT_ERR,
    SVM_EXIT_HLT,
    SVM_EXIT_INTR,
    SVM_EXIT_NPF,
    SVM_EXIT_SHUTDOWN,
    SVM_EXIT_VMGEXIT,
    Vmcb,
)
from iretrace.subset import unpack
from iretrace.verdict import InputError
from iretrace.world.protocol import NO_SENDER, Cause, Landing, Pause, PauseKind, SenderState

pytestmark = pytest.mark.trees

INJECTED = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_NMI
VALID_EXIT_FIELDS = ("sw_exit_code", "sw_exit_info_1", "sw_exit_info_2")


@pytest.fixture(scope="module")
def linux_6_1(tree_6_1: Path) -> TreeHypervisor:
    return TreeHypervisor(open_tree(tree_6_1))


@pytest.fixture(scope="module")
def linux_6_12(tree_6_12: Path) -> TreeHypervisor:
    return TreeHypervisor(open_tree(tree_6_12))


@pytest.fixture(scope="module", params=["6.1", "6.12"])
def linux(request: pytest.FixtureRequest) -> TreeHypervisor:
    hypervisor: TreeHypervisor = request.getfixturevalue("linux_" + request.param.replace(".", "_"))
    return hypervisor


def exits(
    linux: TreeHypervisor,
    pause: Pause,
    code: int,
    senders: tuple[SenderState, ...] = (),
    schedule: tuple[Landing, ...] = (),
    **fields: int,
) -> Pause:
    """The guest leaves guest mode as the CPU would have it, and KVM runs."""
    return linux.step(pause.private, *records(pause, code, fields), Cause.VMEXIT, senders, schedule)


def records(pause: Pause, code: int, fields: dict[str, int]) -> tuple[Vmcb, Ghcb]:
    vmcb, ghcb = unpack(Vmcb, pause.vmcb), unpack(Ghcb, pause.ghcb)
    vmcb.exit_code, vmcb.event_inj = code, 0
    vmcb.exit_info_1 = vmcb.exit_info_2 = vmcb.exit_int_info = 0
    for name, value in fields.items():
        setattr(vmcb if hasattr(vmcb, name) else ghcb, name, value)
    return vmcb, ghcb


def vmgexit(linux: TreeHypervisor, pause: Pause, code: int) -> Pause:
    """The guest asks with a GHCB event."""
    vmcb, ghcb = asking(linux, pause, code)
    return linux.step(pause.private, vmcb, ghcb, Cause.VMEXIT, (), ())


def asking(linux: TreeHypervisor, pause: Pause, code: int) -> tuple[Vmcb, Ghcb]:
    """The records at an exit in which the guest asks with a GHCB event."""
    layout = linux.machine.layout
    kind = layout.named("struct ghcb")
    bits = sum(1 << layout.offset(kind, "save." + name) // 8 for name in VALID_EXIT_FIELDS)
    valid = {"valid_bitmap_lo": bits & (1 << 64) - 1, "valid_bitmap_hi": bits >> 64}
    return records(pause, SVM_EXIT_VMGEXIT, {"sw_exit_code": code, **valid})


def nmi(linux: TreeHypervisor, pause: Pause) -> Pause:
    """Another CPU sends an NMI, with nothing in between."""
    private, sender, ipi = pause.private, linux.sender("nmi"), False
    while sender is not NO_SENDER:
        sent = linux.send(private, sender)
        assert sent.unmodelled == ""
        private, sender, ipi = sent.private, sent.sender, ipi or sent.ipi
    return pause._replace(private=private, ipi=ipi)


def round_trip(linux: TreeHypervisor, pause: Pause) -> Pause:
    return exits(linux, pause, SVM_EXIT_INTR)


def event_inj(pause: Pause) -> int:
    return int(unpack(Vmcb, pause.vmcb).event_inj)


def in_service(linux: TreeHypervisor) -> Pause:
    """The first NMI is injected and the guest is in its handler."""
    pause = round_trip(linux, nmi(linux, linux.start()))
    assert event_inj(pause) == INJECTED
    return round_trip(linux, pause)


def test_the_first_hand_over_enters_a_launched_sev_es_guest(linux: TreeHypervisor) -> None:
    pause = linux.start()
    vmcb = unpack(Vmcb, pause.vmcb)
    assert pause.kind == PauseKind.ENTER
    assert pause.unmodelled == ""
    assert pause.defects == ()
    assert vmcb.nested_ctl & 0b111 == 0b111
    assert vmcb.vmsa_pa != 0
    assert vmcb.intercept_word4 & 1, "VMRUN is intercepted"


def test_a_round_trip_changes_nothing_once_the_vcpu_is_loaded(linux: TreeHypervisor) -> None:
    second = round_trip(linux, linux.start())
    third = round_trip(linux, second)
    assert third.private is second.private
    assert third.vmcb == second.vmcb


def test_an_nmi_is_sent_in_four_steps_and_kicks_a_running_guest(linux: TreeHypervisor) -> None:
    private, sender, functions = linux.start().private, linux.sender("nmi"), []
    while sender is not NO_SENDER:
        sent = linux.send(private, sender)
        private, sender = sent.private, sent.sender
        functions.append(sent.where.function)
    assert functions == ["kvm_inject_nmi", "kvm_inject_nmi", "kvm_vcpu_wake_up", "kvm_arch_vcpu_should_kick"]
    assert sent.ipi
    assert linux.view(private).nmi_queued == 1


def test_a_pending_nmi_is_injected_at_the_next_entry(linux: TreeHypervisor) -> None:
    pause = round_trip(linux, nmi(linux, linux.start()))
    view = linux.view(pause.private)
    assert event_inj(pause) == INJECTED
    assert (view.nmi_pending, view.nmi_masked, view.requests) == (0, 1, 0)


def test_a_second_nmi_waits_while_the_first_is_served(linux: TreeHypervisor) -> None:
    pause = round_trip(linux, nmi(linux, in_service(linux)))
    view = linux.view(pause.private)
    assert event_inj(pause) == 0
    assert (view.nmi_pending, view.nmi_masked) == (1, 1)


def nmi_complete_with_one_waiting(linux: TreeHypervisor) -> Pause:
    pause = round_trip(linux, nmi(linux, in_service(linux)))
    return vmgexit(linux, pause, SVM_VMGEXIT_NMI_COMPLETE)


def test_6_1_enters_after_nmi_complete_without_the_waiting_nmi(linux_6_1: TreeHypervisor) -> None:
    pause = nmi_complete_with_one_waiting(linux_6_1)
    view = linux_6_1.view(pause.private)
    assert (event_inj(pause), pause.ipi) == (0, False)
    assert (view.nmi_pending, view.nmi_masked, view.awaiting_iret_completion, view.requests) == (1, 1, 1, 0)
    assert event_inj(round_trip(linux_6_1, pause)) == INJECTED


def test_6_12_injects_the_waiting_nmi_after_nmi_complete(linux_6_12: TreeHypervisor) -> None:
    assert event_inj(nmi_complete_with_one_waiting(linux_6_12)) == INJECTED


def test_the_declined_nmi_is_cited_where_6_1_declines_it(linux_6_1: TreeHypervisor) -> None:
    pause = round_trip(linux_6_1, nmi(linux_6_1, in_service(linux_6_1)))
    vmcb, ghcb = asking(linux_6_1, pause, SVM_VMGEXIT_NMI_COMPLETE)
    executed = linux_6_1.explain(pause.private, vmcb, ghcb, Cause.VMEXIT, (), ())
    assert executed.declined is not None
    assert (executed.declined.function, executed.declined.text) == ("svm_nmi_allowed", "return 0;")
    functions = {line.function for line in executed.lines}
    assert {"sev_handle_vmgexit", "iret_interception", "vcpu_enter_guest", "svm_enable_nmi_window"} <= functions


def test_an_injected_nmi_declines_nothing(linux: TreeHypervisor) -> None:
    pause = nmi(linux, linux.start())
    vmcb, ghcb = records(pause, SVM_EXIT_INTR, {})
    assert linux.explain(pause.private, vmcb, ghcb, Cause.VMEXIT, (), ()).declined is None


def test_hlt_sleeps_until_an_nmi_wakes_the_vcpu(linux: TreeHypervisor) -> None:
    asleep = exits(linux, linux.start(), SVM_EXIT_HLT)
    assert asleep.kind == PauseKind.BLOCK
    assert linux.view(asleep.private).mp_state == 1
    assert not linux.runnable(asleep.private)
    woken = nmi(linux, asleep)
    assert not woken.ipi
    assert linux.runnable(woken.private)
    vmcb, ghcb = unpack(Vmcb, woken.vmcb), unpack(Ghcb, woken.ghcb)
    pause = linux.step(woken.private, vmcb, ghcb, Cause.WAKE, (), ())
    assert (pause.kind, event_inj(pause)) == (PauseKind.ENTER, INJECTED)


def test_a_delivery_cut_off_by_a_page_fault_is_done_again(linux: TreeHypervisor) -> None:
    pause = round_trip(linux, nmi(linux, linux.start()))
    again = exits(linux, pause, SVM_EXIT_NPF, exit_info_1=6, exit_info_2=0x1000, exit_int_info=INJECTED)
    assert (again.kind, event_inj(again), again.warm) == (PauseKind.ENTER, INJECTED, True)


def test_a_refused_vmrun_returns_to_userspace_as_fail_entry(linux: TreeHypervisor) -> None:
    pause = exits(linux, linux.start(), SVM_EXIT_ERR)
    assert (pause.kind, pause.exit_reason) == (PauseKind.USERSPACE, 9)


def test_a_shutdown_ends_kvm_run_and_kvm_run_can_be_called_again(linux: TreeHypervisor) -> None:
    pause = exits(linux, linux.start(), SVM_EXIT_SHUTDOWN)
    assert pause.kind == PauseKind.USERSPACE
    assert pause.exit_reason in (8, -22), "KVM_EXIT_SHUTDOWN, in 6.1 -EINVAL"
    vmcb, ghcb = unpack(Vmcb, pause.vmcb), unpack(Ghcb, pause.ghcb)
    again = linux.step(pause.private, vmcb, ghcb, Cause.RERUN, (), ())
    assert again.kind == PauseKind.ENTER


def test_an_unknown_ghcb_event_is_answered_with_an_error(linux: TreeHypervisor) -> None:
    pause = vmgexit(linux, linux.start(), 0x8000_0099)
    ghcb = unpack(Ghcb, pause.ghcb)
    assert pause.kind == PauseKind.ENTER
    assert ghcb.sw_exit_info_1 == 2


def test_an_nmi_can_land_wherever_kvm_looks_at_what_it_changes(linux: TreeHypervisor) -> None:
    fresh = linux.sender("nmi")
    pause = exits(linux, linux.start(), SVM_EXIT_INTR, (fresh,))
    assert {steps for _, _, steps in pause.openings} == {2, 4}, "the request and the mode; nothing else is looked at"
    landed = exits(linux, linux.start(), SVM_EXIT_INTR, (fresh,), (pause.openings[0],))
    assert landed.log == (("start", 0), ("end", 0))
    assert landed.senders == (NO_SENDER,)


def test_a_kick_before_vmrun_with_interrupts_off_stays_pending(linux: TreeHypervisor) -> None:
    fresh = linux.sender("nmi")
    start = linux.start()
    kicked = [
        pause
        for pause in landings(linux, start, SVM_EXIT_INTR, (fresh,))
        if pause.ipi and pause.senders == (NO_SENDER,)
    ]
    # KVM looks for requests once more after it has set IN_GUEST_MODE, so such an NMI can only come after that.
    assert all(linux.view(pause.private).requests == 1 for pause in kicked)


def landings(
    linux: TreeHypervisor, pause: Pause, code: int, senders: tuple[SenderState, ...], **fields: int
) -> Iterator[Pause]:
    """The host step under every schedule that the openings offer."""
    waiting: list[tuple[Landing, ...]] = [()]
    while waiting:
        schedule = waiting.pop()
        landed = exits(linux, pause, code, senders, schedule, **fields)
        assert landed.unmodelled == ""
        yield landed
        waiting += [(*schedule, opening) for opening in landed.openings]


def finished(linux: TreeHypervisor, pauses: Iterator[Pause]) -> set[tuple[object, ...]]:
    """Where the pauses lead once every sender that has started or not has done the rest of its steps."""
    ends: set[tuple[object, ...]] = set()
    for pause in pauses:
        private, ipi = pause.private, pause.ipi
        for sender in pause.senders:
            while sender is not NO_SENDER:
                sent = linux.send(private, sender)
                private, sender, ipi = sent.private, sent.sender, ipi or sent.ipi
        ends.add((pause.kind, private, pause.vmcb, pause.ghcb, ipi, pause.exit_reason))
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("served", [False, True], ids=["idle", "in-service"])
@pytest.mark.parametrize(("code", "done"), [(SVM_EXIT_INTR, 1), (SVM_EXIT_INTR, 2), (SVM_EXIT_HLT, 2)])
def test_the_openings_lose_no_outcome_of_all_places(tree_6_1: Path, code: int, done: int, served: bool) -> None:
    """Landing only where something conflicts leads to the same ends as landing everywhere."""
    reduced = TreeHypervisor(open_tree(tree_6_1))
    everywhere = TreeHypervisor(open_tree(tree_6_1), reduce=False)
    assert named_ends(reduced, code, done, served) == named_ends(everywhere, code, done, served)


def named_ends(linux: TreeHypervisor, code: int, done: int, served: bool) -> set[tuple[object, ...]]:
    """Ends that two hypervisors can compare: states by their words. The sender has done some steps before the exit."""
    pause, sender = in_service(linux) if served else linux.start(), linux.sender("nmi")
    for _ in range(done):
        sent = linux.send(pause.private, sender)
        pause, sender = pause._replace(private=sent.private), sent.sender
    ends = finished(linux, landings(linux, pause, code, (sender,)))
    return {(kind, *comparable(private), *rest) for kind, private, *rest in ends}


def comparable(private: object) -> tuple[object, ...]:
    assert isinstance(private, State)
    return private.words, private.frames, private.interrupts, private.gif


def test_every_assumption_has_a_reason_and_a_place(linux: TreeHypervisor) -> None:
    in_service(linux)
    assumptions = linux.assumptions()
    assert {a.kind for a in assumptions} >= {"stub", "model", "option", "initial"}
    assert all(a.why and a.where for a in assumptions)
    assert linux.statements() > 500


@pytest.mark.parametrize("series", ["tree_6_1", "tree_6_12", "tree_7_3"])
def test_nothing_of_the_event_path_is_left_without_an_answer(series: str, request: pytest.FixtureRequest) -> None:
    assert dry_run(open_tree(request.getfixturevalue(series))) == []


def test_what_nobody_answers_is_reported_with_the_row_to_paste(tree_6_1: Path, tmp_path: Path) -> None:
    rules = tmp_path / "mine.toml"
    rules.write_text('[[function]]\nname = "ktime_get"\nwhat = "source"\nwhy = "to be missing"\n')
    linux = TreeHypervisor(open_tree(tree_6_1), [rules])
    pause = exits(linux, linux.start(), SVM_EXIT_HLT)
    expected = 'ktime_get() has no definition in the tree and no rule; row to add: [[function]] name = "ktime_get"'
    assert expected in pause.unmodelled
    assert any('name = "ktime_get"' in row for row in dry_run(open_tree(tree_6_1), [rules]))


def test_an_option_changes_the_vcpu(tree_6_12: Path) -> None:
    vmcb = unpack(Vmcb, TreeHypervisor(open_tree(tree_6_12), options={"vgif": 0}).start().vmcb)
    assert not vmcb.int_ctl >> 25 & 1, "V_GIF_ENABLE"


def test_an_unknown_option_names_the_known_ones(tree_6_1: Path) -> None:
    with pytest.raises(InputError, match=r"--option vgiff: no such option; known are .*vgif"):
        TreeHypervisor(open_tree(tree_6_1), options={"vgiff": 0})


def test_a_warning_that_is_reached_is_a_defect(tree_6_1: Path) -> None:
    lines = (tree_6_1 / "arch/x86/kvm/svm/svm.c").read_text().split("\n")
    at = next(n for n, line in enumerate(lines) if line.startswith("static int intr_interception"))
    patch = "\n".join(
        [
            "--- a/arch/x86/kvm/svm/svm.c",
            "+++ b/arch/x86/kvm/svm/svm.c",
            f"@@ -{at + 1},3 +{at + 1},4 @@",
            *(" " + line for line in lines[at : at + 2]),
            "+\tWARN_ON_ONCE(vcpu->cpu == 0);",
            " " + lines[at + 2],
            "",
        ]
    )
    linux = TreeHypervisor(open_tree(tree_6_1, [("warn.patch", patch)]))
    pause = exits(linux, linux.start(), SVM_EXIT_INTR)
    assert [(what, place.function) for what, place in pause.defects] == [
        ("WARN reached: vcpu->cpu == 0", "intr_interception")
    ]


def test_functions_have_a_row_for_both_trees_or_for_none() -> None:
    """Objects and steps of the set-up differ: SEV is set up by KVM's own code since 6.10."""
    old, new = load_rules("6.1.192", [], MODELS), load_rules("6.12.117", [], MODELS)
    assert {key for key in old.rows.keys() ^ new.rows.keys() if key[0] in ("function", "macro")} == set()


def test_two_senders_that_wake_the_same_vcpu_do_not_disturb_each_other(linux: TreeHypervisor) -> None:
    fresh = linux.sender("nmi")
    first = exits(linux, linux.start(), SVM_EXIT_HLT, (fresh, fresh))
    waking = next(opening for opening in first.openings if opening[2] == 3)
    schedule = (waking, (waking[0], 1, 3))
    assert exits(linux, linux.start(), SVM_EXIT_HLT, (fresh, fresh), schedule).unmodelled == ""


def test_another_nmi_can_land_where_kvm_empties_the_queue(linux: TreeHypervisor) -> None:
    pause = nmi(linux, linux.start())
    openings = exits(linux, pause, SVM_EXIT_INTR, (linux.sender("nmi"),)).openings
    assert {steps for _, _, steps in openings} == {1, 2, 4}
