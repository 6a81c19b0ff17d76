"""The statement that a counterexample cites.

An omission is cited where the waiting event was examined last and declined. For what the guest sees and should not, it
is the last statement that wrote the cell by which the processor went there: TF, where only TF is wrong; what holds the
event in the reference and did not hold it here, such as NMIs' mask; what had an event wait that is none; the end of
HLT; else EVENTINJ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from iretrace.explore.monitor import Observation
from iretrace.machine.cpu import NMI_VECTOR, SEEN_DELIVERY, X86_EFLAGS_TF, Cpu
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import SVM_EVTINJ_VEC_MASK
from iretrace.machine.vnmi import is_nmi
from iretrace.verdict import CLine
from iretrace.world.product import Point, Product

WAITS = {NMI_VECTOR: "nmi_pending", IRQ_VECTOR: "irq_pending"}
"""Vectors of events from outside, and the field of the view that says that one waits."""

OPEN = {"nmi_masked": 0, "int_shadow": 0, "gif": 1}
"""What can hold an event, as the view has it, and its value where it does not."""


class Write(NamedTuple):
    """A statement of the hypervisor's that changed a field of the view."""

    line: CLine
    field: str
    before: int
    after: int


def cited(product: Product, state: Point, writes: Sequence[Write]) -> CLine | None:
    """What to cite for the guest's step in a state, which the reference does not explain. writes: all before it."""
    shown = product.did(state).shown
    cpu = product.cpu(state)
    if _only_tf_is_wrong(shown, product.monitor.allowed(state.monitor)):
        return last_writer(writes, "nmi_singlestep")
    if isinstance(shown, tuple) and shown[0] == SEEN_DELIVERY and shown[1] in WAITS:
        return _of_event(product, state, shown[1], writes)
    if cpu.event_inj:
        return last_writer(writes, "event_inj")
    if any(reference.halted for reference in product.reference_cpus(state.monitor)):
        ends = [write.line for write in writes if write.field == "mp_state" and write.after == 0]
        return ends[-1] if ends else None
    return None


def of_injected(product: Product, state: Point, writes: Sequence[Write]) -> CLine | None:
    """What to cite for an injected event by which the guest came to its end; None if it is no event from outside."""
    event = product.cpu(state).event_inj
    vector = NMI_VECTOR if is_nmi(event) else event & SVM_EVTINJ_VEC_MASK
    return _of_event(product, state, vector, writes) if event and vector in WAITS else None


def _only_tf_is_wrong(shown: Observation | None, allowed: Sequence[Observation]) -> bool:
    """The same with another TF, in the flags that are seen or in a value, would have been explained."""
    if not isinstance(shown, tuple):
        return False
    seen, vector, rip, rflags, value = shown
    tf = X86_EFLAGS_TF
    return (seen, vector, rip, rflags ^ tf, value) in allowed or (seen, vector, rip, rflags, value ^ tf) in allowed


def _of_event(product: Product, state: Point, vector: int, writes: Sequence[Write]) -> CLine | None:
    """An event came from outside. What held it in the reference was opened; or none is there that could come."""
    if not product.reference_waits(state.monitor, vector):
        return last_writer(writes, WAITS[vector])
    injected = [number for number, write in enumerate(writes) if write.field == "event_inj" and write.after]
    before = writes[: injected[-1]] if injected and product.cpu(state).event_inj else writes
    holds = {name for cpu in product.reference_cpus(state.monitor) for name in _holding(cpu, vector)}
    opened = [write.line for write in before if write.field in holds and write.after == OPEN[write.field]]
    return opened[-1] if opened else last_writer(writes, "event_inj")


def _holding(cpu: Cpu, vector: int) -> list[str]:
    """The fields of the view for what holds an event on the processor alone."""
    masked = bool(cpu.nmi_masked) and vector == NMI_VECTOR
    return [
        name
        for name, holds in (("nmi_masked", masked), ("int_shadow", cpu.shadow != 0), ("gif", cpu.gif == 0))
        if holds
    ]


def last_writer(writes: Sequence[Write], field: str) -> CLine | None:
    """The last statement that gave a field another value than 0, or wrote it at all if none did."""
    lines = [write.line for write in writes if write.field == field and write.after > write.before]
    lines = lines or [write.line for write in writes if write.field == field]
    return lines[-1] if lines else None
