"""The VMCB and the GHCB in C memory: where the fields of the shared records lie in a tree's structs."""

from __future__ import annotations

from collections.abc import Callable

from iretrace.linux.initial import Spot
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import Vmcb
from iretrace.world.protocol import Packed

VMCB_FIELDS: dict[str, str] = {
    "intercept_cr": "control.intercepts[0]",
    "intercept_dr": "control.intercepts[1]",
    "intercept_exception": "control.intercepts[2]",
    "intercept_word3": "control.intercepts[3]",
    "intercept_word4": "control.intercepts[4]",
    "intercept_word5": "control.intercepts[5]",
    "vmsa_pa": "control.vmsa_pa",
    "allowed_sev_features": "control.allowed_sev_features",
    "ss": "save.ss.selector",
    **{
        name: f"control.{name}"
        for name in (
            "asid", "tlb_ctl", "int_ctl", "int_vector", "int_state", "exit_code", "exit_info_1", "exit_info_2",
            "exit_int_info", "exit_int_info_err", "nested_ctl", "ghcb_gpa", "event_inj", "event_inj_err", "virt_ext",
            "clean", "next_rip", "pause_filter_count", "pause_filter_thresh",
        )
    },
    **{name: f"save.{name}" for name in ("cpl", "efer", "dr6", "dr7", "rflags", "rip", "rsp", "rax")},
}  # fmt: skip
"""Field of machine.vmcb.Vmcb -> member of struct vmcb."""

RENAMED = {"control.nested_ctl": "control.misc_ctl", "control.virt_ext": "control.misc_ctl2"}
"""Members that were renamed after Linux 6.12."""

LATER = ("allowed_sev_features",)
"""Fields that older trees do not have: 0."""

WRITTEN_ON_EXIT = ("exit_code", "exit_info_1", "exit_info_2", "exit_int_info", "exit_int_info_err")
"""What the CPU writes on every #VMEXIT: nobody can see what was there at VMRUN."""

GHCB_FIELDS: dict[str, str] = {
    **{
        name: f"save.{name}"
        for name in ("sw_exit_code", "sw_exit_info_1", "sw_exit_info_2", "rax", "rbx", "rcx", "rdx")
    },
    "valid_bitmap_lo": "save.valid_bitmap[0]",
    "valid_bitmap_hi": "save.valid_bitmap[8]",
    "ghcb_usage": "ghcb_usage",
}
"""Field of machine.ghcb.Ghcb -> member of struct ghcb."""

WIDTHS = {"exit_code": 64, "exit_int_info": 32, "valid_bitmap_lo": 64, "valid_bitmap_hi": 64}
"""Fields that the records hold in another width than the struct: older trees split the exit code in two."""


class Record:
    """A record's fields in C memory, for fast copies both ways. Fields never cross a word."""

    def __init__(self, names: tuple[str, ...], fields: dict[str, str], find: Callable[[str], Spot | None]) -> None:
        self.fields: list[tuple[int, int, int]] = []
        for name in names:
            spot = find(fields[name]) or find(RENAMED.get(fields[name], fields[name]))
            if spot is None and name in LATER:
                self.fields.append((0, 0, 0))
                continue
            if spot is None:
                raise ValueError(f"struct without {fields[name]}")
            width = WIDTHS.get(name, spot.width)
            word, shift = spot.address & ~7, 8 * (spot.address & 7)
            assert shift + width <= 64, name
            self.fields.append((word, shift, (1 << width) - 1))
        words: dict[int, int] = {}
        for word, shift, mask in self.fields:
            words[word] = words.get(word, 0) | mask << shift
        self.words = words
        """Word address -> the bits of it that belong to the record."""

    def read(self, m: dict[int, int]) -> Packed:
        """The record, packed."""
        get = m.get
        return tuple([get(word, 0) >> shift & mask for word, shift, mask in self.fields])

    def write(self, m: dict[int, int], packed: Packed) -> None:
        """Put a packed record into memory."""
        for word, mask in self.words.items():
            m[word] = m.get(word, 0) & ~mask
        for (word, shift, mask), value in zip(self.fields, packed, strict=True):
            if mask:
                m[word] |= (value & mask) << shift


def vmcb_record(find: Callable[[str], Spot | None]) -> Record:
    """The VMCB; `find` resolves a member of struct vmcb."""
    return Record(Vmcb.field_names, VMCB_FIELDS, find)  # type: ignore[attr-defined]


def ghcb_record(find: Callable[[str], Spot | None]) -> Record:
    """The GHCB; `find` resolves a member of struct ghcb."""
    return Record(Ghcb.field_names, GHCB_FIELDS, find)  # type: ignore[attr-defined]
