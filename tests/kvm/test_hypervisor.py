"""Our KVM behind the protocol: schedules, pauses, traces, the ledger."""

from __future__ import annotations

import sys

import pytest

from iretrace.check import check
from iretrace.kvm.host import Sender, conflict
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.kvm_host import READ, SET, WRITE
from iretrace.litmus.corpus import select
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import SVM_EXIT_HLT, SVM_EXIT_INTR, SVM_EXIT_NPF, SVM_EXIT_SHUTDOWN, Vmcb
from iretrace.subset import pack, unpack
from iretrace.verdict import InputError
from iretrace.world.protocol import NO_SENDER, Cause, Landing, Pause, PauseKind, SenderState

KVM_EXIT_SHUTDOWN = 8
EINTR = 4


@pytest.fixture(scope="module")
def kvm() -> BuiltinHypervisor:
    return BuiltinHypervisor("v6.12", "plain")


def exited(pause: Pause, code: int, **fields: int) -> Vmcb:
    vmcb = unpack(Vmcb, pause.vmcb)
    vmcb.exit_code, vmcb.event_inj = code, 0
    for name, value in fields.items():
        setattr(vmcb, name, value)
    return vmcb


def step(
    kvm: BuiltinHypervisor,
    code: int = SVM_EXIT_INTR,
    senders: tuple[SenderState, ...] = (),
    schedule: tuple[Landing, ...] = (),
    **fields: int,
) -> Pause:
    first = kvm.start()
    return kvm.step(first.private, exited(first, code, **fields), Ghcb(), Cause.VMEXIT, senders, schedule)


def test_the_first_pause_enters_the_guest(kvm: BuiltinHypervisor) -> None:
    pause = kvm.start()
    assert pause.kind is PauseKind.ENTER
    assert not pause.openings
    assert kvm.view(pause.private).gif == 1


def test_a_step_is_a_function_of_its_arguments(kvm: BuiltinHypervisor) -> None:
    again = BuiltinHypervisor("v6.12", "plain")
    senders = (kvm.sender("nmi"), kvm.sender("irq"))
    schedule = ((3, 0, 2), (9, 1, 4))
    first, second = (step(each, senders=senders, schedule=schedule) for each in (kvm, again))
    assert kvm.view(first.private) == again.view(second.private)
    assert first._replace(private=None) == second._replace(private=None)


def test_a_step_does_not_change_what_it_is_given(kvm: BuiltinHypervisor) -> None:
    first = kvm.start()
    vmcb = exited(first, SVM_EXIT_HLT)
    before = pack(vmcb)
    kvm.step(first.private, vmcb, Ghcb(), Cause.VMEXIT, (), ())
    assert pack(vmcb) == before


@pytest.mark.parametrize(("kind", "steps"), [("nmi", 4), ("irq", 5)])
def test_a_sender_that_lands_in_a_step_is_not_missed(kvm: BuiltinHypervisor, kind: str, steps: int) -> None:
    alone = step(kvm, senders=(kvm.sender(kind),), rflags=0x202)
    assert alone.openings
    for landing in alone.openings:
        pause = step(kvm, senders=(kvm.sender(kind),), schedule=((landing[0], 0, steps),), rflags=0x202)
        view = kvm.view(pause.private)
        assert view.event_inj or pause.ipi
        assert pause.log == (("start", 0), ("end", 0))


def test_a_halted_vcpu_sleeps_until_a_sender_wakes_it(kvm: BuiltinHypervisor) -> None:
    pause = step(kvm, SVM_EXIT_HLT)
    assert pause.kind is PauseKind.BLOCK
    private, sender = pause.private, kvm.sender("nmi")
    taken = 0
    while sender is not NO_SENDER:
        assert not kvm.runnable(private)
        sent = kvm.send(private, sender)
        private, sender = sent.private, sent.sender
        taken += 1
    assert taken == 3  # no IPI for a thread that sleeps
    assert kvm.runnable(private)
    woken = kvm.step(private, unpack(Vmcb, pause.vmcb), Ghcb(), Cause.WAKE, (), ())
    assert woken.kind is PauseKind.ENTER
    assert kvm.view(woken.private).nmi_injected


