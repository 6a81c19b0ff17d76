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
from iretrace.machine.vmcb import INTERCEPT_CLGI, INTERCEPT_STGI, SVM_EXIT_EXCP_BASE
from iretrace.seek import Condition, Glimpse, Sought, seek
from iretrace.verdict import CLine, Result, Step, Verdict
from iretrace.world.protocol import Hypervisor
from iretrace.world.vcpu import Phase

VCPU = "sev-es"
SPIN, HALT = "nmi-complete-then-spin", "nmi-complete-then-hlt"
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
    """The guest runs, and could execute CLGI or STGI."""
    wanted = 1 << INTERCEPT_CLGI - WORD_4 | 1 << INTERCEPT_STGI - WORD_4
    return state.phase == Phase.GUEST and state.vmcb.intercept_word4 & wanted != wanted


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


def _gif_is_one(subject: Subject) -> Answer:
    clear, free = subject.seek(gif_is_clear), subject.seek(gif_can_be_changed)
    if clear.open or free.open:
        return Answer("undetermined", clear.open or free.open)
    if clear.met:
        return Answer("false", "KVM takes GIF for 0", clear.cited, clear.steps)
    if free.met:
        because = (
            "with virtual GIF KVM does not intercept CLGI and STGI, and EFER.SVME is set in the save area; that the"
            " processor refuses them to an encrypted guest is in no manual that we know"
        )
        return Answer("true only if no guest executes CLGI", because, exhausted=_all(clear))
    because = (
        "CLGI and STGI are intercepted whenever the guest runs, so that they raise #VC, for which the GHCB protocol"
        " has no event; KVM never takes GIF for anything but 1"
    )
    return Answer("true", because, exhausted=_all(clear))


def _reads_as_zero(_subject: Subject) -> Answer:
    return Answer("undetermined", "RDMSR and WRMSR of EFER are not modelled yet")


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
    """A claim of the thread. says: in our words. by: who says it. tests: what it is asked of."""

    name: str
    says: str
    by: str
    ask: Callable[[Subject], Answer]
    tests: tuple[str, ...] = TESTS


REPLY, PATCH = "the mail", "the patch that the mail quotes"

CLAIMS = (
    Claim("single-step", "KVM cannot single-step an SEV-ES guest, but tries to.", REPLY, _cannot_but_tries),
    Claim("benign", "That attempt is benign in the end: no guest can tell.", REPLY, _benign),
    Claim(
        "efer",
        "KVM sets EFER.SVME in hardware, and hides it from the guest, which reads it as zero.",
        REPLY,
        _reads_as_zero,
        (),
    ),
    Claim("gif", "GIF is always 1 for an SEV-ES guest: the GHCB has no event for CLGI or STGI.", PATCH, _gif_is_one),
    Claim("emulates-iret", "KVM handles NMI_COMPLETE by emulating an IRET.", REPLY, _emulates_iret),
    Claim("next-exit", "NMIs are not unmasked at NMI_COMPLETE, but at the next #VMEXIT.", REPLY, _only_at_next_exit),
    Claim(
        "never",
        "That #VMEXIT may never come, if the host is tickless and the guest busy-waits.",
        REPLY,
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
