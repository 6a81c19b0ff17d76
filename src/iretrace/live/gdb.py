"""QEMU's debugger port, as far as it is needed: stop and go on, memory, breakpoints, commands of QEMU's monitor.

A breakpoint set here is outside of the machine: no debug register, no INT3, and TF stays as it is.
"""

from __future__ import annotations

import os
import re
import selectors
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from iretrace.live.harness import Broken

LIMIT = 20.0
"""Seconds for any answer."""

CHUNK = 1024
"""Bytes of memory in one packet."""


class Debugger:
    """A QEMU that was started with `-S -gdb stdio`. Broken where it does not answer as it should."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None, "asked for pipes"
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        self._process = process
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self.ask("?")

    def close(self) -> None:
        """Forget the pipes; the process is another's."""
        self._selector.close()

    def ask(self, packet: str) -> str:
        """The answer to a packet."""
        self._send(packet)
        return self._answer()

    def monitor(self, command: str) -> str:
        """What a command of QEMU's monitor prints."""
        self._send("qRcmd," + command.encode().hex())
        said = ""
        while (answer := self._answer()) != "OK":
            if not answer.startswith("O"):
                raise Broken(f"QEMU does not know `{command}`")
            said += bytes.fromhex(answer[1:]).decode("ascii", "replace")
        return said

    def physical_memory(self) -> None:
        """From now on addresses are those of the bus, where devices are too."""
        self._must("Qqemu.PhyMemMode:1")

    def read(self, address: int, size: int) -> bytes:
        """Memory of the stopped machine."""
        data = b""
        while len(data) < size:
            data += bytes.fromhex(self.ask(f"m{address + len(data):x},{min(CHUNK, size - len(data)):x}"))
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write memory, or a register of a device, of the stopped machine."""
        for at in range(0, len(data), CHUNK):
            part = data[at : at + CHUNK]
            self._must(f"M{address + at:x},{len(part):x}:{part.hex()}")

    def write_word(self, address: int, value: int) -> None:
        """32 bits."""
        self.write(address, struct.pack("<I", value))

    def breakpoint(self, address: int, there: bool) -> None:
        """Set or remove one."""
        self._must(f"{'Z' if there else 'z'}0,{address:x},1")

    def registers(self) -> dict[str, int]:
        """rip, rfl, r14, r15, hlt and more, by QEMU's names in small letters."""
        text = self.monitor("info registers")
        found = re.findall(r"\b(\w+) ?=([0-9a-f]+)\b", text)
        halves = re.findall(r"\b(XMM\d+)=([0-9a-f]{16}) ?([0-9a-f]{16})\b", text)
        wide = [(name, high + low) for name, high, low in halves]
        return {name.lower(): int(value, 16) for name, value in found + wide}

    def go(self, seconds: float) -> bool:
        """Let the machine run for some time. Whether it met a breakpoint; it is stopped in either case."""
        self._send("c")
        if self._wait(seconds):
            self._answer()
            return True
        os.write(self._in, b"\x03")
        # A breakpoint may have been met just now; then the machine stops once, not twice.
        return "T05" in self._answer()

    def processor_time(self) -> int:
        """Nanoseconds for which QEMU's threads have had a processor."""
        total = 0
        for time_of in Path(f"/proc/{self._process.pid}/task").glob("*/schedstat"):
            with suppress(FileNotFoundError):  # a thread that has ended
                total += int(time_of.read_text().split()[0])
        return total

    def _must(self, packet: str) -> None:
        answer = self.ask(packet)
        if answer != "OK":
            raise Broken(f"QEMU answers {answer or 'nothing'} to {packet[:20]}")

    def _send(self, packet: str) -> None:
        try:
            os.write(self._in, f"${packet}#{sum(packet.encode()) & 0xFF:02x}".encode())
        except BrokenPipeError:
            raise Broken(f"QEMU ended, with status {self._process.wait(timeout=10)}") from None

    def _wait(self, seconds: float) -> bool:
        """Whether a packet is there, or comes in time."""
        limit = time.monotonic() + seconds
        while not self._whole():
            if not self._selector.select(max(0.0, limit - time.monotonic())):
                return False
            self._fill()
        return True

    def _whole(self) -> bool:
        start = self._buffer.find(b"$")
        return start >= 0 and 0 <= self._buffer.find(b"#", start) <= len(self._buffer) - 3

    def _fill(self) -> None:
        data = os.read(self._out, 1 << 16)
        if not data:
            raise Broken(f"QEMU ended, with status {self._process.wait(timeout=10)}")
        self._buffer += data

    def _answer(self) -> str:
        """The next packet, acknowledged."""
        if not self._wait(LIMIT):
            raise Broken(f"no answer of QEMU in {LIMIT:.0f} s")
        start = self._buffer.index(b"$")
        end = self._buffer.index(b"#", start)
        packet = self._buffer[start + 1 : end].decode("ascii", "replace")
        self._buffer = self._buffer[end + 3 :]
        os.write(self._in, b"+")
        return packet
