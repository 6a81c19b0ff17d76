"""Where in a kernel's KVM a probe goes that no symbol names."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

SENDS = "__apic_accept_irq"
"""The function that sets the bit of an INIT in a local APIC, and makes its request."""

SETS_INIT = re.compile(r"^\s*([0-9a-f]+):\s+movq\s+\$0x1,", re.MULTILINE)
"""apic->pending_events = 1UL << KVM_APIC_INIT; nothing else there is set to 1 in one go."""

BEGINS = re.compile(rf"^([0-9a-f]+) <{SENDS}>:$", re.MULTILINE)
ADDRESS = re.compile(r"^\s*([0-9a-f]+):\s", re.MULTILINE)


def behind_init_bit(kvm: Path) -> str:
    """Where in this module an INIT's bit has been set and its request has not been made, as the kernel takes a kprobe:
    function+offset. "" where that is not found for sure."""
    command = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={SENDS}", str(kvm)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return find_behind_init_bit(told)


def find_behind_init_bit(told: str) -> str:
    """The same in what objdump tells."""
    begins, sets = BEGINS.findall(told), list(SETS_INIT.finditer(told))
    if len(begins) != 1 or len(sets) != 1:
        return ""
    behind = ADDRESS.search(told, sets[0].end())
    return f"{SENDS}+{int(behind[1], 16) - int(begins[0], 16):#x}" if behind else ""
