"""One file of a tree, split by its directives: which conditional encloses an offset, and where macros are defined.

Nothing is evaluated here; preprocess.py decides which branches are active.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import cached_property

_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)|//(?:\\\n|[^\n])*", re.DOTALL)
_DIRECTIVE = re.compile(r"\n[ \t]*#[ \t]*([a-z]+)\b((?:\\\n|[^\n])*)")
_NEWLINE = re.compile("\n")
_NAME = re.compile(r"\s*(\w+)")
_BLANKED = re.compile(r"[^\n\\]|\\(?!\n)")


@dataclass(slots=True, eq=False)
class Branch:
    """A branch of a conditional: from behind its #if, #elif or #else to the next of them.

    kind: if, ifdef, ifndef, elif, elifdef, elifndef, else. text: what stands behind that word. parent: the branch
    that encloses the whole conditional. earlier: the branch before this one in the same conditional. defines: the
    macro that the first directive inside defines, if that is a #define. active: None while not known.
    """

    kind: str
    text: str
    offset: int
    parent: Branch | None
    earlier: Branch | None
    defines: str = ""
    active: bool | None = None
    busy: bool = False


@dataclass(slots=True)
class Definition:
    """A #define (or #undef: body is None) of a macro; body is the rest of the line, continuations included."""

    name: str
    offset: int
    body: str | None


@dataclass(slots=True)
class Directives:
    """What a pass over a file's directives found.

    marks and branches run parallel: from marks[i] on, branches[i] is the innermost branch. spans: where the
    directives themselves stand. macros: definitions by name, in the order of the file.
    """

    marks: list[int] = field(default_factory=lambda: [0])
    branches: list[Branch | None] = field(default_factory=lambda: [None])
    spans: list[tuple[int, int]] = field(default_factory=list)
    macros: dict[str, list[Definition]] = field(default_factory=dict)


class Source:
    """A file. rank: how near it is to KVM's SVM code; of several definitions of a name the nearest is taken.

    raw begins with a newline that the file does not have, so that line N of the file is the text behind the N-th
    newline. text is raw with comments blanked out: offsets and lines are the same.
    """

    def __init__(self, path: str, text: str, rank: int) -> None:
        self.path = path
        self.raw = "\n" + text
        self.rank = rank

    @property
    def is_header(self) -> bool:
        """Whether other files see its macros."""
        return self.path.endswith(".h")

    @cached_property
    def text(self) -> str:
        """The file without comments; every other character at its place."""
        raw = self.raw
        if "/*" not in raw and "//" not in raw:
            return raw
        parts: list[str] = []
        done = 0
        for match in _COMMENT.finditer(raw):
            start = match.start()
            if start < done or _inside_string(raw, start):
                continue
            parts.append(raw[done:start])
            parts.append(blank(match[0]))
            done = match.end()
        parts.append(raw[done:])
        return "".join(parts)

    @cached_property
    def directives(self) -> Directives:
        """The conditionals and macro definitions of the file."""
        found = Directives()
        stack: list[Branch] = []
        fresh: Branch | None = None
        for match in _DIRECTIVE.finditer(self.text):
            word, rest = match[1], match[2]
            start, end = match.start() + 1, match.end()
            found.spans.append((start, end))
            if word in ("define", "undef"):
                name = _NAME.match(rest)
                if name:
                    body = rest[name.end() :] if word == "define" else None
                    found.macros.setdefault(name[1], []).append(Definition(name[1], start, body))
                    if fresh and body is not None:
                        fresh.defines = name[1]
                fresh = None
                continue
            fresh = _open_branch(word, rest, end, stack)
            if fresh or word == "endif":
                found.marks.append(end)
                found.branches.append(stack[-1] if stack else None)
        return found

    def line(self, offset: int) -> int:
        """The line of the file on which `offset` stands."""
        return bisect_left(self._newlines, offset)

    @cached_property
    def _newlines(self) -> list[int]:
        return [match.start() for match in _NEWLINE.finditer(self.raw)]

    def span_before(self, offset: int) -> int:
        """The number of the last directive that begins at or before `offset`; -1 if there is none."""
        return bisect_right(self.directives.spans, (offset, len(self.raw))) - 1

    def in_directive(self, offset: int) -> bool:
        """Whether `offset` lies in a directive, such as the body of a macro."""
        number = self.span_before(offset)
        return number >= 0 and offset < self.directives.spans[number][1]

    def branch(self, offset: int) -> Branch | None:
        """The innermost branch around `offset`."""
        directives = self.directives
        return directives.branches[bisect_right(directives.marks, offset) - 1]


def _open_branch(word: str, rest: str, end: int, stack: list[Branch]) -> Branch | None:
    """Follow one conditional directive on the stack of open branches; the branch that it opens, if any."""
    if word in ("if", "ifdef", "ifndef"):
        stack.append(Branch(word, rest, end, stack[-1] if stack else None, None))
        return stack[-1]
    if word in ("elif", "elifdef", "elifndef", "else") and stack:
        earlier = stack.pop()
        stack.append(Branch(word, rest, end, earlier.parent, earlier))
        return stack[-1]
    if word == "endif" and stack:
        stack.pop()
    return None


def _inside_string(text: str, offset: int) -> bool:
    """Whether `offset` lies inside a string on its line (as the // of an address does)."""
    before = text[text.rfind("\n", 0, offset) + 1 : offset]
    if '"' not in before:
        return False
    return (before.count('"') - before.count('\\"') - before.count("'\"'")) % 2 == 1


def blank(text: str) -> str:
    """As many spaces; newlines and line continuations are kept."""
    return _BLANKED.sub(" ", text) if "\n" in text else " " * len(text)
