"""What QEMU's emulation is known to get wrong, so that it is not taken for a defect of KVM. Applied visibly.

RF in pushed flags is not in the table: this comparison looks at TF and IF only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iretrace.litmus.grammar import DR7_BITS
from iretrace.litmus.test import VECTORS, Op, Test
from iretrace.live.machine_code import SMI
from iretrace.live.observed import Run
from iretrace.live.real_mode import has_init
from iretrace.live.walk import Delivery
from iretrace.machine.cpu import PAGE_WORDS
from iretrace.world.guest import VECTOR_PAGES

SHADOWS = (Op.STI, Op.MOV_SS)
ACCESSES = (Op.PUSH, Op.PUSHFQ, Op.POPFQ, Op.OR_STACK, Op.ANDN_STACK, Op.MOV_STACK, Op.LOAD)
TF = 0x100
DR7_ENABLE = 0xFF
DR7_GD = 0x2000
ERROR_EXT = 1


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of QEMU. before: the first version without it, as numbers; () if there is none yet."""

    name: str
    before: tuple[int, ...]
    excuses: Callable[[Run], bool]
    """Whether a run that the processor could not show may come from this."""
    in_svm: bool = False
    """It is a fault of the emulated virtualisation: the machine alone does not have it."""
    alone: bool = False
    """The machine alone has it: what it is a fault of KVM does itself."""

    def concerns(self, alone: bool) -> bool:
        """Whether it can show here."""
        return not (self.in_svm if alone else self.alone)


def _in_shadow(test: Test, place: int) -> bool:
    """Whether the instruction stands in the shadow of the one before it."""
    return place > 0 and test.code[place - 1].op in SHADOWS


def _taken_in_shadow(run: Run, vector: int) -> bool:
    return any(
        isinstance(event, Delivery) and event.vector == vector and _in_shadow(run.guest.test, event.place)
        for event in run.history
    )


def _irq_in_shadow(run: Run) -> bool:
    return _taken_in_shadow(run, VECTORS["irq"])


def _nmi_in_shadow(run: Run) -> bool:
    return _taken_in_shadow(run, VECTORS["nmi"])


def _smi_in_shadow(run: Run) -> bool:
    return _taken_in_shadow(run, SMI)


def _comes_behind(run: Run, vector: int, op: Op) -> bool:
    """Something is delivered right behind such an instruction."""
    places = (event.place for event in run.history if isinstance(event, Delivery) and event.vector == vector)
    return any(place > 0 and run.guest.test.code[place - 1].op is op for place in places)


def _smi_ends_hlt(run: Run) -> bool:
    """An SMI came behind HLT, where a halted processor is."""
    return _comes_behind(run, SMI, Op.HLT)


def _steps_over_sti(run: Run) -> bool:
    ops = {instruction.op for instruction in run.guest.test.code}
    return Op.STI in ops and any(f", {flag}" in i.text for i in run.guest.test.code for flag in ("TF", str(TF)))


def _gate_is_absent(run: Run) -> bool:
    """#NP for an event that no instruction asked for must have EXT."""
    return any(
        isinstance(event, Delivery) and event.vector == VECTORS["np"] and not event.error & ERROR_EXT
        for event in run.history
    )


def _refused_gate_is_doubled(run: Run) -> bool:
    """The error code of #GP for a gate that refuses an INT is 16 * vector + 2, not 8 * vector + 2."""
    return any(
        isinstance(event, Delivery) and event.vector == VECTORS["gp"] and event.error == 16 * VECTORS["int"] + 2
        for event in run.history
    )


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


def _watched_before_a_hidden_page(run: Run) -> bool:
    """An event was placed, by a page that was not there, behind an access that may be watched, and taken there."""
    test = run.guest.test
    taken = {event.place for event in run.history if isinstance(event, Delivery)}
    places = [at for at in run.guest.cuts if at > 0 and test.code[at - 1].op in ACCESSES]
    return _watches(test) and not taken.isdisjoint(places)


def _frame_is_watched(run: Run) -> bool:
    """The frame of a delivery may lie on a watched word: on the stack that was interrupted, or on top of its own."""
    test = run.guest.test
    words = [i.arg for i in test.code if i.op is Op.MOV_RAX and "_stack" in i.text] if _watches(test) else []
    own = [VECTOR_PAGES[vector] for vector, _ in test.handlers if vector in test.ist]
    return any(word // PAGE_WORDS in own or len(own) < len(test.handlers) for word in words)


def _rf_is_dropped(run: Run) -> bool:
    """#DB comes twice to a place whose handler had set RF."""
    test = run.guest.test
    places = [event.place for event in run.history if isinstance(event, Delivery) and event.vector == VECTORS["db"]]
    return any(", RF" in i.text for i in test.code) and len(places) != len(set(places))


def _fault_of_int_is_redone(run: Run) -> bool:
    """#GP of an INT that its gate refuses comes behind the INT, where a cold page may have cut it off."""
    return bool(run.guest.test.cold) and _comes_behind(run, VECTORS["gp"], Op.INT)


def _int1_is_cut_off(run: Run) -> bool:
    """#DB comes behind INT1, where a cold page may have cut it off."""
    return bool(run.guest.test.cold) and _comes_behind(run, VECTORS["db"], Op.INT1)


FAULTS = (
    Fault("QEMU takes a virtual interrupt inside an interrupt shadow", (11, 1), _irq_in_shadow, in_svm=True),
    Fault("QEMU does not hold NMIs in the shadow of STI or MOV SS", (), _nmi_in_shadow),
    Fault("QEMU raises no single-step trap after STI", (11, 1), _steps_over_sti),
    Fault("QEMU's error code for an absent gate lacks EXT, and in 7.2 has the vector doubled", (), _gate_is_absent),
    Fault("QEMU's error code for a gate that refuses an INT has the vector doubled", (11, 1), _refused_gate_is_doubled),
    Fault(
        "QEMU loses the #DB of a data breakpoint where the next instruction cannot be fetched",
        (),
        _watched_before_a_hidden_page,
        in_svm=True,
    ),
    Fault("QEMU loses a delivery whose frame touches a watched word, or its #DB", (), _frame_is_watched),
    Fault("QEMU drops the RF that an IRETQ pops, if it runs with RF set itself", (), _rf_is_dropped),
    Fault(
        "QEMU's EXITINTINFO has the INT that its gate refuses, not the #GP whose delivery was cut off",
        (),
        _fault_of_int_is_redone,
        in_svm=True,
    ),
    Fault("QEMU's RIP is behind INT1 already where the delivery is cut off", (), _int1_is_cut_off, in_svm=True),
    Fault("QEMU's RSM does not go back into HLT", (), _smi_ends_hlt, alone=True),
    Fault("QEMU's RSM does not go back into an interrupt shadow", (), _smi_in_shadow, alone=True),
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
    Limit("its INIT clears XMM registers, where the marks are", (), has_init, alone=True),
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


def excuse(run: Run, version: str, alone: bool = False) -> str:
    """The known fault of this version of QEMU that may be behind a run; "" if there is none. alone: without KVM."""
    for fault in FAULTS:
        if _has(fault.before, version) and fault.concerns(alone) and fault.excuses(run):
            return f"known of QEMU {version}: {fault.name}"
    return ""
