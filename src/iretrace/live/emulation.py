"""What QEMU's emulation is known to get wrong, so that it is not taken for a defect of KVM. Applied visibly.

RF in pushed flags is not in the table: this comparison looks at TF and IF only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from iretrace.litmus.grammar import DR7_BITS
from iretrace.litmus.test import VECTORS, Op, Test
from iretrace.live.explain import Objection
from iretrace.live.layout import SMI
from iretrace.live.machine_code import section_of
from iretrace.live.observed import Run
from iretrace.live.walk import Delivery, Event, Mark, Shown
from iretrace.machine.cpu import PAGE_WORDS, SEEN_DELIVERY
from iretrace.world.guest import VECTOR_PAGES

SHADOWS = (Op.STI, Op.MOV_SS)
ACCESSES = (Op.PUSH, Op.PUSHFQ, Op.POPFQ, Op.OR_STACK, Op.ANDN_STACK, Op.MOV_STACK, Op.LOAD)
DR7_ENABLE = 0xFF
DR7_GD = 0x2000
ERROR_EXT = 1

OPTIONS = {"nrips": "0"}
"""What QEMU's processor is, as options of the model."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of QEMU. before: the first version without it, as numbers; () if there is none yet."""

    name: str
    before: tuple[int, ...]
    excuses: Callable[[Run, Objection], bool]
    """Whether what the processor could not show in a run is what comes from this."""
    in_svm: bool = False
    """It is a fault of the emulated virtualisation: the machine alone does not have it."""
    alone: bool = False
    """The machine alone has it: what it is a fault of KVM does itself."""

    def concerns(self, alone: bool) -> bool:
        """Whether it can show here."""
        return not (self.in_svm if alone else self.alone)


def _wrong(run: Run, objection: Objection) -> Delivery | None:
    """The event that the processor could not show, if it is a delivery."""
    event = run.history[objection.shown] if objection.shown < len(run.history) else None
    return event if isinstance(event, Delivery) else None


def _until_then(run: Run, objection: Objection, vector: int) -> list[Delivery]:
    """The deliveries of a vector up to what the processor could not show."""
    events = run.history[: objection.shown + 1]
    return [event for event in events if isinstance(event, Delivery) and event.vector == vector]


def _due(objection: Objection, vector: int) -> set[int]:
    """The places at which the processor could have delivered this instead."""
    could = [shown for shown in objection.could if isinstance(shown, tuple) and shown[0] == SEEN_DELIVERY]
    return {shown[2] for shown in could if shown[1] == vector}


def _is_behind(test: Test, place: int, *ops: Op) -> bool:
    """Whether the instruction stands behind such a one."""
    return place > 0 and test.code[place - 1].op in ops


def _irq_in_shadow(run: Run, objection: Objection) -> bool:
    wrong = _wrong(run, objection)
    return wrong is not None and wrong.vector == VECTORS["irq"] and _is_behind(run.guest.test, wrong.place, *SHADOWS)


def _smi_in_shadow(run: Run, objection: Objection) -> bool:
    return any(_is_behind(run.guest.test, smi.place, *SHADOWS) for smi in _until_then(run, objection, SMI))


def _smi_ends_hlt(run: Run, objection: Objection) -> bool:
    """An SMI came behind HLT, where a halted processor is."""
    return any(_is_behind(run.guest.test, smi.place, Op.HLT) for smi in _until_then(run, objection, SMI))


def _no_step_behind_sti(run: Run, objection: Objection) -> bool:
    return any(_is_behind(run.guest.test, place, Op.STI) for place in _due(objection, VECTORS["db"]))


def mend(run: Run, objection: Objection) -> Run | None:
    """The run as the processor would have shown it, if all that is wrong with the event is its error code, or that it
    comes behind the INT that it is a fault of; else None."""
    wrong, at = _wrong(run, objection), objection.shown
    if wrong is None:
        return None
    places = (wrong.place, wrong.place - 1) if _is_behind(run.guest.test, wrong.place, Op.INT) else (wrong.place,)
    could = [shown for shown in objection.could if isinstance(shown, tuple) and shown[0] == SEEN_DELIVERY]
    right = [s for s in could if s[1] == wrong.vector and s[2] in places and s[3] == wrong.flags]
    if len(right) != 1:
        return None
    place, error = right[0][2], right[0][4]
    behind = list(run.history[at + 1 :])
    if Shown(wrong.error) in behind:  # the handler shows what it finds on its stack
        behind[behind.index(Shown(wrong.error))] = Shown(error)
    return replace(run, history=(*run.history[:at], replace(wrong, place=place, error=error), *behind))