def test_the_kick_of_a_running_vcpu_is_an_ipi_and_only_the_first_one(kvm: BuiltinHypervisor) -> None:
    private = kvm.start().private
    ipis = []
    for _ in range(2):
        sender = kvm.sender("nmi")
        while sender is not NO_SENDER:
            sent = kvm.send(private, sender)
            private, sender = sent.private, sent.sender
        ipis.append(sent.ipi)
    assert ipis == [True, False]


def test_a_signal_ends_kvm_run_and_the_vmm_calls_it_again(kvm: BuiltinHypervisor) -> None:
    pause = step(kvm, senders=(kvm.sender("signal"),), schedule=((0, 0, 1),))
    assert (pause.kind, pause.exit_reason) == (PauseKind.USERSPACE, -EINTR)
    again = kvm.step(pause.private, unpack(Vmcb, pause.vmcb), Ghcb(), Cause.RERUN, pause.senders, ())
    assert again.kind is PauseKind.ENTER


def test_a_signal_does_not_end_hlt(kvm: BuiltinHypervisor) -> None:
    asleep = step(kvm, SVM_EXIT_HLT)
    private = kvm.send(kvm.send(asleep.private, Sender("signal", 0)).private, Sender("signal", 1)).private
    vmcb = unpack(Vmcb, asleep.vmcb)
    woken = kvm.step(private, vmcb, Ghcb(), Cause.WAKE, (), ())
    assert woken.exit_reason == -EINTR
    assert kvm.view(woken.private).mp_state == 1
    assert kvm.step(woken.private, vmcb, Ghcb(), Cause.RERUN, (), ()).kind is PauseKind.BLOCK


def test_a_nested_page_fault_is_resolved(kvm: BuiltinHypervisor) -> None:
    assert step(kvm, SVM_EXIT_NPF).warm
    assert not step(kvm).warm


def test_a_shutdown_goes_to_userspace(kvm: BuiltinHypervisor) -> None:
    pause = step(kvm, SVM_EXIT_SHUTDOWN)
    assert (pause.kind, pause.exit_reason) == (PauseKind.USERSPACE, KVM_EXIT_SHUTDOWN)


def test_an_exit_without_a_handler_is_unmodelled(kvm: BuiltinHypervisor) -> None:
    assert "no handler" in step(kvm, 0x7B).unmodelled


def test_the_view_is_that_of_the_vmcb(kvm: BuiltinHypervisor) -> None:
    pause = step(kvm, senders=(kvm.sender("nmi"),), schedule=((0, 0, 4),), int_state=1)
    assert kvm.view(pause.private).int_shadow == 1
    injected = step(kvm, senders=(kvm.sender("nmi"),), schedule=((0, 0, 4),))
    assert kvm.view(injected.private).event_inj == unpack(Vmcb, injected.vmcb).event_inj


@pytest.mark.parametrize(
    ("how", "other", "matters"), [(READ, READ, 0), (SET, SET, 0), (SET, READ, 1), (WRITE, WRITE, 1)]
)
def test_two_reads_and_two_sets_commute(how: int, other: int, matters: int) -> None:
    assert conflict(how, other) is bool(matters)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "kind"),
    [
        ("nmi-complete-then-spin", "sev-es"),
        ("nmi-iret-then-spin", "plain"),
        ("irq-at-sti-hlt", "plain"),
        ("nmi-and-no-sipi", "plain"),
        ("nmi-in-reset-hold", "sev-es"),
    ],
)
@pytest.mark.parametrize("revision", ["v6.1", "v6.12"])
def test_landings_that_are_not_offered_change_nothing(test: str, kind: str, revision: str) -> None:
    (found,) = select([test])
    results = [
        check(found, kind, "tickless", BuiltinHypervisor(revision, kind, reduce=reduce)) for reduce in (True, False)
    ]
    assert results[0].verdict is results[1].verdict
    assert results[0].outcomes == results[1].outcomes


# Traces and the ledger. -----------------------------------------------------------------------------------------


