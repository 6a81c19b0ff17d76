"""Results of earlier runs, kept under $XDG_CACHE_HOME/iretrace and reused while nothing that they rest on has changed.

A result rests on the definitions that it used (functions, types, variables, macros in them). That every file is as it
was is only the quick way to see that they are the same.

What is found there was perhaps not written by us: it is JSON, read with the same suspicion as a patch. Whatever is not
exactly as we would have written it is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import iretrace
from iretrace.cli.moved import Moves, Relocation
from iretrace.cli.told import UNREADABLE, Teller, read_as, read_rows
from iretrace.report.summary import record, result_id
from iretrace.verdict import Result, Verdict

MAX_BYTES = 32 << 20
"""A larger file is none of ours."""

MAX_ENTRIES = 4000
MAX_TOTAL_BYTES = 512 << 20
"""The oldest files beyond are removed."""

MAX_OF_ONE_NAME = 8
"""Of more trees than these the results of a test are not looked at."""

MAX_TEXTS = 4
"""Of more texts of one name only the longest are read."""

USED_DIGITS = 16

NOT_OURS = (OSError, *UNREADABLE)
"""What reading a file that is not ours comes to."""

Patches = Sequence[tuple[str, str]]
"""(name, text) of each patch that a tree has, in order."""

Used = Mapping[str, tuple[str, str, tuple[int, ...]]]
"""The definitions that a verdict used, by name: digest, and for functions their file and the lines that count."""

SEPARATOR = "\t"
"""Between these three in a file, where a definition is one word: most are in many files."""

T = TypeVar("T")


def cache_directory() -> Path:
    """Where results are kept."""
    from iretrace.linux.archive import cache_directory as home

    return home() / "results"


@cache
def own_digest() -> str:
    """Of everything that Iretrace itself consists of: code, rules, schemas, tests."""
    digest = hashlib.sha256()
    root = Path(iretrace.__file__).parent
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def key(*parts: Any) -> str:
    """The name of a result that depends on these (JSON values) and on Iretrace itself, beside what it read."""
    return digest_of([own_digest(), *parts])


def digest_of(value: Any) -> str:
    """Of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()  # as the file of it holds it


class Kept(NamedTuple):
    """A result that was kept. same: of the definitions that it used, wherever these stand."""

    result: Result
    same: str


class Entry(NamedTuple):
    """A file of a result as JSON, how to read the result in it, which is done once, and the name of what it read."""

    told: Any
    result: Callable[[], Result]
    read: str = ""


class Origin(NamedTuple):
    """What finds a result again: the text of its litmus test, the command, and the patches that the tree was given."""

    litmus: str = ""
    command: str = ""
    patches: Patches = ()


NO_ORIGIN = Origin()


class Remembered(NamedTuple):
    """A result that was kept, and what finds it again."""

    result: Result
    origin: Origin


class Shared(NamedTuple):
    """What several results share: the name of its file. content: None where who reads this has been given it before.
    same: of definitions, wherever they stand."""

    name: str
    content: Any
    same: str = ""


