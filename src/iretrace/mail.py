"""The mail of June 2023, claim by claim: what it says of KVM and SEV-ES, asked of a hypervisor.

"Re: [PATCH kernel v5 5/6] KVM: SEV: Enable data breakpoints in SEV-ES", Sean Christopherson, 13 June 2023, answering
Alexey Kardashevskiy. No answer is written down here: each is a search, or a verdict, of the hypervisor at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from iretrace.check import check
from iretrace.litmus.corpus import select
from iretrace.machine.cpu import DB_VECTOR, X86_EFLAGS_TF
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_CLGI,
    INTERCEPT_STGI,
    SVM_EXIT_EFER_WRITE_TRAP,
    SVM_EXIT_EXCP_BASE,
    SVM_EXIT_MSR,
)
from iretrace.seek import Condition, Glimpse, Sought, seek
from iretrace.verdict import CLine, Result, Step, Verdict
from iretrace.world.core import Phase
from iretrace.world.protocol import Hypervisor

VCPU = "sev-es"
SPIN, HALT = "nmi-complete-then-spin", "nmi-complete-then-hlt"
EFER, CLGI = "sev-es-efer", "sev-es-clgi"
TESTS = (SPIN, HALT, "nmi-complete-first", "nmi-never-completed")
"""The shipped tests that the claims are asked of."""

WORD_4 = 128
"""The first intercept of the VMCB's fifth intercept word (APM volume 2, appendix B, VMCB Layout)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came out. word: "true", "false", "true only if ...", "does not arise", "undetermined". because: a sentence.

    cited: the hypervisor's statement that shows it. steps, loop: the run that shows it, if it takes one. exhausted:
    what was, where it takes that."""

    word: str
    because: str
    cited: CLine | None = None
    steps: tuple[Step, ...] = ()
    loop: tuple[Step, ...] = ()
    exhausted: str = ""


@dataclass
class Subject:
    """A hypervisor with a vCPU of kind sev-es. without_single_step: the same KVM, but it does not try to single-step an
    SEV-ES guest; None where that cannot be made of it."""

    name: str
    hypervisor: Hypervisor
    without_single_step: Callable[[], Hypervisor | None]
    _sought: dict[tuple[str, str, Condition], Sought] = field(default_factory=dict)
    _checked: dict[tuple[str, str], Result] = field(default_factory=dict)

    def seek(self, condition: Condition, host: str = "tickless", tests: Sequence[str] = TESTS) -> Sought:
        """The first test in which the condition is met; else that it is in none of them, or why that is not known."""
        states, unknown = 0, ""
        for test in select(tests):
            key = (test.name, host, condition)
            if key not in self._sought:
                self._sought[key] = seek(test, VCPU, host, self.hypervisor, condition)
            found = self._sought[key]
            if found.met:
                return found
            states, unknown = states + found.states, unknown or found.open
        return Sought(0, states, open=unknown)

    def check(self, test: str, host: str) -> Result:
        """The verdict of a shipped test."""
        if (test, host) not in self._checked:
            self._checked[test, host] = check(select([test])[0], VCPU, host, self.hypervisor)
        return self._checked[test, host]

    @cached_property
    def arms(self) -> Sought:
        """Whether it ever believes to single-step the guest."""
        return self.seek(single_steps)


# Conditions. -------------------------------------------------------------------------------------------------------


def single_steps(state: Glimpse) -> bool:
    """KVM has set RFLAGS.TF, and means to find the end of the NMI's blocking by the trap."""
    return state.view.nmi_singlestep != 0


def steps_with_tf(state: Glimpse) -> bool:
    """The guest runs, and the VMCB holds the TF that KVM has set."""
    return single_steps(state) and state.phase == Phase.GUEST and state.vmcb.rflags & X86_EFLAGS_TF != 0


def traps(state: Glimpse) -> bool:
    """A #VMEXIT(#DB): a single-step trap, since no guest of these tests has anything else that raises one."""
    return state.exited and state.vmcb.exit_code == SVM_EXIT_EXCP_BASE + DB_VECTOR


def gif_is_clear(state: Glimpse) -> bool:
    """KVM takes the guest's GIF for 0."""
    return state.view.gif == 0


