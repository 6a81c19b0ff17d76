"""What the terminal can show: colour, symbols, progress. Results go to stdout, progress to stderr."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TextIO

COLUMNS = 80
SECONDS_BETWEEN = 0.1


def wants_color(choice: str, stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to write colour: --color always or never, else FORCE_COLOR, NO_COLOR, TERM=dumb, else a terminal."""
    if choice != "auto":
        return choice == "always"
    if environment.get("FORCE_COLOR"):
        return True
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return stream.isatty()


def only_ascii(stream: TextIO) -> bool:
    """Whether the stream cannot carry symbols beyond ASCII."""
    return "utf" not in (stream.encoding or "").lower()


class Progress:
    """One line that says what is going on; silent unless the stream is a terminal that can go back in a line."""

    def __init__(self, stream: TextIO, environment: Mapping[str, str] = os.environ, silent: bool = False) -> None:
        self._stream = stream
        self._shows = not silent and stream.isatty() and environment.get("TERM") != "dumb"
        self._next = 0.0
        self._dirty = False

    def __call__(self, text: str) -> None:
        """Say what is going on now."""
        now = time.monotonic()
        if self._shows and now >= self._next:
            self._next = now + SECONDS_BETWEEN
            self._dirty = True
            self._stream.write(f"\r\x1b[K{text[: COLUMNS - 1]}")
            self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_error: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove the line before anything else is written."""
        if self._dirty:
            self._dirty = False
            self._stream.write("\r\x1b[K")
            self._stream.flush()
