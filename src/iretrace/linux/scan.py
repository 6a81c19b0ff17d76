"""One fast pass over raw text: which names a file seems to define, and where.

Kernel style makes this possible: what stands at the top level begins in column 0. The pass may find too much (text in
comments, inactive branches, macro bodies); index.py looks closely at what is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from iretrace.linux.cursor import ANNOTATION_CALLS, ANNOTATIONS, STORAGE_WORDS

# Quantifiers are bounded or possessive wherever a hostile text could make a search take for ever.
_ITEM = re.compile(r"\n(?:#[ \t]*define[ \t]+(\w+)|([A-Za-z_][\w\s*]{0,400}+)([(\[=;,{]))")
_ATTRIBUTES = r"(?:__\w++\s*+(?:\((?:[^(){};]|\((?:[^(){};]|\([^(){};]*+\))*+\))*+\))?+\s*+)*+"
# One pattern for each word: a literal beginning is what makes a search fast.
_TAGS = {kind: re.compile(rf"{kind}\s++({_ATTRIBUTES})(\w*)\s*+{_ATTRIBUTES}\{{") for kind in ("struct", "union")}
_ENUM = re.compile(r"enum(?<!\wenum)\b\s*(?:__\w+\s+(?=\w))?(\w*)\s*\{([^}]*)\}")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|\n[ \t]*#[^\n]*", re.DOTALL)
_ENUMERATOR = re.compile(r"(?:^|,)\s*(\w+)")
_AFTER_ATTRIBUTE = re.compile(r"[^()]*(?:\([^()]*\)[^()]*)*\)\s*([A-Za-z_][\w\s*]*)([(\[=;,{])")
_POINTER = re.compile(r"\s*\*+\s*(?:const\s+)?(\w+)")
_PARENTHESISED = re.compile(r"\s*(\w+)\s*\)\s*\(")
_POINTER_OR_NAME = re.compile(r"\s*\**\s*(\w+)\s*[\[=;]")
_DECLARATORS = re.compile(r"[^;(){}=]*;")
_BRACE = re.compile(r"[{}]")
_TYPEDEF_NAME = re.compile(rf"\s*+({_ATTRIBUTES})\**+(\w*)")
_NO_ITEM = frozenset(("else", "return", "if", "while", "for", "switch", "do", "case", "default", "goto"))

Place = tuple[int, int]
"""A file's number and an offset in Source.raw."""


@dataclass(slots=True)
class Names:
    """Names to places, files in the order in which they were added.

    items: what is declared at the top level (functions, variables, prototypes). tags: "struct x" and "union x".
    invocations: macros used at the top level as if they were declarations, with the place of the name.
    """

    macros: dict[str, list[int]] = field(default_factory=dict)
    items: dict[str, list[Place]] = field(default_factory=dict)
    typedefs: dict[str, list[Place]] = field(default_factory=dict)
    tags: dict[str, list[Place]] = field(default_factory=dict)
    invocations: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, file: int, raw: str) -> None:
        """Scan the raw text of a file."""
        macros = self.macros
        for match in _ITEM.finditer(raw):
            name, words, end = match.groups()
            if name:
                files = macros.setdefault(name, [])
                if not files or files[-1] != file:
                    files.append(file)
            else:
                self._add_item(file, raw, match.start() + 1, words, end, match.end())
        for kind, pattern in _TAGS.items():
            for match in pattern.finditer(raw):
                # A tag that looks like an attribute (struct __foo) was taken for one.
                tag = match[2] or match[1].rstrip()
                if tag:
                    self.tags.setdefault(f"{kind} {tag}", []).append((file, match.start()))

    def _add_item(self, file: int, raw: str, start: int, words: str, end: str, after: int) -> None:
        parts = words.replace("*", " ").split()
        name = parts[-1]
        if parts[0] == "__extension__" and len(parts) > 1:
            del parts[0]
        if parts[0] == "typedef":
            self._add_typedef(file, raw, start, name, end, after)
            return
        if end == "{" and parts[0] in ("static", "const"):
            if declared := _POINTER_OR_NAME.match(raw, _closing_brace(raw, after)):
                self.items.setdefault(declared[1], []).append((file, start))
            return
        if parts[0] in _NO_ITEM or end == "{":
            return
        place = file, start
        if end == "(":
            if name in ANNOTATION_CALLS:
                behind = _AFTER_ATTRIBUTE.match(raw, after)
                if behind and behind[1] != words:
                    self._add_item(file, raw, start, "int " + behind[1], behind[2], behind.end())
                return
            if pointer := _POINTER.match(raw, after):
                name = pointer[1]
            elif all(part in STORAGE_WORDS or part in ANNOTATIONS for part in parts[:-1]):
                self.invocations.append((file, start, name))
                return
        elif len(parts) == 1 or (len(parts) == 2 and parts[0] in ("struct", "union", "enum")):
            return
        self.items.setdefault(name, []).append(place)
        if end != "(" and (name in ANNOTATIONS or (name.startswith("__") and len(parts) > 2)):
            self.items.setdefault(parts[-2], []).append(place)
        if end == "," and (more := _DECLARATORS.match(raw, after)):
            for other in more[0][:-1].replace("*", " ").split(","):
                if other.strip():
                    self.items.setdefault(other.split("[")[0].split()[-1], []).append(place)

    def _add_typedef(self, file: int, raw: str, start: int, name: str, end: str, after: int) -> None:
        if end == "{":
            behind_body = _TYPEDEF_NAME.match(raw, _closing_brace(raw, after))
            if behind_body is None:
                return
            name = behind_body[2] or behind_body[1].rstrip()
        elif end == "(":
            if pointer := _POINTER.match(raw, after) or _PARENTHESISED.match(raw, after):
                name = pointer[1]
            elif name.startswith("__attribute"):
                semicolon = raw.find(";", after)
                behind = re.findall(r"\w+", raw[after:semicolon].rpartition(")")[2])
                words = raw[start:after].replace("*", " ").split()
                name = behind[-1] if behind else words[-2]
        self.typedefs.setdefault(name, []).append((file, start))


def _closing_brace(raw: str, at: int) -> int:
    """Behind the brace that closes the one before `at`."""
    depth = 1
    for match in _BRACE.finditer(raw, at):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.end()
    return len(raw)


def enums(raw: str) -> Iterator[tuple[str, list[str], int]]:
    """All enums in a raw text: their tags and enumerators, and the offsets of `enum`."""
    if "enum" not in raw:
        return
    for match in _ENUM.finditer(raw):
        yield match[1], _ENUMERATOR.findall(_COMMENT.sub(" ", match[2])), match.start()
