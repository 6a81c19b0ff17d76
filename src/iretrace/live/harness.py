"""The C program that runs guests: how it is built, and how its lines are read."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from iretrace.linux.debian import Unavailable

BOOT_LIMIT = 120.0
"""Seconds until the program must have loaded KVM."""

SILENCE_LIMIT = 20.0
"""Seconds for the longest single run of a guest."""

PANIC = "Kernel panic"

SOURCE = Path(__file__).with_name("harness.c")


class Broken(Exception):
    """The program came to its end, or fell silent, before its work was done; the message says how."""


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A directory for the files of one live run, removed whatever happens."""
    directory = Path(tempfile.mkdtemp(prefix="iretrace-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def build_harness(directory: Path) -> Path:
    """Compile the program into this directory; Unavailable if there is no C compiler."""
    target = directory / "harness"
    command = ["gcc", "-static", "-O2", "-pthread", "-o", str(target), str(SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise Unavailable("gcc not found; the program that runs guests needs it: apt install gcc libc6-dev") from None
    if done.returncode:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise Unavailable(f"gcc cannot build {SOURCE.name}: {complaint}; apt install gcc libc6-dev")
    return target


def spawn(command: list[str], complaints: Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start a program whose output is read. However this process ends, the program ends with it."""
    try:
        with open(complaints, "wb") as stderr:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                process_group=0,
            )
    except FileNotFoundError:
        raise Unavailable("setpriv not found; apt install util-linux") from None


def end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the program is left."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def read_lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """The program's lines as they come, to `done`. Broken where it fails, ends early, or none comes for too long."""
    assert process.stdout is not None, "asked for a pipe"
    buffer = b""
    booted = False
    limit = time.monotonic() + BOOT_LIMIT
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, limit - time.monotonic())):
                what = f"no sign of life for {SILENCE_LIMIT:.0f} s" if booted else f"no boot in {BOOT_LIMIT:.0f} s"
                raise Broken(what)
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                raise Broken(f"ended too early, with status {process.wait(timeout=10)}")
            *lines, buffer = (buffer + data).split(b"\n")
            for raw in lines:
                line = raw.decode("ascii", "replace")
                if line.startswith("fatal "):
                    raise Broken(line.removeprefix("fatal "))
                if line == "done":
                    return
                booted = booted or line == "ready"
                yield line
            limit = time.monotonic() + (SILENCE_LIMIT if booted else BOOT_LIMIT)


def last_line(path: Path) -> str:
    """The last line of a file, or why a kernel panicked, to add to a message; "" if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    panics = [line for line in lines if PANIC in line]
    return f": {(panics or lines)[-1][:200]}" if lines else ""
