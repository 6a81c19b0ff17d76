"""A Linux source tree as texts: read lazily, patched in memory; nothing in it is executed or followed out of it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from iretrace.linux.archive import Progress, is_looked_at, open_archive
from iretrace.linux.patch import PatchedFile, Record, apply_patches
from iretrace.verdict import InputError

MAX_BYTES = 16 * 1024 * 1024
"""Larger files are refused: no file of the event path comes near, and a hostile tree could hold anything."""

SVM = "arch/x86/kvm/svm/svm.c"
_SEV_ES_HOST = "sev_handle_vmgexit"

_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL)[ \t]*=[ \t]*(\d+)[ \t]*$", re.MULTILINE)


class NothingInScope(InputError):
    """A Linux tree with KVM, but without what Iretrace checks (hosting SEV-ES guests came with Linux 5.11)."""


class Tree:
    """The texts of a tree, by path from its root (with /). Make one with open_tree.

    version: "6.1.192", from the top Makefile. patched: what patches changed, by path. record: of their hunks.
    unpatched: the tree that they were applied to, which is asked for what they leave as it is.
    """

    def __init__(self, root: Path, unpatched: Tree | None = None) -> None:
        self.root = root
        self.unpatched = unpatched
        self.version = ""
        self.patched: dict[str, PatchedFile] = {}
        self.record = Record()
        self._real_root = os.path.realpath(root)
        self._texts: dict[str, str | None] = {}
        self._inside: set[str] = set()
        self._listed: set[tuple[str, bool]] = set()
        self._digests: dict[str, str] = {}
        self._so_far: tuple[tuple[int, int], dict[str, str]] = (0, 0), {}

    def text(self, path: str) -> str | None:
        """The text of a file, patched if a patch changes it; None if there is no such file.

        InputError: not a regular file, larger than MAX_BYTES, unreadable, or a link that leads out of the tree.
        """
        if path not in self._texts:
            self._texts[path] = self._read(path)
        return self._texts[path]

    def files(self, prefix: str, recursive: bool = True) -> Iterator[str]:
        """The paths of the C sources and headers below the directory `prefix`, patched-in ones included, sorted."""
        directory = prefix.strip("/")
        self._listed.add((directory, recursive))
        found = set((self.unpatched or self)._walk(directory, recursive))  # who reads the texts knows what is inside
        for path, patched in self.patched.items():
            if not path.startswith(directory + "/") or not path.endswith((".c", ".h")):
                continue
            if patched.text is None:
                found.discard(path)
            elif recursive or path.rpartition("/")[0] == directory:
                found.add(path)
        return iter(sorted(found))

    def read_so_far(self) -> dict[str, str]:
        """Everything that was read, patches included, as digests: of texts by path ("" where there is no such file),
        and of the directories that were listed by path and "/*" or, with what is below, "/**"."""
        much = len(self._texts), len(self._listed)
        if self._so_far[0] != much:
            listings = {f"{directory}/{'**' if recursive else '*'}" for directory, recursive in self._listed}
            self._so_far = much, {name: self.digest(name) for name in (*self._texts, *sorted(listings))}
        return self._so_far[1]

    def still_reads(self, digests: Mapping[str, str]) -> bool:
        """Whether all this would be read again, just so. A name that leads out of the tree is never read."""
        try:
            return all(".." not in name and self.digest(name) == digest for name, digest in digests.items())
        except InputError:
            return False

    def digest(self, name: str) -> str:
        """Of a text or a listing, as read_so_far tells it."""
        known = self._digests.get(name)
        if known is None:
            directory, _, pattern = name.rpartition("/")
            listing = pattern.startswith("*")
            if self.unpatched is not None and not listing and name not in self.patched:
                return self.unpatched.digest(name)
            text = "\n".join(self.files(directory, pattern == "**")) if listing else self.text(name)
            known = "" if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            self._digests[name] = known
        return known

    def _walk(self, directory: str, recursive: bool) -> Iterator[str]:
        """Regular .c and .h files; links to directories are not followed, links to files only inside the tree."""
        try:
            entries = list(os.scandir(self.root / directory))
        except OSError:
            return
        for entry in entries:
            path = f"{directory}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if recursive:
                    yield from self._walk(path, recursive)
            elif entry.name.endswith((".c", ".h")):
                if entry.is_file(follow_symlinks=False):
                    self._inside.add(path)
                    yield path
                elif entry.is_symlink() and entry.is_file() and self._is_inside(path):
                    yield path

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(self.root / path)
        return real.startswith(self._real_root + os.sep)

    def _read(self, path: str) -> str | None:
        if path in self.patched:
            return self.patched[path].text
        if self.unpatched is not None:
            return self.unpatched.text(path)
        full = os.path.join(self.root, path)
        if path not in self._inside:
            if not os.path.lexists(full):
                return None
            if not self._is_inside(path):
                raise InputError(f"{full}: leads out of the tree; replace the link by the file")
        try:
            info = os.stat(full)
            if not stat.S_ISREG(info.st_mode):
                return None
            if info.st_size > MAX_BYTES:
                raise InputError(f"{full}: {info.st_size} bytes are too many for a source file (limit {MAX_BYTES})")
            with open(full, "rb") as file:
                return decode(file.read(MAX_BYTES))
        except OSError as error:
            raise InputError(f"{full}: cannot read: {error.strerror}") from None


def decode(data: bytes) -> str:
    """Bytes of a source file as text: UTF-8 or else Latin-1, line ends as \\n."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n") if "\r" in text else text


