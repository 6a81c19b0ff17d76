"""Text for a terminal of 80 columns: what is foreign is made harmless, what is long is wrapped, colour is optional."""

from __future__ import annotations

import textwrap
import unicodedata
from dataclasses import dataclass

WIDTH = 80

RED, GREEN, YELLOW = "31", "32", "33"
"""SGR colours."""


@dataclass(frozen=True, slots=True)
class Look:
    """How the text is to look. colour: with SGR sequences. ascii_only: no character beyond ASCII. verbose: say all."""

    colour: bool = False
    ascii_only: bool = False
    verbose: bool = False

    def symbol(self, unicode: str, plain: str) -> str:
        """A symbol, or what stands for it where only ASCII is wanted."""
        return plain if self.ascii_only else unicode

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour, if colour is wanted. Measure a line before painting it."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colour else text

    def clean(self, text: str) -> str:
        """Foreign text on one line, each character one column wide: blanks are joined, everything odd is escaped.

        Names and source lines come from trees and files that nobody vouches for, so no control character, no escape
        sequence and no invisible or reordering character reaches the terminal as it is.
        """
        return "".join(char if self._harmless(char) else _escape(char) for char in " ".join(text.split()))

    def _harmless(self, char: str) -> bool:
        if char.isascii() or self.ascii_only:
            return char.isascii() and char.isprintable()
        plain = unicodedata.category(char)[0] in "LNPS" and unicodedata.combining(char) == 0
        return plain and unicodedata.east_asian_width(char) not in "WF"


def _escape(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode("ascii") if not char.isascii() else f"\\x{ord(char):02x}"


def shorten(text: str, width: int) -> str:
    """The text in at most `width` columns; three dots say that something is missing."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."[:width]


def wrap(text: str, first: str = "", rest: str = "", width: int = WIDTH, limit: int = 0) -> list[str]:
    """Clean text as lines: the first one begins with `first`, the others with `rest`; at most `limit` if not 0."""
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=True
    )
    if not lines:
        return [first.rstrip()]
    if limit and len(lines) > limit:
        last = lines[limit - 1]
        lines = [*lines[: limit - 1], last[: width - 4].rstrip() + " ..."]
    return lines
