"""A git revision of a Linux repository as a tree: its blobs are read, nothing is checked out.

The repository is hostile input. git never sees its configuration, hooks, attributes or work tree: it is given a
repository of our own that holds nothing but a copy of the refs, and the objects of the other one to read. It fetches
nothing, and no filter is applied. What is looked at is written to the cache, as of an archive.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iretrace.linux.archive import (
    DIRECTORIES,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_TREE_BYTES,
    Progress,
    cache_directory,
    is_looked_at,
    put_in_place,
)
from iretrace.linux.streams import CHUNK
from iretrace.verdict import InputError

MAX_REF_BYTES = 16 << 20
MAX_REFS = 100_000
COMMIT_DIGITS = 12
"""Of a commit, as kernel people write it."""

LIMIT_SECONDS = 300
"""For one call of git."""

REGULAR = ("100644", "100755")
"""Modes of files; links (120000) and submodules (160000) are passed over."""

MISSING = "an object is missing; is it a partial clone? git fetch it"

ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "LC_ALL": "C",
}


def open_revision(repository: Path, revision: str, progress: Progress) -> Path:
    """The directory in the cache that holds a revision's tree. InputError: no repository, no such revision, no git, or
    a tree that is none of Linux or out of bounds; nothing is left in the cache."""
    shown = f"{repository} at {revision!a}"
    directory = _git_directory(repository)
    if shutil.which("git") is None:
        raise InputError(f"{shown}: git not found; apt install git, or unpack the revision yourself")
    if revision.startswith("-") or not revision.isprintable():
        raise InputError(f"{shown}: no revision; give a tag, a branch or a commit")
    with _beside(directory) as git:
        commit = (
            git.ask("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode("ascii", "replace").strip()
        )
        if not commit:
            raise InputError(f"{shown}: no such revision in this repository; git fetch it, or give another one")
        trees = cache_directory() / "revisions"
        tree = trees / f"{commit}-{len(DIRECTORIES)}"
        if not tree.is_dir():
            progress(f"reading {revision}")
            try:
                trees.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(git, commit, tree, shown)
            except OSError as error:
                raise InputError(f"{error.filename}: {error.strerror}; XDG_CACHE_HOME names the cache") from None
    return tree


def commit_of(tree: Path) -> str:
    """The commit whose tree open_revision() has put there."""
    return tree.name.partition("-")[0][:COMMIT_DIGITS]


def _git_directory(repository: Path) -> Path:
    """Where refs and objects are: of a bare repository, a usual one, or a linked work tree."""
    for place in (repository / ".git", repository):
        if (place / "objects").is_dir() and (place / "HEAD").is_file():
            return place
    link = repository / ".git"
    with suppress(OSError, UnicodeError):
        word, _, target = link.read_text("utf-8")[:4096].partition(": ")
        gitdir = repository / target.strip()
        common = gitdir / (gitdir / "commondir").read_text("utf-8")[:4096].strip()
        if word == "gitdir" and (common / "objects").is_dir():
            return common
    raise InputError(f"{repository}: no git repository; --rev needs one")


class _Git:
    """git on our own repository `home` with the objects of another one."""

    def __init__(self, home: Path, objects: Path) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._environment = kept | ENVIRONMENT | {"GIT_DIR": str(home), "GIT_OBJECT_DIRECTORY": str(objects.absolute())}
        self._home = home

    def ask(self, *words: str) -> bytes:
        """What git prints; empty where it fails."""
        try:
            done = subprocess.run(
                ["git", *words],
                env=self._environment,
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=LIMIT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return b""
        return done.stdout if done.returncode == 0 else b""

    @contextmanager
    def blobs(self) -> Iterator[subprocess.Popen[bytes]]:
        """`git cat-file --batch`."""
        process = subprocess.Popen(
            ["git", "cat-file", "--batch"],
            env=self._environment,
            cwd=self._home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@contextmanager
def _beside(directory: Path) -> Iterator[_Git]:
    with tempfile.TemporaryDirectory(prefix="iretrace-") as name:
        home = Path(name)
        for empty in ("objects", "refs"):
            (home / empty).mkdir()
        (home / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")
        (home / "HEAD").write_text("ref: refs/heads/none\n")
        (home / "packed-refs").write_bytes(_packed(directory))
        for number, path in enumerate(_loose(directory)):
            target = home / path.relative_to(directory)
            if number >= MAX_REFS:
                break
            with suppress(OSError):
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "rb") as file:
                    target.write_bytes(file.read(4096))
        yield _Git(home, directory / "objects")


def _packed(directory: Path) -> bytes:
    with suppress(OSError), open(directory / "packed-refs", "rb") as file:
        return file.read(MAX_REF_BYTES)
    return b""


def _loose(directory: Path) -> Iterator[Path]:
    """HEAD and the files of refs, links left out."""
    yield directory / "HEAD"
    for top, _, names in os.walk(directory / "refs"):
        yield from (Path(top, name) for name in names if not Path(top, name).is_symlink())


def _write(git: _Git, commit: str, tree: Path, shown: str) -> None:
    """Write the files that are looked at to `tree`, which appears when it is whole."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=tree.parent))
    try:
        with git.blobs() as process:
            for blob, path in _files(git, commit, shown):
                target = partial / path
                target.parent.mkdir(parents=True, exist_ok=True)
                _copy(process, blob, target, shown)
        if not (partial / "Makefile").is_file():
            raise InputError(f"{shown}: no Linux source tree in it")
        put_in_place(partial, tree)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _files(git: _Git, commit: str, shown: str) -> Iterator[tuple[str, str]]:
    """(blob, path) of the regular files that are looked at."""
    listing = git.ask("ls-tree", "-r", "-z", "-l", "--full-tree", commit, "--", "Makefile", *DIRECTORIES)
    files = total = 0
    for entry in listing.split(b"\0"):
        head, _, name = entry.partition(b"\t")
        words = head.decode("ascii", "replace").split()
        path = name.decode("utf-8", "surrogateescape")
        if len(words) != 4 or words[0] not in REGULAR or not is_looked_at(path):
            continue
        if not words[3].isdigit():
            raise InputError(f"{shown}: {MISSING}")
        if ".." in path.split("/") or path.startswith("/"):
            raise InputError(f"{shown}: {path!a} leads out of the tree")
        files += 1
        total += int(words[3])
        if files > MAX_FILES or total > MAX_TREE_BYTES or int(words[3]) > MAX_FILE_BYTES:
            raise InputError(f"{shown}: {path!a}: larger than any kernel")
        yield words[2], path


def _copy(process: subprocess.Popen[bytes], blob: str, target: Path, shown: str) -> None:
    assert process.stdin is not None and process.stdout is not None, "asked for pipes"
    process.stdin.write(f"{blob}\n".encode("ascii"))
    process.stdin.flush()
    words = process.stdout.readline(1024).split()
    if len(words) != 3 or words[1] != b"blob" or not words[2].isdigit():
        raise InputError(f"{shown}: {MISSING}")
    left = int(words[2])
    with open(target, "wb") as out:
        while left:
            data = process.stdout.read(min(CHUNK, left))
            if not data:
                raise InputError(f"{shown}: git ended too early; is the repository damaged?")
            out.write(data)
            left -= len(data)
    process.stdout.read(1)
