"""Which hunks of a patch change what is modelled: the functions of the event path, and what these functions name.

A change outside of functions (a macro, a member, an enumerator, a table) counts if a name on its lines, or of the macro
or enum around it, is used by the event path. Where that is doubtful the hunk counts: then its tests are run in vain.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from iretrace.linux.closure import Closure
from iretrace.linux.patch import Touch
from iretrace.linux.source import Source
from iretrace.linux.tree import Tree

_WORD = re.compile(r"[A-Za-z_]\w*")
_TAGGED = re.compile(r"\b(struct|union|enum)\s+\w+")
_PARAMETERS = re.compile(r"\([^()]*\)\s*[;,]?\s*$")
_BODY = re.compile(r"\n\{")
_BODY_END = re.compile(r"\n\}")
_HEAD_ENDS = re.compile(r"[;}]|\n[ \t]*\n|\n[ \t]*#[^\n]*(?=\n)")
_ENUM = re.compile(r"\n(?:typedef\s+)?enum\b[^;{}]*\{[^{}]*\}")
_DEFINE = re.compile(r"\n[ \t]*#[ \t]*define\b(?:\\\n|[^\n])*")
_ENTRY = re.compile(r"\s*\.\w+\s*=")
_KEYWORDS = frozenset(
    "auto bool break case char const continue default do else extern for goto if inline int long register return "
    "short signed sizeof static switch typedef unsigned void volatile while u8 u16 u32 u64 s8 s16 s32 s64 "
    "__always_inline define include ifdef ifndef endif undef elif defined IS_ENABLED NULL true false".split()
)


@dataclass(frozen=True, slots=True)
class Extent:
    """Lines (from 1, the last one included) that belong together, and the names that they are about."""

    first: int
    last: int
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Layout:
    """What stands where in a file: functions in the kernel's style (their braces in the first column), and for lines
    outside of them the macros and enums of several lines. text: without comments, by line."""

    lines: Sequence[str]
    functions: Sequence[Extent]
    wholes: Sequence[Extent]

    def function(self, line: int) -> Extent | None:
        """The function around a line."""
        return _around(self.functions, line)

    def is_frame(self, line: int) -> bool:
        """Whether a line is blank, or a brace in the first column: a diff may take that of another function."""
        return line < len(self.lines) and self.lines[line].rstrip() in ("", "{", "}")

    def fills_table(self, line: int) -> bool:
        """Whether a line sets a member of a table, such as an operation of the vendor's."""
        return line < len(self.lines) and _ENTRY.match(self.lines[line]) is not None

    def outside(self, line: int) -> frozenset[str]:
        """The names that a line outside of functions is about."""
        whole = _around(self.wholes, line)
        if whole is not None:
            return whole.names
        text = self.lines[line] if line < len(self.lines) else ""
        return frozenset() if text.lstrip().startswith("#include") else _names(text)


def _around(extents: Sequence[Extent], line: int) -> Extent | None:
    at = bisect_right(extents, line, key=lambda extent: extent.first) - 1
    return extents[at] if at >= 0 and line <= extents[at].last else None


def _names(text: str) -> frozenset[str]:
    if not text.lstrip().startswith("#"):
        text = _PARAMETERS.sub("", text)
    return frozenset(_WORD.findall(_TAGGED.sub(" ", text))) - _KEYWORDS


@cache
def layout(text: str) -> Layout:
    """The layout of a file."""
    source = Source("", text, 0)
    plain = source.text
    functions: list[Extent] = []
    done = 0
    for body in _BODY.finditer(plain):
        if body.start() < done:
            continue
        end = _BODY_END.search(plain, body.end())
        ends = [match.end() for match in _HEAD_ENDS.finditer(plain, done, body.start())]
        start = ends[-1] if ends else done
        head = plain[start : body.start()]
        done = end.end() if end else len(plain)
        start += len(head) - len(head.lstrip())
        functions.append(_extent(source, start, done, frozenset(_WORD.findall(head)) - _KEYWORDS))
    wholes = [
        _extent(source, match.start() + 1, match.end(), _names(match[0]))
        for pattern in (_ENUM, _DEFINE)
        for match in pattern.finditer(plain)
    ]
    return Layout(plain.split("\n"), functions, sorted(wholes, key=lambda extent: extent.first))


def _extent(source: Source, start: int, end: int, names: frozenset[str]) -> Extent:
    return Extent(source.line(start), source.line(end), names)


class Scope:
    """What the event path of a (patched) tree consists of, for questions about hunks."""

    def __init__(self, tree: Tree, closure: Closure) -> None:
        self._functions = frozenset(closure.functions)
        self._paths = frozenset(closure.functions.values())
        self._tree = tree
        self._index = closure.index

    @cached_property
    def _used(self) -> set[str]:
        """The names in the text of the functions, their own among them, and in the macros that they use."""
        words = set(self._functions)
        for path in self._paths:
            found = layout(self._tree.text(path) or "")
            for function in found.functions:
                if function.names & self._functions:
                    words.update(*(_WORD.findall(line) for line in found.lines[function.first : function.last + 1]))
        waiting = list(words)
        while waiting:
            name = waiting.pop()
            for number in self._index.names.macros.get(name, ()):
                for macro in self._index.sources[number].directives.macros.get(name, ()):
                    fresh = set(_WORD.findall(macro.body or "")) - words
                    words |= fresh
                    waiting += fresh
        return words

    def looks_at(self, touch: Touch) -> bool:
        """Whether a hunk changes something that is modelled."""
        if not self._index.covers(touch.path) and not touch.before:
            return False
        if touch.path.endswith(".c") and touch.path not in self._paths:
            return False
        if not touch.number:
            return touch.path in self._paths
        sides = (touch.before, touch.removed), (touch.after, touch.added)
        return any(self._modelled(layout(text), line) for text, lines in sides for line in lines)

    def _modelled(self, found: Layout, line: int) -> bool:
        if found.is_frame(line):
            return False
        function = found.function(line)
        if function is not None:
            return bool(function.names & self._functions)
        return found.fills_table(line) or bool(found.outside(line) & self._used)


def not_looked_at(touches: Iterable[Touch], scope: Scope) -> list[str]:
    """A sentence for each file of each patch with hunks that change nothing that is modelled."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for touch in touches:
        if not scope.looks_at(touch):
            numbers.setdefault((touch.patch, touch.path), []).append(touch.number)
    return [f"{patch}: {path}: {_hunks(found)}not looked at: not modelled" for (patch, path), found in numbers.items()]


def _hunks(numbers: Sequence[int]) -> str:
    if not any(numbers):
        return ""
    return f"hunk{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))} "
