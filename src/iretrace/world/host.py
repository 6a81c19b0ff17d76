"""The host's own debug registers: what a guest may do to them, and what must be as before when the host goes on."""

from __future__ import annotations

from iretrace.machine.cpu import DR7_ENABLE
from iretrace.machine.swap import DebugState
from iretrace.world.protocol import Debug


def state_of(registers: Debug) -> DebugState:
    """As the machine has them."""
    return DebugState(*registers.dr, *registers.masks, registers.dr7, registers.dr6, registers.debugctl)


def debug_of(state: DebugState) -> Debug:
    """As a hypervisor has them."""
    addresses = (state.dr0, state.dr1, state.dr2, state.dr3)
    masks = (state.mask0, state.mask1, state.mask2, state.mask3)
    return Debug(addresses, masks, state.dr7, state.dr6, state.debugctl)


def changed_debug(before: Debug, after: Debug) -> str:
    """What of the host's debug state a guest has changed, in words; "" if nothing that the host relies on.

    A host without breakpoints has DR7 off, and then neither DR0-3 nor their masks nor DR6 mean anything to it."""
    enabled = (before.dr7 | after.dr7) & DR7_ENABLE
    pairs = [(f"DR{n}", before.dr[n], after.dr[n]) for n in range(4) if enabled >> 2 * n & 3]
    pairs += [(f"DR{n}_ADDR_MASK", before.masks[n], after.masks[n]) for n in range(4) if enabled >> 2 * n & 3]
    if before.dr7 & DR7_ENABLE or after.dr7 & DR7_ENABLE:
        pairs += [("DR6", before.dr6, after.dr6), ("DR7", before.dr7, after.dr7)]
    pairs.append(("DEBUGCTL", before.debugctl, after.debugctl))
    changed = [f"{name} is {now:#x} and was {was:#x}" for name, was, now in pairs if was != now]
    return f"the host's debug registers are not its own after the guest ran: {', '.join(changed)}" if changed else ""