def _no_progress(_text: str) -> None:
    """Says nothing."""


def open_tree(path: Path, patches: Sequence[tuple[str, str]] = (), progress: Progress = _no_progress) -> Tree:
    """The Linux tree in the directory or archive `path` with `patches` (name, text) applied in order, in memory only.

    progress is told of unpacking, which takes a while. InputError: neither directory nor archive, not Linux, without
    KVM for AMD, or a patch that does not apply. NothingInScope: too old to host SEV-ES guests.
    """
    tree = Tree(open_archive(path, progress) if path.is_file() else path)
    tree.version = tree_version(tree.root)
    return with_patches(tree, patches, path) if patches else _in_scope(tree, path)


def with_patches(tree: Tree, patches: Sequence[tuple[str, str]], path: Path) -> Tree:
    """A tree that was opened as `path`, with patches applied in memory. InputError, NothingInScope: as open_tree."""
    made = Tree(tree.root, tree)
    made.patched = apply_patches(tree.text, patches, is_looked_at, made.record)
    made.version = _version(made)
    return _in_scope(made, path)


def _in_scope(tree: Tree, path: Path) -> Tree:
    if tree.text(SVM) is None:
        raise InputError(f"{path}: Linux {tree.version} without {SVM}; unpack the tree completely")
    if not any(_SEV_ES_HOST in (tree.text(file) or "") for file in tree.files("arch/x86/kvm/svm")):
        raise NothingInScope(f"{path}: Linux {tree.version} cannot host SEV-ES guests (5.11 and later can)")
    return tree


def tree_version(path: Path) -> str:
    """The version of the Linux tree in `path`, such as 6.1.192. InputError if there is none."""
    if not path.is_dir():
        raise InputError(f"{path}: no such directory or archive; give a Linux source tree, a tarball or a .deb of one")
    return _version(Tree(path))


def _version(tree: Tree) -> str:
    makefile = tree.text("Makefile")
    if makefile is None:
        empty = not any(tree.root.iterdir())
        why = "the directory is empty" if empty else "no Makefile"
        raise InputError(f"{tree.root}: {why}; give the top directory of a Linux source tree")
    parts = dict(_VERSION.findall(makefile))
    if len(parts) < 3:
        raise InputError(f"{tree.root / 'Makefile'}: no VERSION, PATCHLEVEL and SUBLEVEL; this is no Linux source tree")
    return ".".join(parts[key] for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