class Shelf:
    """What the results that one process finds have in common, so that it is named and told once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Shared]] = {}
        self._read: dict[str, str] = {}

    def used(self, part: Used) -> Shared:
        """Definitions; to be the same they must be one object."""
        told = self._told(part)
        if told is None:
            same = digest_of(sorted((name, found[0]) for name, found in part.items()))
            content = {name: SEPARATOR.join((*found[:2], " ".join(map(str, found[2])))) for name, found in part.items()}
            told = self._tell(part, Shared(digest_of(content), content, same))
        return told

    def read(self, digests: dict[str, str]) -> Shared:
        """What was read."""
        if self._read != digests:
            self._read = digests
        return self._told(self._read) or self._tell(self._read, Shared(digest_of(digests), digests))

    def _told(self, value: Any) -> Shared | None:
        known = self._known.get(id(value))
        return None if known is None else known[1]

    def _tell(self, value: Any, shared: Shared) -> Shared:
        """To be told with its content once; the value is kept, so that its id stays its own."""
        self._known[id(value)] = value, shared._replace(content=None)
        return shared


class Stored:
    """The results in a directory, which need not exist. Nothing here ever fails: at worst nothing is kept.

    There may be several results of one name, of trees that differ. Files: NAME-READ-USED-ID.json for a result (READ:
    the name of what was read; USED: of the definitions used; ID: result_id), DIGEST.json for what several share,
    NAME-DIGEST.text for what sources tell (Source.steps_of, Source.lowered)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._entries: dict[str, Entry] = {}
        self._records: dict[Any, Any] = {}
        self._listing: dict[str, list[str]] | None = None
        self._by_time: list[str] = []
        self._patches: tuple[Patches, str] = ((), "")

    def by_id(self, start: str) -> list[Remembered]:
        """The results whose id begins so, each once, the newest first."""
        found: dict[str, Remembered] = {}
        for file in self._files():
            identity = file.rpartition("-")[2]
            if identity.startswith(start) and identity not in found:
                with suppress(*NOT_OURS):
                    found[identity] = self._remembered(file)
        return list(found.values())

    def by_test(self, test: str) -> list[Remembered]:
        """The newest result of a test of this name, those that are no pass first; none or one."""
        found: list[Remembered] = []
        for file in self._files():
            with suppress(*NOT_OURS):
                if self._read(file)["result"]["test"] == test:
                    found.append(self._remembered(file))
        return sorted(found, key=lambda one: one.result.verdict is Verdict.HOLDS)[:1]

    def _remembered(self, file: str) -> Remembered:
        entry = self._entry(file)
        litmus, command, patches = (read_as(str, entry.told[name]) for name in Origin._fields)
        given = self.shared(tuple[tuple[str, str], ...], patches) if patches else ()
        return Remembered(entry.result(), Origin(litmus, command, given))

    def _files(self) -> list[str]:
        """The files of all results, the newest first."""
        self._names()
        return self._by_time

    def newest(self, name: str) -> Result | None:
        """The newest result of that name, of whatever tree."""
        kept = self.first(name, lambda entry: Kept(entry.result(), ""))
        return kept.result if kept else None

    def keep(
        self,
        name: str,
        result: Result,
        read: Shared,
        used: Sequence[Shared] = (),
        origin: Origin = NO_ORIGIN,
    ) -> None:
        """Keep a result that was reached by reading and using this. used: in parts, that others may share."""
        try:
            for shared in (read, *used):
                if shared.content is not None:
                    self._share(shared.name, shared.content)
            if not keeps(result):
                return
            parts = sorted(part.name for part in used)
            tell = Teller()
            entry: dict[str, Any] = {"result": result, "rows": tell, "uses": parts, "same": same_of(used)}
            entry |= origin._asdict() | {"patches": self._share_patches(origin.patches)}
            file = f"{name}-{read.name}-{digest_of(parts)[:USED_DIGITS]}-{result_id(result)}"
            self._write(file, json.dumps(entry, default=tell))
            self._listing = None
        except OSError:
            return

    def keep_text(self, name: str, text: bytes) -> None:
        """Keep what a source tells, under a name that says of what."""
        if len(text) > MAX_BYTES:
            return
        with suppress(OSError):
            self._put(f"{name}-{hashlib.sha256(text).hexdigest()}.text", text)

    def texts(self, name: str) -> list[bytes]:
        """What was kept under a name, the longest first."""
        texts: list[bytes] = []
        with suppress(OSError):
            sizes = [(path.stat().st_size, path) for path in self._directory.glob(f"{name}-*.text")]
            for size, path in sorted(sizes, reverse=True)[:MAX_TEXTS]:
                if size <= MAX_BYTES:
                    texts.append(path.read_bytes())
        return texts

    def remember(self, name: str, value: Any) -> None:
        """Keep a value that is no result, by a name of `key`."""
        with suppress(OSError):
            self._write(name, json.dumps(value, default=record))

    def recall(self, kind: type[T], name: str) -> T | None:
        """It, if it is of this kind."""
        with suppress(*NOT_OURS):
            return read_as(kind, self._read(name))
        return None

    def _share_patches(self, patches: Patches) -> str:
        """Keep them; their name, "" for none. All results of a tree have one object: it is looked through once."""
        if not patches:
            return ""
        if self._patches[0] is not patches:
            self._patches = patches, digest_of(patches)
        self._share(self._patches[1], patches)
        return self._patches[1]

    def tidy(self) -> None:
        """Remove the oldest files beyond MAX_ENTRIES and MAX_TOTAL_BYTES."""
        try:
            paths = [path for kind in ("*.json", "*.text") for path in self._directory.glob(kind)]
            files = [(path.stat().st_mtime, path.stat().st_size, path) for path in paths]
            total = 0
            for number, (_, size, path) in enumerate(sorted(files, reverse=True)):
                total += size
                if number >= MAX_ENTRIES or total > MAX_TOTAL_BYTES:
                    path.unlink()
        except OSError:
            return

    def first(
        self, name: str, look: Callable[[Entry], Kept | None], reads: Callable[[str], bool] = lambda _read: True
    ) -> Kept | None:
        """Of the results of that name the first, newest first, of which `look` makes something. reads: whether to look
        at one, by the name of what was read for it."""
        for file in self._names().get(name, ())[:MAX_OF_ONE_NAME]:
            with suppress(*NOT_OURS):
                if not reads(file.split("-")[1]):
                    continue
                kept = look(self._entry(file))
                if kept is not None and keeps(kept.result):
                    return kept
        return None

    def shared(self, kind: type[T], name: Any) -> T:
        """What several results share, by a name that `keep` could have given. ValueError: it is not there as it was."""
        if not isinstance(name, str) or len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise ValueError("no name of ours")
        content = self._content(name)
        if hashlib.sha256(content).hexdigest() != name:
            raise ValueError("it is not what it was")
        return read_as(kind, json.loads(content))

    def _names(self) -> dict[str, list[str]]:
        """Name -> the files of its results without their ending, the newest first."""
        if self._listing is None:
            self._listing = {}
            with suppress(OSError), os.scandir(self._directory) as entries:
                found = [(entry.stat().st_mtime, entry.name) for entry in entries if entry.name.count("-") == 3]
                self._by_time = [file.removesuffix(".json") for _, file in sorted(found, reverse=True)]
                for file in self._by_time:
                    self._listing.setdefault(file.partition("-")[0], []).append(file)
        return self._listing

    def _entry(self, file: str) -> Entry:
        if file not in self._entries:
            told = self._read(file)
            self._entries[file] = Entry(told, cache(lambda: self._result(told)), file.split("-")[1])
        return self._entries[file]

    def _result(self, told: Any) -> Result:
        return read_as(Result, told["result"], read_rows(told["rows"], self._records))

    def _share(self, name: str, value: Any) -> None:
        if not (self._directory / f"{name}.json").exists():
            self._write(name, json.dumps(value, sort_keys=True))

    def _read(self, name: str) -> Any:
        return json.loads(self._content(name))

    def _content(self, name: str) -> bytes:
        with open(self._directory / f"{name}.json", "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError("too large")
        return content

    def _write(self, name: str, text: str) -> None:
        self._put(f"{name}.json", text.encode("ascii"))

    def _put(self, name: str, content: bytes) -> None:
        """In one go: another process sees the old file or the new one."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
            file.write(content)
        os.replace(file.name, self._directory / name)


class Lookup:
    """Questions for kept results that one source of hypervisors could give again. still_reads, still_uses,
    read_before: its own."""

    def __init__(
        self,
        stored: Stored,
        still_reads: Callable[[Mapping[str, str]], bool],
        still_uses: Callable[[Used, bool], Moves | None] = lambda _used, _before: None,
        read_before: Callable[[Mapping[str, str]], bool] = lambda _digests: False,
    ) -> None:
        self._stored = stored
        self._still_uses = still_uses
        self._moves: dict[str, Moves | None] = {}
        self._relocations: dict[str, Relocation] = {}
        """From each tree, by the name of what was read of it: all that is known, for a line there is one line."""
        self._taken: set[tuple[str, str]] = set()
        self._reads = cache(lambda read: still_reads(stored.shared(dict[str, str], read)))
        self._read_before = cache(lambda read: read_before(stored.shared(dict[str, str], read)))

    def find(self, name: str) -> Kept | None:
        """The result of that name that read nothing but what is still the same."""
        return self._stored.first(name, lambda entry: _kept(entry, None), self._reads)

    def find_moved(self, name: str) -> Kept | None:
        """The result of that name that used nothing but definitions that are still the same, told of where these stand
        now."""
        return self._stored.first(name, self._as_it_is)

    def _as_it_is(self, entry: Entry) -> Kept | None:
        relocation = self._relocations.setdefault(entry.read, Relocation({}))
        for part in entry.told["uses"]:
            if part not in self._moves:
                told = self._stored.shared(dict[str, str], part)
                used = {name: _definition(one) for name, one in told.items()}
                self._moves[part] = self._still_uses(used, self._read_before(entry.read))
            here = self._moves[part]
            if here is None:
                return None
            if (entry.read, part) not in self._taken:
                self._taken.add((entry.read, part))
                relocation.moves.update(here)
        return _kept(entry, relocation) if entry.told["uses"] else None


@cache
def _definition(told: str) -> tuple[str, str, tuple[int, ...]]:
    """One of Used, and one object for each. ValueError: it is none."""
    digest, path, lines = told.split(SEPARATOR)
    return digest, path, tuple(map(int, lines.split()))


def _kept(entry: Entry, relocation: Relocation | None) -> Kept | None:
    result = entry.result() if relocation is None else relocation.of(entry.result())
    return None if result is None else Kept(result, read_as(str, entry.told["same"]))


def same_of(used: Sequence[Shared]) -> str:
    """Of definitions wherever they stand."""
    return digest_of(sorted(part.same for part in used))


def keeps(result: Result) -> bool:
    """Whether a result is worth keeping: a search that was stopped by a limit may come further next time."""
    return result.verdict is not Verdict.UNDETERMINED or not result.reason.startswith("stopped by")
