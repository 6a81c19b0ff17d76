"""A virtual machine under QEMU's emulated SVM: it boots a Debian kernel, and in it the harness runs the guests."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Generator
from pathlib import Path

from iretrace.linux.debian import Unavailable
from iretrace.live.harness import Broken, end, last_line, read_lines, spawn
from iretrace.live.initramfs import archive
from iretrace.live.kprobes import behind_init_bit
from iretrace.live.packages import Kernel

MACHINE = (
    "-machine q35,accel=tcg -cpu max,+svm -smp 1 -m 512 -nodefaults -no-user-config -display none -no-reboot".split()
)
"""`max` alone has no SVM. One processor: with two, QEMU (seen up to 7.2) loses interrupts of a processor that leaves a
guest while another sends to it, and all of it hangs. No -icount: with it an interrupt that waited for a window is
delivered twice."""

COMMAND_LINE = (
    "console=ttyS0 panic=-1 loglevel=4 nowatchdog mitigations=off random.trust_cpu=on rcupdate.rcu_expedited=1"
)
"""Expedited grace periods of RCU: making a VM and taking it away waits for several, half of the time of all runs."""


def qemu_version() -> str:
    """The version of QEMU, such as 7.2.22; Unavailable if there is none."""
    try:
        told = subprocess.run(
            ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=False, timeout=20
        ).stdout
    except FileNotFoundError:
        raise Unavailable("qemu-system-x86_64 not found; apt install qemu-system-x86") from None
    found = re.search(r"version (\d+(?:\.\d+)+)", told)
    return found[1] if found else "of an unknown version"


def _command_line(kernel: Kernel) -> str:
    """What the kernel does not know of it is in the environment of its first program."""
    found = (behind_init_bit(module) for module in kernel.modules if module.name == "kvm.ko")
    place = next(found, "")
    return f"{COMMAND_LINE} IRETRACE_INIT_BIT={place}" if place else COMMAND_LINE


def boot(kernel: Kernel, harness: Path, guests: bytes, directory: Path) -> Generator[str, None, None]:
    """The lines that the harness prints. Broken when the machine ends, or falls silent, before the harness is done."""
    files = {f"modules/{n}.ko": path.read_bytes() for n, path in enumerate(kernel.modules)}
    initrd, console, complaints = directory / "initrd", directory / "console", directory / "complaints"
    initrd.write_bytes(archive({"init": harness.read_bytes(), "guests": guests, **files}))
    command = ["qemu-system-x86_64", *MACHINE, "-kernel", str(kernel.image), "-initrd", str(initrd)]
    command += ["-append", _command_line(kernel), "-serial", f"file:{console}", "-debugcon", "stdio"]
    process = spawn(command, complaints)
    try:
        yield from read_lines(process)
    except Broken as error:
        raise Broken(f"{error}{last_line(complaints) or last_line(console)}") from None
    finally:
        end(process)
