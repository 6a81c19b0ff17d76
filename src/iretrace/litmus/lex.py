"""Words of one line of a litmus file with their columns, and the errors that point at them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from iretrace.litmus.grammar import MAX_WORD
from iretrace.verdict import InputError

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
NUMBER = re.compile(r"0|[1-9][0-9]{0,9}|0x[0-9A-Fa-f]{1,8}")
_TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|[0-9][A-Za-z0-9_]*|==|!=|<=|>=|[<>,:\[\]+~-]")
_BLANKS = " \t"


@dataclass(frozen=True, slots=True)
class Token:
    """A word, number or sign. Line and column count from 1; a tab is one column, as in gcc."""

    text: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file: its text without comment and trailing blanks, and where it is."""

    text: str
    raw: str
    number: int


def printable(text: str) -> str:
    """The text with every character that could disturb a terminal written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in text)


def quote(word: str) -> str:
    """A word of the file for a message: in quotes, printable, not longer than 40 characters."""
    return f"'{printable(word if len(word) <= 40 else word[:37] + '...')}'"


def listed(words: Sequence[str]) -> str:
    """What to write, when there is a choice of these words."""
    return f"write '{words[0]}'" if len(words) == 1 else f"write one of: {', '.join(words)}"


def nearest(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """What to write instead of an unknown word: the known one most like it, else `otherwise`, else one of the known."""
    words = list(known)
    close = difflib.get_close_matches(word[:MAX_WORD].lower(), words, 1, 0.6)
    if close:
        return f"write '{close[0]}'"
    return otherwise or listed(words)


class Source:
    """The text of one litmus file. Every error about it goes through `fail`."""

    def __init__(self, text: str, path: str) -> None:
        self.path = path
        self.text = text

    def fail(self, line: int, column: int, what: str) -> NoReturn:
        """Raise the InputError "path:line:column: what"."""
        raise InputError(f"{printable(self.path)}:{line}:{column}: {what}")

    def fail_at(self, token: Token, what: str) -> NoReturn:
        """Raise the InputError at a token."""
        self.fail(token.line, token.column, what)

    def lines(self) -> Iterator[Line]:
        """The lines that hold anything, comments removed. Characters that editors do not show are refused."""
        for number, ended in enumerate(self.text.split("\n"), 1):
            raw = ended.removesuffix("\r").rstrip(_BLANKS)
            for column, char in enumerate(raw, 1):
                if not char.isprintable() and char != "\t":
                    self.fail(number, column, f"character U+{ord(char):04X} is not allowed; write plain text")
            if raw and not raw.startswith("#"):
                yield Line(raw.split("#", 1)[0].rstrip(_BLANKS), raw, number)

    def tokens(self, line: Line) -> list[Token]:
        """The words and signs of a line. Raises InputError for a character that starts none, and for a long word."""
        found: list[Token] = []
        position = 0
        while position < len(line.text):
            if line.text[position] in _BLANKS:
                position += 1
                continue
            match = _TOKEN.match(line.text, position)
            if match is None:
                what = f"unexpected {quote(line.text[position])}; write words, commas and colons, and comments after #"
                self.fail(line.number, position + 1, what)
            token = Token(match.group(), line.number, position + 1)
            if len(token.text) > MAX_WORD:
                self.fail_at(token, f"{quote(token.text)} is too long; write at most {MAX_WORD} characters")
            found.append(token)
            position = match.end()
        return found
