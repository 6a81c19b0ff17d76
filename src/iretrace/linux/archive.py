"""Kernel trees in archives: a tarball, or Debian's linux-source package, which holds one.

Only the texts that are looked at are unpacked, into the cache, once for each content. An archive is hostile input:
names are checked, nothing but regular files is written, with modes of our own, sizes and counts are bounded, and what
is half-written never gets its final name.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from iretrace.linux.streams import (
    AR,
    CHUNK,
    Damaged,
    NeedsProgram,
    Part,
    Prefixed,
    Source,
    drain,
    package_data,
    unzipped,
)
from iretrace.verdict import InputError

DIRECTORIES = ("arch/x86/kvm/", "arch/x86/include/", "include/", "virt/kvm/")
"""What is looked at of a tree, besides its Makefile: C sources and headers below these (index.NEAREST_FIRST)."""

MAX_FILE_BYTES = 16 << 20
MAX_TREE_BYTES = 512 << 20
MAX_FILES = 50_000
MAX_MEMBERS = 500_000
MAX_STREAM_BYTES = 8 << 30
"""Bounds that no kernel comes near (of 7.3 7,300 files are kept, 60 MB, of 95,000 files in 1.6 GB)."""

MAX_HEADER_BYTES = 4096
"""More than a tar header with a long name needs."""

STALE_SECONDS = 3600
"""So old a half-written directory belongs to nobody any more."""

Progress = Callable[[str], None]

_INNER = re.compile(r"(\./)?usr/src/(linux-source-[^/]+/)?linux-source-[^/]+\.tar(\.(xz|gz|bz2|zst))?")
_PATCH = re.compile(rb"^(diff --git |--- [^\n]+\n\+\+\+ |From [0-9a-f]{40} )", re.MULTILINE)
_TOP = frozenset(("arch", "include", "virt", "Makefile"))


def cache_directory() -> Path:
    """Where Iretrace keeps what it can make again. A relative $XDG_CACHE_HOME counts for nothing, says XDG."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "iretrace"


def is_looked_at(path: str) -> bool:
    """Whether anything reads the file `path` (from the tree's root)."""
    return path == "Makefile" or (path.startswith(DIRECTORIES) and path.endswith((".c", ".h")))


def open_archive(archive: Path, progress: Progress) -> Path:
    """The directory in the cache that holds an archive's tree, unpacked if it is not there yet.

    InputError, and nothing is left in the cache: no archive, no kernel in it, truncated, or hostile.
    """
    trees = cache_directory() / "archives"
    try:
        with open(archive, "rb") as file:
            progress(f"reading {archive.name}")
            digest = hashlib.file_digest(file, "sha256")
        digest.update(repr(DIRECTORIES).encode())
        tree = trees / digest.hexdigest()[:32]
        if not tree.is_dir():
            trees.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_stale(trees)
            unpack_into(archive, tree, progress)
    except OSError as error:
        raise InputError(f"{error.filename or archive}: {error.strerror}; XDG_CACHE_HOME names the cache") from None
    return tree


def put_in_place(made: Path, tree: Path) -> None:
    """A directory that is whole becomes `tree`, unless somebody else was faster."""
    try:
        made.rename(tree)
    except OSError:
        if not tree.is_dir():
            raise


