"""Results of earlier runs, kept under $XDG_CACHE_HOME/iretrace and reused while nothing that they rest on has changed.

What is found there was perhaps not written by us: it is JSON, read with the same suspicion as a patch. Whatever is not
exactly as we would have written it is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import iretrace
from iretrace.verdict import Result, Verdict

MAX_BYTES = 32 << 20
"""A larger file is none of ours."""

MAX_ENTRIES = 4000
"""The oldest results beyond are removed."""

T = TypeVar("T")


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where results are kept."""
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path("~/.cache").expanduser()) / "iretrace" / "results"


@cache
def own_digest() -> str:
    """Of everything that Iretrace itself consists of: code, rules, schemas, tests."""
    digest = hashlib.sha256()
    root = Path(iretrace.__file__).parent
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def key(*parts: Any) -> str:
    """The name of a result that depends on these (JSON values) and on Iretrace itself, beside what it read."""
    return digest_of([own_digest(), *parts])


def digest_of(value: Any) -> str:
    """Of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Stored:
    """The results in a directory, which need not exist. Nothing here ever fails: at worst nothing is kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._same: dict[str, bool] = {}

    def find(self, name: str, still_reads: Callable[[Mapping[str, str]], bool]) -> Result | None:
        """The result of that name, if what it read is still the same."""
        try:
            entry = self._read(name)
            read = entry["read"]
            if read not in self._same:
                digests = read_as(dict[str, str], self._read(_name(read)))
                self._same[read] = digest_of(digests) == read and still_reads(digests)
            result = read_as(Result, entry["result"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return result if self._same[read] and keeps(result) else None

    def keep(self, name: str, result: Result, digests: Mapping[str, str]) -> None:
        """Keep a result that was reached by reading this."""
        if not keeps(result):
            return
        read = digest_of(dict(digests))
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not (self._directory / f"{read}.json").exists():
                self._write(read, dict(digests))
            self._write(name, {"read": read, "result": asdict(result)})
        except OSError:
            return

    def tidy(self) -> None:
        """Remove the oldest files beyond MAX_ENTRIES."""
        try:
            files = sorted(self._directory.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in files[MAX_ENTRIES:]:
                path.unlink()
        except OSError:
            return

    def _read(self, name: str) -> Any:
        with open(self._directory / f"{name}.json", "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError("too large")
        return json.loads(content)

    def _write(self, name: str, value: Any) -> None:
        """In one go: another process sees the old file or the new one."""
        with tempfile.NamedTemporaryFile("w", dir=self._directory, delete=False, encoding="ascii") as file:
            json.dump(value, file)
        os.replace(file.name, self._directory / f"{name}.json")


def keeps(result: Result) -> bool:
    """Whether a result is worth keeping: a search that was stopped by a limit may come further next time."""
    return result.verdict is not Verdict.UNDETERMINED or not result.reason.startswith("stopped by")


def _name(text: Any) -> str:
    """A name that `keep` could have given."""
    if not isinstance(text, str) or len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise ValueError("no name of ours")
    return text


def read_as(kind: type[T], value: Any) -> T:
    """What `dataclasses.asdict` and JSON made of a value of this kind. ValueError if they cannot have made it."""
    made: T = _read_as(kind, value)
    return made


def _read_as(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_record(kind, value)
    if origin is UnionType:
        return _read_union(arguments, value)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_read_as(arguments[0], item) for item in value)
        return tuple(_read_as(one, item) for one, item in zip(arguments, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {_read_as(arguments[0], name): _read_as(arguments[1], item) for name, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"no {kind}")


def _read_record(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(kind)}:
        raise ValueError(f"no {kind.__name__}")
    return kind(**{name: _read_as(one, value[name]) for name, one in _hints(kind).items()})


def _read_union(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        try:
            return _read_as(kind, value)
        except ValueError:
            continue
    raise ValueError("none of these kinds")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