def _has_other_error(run: Run, objection: Objection, vector: int) -> bool:
    """Such a delivery has another error code than the processor's, and nothing else is wrong with it."""
    wrong, mended = _wrong(run, objection), mend(run, objection)
    if wrong is None or mended is None or wrong.vector != vector:
        return False
    right = _wrong(mended, objection)
    return right is not None and right.place == wrong.place


def _gate_is_absent(run: Run, objection: Objection) -> bool:
    """#NP for an event that no instruction asked for must have EXT."""
    wrong = _wrong(run, objection)
    return wrong is not None and not wrong.error & ERROR_EXT and _has_other_error(run, objection, VECTORS["np"])


def _refused_gate_is_doubled(run: Run, objection: Objection) -> bool:
    """The error code of #GP for a gate that refuses an INT is 16 * vector + 2, not 8 * vector + 2."""
    wrong = _wrong(run, objection)
    doubled = wrong is not None and wrong.error == 16 * VECTORS["int"] + 2
    return doubled and _has_other_error(run, objection, VECTORS["gp"])


def _dr7_values(test: Test) -> list[int]:
    """What the test loads to put it into DR7."""
    return [i.arg for i in test.code if i.op is Op.MOV_RAX and not DR7_BITS.keys().isdisjoint(i.text.split())]


def _watches(test: Test) -> bool:
    """The test has data breakpoints."""
    return any(value >> (16 + 4 * n) & 1 for value in _dr7_values(test) for n in range(4))


def _breaks_anywhere(test: Test) -> bool:
    debugged = any(arrival.debugger == "break" for arrival in test.outside)
    return debugged or any(value & DR7_ENABLE for value in _dr7_values(test))


def _general_detect(test: Test) -> bool:
    return any(value & DR7_GD for value in _dr7_values(test))


def _int1(test: Test) -> bool:
    return any(instruction.op is Op.INT1 for instruction in test.code)


def _watched_before_a_hidden_page(run: Run, objection: Objection) -> bool:
    """The #DB of a watched access was due where an event is placed by a page that is not there, and the guest went on:
    with that event, or with the instruction itself, if the event had come before."""
    event = run.history[objection.shown] if objection.shown < len(run.history) else None
    due = {place for place in _due(objection, VECTORS["db"]) if _is_behind(run.guest.test, place, *ACCESSES)}
    return any(_goes_on_at(run.guest.test, event, place) for place in due.intersection(run.guest.cuts))


def _goes_on_at(test: Test, event: Event | None, place: int) -> bool:
    """The event interrupts this instruction, or it is what the instruction shows."""
    if isinstance(event, Delivery):
        return event.place == place
    instruction = test.code[place]
    return isinstance(event, Mark) and instruction.op is Op.MARK and instruction.arg == event.number


def _frame_is_not_watched(run: Run, objection: Objection) -> bool:
    """An interrupt has just been delivered, and its handler's first instruction comes without the #DB due there."""
    last = run.history[objection.shown - 1] if objection.shown else None
    handlers = dict(run.guest.test.handlers)
    if not isinstance(last, Delivery) or last.vector != VECTORS["irq"]:
        return False
    return handlers.get(last.vector) in _due(objection, VECTORS["db"])


def _watched_frame_is_lost(run: Run, objection: Objection) -> bool:
    """What is due does not come, and its frame may lie on a watched word. It is a #DB, where one is due: on a stack
    of its own; where an access was watched its frame lies below that word."""
    test, trap = run.guest.test, VECTORS["db"]
    if _due(objection, trap):
        return trap in test.ist and _frame_may_be_watched(test, trap)
    vectors = (VECTORS["irq"], VECTORS["nmi"])
    return any(_due(objection, vector) and _frame_may_be_watched(test, vector) for vector in vectors)


def _injected_frame_is_lost(run: Run, objection: Objection) -> bool:
    """An NMI never comes, and the #DB of a push did: the NMI was injected before that push, and its frame touches the
    same word. QEMU gives the delivery up, executes the push, and its #DB takes EVENTINJ's valid bit with it, so that
    EXITINTINFO does not tell KVM. Seen where nothing is placed only: behind a page that is not there it aborts."""
    test, at_end = run.guest.test, objection.shown == len(run.history)
    if not at_end or any(cut >= 0 for cut in run.guest.cuts) or not _due(objection, VECTORS["nmi"]):
        return False
    traps = _until_then(run, objection, VECTORS["db"])
    pushed = any(_is_behind(test, trap.place, Op.PUSH, Op.PUSHFQ) for trap in traps)
    return pushed and _frame_may_be_watched(test, VECTORS["nmi"])


