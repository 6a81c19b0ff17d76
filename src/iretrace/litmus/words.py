"""The words of one line of a litmus file, taken from left to right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from iretrace.litmus.grammar import RESERVED
from iretrace.litmus.lex import NUMBER, WORD, Line, Source, Token, listed, nearest, quote


class Words:
    """The words of one line, taken from left to right."""

    def __init__(self, source: Source, line: Line) -> None:
        self.source = source
        self.line = line
        self.tokens = source.tokens(line)
        self.next = 0

    def peek(self, ahead: int = 0) -> str:
        """The text of a word to come, "" past the end of the line."""
        index = self.next + ahead
        return self.tokens[index].text if index < len(self.tokens) else ""

    def take(self, wanted: str) -> Token:
        """The next token; wanted says what is missing if the line ends here."""
        if self.next == len(self.tokens):
            self.source.fail(self.line.number, len(self.line.text) + 1, f"the line ends too early; write {wanted}")
        self.next += 1
        return self.tokens[self.next - 1]

    def word(self, wanted: str) -> Token:
        """The next token, which must be a word."""
        token = self.take(wanted)
        if not WORD.fullmatch(token.text):
            self.source.fail_at(token, f"unexpected {quote(token.text)}; write {wanted}")
        return token

    def sign(self, sign: str, wanted: str) -> None:
        """The next token, which must be this sign."""
        token = self.take(wanted)
        if token.text != sign:
            self.source.fail_at(token, f"unexpected {quote(token.text)}; write {wanted}")

    def one_of(self, known: Iterable[str], what: str) -> Token:
        """The next token, which must be one of the known words."""
        words = list(known)
        token = self.word(listed(words).removeprefix("write "))
        if token.text not in words:
            self.source.fail_at(token, f"unknown {what} {quote(token.text)}; {nearest(token.text, words)}")
        return token

    def new_name(self, what: str) -> Token:
        """The next token as the name of a label or mark, which must not be a word of the language."""
        token = self.word(f"the name of a {what}")
        if token.text in RESERVED:
            self.source.fail_at(token, f"{quote(token.text)} is a word of the language; choose another {what}")
        return token

    def comma(self) -> bool:
        """Whether a comma follows, which is then taken."""
        if self.peek() != ",":
            return False
        self.next += 1
        return True

    def end(self) -> None:
        """The line must end here."""
        if self.next < len(self.tokens):
            token = self.tokens[self.next]
            self.source.fail_at(token, f"unexpected {quote(token.text)}; end the line before it")

    def fail_next(self, what: str) -> NoReturn:
        """Raise an InputError at the next token."""
        self.source.fail_at(self.tokens[self.next], what)

    def number(self, limit: int, wanted: str) -> int:
        """The next token as a number from 0 to `limit`; wanted describes it."""
        token = self.take("a number")
        if not NUMBER.fullmatch(token.text) or int(token.text, 0) > limit:
            self.source.fail_at(token, f"{quote(token.text)} is not a number here; write {wanted}")
        return int(token.text, 0)