def gif_can_be_changed(state: Glimpse) -> bool:
    """The guest runs, and CLGI or STGI would execute."""
    wanted = 1 << INTERCEPT_CLGI - WORD_4 | 1 << INTERCEPT_STGI - WORD_4
    return state.phase == Phase.GUEST and state.vmcb.intercept_word4 & wanted != wanted


def is_told_of_efer(state: Glimpse) -> bool:
    """The guest has written EFER, and the processor reports it, with SVME set."""
    told = state.exited and state.vmcb.exit_code == SVM_EXIT_EFER_WRITE_TRAP
    return told and state.vmcb.exit_info_1 & EFER_SVME != 0


def is_asked_for_efer(state: Glimpse) -> bool:
    """An access of EFER exits, or the guest has KVM asked for it by VMGEXIT."""
    return state.exited and state.vmcb.exit_code == SVM_EXIT_MSR


def knows_svme(state: Glimpse) -> bool:
    """KVM's copy of the guest's EFER has SVME set."""
    return state.view.svme != 0


def sees_svme(state: Glimpse) -> bool:
    """The guest looks at what it has read, and SVME is set."""
    return state.looks_at >= 0 and state.looks_at & EFER_SVME != 0


def sees_no_svme(state: Glimpse) -> bool:
    """The guest looks at what it has read, and SVME is clear."""
    return state.looks_at >= 0 and state.looks_at & EFER_SVME == 0


def awaits_iret(state: Glimpse) -> bool:
    """KVM believes to have seen an IRET, though an SEV-ES guest's is not intercepted."""
    return state.view.awaiting_iret_completion != 0


def runs_masked_after_complete(state: Glimpse) -> bool:
    """The guest has said NMI_COMPLETE and runs again, and KVM holds NMIs back."""
    return state.phase == Phase.GUEST and awaits_iret(state) and state.view.nmi_masked != 0


# Claims. -----------------------------------------------------------------------------------------------------------


def _cannot_but_tries(subject: Subject) -> Answer:
    armed, trap = subject.arms, subject.seek(traps)
    if not armed.met:
        return _never(armed, "KVM never tries")
    if trap.met or trap.open:
        return Answer("false" if trap.met else "undetermined", trap.open or "a trap comes", None, trap.steps)
    shown = subject.seek(steps_with_tf)
    tf = "with TF set in the VMCB" if shown.met else "without TF in the VMCB"
    because = (
        f"KVM arms its single-step and enters the guest {tf}; no #VMEXIT(#DB) ever follows, because the processor takes"
        " RFLAGS from the encrypted save area"
    )
    return Answer("true", because, armed.cited, armed.steps, exhausted=_all(trap))


def _benign(subject: Subject) -> Answer:
    if not subject.arms.met:
        found = _never(subject.arms, "there is no such attempt here")
        return replace(found, word="does not arise") if found.word == "false" else found
    without = subject.without_single_step()
    if without is None:
        return Answer(
            "undetermined", "svm_enable_nmi_window() is not as it is known, so the attempt cannot be taken out"
        )
    pairs = [(test, host) for test in select(TESTS) for host in ("tickless", "ticking")]
    for test, host in pairs:
        mine, other = subject.check(test.name, host), check(test, VCPU, host, without)
        if _seen(mine) != _seen(other):
            because = f"{test.name} on a {host} host: {mine.verdict} with it, {other.verdict} without"
            return Answer("false", because, steps=_trace_of(mine) or _trace_of(other))
    because = "with the attempt taken out, the verdicts are the same, and so are all outcomes that guests can see"
    return Answer("true", because, subject.arms.cited, exhausted=f"{len(pairs)} runs of {len(TESTS)} tests")


def _seen(result: Result) -> tuple[object, ...]:
    """What a guest can notice: the verdict, and how runs end."""
    return result.verdict, result.reason, result.outcomes