def test_a_trace_cites_our_own_source(kvm: BuiltinHypervisor) -> None:
    first = kvm.start()
    landing: tuple[Landing, ...] = ((0, 0, 4),)
    vmcb = exited(first, SVM_EXIT_INTR, int_state=1)
    executed = kvm.explain(first.private, vmcb, Ghcb(), Cause.VMEXIT, (kvm.sender("nmi"),), landing)
    assert {line.path for line in executed.lines} <= {f"kvm/{name}.py" for name in KVM_FILES}
    assert executed.lines[0].function == "vcpu_resume_after_vmexit"
    assert executed.declined is not None
    assert (executed.declined.path, executed.declined.function) == ("kvm/svm.py", "svm_nmi_blocked")
    assert any(view.nmi_singlestep and "nmi_singlestep = 1" in line.text for line, view in executed.changes)


KVM_FILES = (
    "debug", "exceptions", "kvm_host", "kvm_main", "lapic", "reset", "senders", "sev", "smm", "svm", "svm_exits",
    "svm_h", "x86", "x86_run",
)  # fmt: skip


def test_the_handler_of_an_exit_is_told(kvm: BuiltinHypervisor) -> None:
    first = kvm.start()
    executed = kvm.explain(first.private, exited(first, SVM_EXIT_HLT), Ghcb(), Cause.VMEXIT, (), ())
    assert [line.function for line in executed.handling] == ["kvm_emulate_halt"]


def test_an_explanation_leaves_a_tracer_that_was_there() -> None:
    kvm = BuiltinHypervisor("v6.12", "plain")
    first = kvm.start()

    def tracer(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        kvm.explain(first.private, exited(first, SVM_EXIT_INTR), Ghcb(), Cause.VMEXIT, (), ())
        found = sys.gettrace()
    finally:
        sys.settrace(before)
    assert found is tracer


def test_executed_lines_are_counted_once() -> None:
    kvm = BuiltinHypervisor("v6.12", "plain")
    kvm.start()
    started = kvm.statements()
    assert started > 50
    step(kvm, SVM_EXIT_HLT)
    assert kvm.statements() > started
    counted = kvm.statements()
    step(kvm, SVM_EXIT_HLT)
    assert kvm.statements() == counted


def test_the_ledger_names_options_and_what_is_left_out() -> None:
    assumptions = BuiltinHypervisor("v6.1", "plain", {"vgif": 0}).assumptions()
    assert ("option", "vgif: value=0") in {(a.kind, a.what) for a in assumptions}
    assert any("AVIC" in a.what for a in assumptions)


def test_the_name_says_which_revision() -> None:
    assert BuiltinHypervisor("v6.12", "sev-es").name == "built-in v6.12"


@pytest.mark.parametrize(
    ("revision", "kind", "options", "message"),
    [
        ("v5.0", "plain", {}, "no such revision"),
        ("v6.12", "nested", {}, "runs the kinds sev-es and sev-es-vnmi and sev-es-debugswap and plain and vnmi"),
        ("v6.1", "vnmi", {}, "virtual NMIs since v6.4"),
        ("v6.1", "sev-es-vnmi", {}, "virtual NMIs since v6.4"),
        ("v6.12", "vnmi", {"vgif": 0}, "no virtual NMIs without virtual GIF"),
        ("v6.1", "sev-es-debugswap", {}, "DebugSwap since v6.10"),
        ("v6.1", "plain", {"avic": 1}, "known are vgif, nrips"),
    ],
)
def test_what_there_is_not_is_an_input_error(revision: str, kind: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuiltinHypervisor(revision, kind, options)


def test_an_unknown_sender_is_an_input_error(kvm: BuiltinHypervisor) -> None:
    with pytest.raises(InputError, match="nmi, smi, init, sipi, irq, signal"):
        kvm.sender("mce")


def test_states_that_cannot_behave_differently_are_the_same_object(kvm: BuiltinHypervisor) -> None:
    assert step(kvm).private is step(kvm, rip=7).private


def test_agreement_sees_requests_and_events(kvm: BuiltinHypervisor) -> None:
    private = kvm.start().private
    assert kvm.compare(private).requests == frozenset()
    sent = kvm.send(kvm.send(private, Sender("nmi", 0)).private, Sender("nmi", 1)).private
    compared = kvm.compare(sent)
    assert (set(compared.requests), compared.nmi_queued) == ({"NMI"}, 1)
    assert dict(compared.events) == {"nmi.pending": 1, "flags": 13}
