"""The state of the vCPU's half of the product, in numbers of interned values, and the steps between two such states."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from iretrace.explore.monitor import Stamp
from iretrace.world.protocol import Landing, Sent

UNSTARTED = -2
FINISHED = -1
ASKED = -3
"""A debugger's VMM has sent its signal, and KVM_SET_GUEST_DEBUG is to come when KVM_RUN has returned."""

Schedule = tuple[Landing, ...]
Senders = tuple[int, ...]
"""For each arrival: the number of its sender's state, or UNSTARTED, ASKED or FINISHED."""


class Phase(IntEnum):
    """Who holds the CPU."""

    GUEST = 0
    HOST = 1
    BLOCKED = 2
    ENDED = 3
    """KVM_RUN returned for good (the guest shut down)."""
    LOOPS = 4
    """The vCPU thread goes in a circle for ever; what it does if another CPU acts, other schedules have shown."""


class Core(NamedTuple):
    """Processor, guest and hypervisor. cpu, vmcb, ghcb, private and debug are numbers of interned values."""

    phase: int
    cause: int
    cpu: int
    vmcb: int
    ghcb: int
    private: int
    debugger: int
    """Whether the VMM has a debugger attached: world.debugger.Attached."""
    debug: int
    """(the physical CPU's debug registers, the host save area's): world.protocol.Debug."""


@dataclass(slots=True)
class Did:
    """What one step of a guest did. mark: the number of the mark shown, or -1."""

    cpu: int
    vmcb: int
    ghcb: int
    exited: bool
    shown: Hashable
    mark: int
    retired: bool
    defect: str


@dataclass(slots=True)
class HostStep:
    """One way for the hypervisor to get from where it runs to its next hand-over. core: -1 if the run ends here."""

    label: tuple[Hashable, ...]
    core: int
    senders: Senders
    log: tuple[Stamp, ...]
    defect: str = ""
    unmodelled: str = ""


@dataclass(slots=True)
class SenderStep:
    """One step of a sender. sender: the number of its state after the step, or FINISHED."""

    sent: Sent
    core: int
    sender: int