def _view_lacks_svme(subject: Subject) -> Answer:
    written, kept = subject.seek(is_told_of_efer, tests=(EFER,)), subject.seek(knows_svme, tests=(*TESTS, EFER))
    if kept.met:
        return Answer("false", "KVM's copy of the guest's EFER has SVME set", kept.cited, kept.steps)
    if kept.open or not written.met:
        return Answer("undetermined", kept.open or written.open or "the guest's write of EFER is never reported")
    because = "the guest writes EFER with SVME set, the write trap tells KVM so, and KVM's copy never has the bit"
    return Answer("true", because, None, written.steps, exhausted=_all(kept))


def _reads_as_zero(subject: Subject) -> Answer:
    asked, one, zero = (subject.seek(what, tests=(EFER,)) for what in (is_asked_for_efer, sees_svme, sees_no_svme))
    if asked.open or one.open or zero.open:
        return Answer("undetermined", asked.open or one.open or zero.open)
    if asked.met:
        word = "false" if one.met else "true"
        return Answer(word, "RDMSR of EFER exits, and KVM answers", asked.cited, asked.steps)
    because = (
        "RDMSR of EFER is no exit, so that KVM has no say in it: the guest reads what the processor shows of a bit that"
        " is always set, and no manual says what that is"
    )
    if one.met and zero.met:
        return Answer("true only if the processor hides the bit", because, exhausted=_all(asked))
    return Answer("false" if one.met else "true", because, None, (one if one.met else zero).steps)


def _always_intercepted(subject: Subject) -> Answer:
    free = subject.seek(gif_can_be_changed)
    if not free.met:
        found = _never(free, "whenever the guest runs, both intercepts are set")
        return replace(found, word="true") if found.word == "false" else found
    return Answer("false", "with virtual GIF KVM clears both intercepts", None, free.steps)


def _gif_is_one(subject: Subject) -> Answer:
    clear = subject.seek(gif_is_clear)
    if clear.met:
        return Answer("false", "KVM takes GIF for 0", clear.cited, clear.steps)
    tried = subject.seek(gif_is_clear, tests=(CLGI,))
    if clear.open or tried.open:
        return Answer("undetermined", clear.open or tried.open)
    if not tried.met:
        because = "a guest that executes CLGI gets #VC for it, and KVM never takes GIF for anything but 1"
        return Answer("true", because, exhausted=_all(tried))
    harm = subject.check(CLGI, "tickless")
    if harm.trace is None:
        return Answer("undetermined", f"{CLGI} on a tickless host: {harm.reason or harm.verdict}")
    because = f"the guest's CLGI executes on the virtual GIF. {harm.trace.cause[:1].upper()}{harm.trace.cause[1:]}"
    word = "true only if no guest executes CLGI"
    return Answer(word, because, harm.trace.cited, harm.trace.stem, harm.trace.loop)


def _emulates_iret(subject: Subject) -> Answer:
    found = subject.seek(awaits_iret)
    if not found.met:
        return _never(found, "NMI_COMPLETE is handled without it: KVM never waits for the end of an IRET")
    return Answer("true", "KVM handles the event as if it had intercepted an IRET", found.cited, found.steps)


def _only_at_next_exit(subject: Subject) -> Answer:
    found = subject.seek(runs_masked_after_complete)
    if not found.met:
        return _never(found, "whenever the guest runs after NMI_COMPLETE, NMIs are not held back on its account")
    because = "the guest runs again after NMI_COMPLETE, and KVM still holds NMIs back, until the next #VMEXIT"
    return Answer("true", because, found.cited, found.steps)


def _could_be_never(subject: Subject) -> Answer:
    busy, ticking, idle = (
        subject.check(*which) for which in ((SPIN, "tickless"), (SPIN, "ticking"), (HALT, "tickless"))
    )
    for result in (busy, ticking, idle):
        if result.verdict is Verdict.UNDETERMINED:
            return Answer("undetermined", f"{result.test} on a {result.host} host: {result.reason}")
    if busy.verdict is Verdict.HOLDS:
        return Answer("false", "a second NMI that waits for NMI_COMPLETE always comes", exhausted=busy.exhausted)
    limits = [
        word
        for word, result in (("the host is tickless", ticking), ("the guest busy-waits", idle))
        if result.verdict is Verdict.HOLDS
    ]
    trace = busy.trace
    assert trace is not None
    word = f"true only if {' and '.join(limits)}" if limits else "true"
    return Answer(word, trace.cause, trace.cited, trace.stem, trace.loop)


