"""What QEMU's emulation is known to get wrong, so that it is not taken for a defect of KVM. Applied visibly.

RF in pushed flags is not in the table: this comparison looks at TF and IF only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iretrace.litmus.test import VECTORS, Op, Test
from iretrace.live.observed import Delivery, Run

SHADOWS = (Op.STI, Op.MOV_SS)
TF = 0x100
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


def _steps_over_sti(run: Run) -> bool:
    ops = {instruction.op for instruction in run.guest.test.code}
    return Op.STI in ops and any(f", {flag}" in i.text for i in run.guest.test.code for flag in ("TF", str(TF)))


def _gate_is_absent(run: Run) -> bool:
    """#NP for an event that no instruction asked for must have EXT."""
    return any(
        isinstance(event, Delivery) and event.vector == VECTORS["np"] and not event.error & ERROR_EXT
        for event in run.history
    )


FAULTS = (
    Fault("QEMU takes a virtual interrupt inside an interrupt shadow", (11, 1), _irq_in_shadow, in_svm=True),
    Fault("QEMU does not hold NMIs in the shadow of STI or MOV SS", (), _nmi_in_shadow),
    Fault("QEMU raises no single-step trap after STI", (11, 1), _steps_over_sti),
    Fault("QEMU's error code for an absent gate lacks EXT, and in 7.2 has the vector doubled", (), _gate_is_absent),
)


def excuse(run: Run, version: str, alone: bool = False) -> str:
    """The known fault of this version of QEMU that may be behind a run; "" if there is none. alone: without KVM."""
    numbers = tuple(int(number) for number in version.split(".") if number.isdigit())
    for fault in FAULTS:
        known = not fault.before or numbers < fault.before
        if known and not (alone and fault.in_svm) and fault.excuses(run):
            return f"known of QEMU {version}: {fault.name}"
    return ""
