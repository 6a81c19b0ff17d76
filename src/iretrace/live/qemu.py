"""One virtual machine under QEMU's emulated SVM: it boots a Debian kernel, runs the harness, and tells its lines."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

from iretrace.live.initramfs import archive
from iretrace.live.packages import Kernel, Unavailable

BOOT_LIMIT = 90.0
"""Seconds until the harness must have loaded KVM."""

SILENCE_LIMIT = 15.0
"""Seconds for the longest single run of a guest."""

MACHINE = (
    "-machine q35,accel=tcg -cpu max,+svm -smp 2 -m 512 -nodefaults -no-user-config -display none -no-reboot".split()
)
COMMAND_LINE = "console=ttyS0 panic=-1 loglevel=4 nowatchdog mitigations=off random.trust_cpu=on"
SOURCE = Path(__file__).with_name("harness.c")


class Broken(Exception):
    """The virtual machine came to its end before the harness did; the message says how."""


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


def build_harness(directory: Path) -> bytes:
    """The static program that runs inside; Unavailable if there is no C compiler."""
    target = directory / "harness"
    command = ["gcc", "-static", "-O2", "-pthread", "-o", str(target), str(SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise Unavailable("gcc not found; the program inside the virtual machine needs it: apt install gcc") from None
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or ["no message"]
        raise Unavailable(f"gcc cannot build {SOURCE.name}: {complaint[-1]}; apt install libc6-dev")
    return target.read_bytes()


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A directory for the files of one run, removed whatever happens."""
    directory = Path(tempfile.mkdtemp(prefix="iretrace-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def boot(kernel: Kernel, harness: bytes, guests: bytes, directory: Path) -> Generator[str, None, None]:
    """The lines that the harness prints. Broken when the machine ends, or falls silent, before the harness is done."""
    files = {f"modules/{n}.ko": path.read_bytes() for n, path in enumerate(kernel.modules)}
    initrd = directory / "initrd"
    initrd.write_bytes(archive({"init": harness, "guests": guests, **files}))
    console = directory / "console"
    complaints = directory / "complaints"
    command = ["qemu-system-x86_64", *MACHINE, "-kernel", str(kernel.image), "-initrd", str(initrd)]
    command += ["-append", COMMAND_LINE, "-serial", f"file:{console}", "-debugcon", "stdio"]
    with open(complaints, "wb") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, process_group=0
        )
    try:
        done = False
        for line in _lines(process):
            done = done or line == "done"
            if line.startswith("fatal "):
                raise Broken(f"{line.removeprefix('fatal ')}{_tail(console)}")
            yield line
        if not done:
            status = process.wait(timeout=10)
            raise Broken(f"QEMU ended with status {status}{_tail(complaints) or _tail(console)}")
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None, "asked for a pipe"
        process.stdout.close()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Lines as they come; Broken where none comes for too long."""
    assert process.stdout is not None, "asked for a pipe"
    buffer = b""
    limit = time.monotonic() + BOOT_LIMIT
    booted = False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, limit - time.monotonic())):
                what = f"no sign of life for {SILENCE_LIMIT:.0f} s" if booted else f"no boot in {BOOT_LIMIT:.0f} s"
                raise Broken(what)
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                booted = booted or line == b"ready"
                yield line.decode("ascii", "replace")
            limit = time.monotonic() + (SILENCE_LIMIT if booted else BOOT_LIMIT)


def _tail(path: Path) -> str:
    """The last line of a file, to add to a message; "" if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1][:200]}" if lines else ""