def unpack_into(archive: Path, tree: Path, progress: Progress) -> None:
    """Unpack an archive to the directory `tree`, which appears when it is whole. InputError, OSError: it does not."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=tree.parent))
    try:
        with open(archive, "rb") as file:
            _unpack(_Watched(file, archive.name, progress), partial)
        put_in_place(partial, tree)
    except NeedsProgram as error:
        raise InputError(f"{archive}: {error}") from None
    except (Damaged, tarfile.TarError, UnicodeError, ValueError) as error:
        if _is_patch(archive):
            raise InputError(f"{archive}: a patch, no tree; write the tree first, then --patch {archive}") from None
        raise InputError(f"{archive}: cannot be unpacked: {error}; get it again, or unpack it yourself") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_patch(file: Path) -> bool:
    """Whether it looks like one."""
    with open(file, "rb") as opened:
        return _PATCH.search(opened.read(MAX_HEADER_BYTES)) is not None


def _remove_stale(trees: Path) -> None:
    """Remove what runs that were killed left behind."""
    for partial in trees.glob(".partial-*"):
        if time.time() - partial.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


class _Watched:
    """A file whose reading is shown."""

    def __init__(self, file: BinaryIO, name: str, progress: Progress) -> None:
        self._file = file
        self._name = name
        self._progress = progress
        self._size = os.fstat(file.fileno()).st_size
        self._shown = -1

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        percent = 100 * self._file.tell() // max(self._size, 1)
        if percent != self._shown:
            self._shown = percent
            self._progress(f"unpacking {self._name}: {percent} %")
        return self._file.read(size)


def _unpack(file: Source, into: Path) -> None:
    head = file.read(len(AR))
    if head != AR:
        with unzipped(Prefixed(head, file)) as plain:
            write_tree(plain, into)
        return
    with unzipped(package_data(file)) as outer:
        tarball = next((content for name, content in members(outer) if _INNER.fullmatch(name)), None)
        if tarball is None:
            raise Damaged("no linux-source tarball in the package")
        with unzipped(tarball) as inner:
            write_tree(inner, into)
        drain(outer)


def write_tree(source: Source, into: Path) -> None:
    """Write the files of a tarball that are looked at. Damaged: no kernel, more than one, or out of bounds."""
    tops: set[str] = set()
    files = total = 0
    for name, content in members(source):
        top, path = split(name)
        if not is_looked_at(path):
            continue
        tops.add(top)
        files += 1
        total += content.left
        if len(tops) > 1:
            raise Damaged(f"more than one tree in it: {', '.join(sorted(tops))}")
        if content.left > MAX_FILE_BYTES or total > MAX_TREE_BYTES or files > MAX_FILES:
            raise Damaged(f"{name}: larger than any kernel")
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as out:
            while data := content.read(CHUNK):
                out.write(data)
    drain(source)
    if not (into / "Makefile").is_file() or b"\nPATCHLEVEL" not in (into / "Makefile").read_bytes():
        raise Damaged("no Linux source tree in it")


def split(name: str) -> tuple[str, str]:
    """The archive's top directory and the path below it. Damaged if a name leads out of the tree."""
    parts = name.removeprefix("./").split("/")
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Damaged(f"the name {name!r} leads out of the tree")
    if parts[0] in _TOP:
        return "", "/".join(parts)
    return parts[0], "/".join(parts[1:])


def members(source: Source) -> Iterator[tuple[str, Part]]:
    """Names and contents of the regular files of a tar stream; a content must be read before the next one is asked for.

    Links are passed over. Damaged: devices, pipes, sparse files, or too much of anything.
    """
    stream = _Forwards(source)
    with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
        count = 0
        while (member := archive.next()) is not None:
            archive.members = []  # it would keep them all
            count += 1
            if count > MAX_MEMBERS:
                raise Damaged("more files than in any kernel")
            if member.ischr() or member.isblk() or member.isfifo() or member.issparse() or member.size < 0:
                raise Damaged(f"{member.name!r} is no file, directory or link")
            if member.isreg():
                stream.seek(member.offset_data)
                yield member.name, Part(stream.data(), member.size)


class _Forwards:
    """What tarfile needs of a file, on a source that is only read forwards."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0
        self._last = b""

    def tell(self) -> int:
        """How many bytes were read."""
        return self._at

    def seek(self, offset: int, _whence: int = 0) -> int:
        """Go on at an offset; back by what was read last at most."""
        if offset < self._at:
            back = self._at - offset
            if back > len(self._last):
                raise Damaged("its parts overlap")
            self._source = Prefixed(self._last[-back:], self._source)
            self._at, self._last = offset, b""
        while self._at < offset:
            if not self.take(min(CHUNK, offset - self._at)):
                raise Damaged("it ends too early")
        return offset

    def read(self, size: int = -1) -> bytes:
        """Exactly so many bytes, as headers need them."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise Damaged("a header that is too large")
        data = b""
        while len(data) < size:
            more = self.take(size - len(data))
            if not more:
                raise Damaged("it ends too early")
            data += more
        self._last = data
        return data

    def take(self, size: int) -> bytes:
        """At most so many bytes, of contents."""
        data = self._source.read(size)
        self._at += len(data)
        self._last = data
        if self._at > MAX_STREAM_BYTES:
            raise Damaged("larger than any kernel")
        return data

    def data(self) -> Source:
        """The same bytes as a source of contents."""
        return _Contents(self)


class _Contents:
    def __init__(self, stream: _Forwards) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._stream.take(size)
