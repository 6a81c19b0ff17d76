"""The door to a debugger: a VMM that attaches one between two KVM_RUNs, and takes it away.

A signal brings the VMM to where it can act; then it calls KVM_SET_GUEST_DEBUG. While a debugger is attached TF and
#DB are its own: they are not compared. Once it is gone the guest must be as if it had never been there. A guest that
has #DBs of its own meanwhile has no contract. Encrypted guests have no debugger: the call is refused.
"""

from __future__ import annotations

from enum import IntEnum

from iretrace.explore.monitor import Observation
from iretrace.machine.cpu import DB_VECTOR, DR7_RESET, SEEN_DELIVERY, X86_EFLAGS_TF
from iretrace.world.protocol import GuestDebug

# KVM_SET_GUEST_DEBUG's control (include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h).
KVM_GUESTDBG_ENABLE = 1
KVM_GUESTDBG_SINGLESTEP = 2
KVM_GUESTDBG_USE_HW_BP = 0x20000


class Attached(IntEnum):
    """What the VMM's debugger does."""

    OFF = 0
    STEP = 1
    """Every instruction stops; the VMM goes on at once."""
    BREAK = 2
    """One instruction stops, before it is done."""
    HIT = 3
    """It has: the VMM takes the debugger away before it goes on."""


ACTIONS = {"off": Attached.OFF, "step": Attached.STEP, "break": Attached.BREAK}


def after_stop(attached: int) -> int:
    """KVM_RUN has returned KVM_EXIT_DEBUG."""
    return Attached.HIT if attached == Attached.BREAK else attached


def wanted_of(attached: int, target: int) -> GuestDebug:
    """What the VMM asks for."""
    if attached == Attached.STEP:
        return GuestDebug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)
    if attached == Attached.BREAK:
        return GuestDebug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, (target, 0, 0, 0), DR7_RESET | 1)
    return GuestDebug(0)


def is_debug_exception(shown: Observation | None) -> bool:
    """Whether an observation is the delivery of #DB."""
    return isinstance(shown, tuple) and shown[:2] == (SEEN_DELIVERY, DB_VECTOR)


def without_tf(shown: Observation | None) -> Observation | None:
    """An observation as it is compared while a debugger is attached."""
    if not isinstance(shown, tuple):
        return shown
    seen, vector, rip, rflags, error = shown
    return (seen, vector, rip, rflags & ~X86_EFLAGS_TF, error)
