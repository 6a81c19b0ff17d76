"""Two hypervisors under the same guest and the same senders, each sender's steps taken in one go while the guest runs.

A small cousin of the agreement search: it has no races inside host steps, but it looks at every VMRUN and every sleep.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict

from iretrace.litmus.test import Test
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import unpack
from iretrace.world.core import Phase
from iretrace.world.ioctls import by_vmm
from iretrace.world.protocol import NO_SENDER, ComparableHypervisor, Hypervisor
from iretrace.world.vcpu import Vcpu

COMPARED = (
    "event_inj", "int_ctl", "int_vector", "int_state", "intercept_cr", "intercept_dr", "intercept_exception",
    "intercept_word3", "intercept_word4", "intercept_word5", "rip", "rflags", "dr6", "dr7", "efer", "next_rip",
)  # fmt: skip
"""Fields of the VMCB that two KVMs of one version must agree about."""

UNCOMPARED_VIEW = ("requests",)
"""A tree has requests that play no role for events."""

Pair = tuple[int, int, int]
"""Core of the one, core of the other, senders that have been."""


def difference(
    test: Test, kind: str, first: ComparableHypervisor, second: ComparableHypervisor, limit: int = 5000
) -> str:
    """The first difference that is found, in words; "" if there is none within so many states."""
    one, two = Vcpu(test, kind, first, 0), Vcpu(test, kind, second, 0)
    start = one.start(0), two.start(0)
    todo: deque[Pair] = deque([(start[0].core, start[1].core, 0)])
    seen: set[Pair] = set(todo)
    while todo and len(seen) < limit:
        pair = todo.popleft()
        found = _differs(one, two, first, second, pair)
        if found:
            return found
        for after in _next(test, one, two, pair):
            if (after[0] < 0) != (after[1] < 0):
                return f"one of them ends: {after}"
            if after[0] >= 0 and after not in seen:
                seen.add(after)
                todo.append(after)
    return ""


def _differs(one: Vcpu, two: Vcpu, first: ComparableHypervisor, second: ComparableHypervisor, pair: Pair) -> str:
    cores = one.core(pair[0]), two.core(pair[1])
    if cores[0].phase != cores[1].phase:
        return f"phase {cores[0].phase} and {cores[1].phase}"
    if cores[0].phase == Phase.HOST:
        return ""
    vmcbs = one.vmcb(pair[0]), two.vmcb(pair[1])
    protected = ("rip",) if one.machine.sev_es else ()
    for name in (name for name in COMPARED if name not in protected):
        mine, theirs = getattr(vmcbs[0], name), getattr(vmcbs[1], name)
        if mine != theirs:
            return f"vmcb.{name}: {mine:#x} and {theirs:#x} (phase {cores[0].phase})"
    views = [asdict(vcpu.hypervisor.view(vcpu.private(core))) for vcpu, core in ((one, pair[0]), (two, pair[1]))]
    for name, value in views[0].items():
        if name not in UNCOMPARED_VIEW and views[1][name] != value:
            return f"view: {name}: {value} and {views[1][name]} (phase {cores[0].phase})"
    mine, theirs = first.compare(one.private(pair[0])), second.compare(two.private(pair[1]))
    return f"{mine} and {theirs} (phase {cores[0].phase})" if mine != theirs else ""


def _next(test: Test, one: Vcpu, two: Vcpu, pair: Pair) -> list[Pair]:
    mine, theirs, been = pair
    phase = one.core(mine).phase
    if phase in (Phase.ENDED, Phase.LOOPS):
        return []
    if phase == Phase.HOST:
        return [(_host(one, mine), _host(two, theirs), been)]
    after = []
    if phase == Phase.GUEST:
        did = one.did(mine), two.did(theirs)
        after.append((one.after(mine, did[0]), two.after(theirs, did[1]), been))
    else:
        after.append((one.woken(mine), two.woken(theirs), been))
    for number, arrival in enumerate(test.outside):
        if not by_vmm(arrival) and not been >> number & 1:  # there is no VMM here that could call anything
            after.append((_send(one, mine, arrival.kind), _send(two, theirs, arrival.kind), been | 1 << number))
    return after


def _host(vcpu: Vcpu, core: int) -> int:
    pauses = vcpu.pauses(core, (), (), lambda landed, done, number: False)
    return vcpu.handed_over(core, (), *pauses[0]).core


def _send(vcpu: Vcpu, core: int, kind: str) -> int:
    sender = vcpu.senders(vcpu.hypervisor.sender(kind))
    while vcpu.senders.values[sender] is not NO_SENDER:
        step = vcpu.sender_step(core, sender)
        core = step.core
        sender = vcpu.senders(step.sent.sender)
    return core


def first_vmcb(hypervisor: Hypervisor) -> Vmcb:
    """The VMCB of the first VMRUN."""
    return unpack(Vmcb, hypervisor.start().vmcb)
