"""The physical CPU's debug registers in a host step, and where the host save area keeps them."""

from __future__ import annotations

from collections.abc import Callable

from iretrace.linux.memory import HasMemory, load
from iretrace.linux.unmodelled import Unmodelled
from iretrace.world.protocol import DR6_RESET, NO_HOST_DEBUG, Debug

DR6, DR7 = 6, 7
DR6_WRITABLE = 0xE00F
"""Bits of DR6 that a write changes; the others are as at reset."""

DR7_FIXED_1 = 0x400
"""Bit 10 of DR7 reads as 1, whatever is written."""

DR7_GLOBAL_ENABLE = 0xAA
"""What the host's breakpoints have set (arch/x86/include/uapi/asm/debugreg.h, DR_GLOBAL_ENABLE_MASK)."""

SAVE_AREA = 0x400
"""Where the state save area begins in the host save area's page (APM vol. 2, VMCB layout)."""


class DebugRegisters:
    """DR0-3, their masks, DR6, DR7 and DEBUGCTL of the CPU that the vCPU thread runs on. host: the host's own."""

    def __init__(self, debug: Debug = NO_HOST_DEBUG, host: Debug = NO_HOST_DEBUG) -> None:
        self._host = host
        self.put(debug)

    def put(self, debug: Debug) -> None:
        """They hold this now."""
        self._dr = list(debug.dr)
        self._masks = debug.masks
        self._dr6 = debug.dr6
        self._dr7 = debug.dr7
        self.debugctl = debug.debugctl

    def now(self) -> Debug:
        """What the registers hold."""
        dr = self._dr[0], self._dr[1], self._dr[2], self._dr[3]
        return Debug(dr, self._masks, self._dr7, self._dr6, self.debugctl)

    def get(self, number: int) -> int:
        """MOV from DR."""
        if number < 4:
            return self._dr[number]
        if number == DR6:
            return self._dr6
        if number == DR7:
            return self._dr7
        raise Unmodelled(f"the host reads DR{number}, which is not modelled")

    def set(self, number: int, value: int) -> None:
        """MOV to DR."""
        if number < 4:
            self._dr[number] = value
        elif number == DR6:
            self._dr6 = value & DR6_WRITABLE | DR6_RESET
        elif number == DR7:
            self._dr7 = value | DR7_FIXED_1

    def mask(self, number: int) -> int:
        """The address mask of a breakpoint as the host has set it (amd_get_dr_addr_mask() reads a per-CPU copy)."""
        return self._host.masks[number]

    def host_active(self) -> bool:
        """Whether the host uses breakpoints."""
        return self._host.dr7 & DR7_GLOBAL_ENABLE != 0

    def restore_host(self) -> None:
        """The host's breakpoints again (arch/x86/kernel/hw_breakpoint.c: hw_breakpoint_restore())."""
        self._dr = list(self._host.dr)
        self._dr6 = DR6_RESET
        self._dr7 = self._host.dr7


def saved_debug(run: HasMemory, page: int, member: Callable[[str, str], int]) -> Debug:
    """What the hypervisor has put into the host save area for #VMEXIT to load under DebugSwap."""

    def field(name: str) -> int:
        return load(run, page + SAVE_AREA + member("struct sev_es_save_area", name), 0, 64)

    dr = field("dr0"), field("dr1"), field("dr2"), field("dr3")
    masks = field("dr0_addr_mask"), field("dr1_addr_mask"), field("dr2_addr_mask"), field("dr3_addr_mask")
    return Debug(dr, masks, DR7_FIXED_1)
