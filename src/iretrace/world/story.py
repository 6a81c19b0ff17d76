"""From a path through the product to the steps of a counterexample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from iretrace.explore.graph import Edge
from iretrace.litmus.test import Op
from iretrace.machine.boundary import virtual_nmi_due
from iretrace.machine.vmcb import SVM_EXIT_INTR, SVM_EXIT_VINTR, Vmcb
from iretrace.subset import unpack
from iretrace.verdict import CLine, Step
from iretrace.world.cited import Write
from iretrace.world.core import UNSTARTED
from iretrace.world.debugger import Attached
from iretrace.world.guest import place
from iretrace.world.product import Point, Product
from iretrace.world.protocol import Cause, Executed, Pause, PauseKind, View, VmmCall
from iretrace.world.vcpu import EINTR
from iretrace.world.words import exit_name, vmrun

BOUNDARY_EXITS = {
    SVM_EXIT_INTR: "take_intr_exit: INTR Intercept",
    SVM_EXIT_VINTR: "vintr_exits: VINTR Intercept",
}
"""Exits between two instructions, and their rules."""

VIRTUAL_NMI = "take_nmi: NMI Virtualization"

SET_GUEST_DEBUG = {
    Attached.OFF: "takes the debugger away",
    Attached.STEP: "attaches a debugger that steps the guest",
    Attached.BREAK: "attaches a debugger with a breakpoint",
}
"""What the VMM's KVM_SET_GUEST_DEBUG is for."""

VMM_CALLS = {
    VmmCall.NMI.name: ("raises an NMI", "KVM_NMI"),
    VmmCall.SAVE_RESTORE.name: ("saves what events there are, and restores them", "KVM_GET_/SET_VCPU_EVENTS"),
}

UNTOLD = ("requests", "nmi_queued", "mp_state")
"""Fields of the view whose changes are not worth a line of a counterexample."""

SENDER_RULE = "in-kernel source: request + kick"

Pairs = tuple[tuple[str, int], ...]