def _frame_may_be_watched(test: Test, vector: int) -> bool:
    """On a stack of its own a frame lies there; else on any that a stack pointer may be at."""
    if not _watches(test):
        return False
    pages = {i.arg // PAGE_WORDS for i in test.code if i.op is Op.MOV_RAX and "_stack" in i.text}
    own = {VECTOR_PAGES[other] for other in test.ist}
    return VECTOR_PAGES[vector] in pages if vector in test.ist else bool(pages - own)


def _rf_is_dropped(run: Run, objection: Objection) -> bool:
    """#DB comes to a place once more, though its handler had set RF, where the handler's IRETQ ran with RF set.

    It does if the handler was interrupted, for QEMU pushes RF, and if KVM stepped over it: in an NMI, with another one
    waiting, which then came at this place."""
    wrong, test, handlers = _wrong(run, objection), run.guest.test, dict(run.guest.test.handlers)
    if wrong is None or wrong.vector != VECTORS["db"] or not any(", RF" in i.text for i in test.code):
        return False
    before = [event for event in run.history[: objection.shown] if isinstance(event, Delivery)]
    came = [n for n, event in enumerate(before) if (event.vector, event.place) == (wrong.vector, wrong.place)]
    if not came:
        return False
    interrupted = any(section_of(test, event.place) == handlers[wrong.vector] for event in before[came[-1] :])
    in_nmi = section_of(test, wrong.place) == handlers.get(VECTORS["nmi"])
    stepped = in_nmi and (VECTORS["nmi"], wrong.place) in [(event.vector, event.place) for event in before[came[0] :]]
    return interrupted or stepped


def _breakpoint_while_gif_is_0(run: Run, objection: Objection) -> bool:
    """#DB comes between CLGI and STGI."""
    wrong, test = _wrong(run, objection), run.guest.test
    if wrong is None or wrong.vector != VECTORS["db"]:
        return False
    before = [
        i.op for i in test.code[max(0, section_of(test, wrong.place)) : wrong.place] if i.op in (Op.CLGI, Op.STGI)
    ]
    return before[-1:] == [Op.CLGI] and _breaks_anywhere(test)


def _fault_of_int_is_redone(run: Run, objection: Objection) -> bool:
    """A fault that an INT's gate is the cause of was due at the INT and comes behind it. A cold page has cut it off."""
    wrong, test = _wrong(run, objection), run.guest.test
    if wrong is None or wrong.vector not in (VECTORS["gp"], VECTORS["np"]) or not test.cold:
        return False
    return _is_behind(test, wrong.place, Op.INT) and wrong.place - 1 in _due(objection, wrong.vector)


def _int1_is_cut_off(run: Run, objection: Objection) -> bool:
    """#DB comes behind INT1, where a cold page may have cut it off."""
    traps = _until_then(run, objection, VECTORS["db"])
    return bool(run.guest.test.cold) and any(_is_behind(run.guest.test, trap.place, Op.INT1) for trap in traps)


def _init_is_not_held(run: Run, objection: Objection) -> bool:
    """The section behind INIT has begun where SMM or GIF should hold it."""
    test = run.guest.test
    holds = test.smi >= 0 or any(instruction.op is Op.CLGI for instruction in test.code)
    event = run.history[objection.shown] if objection.shown < len(run.history) else None
    made = [i.arg for at, i in enumerate(test.code) if i.op is Op.MARK and section_of(test, at) == test.init]
    return holds and isinstance(event, Mark) and event.number in made


def _init_leaves_halted(run: Run, objection: Objection) -> bool:
    """The guest stays halted, and an INIT has been sent."""
    sent = any(arrival.kind == "init" for arrival in run.guest.test.outside)
    at_end = objection.shown == len(run.history)
    return sent and at_end and run.ending == "halted" and _is_behind(run.guest.test, run.place, Op.HLT)


def _lme_is_changed(run: Run, objection: Objection) -> bool:
    """The processor would have refused a WRMSR."""
    return any(run.guest.test.code[place].op is Op.WRMSR for place in _due(objection, VECTORS["gp"]))


def _calls_the_vmm(test: Test) -> bool:
    """The VMM makes an event of its own."""
    return any(arrival.kind == "kvm-nmi" for arrival in test.outside)


FAULTS = (
    Fault("QEMU takes a virtual interrupt inside an interrupt shadow", (11, 1), _irq_in_shadow, in_svm=True),
    Fault("QEMU raises no single-step trap after STI", (11, 1), _no_step_behind_sti),
    Fault("QEMU's error code for an absent gate lacks EXT, and in 7.2 has the vector doubled", (), _gate_is_absent),
    Fault("QEMU's error code for a gate that refuses an INT has the vector doubled", (11, 1), _refused_gate_is_doubled),
    Fault(
        "QEMU loses the #DB of a data breakpoint where the next instruction cannot be fetched",
        (),
        _watched_before_a_hidden_page,
        in_svm=True,
    ),
    Fault("QEMU watches no frame of an interrupt", (), _frame_is_not_watched),
    Fault("QEMU loses an interrupt or #DB whose frame touches a watched word", (), _watched_frame_is_lost, alone=True),
    Fault(
        "QEMU loses an injected NMI whose frame touches the word that a watched push writes next",
        (),
        _injected_frame_is_lost,
        in_svm=True,
    ),
    Fault("QEMU does not discard the #DB of a breakpoint while GIF is 0", (), _breakpoint_while_gif_is_0),
    Fault("QEMU drops the RF that an IRETQ pops, if it runs with RF set itself", (), _rf_is_dropped),
    Fault(
        "QEMU's EXITINTINFO has the INT that its gate refuses, not the fault whose delivery was cut off",
        (),
        _fault_of_int_is_redone,
        in_svm=True,
    ),
    Fault("QEMU's RIP is behind INT1 already where the delivery is cut off", (), _int1_is_cut_off, in_svm=True),
    Fault("QEMU's RSM does not go back into HLT", (), _smi_ends_hlt, alone=True),
    Fault("QEMU's RSM does not go back into an interrupt shadow", (), _smi_in_shadow, alone=True),
    Fault("QEMU holds an INIT neither in SMM nor while GIF is 0", (), _init_is_not_held, alone=True),
    Fault("QEMU's INIT does not end HLT", (), _init_leaves_halted, alone=True),
    Fault("QEMU lets EFER.LME be changed while paging is on", (), _lme_is_changed, alone=True),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """Tests that QEMU cannot run, or that may end it. before, in_svm: as of a Fault."""

    reason: str
    before: tuple[int, ...]
    concerns: Callable[[Test], bool]
    in_svm: bool = False
    alone: bool = False
    """It concerns the machine alone."""


UNFIT = (
    Limit("it arms no breakpoints at VMRUN, and keeps those of another guest", (11, 1), _breaks_anywhere, in_svm=True),
    Limit("it has no general detect", (11, 1), _general_detect),
    Limit("it takes INT1 for a breakpoint of its own debugger, and stops", (11, 1), _int1),
    Limit("its only processor is the bootstrap processor", (), lambda test: test.ap, alone=True),
    Limit("there is no VMM", (), _calls_the_vmm, alone=True),
)
BREAKS = (Limit("it aborts where a delivery or an IRETQ touches a watched word", (), _watches),)


def unfit(test: Test, version: str, alone: bool = False) -> str:
    """Why this version of QEMU cannot run a test; "" if nothing is known."""
    return _limit(UNFIT, test, version, alone)


def breaks(test: Test, version: str, alone: bool = False) -> str:
    """Why this version of QEMU may abort with a test; "" if nothing is known."""
    return _limit(BREAKS, test, version, alone)


def _limit(limits: Sequence[Limit], test: Test, version: str, alone: bool) -> str:
    for limit in limits:
        elsewhere = limit.in_svm if alone else limit.alone
        if _has(limit.before, version) and not elsewhere and limit.concerns(test):
            return f"known of QEMU {version}: {limit.reason}"
    return ""


def _has(before: tuple[int, ...], version: str) -> bool:
    """Whether a version is older than the first one without a fault."""
    return not before or tuple(int(number) for number in version.split(".") if number.isdigit()) < before


def excuse(run: Run, objection: Objection, version: str, alone: bool = False) -> str:
    """The known fault of this version of QEMU that is behind what the processor could not show; "" if there is none.
    alone: without KVM."""
    for fault in FAULTS:
        if _has(fault.before, version) and fault.concerns(alone) and fault.excuses(run, objection):
            return f"known of QEMU {version}: {fault.name}"
    return ""
