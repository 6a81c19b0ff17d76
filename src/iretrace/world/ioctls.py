"""Doors to the VMM's ioctls about events, which it calls between two KVM_RUNs; a signal brings it there.

KVM_NMI is an arrival: when the call has returned, an NMI has come as if a device had sent it. It takes the vCPU's
mutex, so it cannot come while the guest runs. Saving what KVM_GET_VCPU_EVENTS says and restoring it at once by
KVM_SET_VCPU_EVENTS changes nothing, in a VMM that lets nothing else happen in between.
"""

from __future__ import annotations

from iretrace.litmus.grammar import VMM_EVENTS
from iretrace.litmus.test import Arrival
from iretrace.world.protocol import VmmCall

CALLS = {"kvm-nmi": VmmCall.NMI, "save-restore": VmmCall.SAVE_RESTORE}
IOCTLS = {VmmCall.NMI: "KVM_NMI", VmmCall.SAVE_RESTORE: "KVM_SET_VCPU_EVENTS"}
"""The names for messages."""


def by_vmm(arrival: Arrival) -> bool:
    """Whether the VMM makes an arrival, by an ioctl."""
    return arrival.kind in VMM_EVENTS


def sender_kind(arrival: Arrival) -> str:
    """Who brings an arrival: the VMM is brought by a signal."""
    return "signal" if by_vmm(arrival) else arrival.kind