def _never(found: Sought, what: str) -> Answer:
    """The answer where nothing was found."""
    if found.open:
        return Answer("undetermined", found.open)
    return Answer("false", what, exhausted=_all(found))


def _all(found: Sought) -> str:
    return f"all {found.states:,} states"


def _trace_of(result: Result) -> tuple[Step, ...]:
    return result.trace.stem if result.trace is not None else ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the thread. says: in our words. by: who says it. means: for a reader who does not know KVM. tests:
    what it is asked of."""

    name: str
    says: str
    by: str
    means: str
    ask: Callable[[Subject], Answer]
    tests: tuple[str, ...] = TESTS


REPLY, PATCH, AUTHOR = "The mail", "The patch that the mail quotes", "The author of the series, whom the mail quotes"

CLAIMS = (
    Claim(
        "single-step",
        "KVM cannot single-step an SEV-ES guest, but tries to.",
        REPLY,
        "To learn when an NMI handler is through, KVM sets RFLAGS.TF in the guest and waits for the trap. The flags of"
        " an encrypted guest are out of its reach.",
        _cannot_but_tries,
    ),
    Claim(
        "benign",
        "That attempt is benign in the end: no guest can tell.",
        REPLY,
        "The same KVM is run with the attempt and without it, and every outcome is compared.",
        _benign,
    ),
    Claim(
        "svme-dropped",
        "KVM's own copy of the guest's EFER does not have SVME set, whatever the guest writes.",
        REPLY,
        "EFER.SVME enables the instructions of virtualization. In hardware it is set whenever a guest runs. An"
        " encrypted guest writes EFER without asking, KVM is told afterwards, and drops the bit (efer_trap()).",
        _view_lacks_svme,
        (EFER,),
    ),
    Claim(
        "svme-reads-as-zero",
        "So from the guest's point of view EFER.SVME reads as zero.",
        REPLY,
        "The guest writes the bit and reads EFER back. (A reply in the thread reports that it saw the bit set.)",
        _reads_as_zero,
        (EFER,),
    ),
    Claim(
        "intercepted",
        "CLGI and STGI are always intercepted.",
        AUTHOR,
        "They close and open the global interrupt flag, GIF. While it is closed, interrupts and NMIs are held back.",
        _always_intercepted,
    ),
    Claim(
        "gif",
        "GIF is always 1 for an SEV-ES guest: the GHCB has no event for CLGI or STGI.",
        PATCH,
        "KVM arms no window for an NMI that a closed GIF holds back in such a guest, because it takes this for granted"
        " (svm_enable_nmi_window()). Here a guest executes CLGI.",
        _gif_is_one,
        (*TESTS, CLGI),
    ),
    Claim(
        "emulates-iret",
        "KVM handles NMI_COMPLETE by emulating an IRET.",
        REPLY,
        "NMI_COMPLETE is how an encrypted guest says that the next NMI may come. Other guests execute IRET, which KVM"
        " intercepts.",
        _emulates_iret,
    ),
    Claim(
        "next-exit",
        "NMIs are not unmasked at NMI_COMPLETE, but at the next #VMEXIT.",
        REPLY,
        "An IRET that exits has not run yet, so that KVM has to wait. After NMI_COMPLETE there is nothing to wait for.",
        _only_at_next_exit,
    ),
    Claim(
        "never",
        "That #VMEXIT may never come, if the host is tickless and the guest busy-waits.",
        REPLY,
        "Then an NMI that the processor would have delivered long ago, a watchdog's perhaps, is never delivered.",
        _could_be_never,
        (SPIN, HALT),
    ),
)
"""In the order in which they build on each other."""


def ask(subject: Subject, progress: Callable[[str], None] = lambda _text: None) -> list[tuple[Claim, Answer]]:
    """Every claim, asked of one hypervisor."""
    answers = []
    for claim in CLAIMS:
        progress(f"{subject.name}: {claim.name}")
        answers.append((claim, claim.ask(subject)))
    return answers
