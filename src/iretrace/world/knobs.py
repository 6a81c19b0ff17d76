"""Rules that manuals and emulators dispute: which there are, and for which of their values a question is asked."""

from __future__ import annotations

from collections.abc import Iterator

from iretrace.machine.cpu import (
    KNOB_CUT_OFF_INJECTION_MASKS,
    KNOB_EFER_LMA_IS_CHECKED,
    KNOB_INIT_KEEPS_NMI_LATCH,
    KNOB_INIT_KEEPS_NMI_MASK,
    KNOB_INIT_KEEPS_SMI_LATCH,
    KNOB_INIT_WAITS_FOR_RESET_HOLD,
    KNOB_IRET_FAULT_UNMASKS,
    KNOB_MOVSS_BLOCKS_NMI,
    KNOB_RSM_LEAVES_NMIS_UNMASKED,
    KNOB_SEV_ES_GUEST_READS_SVME,
    KNOB_SHADOW_BLOCKS_EXIT,
    KNOB_STEP_CLEARS_B,
    KNOB_STI_BLOCKS_NMI,
    KNOB_TRAP_EXIT_KEEPS_SHADOW,
    KNOB_VGIF_DISCARDS_BREAKPOINTS,
)

UNKNOWN_KNOBS = {
    KNOB_SHADOW_BLOCKS_EXIT: "shadow_blocks_exit",
    KNOB_IRET_FAULT_UNMASKS: "iret_fault_unmasks",
    KNOB_TRAP_EXIT_KEEPS_SHADOW: "trap_exit_keeps_shadow",
    KNOB_STEP_CLEARS_B: "step_clears_dr6_b",
    KNOB_STI_BLOCKS_NMI: "sti_blocks_nmi",
    KNOB_MOVSS_BLOCKS_NMI: "movss_blocks_nmi",
    KNOB_CUT_OFF_INJECTION_MASKS: "cut_off_injection_masks",
    KNOB_SEV_ES_GUEST_READS_SVME: "sev_es_guest_reads_svme",
    KNOB_VGIF_DISCARDS_BREAKPOINTS: "vgif_discards_breakpoints",
    KNOB_RSM_LEAVES_NMIS_UNMASKED: "rsm_leaves_nmis_unmasked",
    KNOB_INIT_KEEPS_NMI_LATCH: "init_keeps_nmi_latch",
    KNOB_INIT_KEEPS_NMI_MASK: "init_keeps_nmi_mask",
    KNOB_INIT_KEEPS_SMI_LATCH: "init_keeps_smi_latch",
    KNOB_INIT_WAITS_FOR_RESET_HOLD: "init_waits_for_reset_hold",
    KNOB_EFER_LMA_IS_CHECKED: "efer_lma_is_checked",
}
"""Disputed rules that are a fact about the processor, not known: a verdict counts if it is the same for all values. Of
a shadow that holds NMIs or does not, the patient reference may do either."""


class Values:
    """All values of the disputed rules that can make a difference, as bit sets, one after the other.

    It begins with "none of them". Whoever iterates says of each value which rules were consulted under it; only those
    are varied. Where two values differ first, the rule that makes the difference is consulted, so setting one more
    will do."""

    def __init__(self) -> None:
        self._pending = [0]
        self._met = {0}

    def __iter__(self) -> Iterator[int]:
        while self._pending:
            yield self._pending.pop(0)

    def consulted(self, knobs: int, rules: int) -> None:
        """Under a value these rules, a bit set, mattered."""
        others = [knobs | 1 << number for number in UNKNOWN_KNOBS if rules >> number & 1]
        self._pending += [other for other in others if other not in self._met]
        self._met.update(others)
