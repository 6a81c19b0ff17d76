"""The one exception of reading and running C: something is needed that nobody answers."""

from __future__ import annotations

from iretrace.linux.ctree import Pos


class Unmodelled(Exception):
    """Something that the run needs and that nobody answers. where: the C place; row: the TOML row that would answer."""

    def __init__(self, what: str, where: Pos | None = None, row: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.row = row

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


def describe(error: Unmodelled) -> str:
    """An error with the place and the row that would answer it, on one line."""
    row = " ".join(error.row.split("\n")).strip()
    return f"{error}; row to add: {row}" if row else str(error)
