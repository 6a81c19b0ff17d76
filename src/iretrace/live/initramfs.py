"""A cpio archive of the "newc" format, which the kernel takes as its first file system."""

from __future__ import annotations

from collections.abc import Mapping

DIRECTORY, FILE = 0o40755, 0o100755


def archive(files: Mapping[str, bytes]) -> bytes:
    """The archive of these files (path without leading slash -> content), with the directories that they need."""
    directories = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
    out = b"".join(_member(path, DIRECTORY, b"") for path in sorted(directories))
    out += b"".join(_member(path, FILE, content) for path, content in files.items())
    return out + _member("TRAILER!!!", 0, b"")


def _member(path: str, mode: int, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
