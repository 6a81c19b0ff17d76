"""The shipped tests, and the choice of tests by name, file or directory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path

from iretrace.litmus.lex import nearest, printable, quote
from iretrace.litmus.parse import load, parse
from iretrace.litmus.test import Test
from iretrace.verdict import InputError

SUFFIX = ".litmus"


@cache
def shipped() -> tuple[Test, ...]:
    """The tests that come with Iretrace, by name."""
    files = (entry for entry in resources.files("iretrace.litmus").joinpath("corpus").iterdir())
    texts = {entry.name: entry.read_text("utf-8") for entry in files if entry.name.endswith(SUFFIX)}
    return tuple(parse(texts[name], f"iretrace/litmus/corpus/{name}") for name in sorted(texts))


def source_text(test: Test) -> str:
    """The text of a test as its author wrote it. InputError: its file is gone."""
    if test in shipped():
        return _shipped_text(Path(test.path).name)
    try:
        return Path(test.path).read_text("utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{printable(test.path)}: cannot be read: {error.strerror}") from None


@cache
def _shipped_text(name: str) -> str:
    return resources.files("iretrace.litmus").joinpath("corpus", name).read_text("utf-8")


def select(wanted: Iterable[str]) -> tuple[Test, ...]:
    """The tests that the user asked for: each a shipped test's name, a file, or a directory of *.litmus files.

    Nothing asked for means the shipped corpus. A test that is named twice is taken once. Raises InputError for what is
    none of these, and for two tests of one name, which a report could not tell apart.
    """
    names = list(wanted)
    if not names:
        return shipped()
    chosen: dict[str, Test] = {}
    for name in names:
        for test in _tests(name):
            other = chosen.setdefault(test.name, test)
            if other.path != test.path:
                what = f"{printable(test.path)}:1:1: test {quote(test.name)} has the name of the test in"
                raise InputError(f"{what} {printable(other.path)}; give one of them another name")
    return tuple(chosen.values())


def _tests(name: str) -> tuple[Test, ...]:
    """The tests that one argument means."""
    by_name = {test.name: test for test in shipped()}
    if name in by_name:
        return (by_name[name],)
    path = Path(name)
    if name and path.is_dir():
        files = sorted(path.glob(f"*{SUFFIX}"))
        if not files:
            raise InputError(f"{printable(name)}: no *{SUFFIX} file in this directory; give one that holds tests")
        return tuple(load(file) for file in files)
    if path.is_file() or name.endswith(SUFFIX) or "/" in name:
        return (load(path),)
    raise InputError(
        f"no shipped test and no file is called {quote(name)}; {nearest(name, by_name, 'iretrace tests lists them')}"
    )
