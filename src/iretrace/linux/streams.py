"""Bytes of archives, forwards only and within bounds: compressed streams, and the members of a Debian package.

What is read may be hostile: no read gives more than was asked for, and no decompressor makes more than that at once.
"""

from __future__ import annotations

import bz2
import lzma
import shutil
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

CHUNK = 1 << 16
MAX_DICTIONARY = 256 << 20
"""Memory that an .xz may ask for to be unpacked; kernel tarballs need 65 MiB."""

MAGIC = {b"\xfd7zXZ\0": "xz", b"\x1f\x8b": "gz", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zst"}
AR = b"!<arch>\n"


class Damaged(Exception):
    """The bytes are not what they should be; the message says what is wrong."""


class NeedsProgram(Exception):
    """A program is missing; the message says what to install."""


class Source(Protocol):
    """Bytes that are read in order."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""


class Part:
    """The next `size` bytes of a source. Damaged if they are not all there."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self.left = size

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        size = min(size, self.left)
        if not size:
            return b""
        data = self._source.read(size)
        if not data:
            raise Damaged("it ends too early")
        self.left -= len(data)
        return data


class Prefixed:
    """A source with bytes put back in front of it."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        if not self._head:
            return self._source.read(size)
        data, self._head = self._head[:size], self._head[size:]
        return data


class Unzipped:
    """What a gzip, xz or bzip2 stream holds, all of its members one after the other."""

    def __init__(self, source: Source, kind: str) -> None:
        self._source = source
        self._kind = kind
        self._decompressor = _decompressor(kind)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        while size:
            if self._decompressor.eof and not self._next_member():
                return b""
            if not self._rest and getattr(self._decompressor, "needs_input", True):
                self._rest = self._source.read(CHUNK)
                if not self._rest:
                    raise Damaged("it ends too early")
            try:
                data: bytes = self._decompressor.decompress(self._rest, size)
            except (lzma.LZMAError, zlib.error, OSError, EOFError) as error:
                raise Damaged(str(error)) from None
            self._rest = getattr(self._decompressor, "unconsumed_tail", b"")
            if data:
                return data
        return b""

    def _next_member(self) -> bool:
        """Begin the member behind the one that ended, if there is one. Padding by zeros is passed over."""
        rest: bytes = self._decompressor.unused_data
        while not (rest := rest.lstrip(b"\0")):
            if not (rest := self._source.read(CHUNK)):
                return False
        self._decompressor, self._rest = _decompressor(self._kind), rest
        return True


def _decompressor(kind: str) -> Any:
    """lzma's, bz2's or zlib's; their interfaces differ in who keeps the input that was not used."""
    if kind == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY)
    return bz2.BZ2Decompressor() if kind == "bz2" else zlib.decompressobj(wbits=31)


@contextmanager
def unzipped(source: Source) -> Iterator[Source]:
    """What a source holds, by its first bytes: decompressed, or as it is if it is not compressed."""
    head = _exactly(source, 6)
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")
    whole = Prefixed(head, source)
    if not kind:
        yield whole
    elif kind == "zst":
        with _zstd(whole) as plain:
            yield plain
    else:
        yield Unzipped(whole, kind)


@contextmanager
def _zstd(source: Source) -> Iterator[Source]:
    """What a zstd stream holds, by the program zstd: Python has no decompressor of its own before 3.14."""
    program = shutil.which("zstd")
    if program is None:
        raise NeedsProgram("it is compressed by zstd; install that program (apt install zstd) or unpack it yourself")
    process = subprocess.Popen(
        [program, "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    failures: list[Exception] = []
    feeder = threading.Thread(target=_feed, args=(source, process.stdin, failures), daemon=True)
    feeder.start()
    try:
        yield _Output(process, failures)
    finally:
        process.kill()
        feeder.join()
        assert process.stdout is not None, "asked for a pipe"
        process.stdout.close()
        process.wait()


def _feed(source: Source, sink: Any, failures: list[Exception]) -> None:
    try:
        with suppress(BrokenPipeError):  # the reader has seen enough, or says itself what is wrong
            while data := source.read(CHUNK):
                sink.write(data)
    except (Damaged, OSError) as error:
        failures.append(error)
    finally:
        with suppress(BrokenPipeError):
            sink.close()


class _Output:
    """What a program prints. Damaged if it fails, or if what feeds it does."""

    def __init__(self, process: subprocess.Popen[bytes], failures: list[Exception]) -> None:
        self._process = process
        self._failures = failures

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        assert self._process.stdout is not None, "asked for a pipe"
        data = self._process.stdout.read(size)
        if not data and size and (self._process.wait() or self._failures):
            raise Damaged(str(self._failures[0]) if self._failures else "it is damaged")
        return data


def package_data(source: Source) -> Part:
    """The data archive of a Debian package, behind the magic of the ar format (deb(5))."""
    while True:
        header = _exactly(source, 60)
        if len(header) < 60 or header[58:] != b"`\n":
            raise Damaged("no Debian package")
        name, digits = header[:16].decode("latin-1").strip().rstrip("/"), header[48:58].strip()
        if not digits.isdigit():
            raise Damaged("no Debian package")
        part = Part(source, int(digits))
        if name.startswith("data.tar"):
            return part
        drain(Part(source, int(digits) + int(digits) % 2))


def drain(source: Source) -> None:
    """Read to the end, so that checksums there are looked at."""
    while source.read(CHUNK):
        pass


def _exactly(source: Source, size: int) -> bytes:
    """`size` bytes, or what is left."""
    data = b""
    while len(data) < size and (more := source.read(size - len(data))):
        data += more
    return data
