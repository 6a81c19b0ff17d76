"""Unified diffs on texts, in memory: nothing is written. (mail.py takes them out of mails.)

A hunk is looked for around the line that it names, and where it is found elsewhere that is told. If it is nowhere, it
is looked for without its outermost lines of context (fuzz, as for patch(1) and git apply -C), which is told as well: it
must then fit in one place only. What still is nowhere refuses the patches as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from iretrace.verdict import InputError

MAX_WORK = 20_000_000
"""Lines that may be compared to find the hunks of all patches: many times what the largest series needs."""

MAX_LINES = 1_000_000
"""Of a patched file."""

MAX_HUNKS = 5_000
"""Of one patch."""

MAX_FUZZ = 2
"""Lines of context at either end of a hunk that need not be there, as for patch(1)."""

MAX_PLACES = 4
"""That are told of a hunk."""

_ESCAPED = re.compile(rb'\\([abfnrtv"\\]|[0-3][0-7]{2})')
_ESCAPES = dict(zip([bytes([letter]) for letter in b'abfnrtv"\\'], b'\a\b\f\n\r\t\v"\\', strict=True))

PREFIXES = ("a", "b")
"""What git writes before the paths of a diff, unless it was told otherwise."""

_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_EXTENDED = re.compile(r"(rename|copy) (from|to) (.+)")


@dataclass(frozen=True, slots=True)
class PatchedFile:
    """What patches made of a file: its text (None: deleted) and the numbers of the lines that they added."""

    text: str | None
    added: frozenset[int] = frozenset()


@dataclass(slots=True)
class Hunk:
    """One hunk: the line of the old file where it begins, and its lines with their marks (space, - or +) and ends."""

    header: str
    start: int
    lines: list[str] = field(default_factory=list)

    def old(self) -> list[str]:
        """The lines that must be there."""
        return [line[1:] for line in self.lines if line[0] != "+"]

    def new(self) -> list[str]:
        """The lines that it leaves."""
        return [line[1:] for line in self.lines if line[0] != "-"]

    def fuzzy(self, fuzz: int) -> Hunk:
        """The same without so many lines of context at its end that has more of them; where the other end has fewer, by
        so many fewer are left out there (the hunk is at the beginning or the end of its file)."""
        marks = "".join(line[0] for line in self.lines)
        first, last = (len(side) - len(side.lstrip(" ")) for side in (marks, marks[::-1]))
        least = max(first, last) - fuzz
        front, back = max(first - max(least, 0), 0), max(last - max(least, 0), 0)
        return Hunk(self.header, self.start + front, self.lines[front : len(self.lines) - back])


@dataclass(frozen=True, slots=True)
class Placed:
    """A hunk as it is applied: the line (from 0) of the old text where it begins; fuzz: lines of context left out."""

    hunk: Hunk
    at: int
    fuzz: int = 0


@dataclass(slots=True)
class FilePatch:
    """The changes to one file; old or new is "" for a file that is created or deleted."""

    old: str
    new: str
    hunks: list[Hunk] = field(default_factory=list)
    copied: bool = False


@dataclass(frozen=True, slots=True)
class Touch:
    """One hunk as it was applied. lines: what it removed from `before` and what it added to `after`, the texts of the
    file before and behind this patch. Of a file that nothing looks at there is neither text nor line.

    number: of the hunk in its file, from 1; 0 for a file that is renamed, created or deleted without any hunk.
    """

    patch: str
    path: str
    number: int
    before: str = field(default="", repr=False)
    after: str = field(default="", repr=False)
    removed: tuple[int, ...] = ()
    added: tuple[int, ...] = ()


@dataclass(slots=True)
class Record:
    """What is told of patches beside the texts that they make. remarks: sentences on hunks that do not stand where they
    say, or not among the lines that they say."""

    touches: list[Touch] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    work: int = MAX_WORK

    def spend(self, lines: int, name: str) -> None:
        """Count lines that are compared. InputError when they are more than any patch needs."""
        self.work -= lines
        if self.work < 0:
            raise InputError(f"{name}: its hunks fit nearly everywhere and cannot be placed; give a smaller patch")


def apply_patches(
    read: Callable[[str], str | None],
    patches: Iterable[tuple[str, str]],
    is_looked_at: Callable[[str], bool] = lambda path: True,
    record: Record | None = None,
) -> dict[str, PatchedFile]:
    """Apply patches (name, text) in order to the texts that `read` gives; what they changed, by path.

    Changes to files that are neither there nor looked at are passed over: trees need not be complete. record: is told
    of every hunk. InputError, naming patch, file and hunk: no diff inside, a damaged one, a path that leads out of the
    tree, or a hunk that does not apply.
    """
    record = record or Record()
    done: dict[str, PatchedFile] = {}

    def current(path: str) -> PatchedFile:
        return done[path] if path in done else PatchedFile(read(path))

    for name, text in patches:
        files = parse_patch(text, name, is_looked_at)
        if not files:
            raise InputError(f"{name}: no unified diff inside; give the output of git format-patch or diff -u")
        if sum(len(change.hunks) for change in files) > MAX_HUNKS:
            raise InputError(f"{name}: more than {MAX_HUNKS} hunks; give the part that is about KVM")
        for change in files:
            if not change.old or is_looked_at(change.old) or current(change.old).text is not None:
                _apply_file(change, name, current, done, record)
            else:
                numbers = range(1, len(change.hunks) + 1) or (0,)
                record.touches += [Touch(name, change.new or change.old, number) for number in numbers]
    return done


def _apply_file(
    change: FilePatch, name: str, current: Callable[[str], PatchedFile], done: dict[str, PatchedFile], record: Record
) -> None:
    before = current(change.old) if change.old else PatchedFile("")
    if before.text is None:
        raise InputError(f"{name}: {change.old}: no such file in the tree; is the patch for another version?")
    if change.new and change.new != change.old and current(change.new).text is not None:
        raise InputError(f"{name}: {change.new}: the patch creates it, but the tree has it; is it applied already?")
    after, placed = _apply_hunks(before, change, name, record)
    if change.old and change.old != change.new and not change.copied:
        done[change.old] = PatchedFile(None)
    if change.new:
        done[change.new] = after
    elif after.text:
        raise InputError(f"{name}: {change.old}: the patch deletes it, but not all of its lines; wrong version?")
    _note(record, change, name, (before.text, after.text or ""), placed)


def _note(record: Record, change: FilePatch, name: str, texts: tuple[str, str], placed: Sequence[Placed]) -> None:
    """Record the hunks of a file, as they were applied."""
    path = change.new or change.old
    if not change.hunks:
        record.touches.append(Touch(name, path, 0, *texts))
    shift = 0
    for number, one in enumerate(placed, start=1):
        how = _how(one)
        if how:
            record.remarks.append(f"{name}: {path}: hunk {number} applied {how}, at line {one.at + 1}")
        removed: list[int] = []
        added: list[int] = []
        old, new = one.at + 1, one.at + 1 + shift
        for line in one.hunk.lines:
            if line[0] == "-":
                removed.append(old)
            elif line[0] == "+":
                added.append(new)
            old += line[0] != "+"
            new += line[0] != "-"
        shift = new - old
        record.touches.append(Touch(name, path, number, *texts, tuple(removed), tuple(added)))


def _how(one: Placed) -> str:
    """In which way a hunk does not stand where it says; "" if it does."""
    offset = one.at + 1 - one.hunk.start
    told = []
    if one.fuzz:
        what = "line" if one.fuzz == 1 else f"{one.fuzz} lines"
        told.append(f"with fuzz {one.fuzz} (the outermost {what} of its context not looked for)")
    if offset and one.hunk.old():
        told.append(f"{abs(offset)} line{'s' * (abs(offset) > 1)} further {'down' if offset > 0 else 'up'}")
    return ", ".join(told)


def _apply_hunks(before: PatchedFile, change: FilePatch, name: str, record: Record) -> tuple[PatchedFile, list[Placed]]:
    """The text and added lines of a file after all hunks of one patch, and where the hunks stood before."""
    lines = _lines(before.text or "")
    added = [number in before.added for number in range(1, len(lines) + 1)]
    done: list[Placed] = []
    moved = shift = low = 0
    for number, hunk in enumerate(change.hunks, start=1):
        who = f"{name}: {change.old or change.new}: hunk {number} ({hunk.header})"
        placed = _place(lines, hunk, shift, low, record, who)
        at, length = placed.at, len(placed.hunk.old())
        new, marks = _replaced(placed, lines, added)
        lines[at : at + length] = new
        added[at : at + length] = marks
        if len(lines) > MAX_LINES:
            raise InputError(f"{name}: {change.new}: more than {MAX_LINES:,} lines; no kernel source is so long")
        done.append(Placed(placed.hunk, at - moved, placed.fuzz))
        shift = at - (placed.hunk.start - 1) + len(new) - length
        moved += len(new) - length
        low = at + len(new)
    marked = frozenset(number for number, mark in enumerate(added, start=1) if mark)
    return PatchedFile("".join(lines), marked), done


def _replaced(placed: Placed, lines: Sequence[str], added: Sequence[bool]) -> tuple[list[str], list[bool]]:
    """What a hunk makes of the lines where it stands, and which of these patches have added."""
    new: list[str] = []
    marks: list[bool] = []
    taken = placed.at
    for line in placed.hunk.lines:
        if line[0] == "+":
            new.append(line[1:])
            marks.append(True)
            continue
        if line[0] == " ":
            new.append(lines[taken])
            marks.append(added[taken])
        taken += 1
    return new, marks


def _place(lines: Sequence[str], hunk: Hunk, shift: int, low: int, record: Record, who: str) -> Placed:
    """Where a hunk stands, with as little fuzz as will do. InputError: nowhere, or with fuzz in several places."""
    old = hunk.old()
    at = _find(lines, old, hunk.start - 1 + shift if old else hunk.start + shift, low, record, who)
    if at >= 0:
        return Placed(hunk, at)
    new = hunk.new()
    if new and _find(lines, new, hunk.start - 1 + shift, low, record, who) >= 0:
        raise InputError(f"{who} does not apply; is it applied already?")
    for fuzz in range(1, MAX_FUZZ + 1):
        fuzzy = hunk.fuzzy(fuzz)
        places = _everywhere(lines, fuzzy.old(), low, record, who) if fuzzy.old() else []
        if len(places) > 1:
            told = ", ".join(str(place + 1) for place in places[:MAX_PLACES])
            where = f"several places (lines {told}{', ...' if len(places) > MAX_PLACES else ''})"
            raise InputError(f"{who} does not apply; with fuzz {fuzz} it fits in {where}; wrong version?")
        if places:
            return Placed(fuzzy, places[0], fuzz)
    raise InputError(f"{who} does not apply; wrong version?")


def _lines(text: str) -> list[str]:
    """The lines of a text with their ends; the last one may lack it."""
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _find(lines: Sequence[str], old: Sequence[str], near: int, low: int, record: Record, name: str) -> int:
    """Where `old` stands in `lines` nearest to `near`, at or behind `low`; -1 if nowhere."""
    if not old:
        return min(max(near, low), len(lines))
    high = len(lines) - len(old)
    near = max(low, min(near, high))
    for distance in range(high - low + 1):
        record.spend(1, name)
        for at in (near - distance, near + distance):
            if low <= at <= high and lines[at] == old[0]:
                record.spend(len(old), name)
                if list(lines[at : at + len(old)]) == list(old):
                    return at
    return -1


def _everywhere(lines: Sequence[str], old: Sequence[str], low: int, record: Record, name: str) -> list[int]:
    """All places at or behind `low` where `old` stands."""
    record.spend(len(lines) - low, name)
    found = []
    for at in range(low, len(lines) - len(old) + 1):
        if lines[at] == old[0]:
            record.spend(len(old), name)
            if list(lines[at : at + len(old)]) == list(old):
                found.append(at)
    return found


def parse_patch(text: str, name: str, is_looked_at: Callable[[str], bool] = lambda path: True) -> list[FilePatch]:
    """The file changes in a patch, in order; mail headers, messages and signatures are passed over."""
    path = partial(_path, name=name, is_looked_at=is_looked_at)
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    files: list[FilePatch] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("diff --git "):
            change, at = _git_header(lines, at, name, path)
        elif line.startswith("--- ") and lines[at + 1 : at + 2] and lines[at + 1].startswith("+++ "):
            change = FilePatch(path(line[4:]), path(lines[at + 1][4:]))
            at += 2
        else:
            at += 1
            continue
        at = _read_hunks(lines, at, change, name)
        if change.hunks or change.old != change.new:
            files.append(change)
        if len(files) > MAX_HUNKS:
            raise InputError(f"{name}: changes more than {MAX_HUNKS} files; give the part that is about KVM")
    return files


def _git_header(lines: Sequence[str], start: int, name: str, path: Callable[[str], str]) -> tuple[FilePatch, int]:
    """A git header with its extended lines, and the line behind it. Of two names that differ other lines tell."""
    names = lines[start][len("diff --git ") :]
    middle = len(names) // 2
    old, new = names[:middle], names[middle + 1 :]
    change = FilePatch(path(old), path(new)) if old.partition("/")[2] == new.partition("/")[2] else FilePatch("", "")
    for at in range(start + 1, len(lines)):
        line = lines[at]
        extended = _EXTENDED.match(line)
        if extended:
            change.copied = extended[1] == "copy"
            if extended[2] == "from":
                change.old = path(_below("a", extended[3]))
            else:
                change.new = path(_below("b", extended[3]))
        elif line.startswith("new file mode"):
            change.old = ""
        elif line.startswith("deleted file mode"):
            change.new = ""
        elif line.startswith("--- ") and lines[at + 1 : at + 2] and lines[at + 1].startswith("+++ "):
            change.old, change.new = path(line[4:]), path(lines[at + 1][4:])
            return change, at + 2
        elif line.startswith(("Binary files ", "GIT binary patch")):
            raise InputError(f"{name}: {change.new or change.old}: a binary patch; only text can be patched")
        elif not line.startswith(("index ", "old mode", "new mode", "similarity ", "dissimilarity ")):
            return change, at
    return change, len(lines)


def _read_hunks(lines: Sequence[str], at: int, change: FilePatch, name: str) -> int:
    """Read the hunks that begin at line `at`; the line behind them."""
    while at < len(lines) and (header := _HUNK.match(lines[at])):
        hunk = Hunk(header[0], int(header[1]))
        old, new = int(header[2] or 1), int(header[4] or 1)
        at += 1
        while old > 0 or new > 0:
            line = lines[at] if at < len(lines) else "@"
            line = line or " "  # mailers strip the space of an empty context line
            if line[0] not in " +-\\":
                where = change.new or change.old
                raise InputError(f"{name}:{at + 1}: {where}: hunk {hunk.header} is cut short or wrapped")
            if line[0] == "\\":
                _cut_end(hunk)
            else:
                hunk.lines.append(line + "\n")
                old -= line[0] != "+"
                new -= line[0] != "-"
            at += 1
        change.hunks.append(hunk)
        if at < len(lines) and lines[at].startswith("\\"):
            _cut_end(hunk)
            at += 1
    return at


def _cut_end(hunk: Hunk) -> None:
    """Obey "No newline at end of file"."""
    if hunk.lines:
        hunk.lines[-1] = hunk.lines[-1].removesuffix("\n")


def _path(written: str, name: str, is_looked_at: Callable[[str], bool]) -> str:
    """The path from the tree's root that a header line names; "" for /dev/null. Its first directory is left out, as by
    patch -p1, but where git was told to write no prefix (diff.noprefix). InputError if it leads elsewhere."""
    path = _unquoted(written.split("\t")[0].strip())
    if path == "/dev/null":
        return ""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise InputError(f"{name}: {path!r} leads out of the tree; use paths from the kernel's top")
    stripped = "/".join(parts[1:]) if len(parts) > 1 else path
    bare = parts[0] not in PREFIXES and is_looked_at(path) and not is_looked_at(stripped)
    return path if bare else stripped


def _below(prefix: str, name: str) -> str:
    """A name that git wrote without a prefix, quoted or not, with one."""
    return f'"{prefix}/{name[1:]}' if name.startswith('"') else f"{prefix}/{name}"


def _unquoted(name: str) -> str:
    """A name as git quotes one that holds other than plain ASCII (core.quotePath)."""
    if len(name) < 2 or not name.startswith('"') or not name.endswith('"'):
        return name
    written = name[1:-1].encode("utf-8", "surrogatepass")
    plain = _ESCAPED.sub(lambda found: bytes([_ESCAPES.get(found[1]) or int(found[1], 8)]), written)
    return plain.decode("utf-8", "replace")


def changed_paths(files: Iterable[FilePatch]) -> Iterator[str]:
    """The paths that a patch touches, each once, in order."""
    seen: dict[str, None] = {}
    for change in files:
        seen.setdefault(change.new or change.old)
    return iter(seen)