class Story:
    """Tells the edges of a product as steps, keeping track of the view."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self._view: dict[str, int] = {}
        self.declined: CLine | None = None
        """The last statement told that examined a waiting event and declined it."""
        self.writes: list[Write] = []
        """The statements told that changed the view, and what they changed."""

    def tell(self, path: Iterable[tuple[Point | None, Edge]]) -> tuple[Step, ...]:
        """The steps of a path: (state that is left, edge)."""
        return tuple(step for state, edge in path for step in self._tell_edge(state, edge))

    def _tell_edge(self, state: Point | None, edge: Edge) -> list[Step]:
        if state is None:
            return self._tell_start(edge)
        label = edge.label
        assert isinstance(label, tuple)
        if label[0] == "guest":
            return [self._tell_guest(state, edge)]
        if label[0] == "host":
            return self._tell_host(state, label[1], edge)
        if label[0] == "send":
            return self._tell_sends(state, label[1], label[2])
        if label[0] == "ioctl":
            what, where = VMM_CALLS.get(label[1]) or (SET_GUEST_DEBUG[label[1]], "KVM_SET_GUEST_DEBUG")
            return [self._step("VMM", what, where, note=edge.defect)]
        if label[0] == "tick":
            return [self._step("host", "tick: a host interrupt is pending", "ticking host")]
        return [self._step("host", "the vCPU thread wakes up", "wake-up by the sender")]

    def _step(self, actor: str, what: str, where: CLine | str, view: View | None = None, note: str = "") -> Step:
        now = asdict(view) if view is not None else self._view
        changed = tuple((name, value) for name, value in now.items() if self._view.get(name) != value)
        self._view = now
        return Step(actor, what, where, changed, tuple(now.items()), note=note)

    def _tell_start(self, edge: Edge) -> list[Step]:
        pause = self._product.hypervisor.start()
        what = "creates the vCPU, resets it and runs it to its first VMRUN"
        view = self._product.hypervisor.view(pause.private) if not edge.unmodelled else None
        return [self._step("KVM", what, "vcpu creation", view, edge.defect)]

    def _tell_guest(self, state: Point, edge: Edge) -> Step:
        product = self._product
        before = product.cpu(state)
        done = product.did(state)
        vmcb = unpack(Vmcb, product.vcpu.vmcbs.values[done.vmcb])
        here = place(product.test, before.rip)
        exits = f"#VMEXIT({exit_name(vmcb)})"
        if before.smm_found and done.exited:
            what = f"delivering an event at the first instruction in SMM, without an IDT: {exits}"
            return self._step("cpu", what, "delivery_at_smm_entry: SMM Execution Environment", note=edge.defect)
        if before.smm_found:
            return self._step("cpu", product.say(done.shown), "find_itself_in_smm: SMM Execution Environment")
        if before.event_inj or before.trap:
            what = "delivers the injected event" if before.event_inj else "single-stepped: #DB is due"
            if done.exited:
                what = f"delivering the injected event at {here}: {exits}" if before.event_inj else f"{exits} at {here}"
            elif done.shown:
                what = f"delivers {product.say(done.shown)}"
            rule = "take_injected: Event Injection" if before.event_inj else "take_debug_trap: Single Stepping"
            return self._step("cpu", what, rule, note=edge.defect)
        if done.exited and vmcb.exit_code in BOUNDARY_EXITS:
            return self._step("cpu", f"{exits} at {here}", BOUNDARY_EXITS[vmcb.exit_code], note=edge.defect)
        if virtual_nmi_due(before, product.vcpu.vmcb(state.core)):
            what = f"delivers {product.say(done.shown)}" if done.shown else f"delivering the virtual NMI at {here}"
            return self._step("cpu", f"{what}: {exits}" if done.exited else what, VIRTUAL_NMI, note=edge.defect)
        instruction = product.test.code[before.rip]
        what = f"{instruction.text}  ({here})"
        if instruction.op == Op.SPIN:
            what = f"spins at {here}"
        if done.exited:
            what += f": {exits}"
        return self._step("guest", what, f"{instruction.op.name.lower()}", note=edge.defect)

    def _tell_sends(self, state: Point, number: int, steps: int) -> list[Step]:
        told = []
        for _ in range(steps):
            told.append(self._tell_send(state, number))
            state = self._product.sent(state, number)
        return told

    def _tell_send(self, state: Point, number: int) -> Step:
        sent = self._product.sender_step(state, number).sent
        kind = self._product.test.outside[number].kind.upper()
        first = " arrives:" if state.senders[number] == UNSTARTED else ":"
        what = f"{kind} {number + 1}{first} {sent.what}"
        where = sent.where if sent.where.line else SENDER_RULE
        return self._step("outside", what, where, self._product.hypervisor.view(sent.private))

    def _tell_host(self, state: Point, schedule: tuple[tuple[int, int, int], ...], edge: Edge) -> list[Step]:
        product = self._product
        pause = next(pause for made, pause in product.pauses(state) if made == schedule)
        executed = self._explain(state, schedule)
        steps: list[Step] = []
        for _, number, count in schedule:
            kind = product.test.outside[number].kind.upper()
            what = f"{kind} {number + 1}: {count} step{'s' * (count > 1)} of its sender, while KVM runs"
            steps.append(self._step("outside", what, SENDER_RULE))
        steps += self._tell_kvm(executed)
        steps.append(self._hand_over(pause, edge))
        return [*steps[:-1], _with_lines(steps[-1], executed.lines)]

    def _tell_kvm(self, executed: Executed) -> list[Step]:
        """What KVM did: how it handled the exit, what changed its view, which event it declined; in its order."""
        told: list[tuple[int, CLine, str, View | None]] = []
        at = 0
        changes = self._worth_telling(executed)
        for line, view in changes:  # in order; a line may be executed more than once
            at = _next(executed.lines, line, at)
            told.append((at, line, line.text, view))
        changing = {line for line, _ in changes}
        told += [
            (_next(executed.lines, line, 0), line, line.text, None)
            for line in executed.handling
            if line not in changing
        ]
        if executed.declined is not None:
            self.declined = line = executed.declined
            event = "NMI" if any(arrival.kind == "nmi" for arrival in self._product.test.outside) else "event"
            told.append((_last(executed.lines, line), line, f"declines the waiting {event}: {line.text}", None))
        told.sort(key=lambda item: item[0])
        return [self._step("KVM", what or line.function, line, view) for _, line, what, view in told]

    def _worth_telling(self, executed: Executed) -> list[tuple[CLine, View]]:
        """The changes of the view that have a line of their own; all of them are noted."""
        told, before = [], self._view if executed.before is None else asdict(executed.before)
        for line, view in executed.changes:
            now = asdict(view)
            changed = [Write(line, name, before[name], value) for name, value in now.items() if before[name] != value]
            self.writes += changed
            if any(write.field not in UNTOLD for write in changed):
                told.append((line, view))
            before = now
        return told

    def _explain(self, state: Point, schedule: tuple[tuple[int, int, int], ...]) -> Executed:
        product = self._product
        return product.hypervisor.explain(
            product.vcpu.private(state.core),
            product.vcpu.vmcb(state.core),
            product.vcpu.ghcb(state.core),
            Cause(product.core(state).cause),
            product.senders_around(state),
            schedule,
            product.vcpu.debug(state.core),
        )

    def _hand_over(self, pause: Pause, edge: Edge) -> Step:
        view = self._product.hypervisor.view(pause.private)
        if pause.defects:
            sentence, line = pause.defects[0]
            return self._step("KVM", sentence, line, view, edge.defect)
        if pause.kind == PauseKind.BLOCK:
            return self._step("KVM", "puts the vCPU thread to sleep", "schedule()", view)
        if pause.kind == PauseKind.LOOP:
            return self._step("KVM", "goes in a circle, without sleeping", "vcpu_run()", view)
        if pause.kind == PauseKind.USERSPACE:
            return self._step("KVM", _to_userspace(pause.exit_reason), "KVM_RUN", view, edge.defect)
        what = vmrun(unpack(Vmcb, pause.vmcb), bool(self._product.vcpu.machine.sev_es))
        if pause.ipi:
            what += "; an interrupt is pending"
        return self._step("cpu", what, "vmrun: VMRUN Instruction", view, edge.defect)


def _with_lines(step: Step, lines: tuple[CLine, ...]) -> Step:
    return Step(step.actor, step.what, step.where, step.changed, step.view, lines, step.note)


def _next(lines: tuple[CLine, ...], line: CLine, start: int) -> int:
    """Where a line is executed, from `start` on; `start` if it is not."""
    try:
        return lines.index(line, start)
    except ValueError:
        return start


def _last(lines: tuple[CLine, ...], line: CLine) -> int:
    """Where a line is executed last; behind all if it is not."""
    return len(lines) - 1 - lines[::-1].index(line) if line in lines else len(lines)


def _to_userspace(reason: int) -> str:
    """KVM_RUN's end in words."""
    if reason == -EINTR:
        return "returns to userspace: a signal is pending (-EINTR); the VMM calls KVM_RUN again"
    return f"returns to userspace ({reason})"
