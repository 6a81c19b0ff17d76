"""Results as JSON and back, read with the suspicion that a file deserves which perhaps somebody else wrote.

Lines and assumptions stand in many places of a result. Each is told once, in rows of their own; where it stands, there
is its number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from iretrace.report.summary import record
from iretrace.verdict import Assumption, CLine, reader_of

ONCE: tuple[type, ...] = (CLine, Assumption)
"""What is told in rows."""

Rows = Mapping[type, Mapping[int, Any]]
"""The records of each of these kinds, by number."""

UNREADABLE = (ValueError, KeyError, TypeError, RecursionError)
"""What reading something else comes to."""

T = TypeVar("T")

Reader = Callable[[Any, Rows], Any]


class Teller:
    """What json.dumps() makes of a result (its `default`), and then of the teller: the rows, which are known then."""

    def __init__(self) -> None:
        self._numbers: dict[type, dict[Any, int]] = {kind: {} for kind in ONCE}

    def __call__(self, value: Any) -> Any:
        """One level of a value."""
        if value is self:
            return {kind.__name__: list(map(reader_of(kind), numbers)) for kind, numbers in self._numbers.items()}
        numbers = self._numbers.get(type(value))
        return record(value) if numbers is None else numbers.setdefault(value, len(numbers))


def tell(result: Any) -> str:
    """A value and its rows as one text."""
    teller = Teller()
    value = json.dumps(result, default=teller)
    return f"[{value}, {json.dumps(teller, default=teller)}]"


def read_told(kind: type[T], text: str) -> T:
    """What `tell` made of a value of this kind. UNREADABLE: it did not."""
    value, rows = _plain_list(json.loads(text))
    return read_as(kind, value, read_rows(rows, {}))


def read_rows(told: Any, known: dict[Any, Any]) -> Rows:
    """The rows that a teller told. known: those of other results; what is alike is one object."""
    return {kind: dict(enumerate(_records(kind, told[kind.__name__], known))) for kind in ONCE}


def _records(kind: type, rows: Sequence[Sequence[Any]], known: dict[Any, Any]) -> list[Any]:
    found: list[Any] = []
    for row in _plain_list(rows):
        key = (kind, *_plain_list(row))
        if key not in known:
            known[key] = _fields_reader(kind)(row, {})
        found.append(known[key])
    return found


def read_as(kind: type[T], value: Any, rows: Rows | None = None) -> T:
    """What JSON made of a value of this kind. UNREADABLE if it cannot have made it."""
    named: Any = kind
    made: T = _reader(named)(value, rows or {})
    return made


@cache
def _reader(kind: Any) -> Reader:
    """Reads values of this kind. UNREADABLE for any other."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in ONCE:
        return lambda value, rows: rows[kind][value]
    if is_dataclass(kind):
        return _record_reader(kind)
    if origin is UnionType:
        return _union_reader([_reader(one) for one in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return _numbers_reader(arguments[0]) if arguments[0] in ONCE else _list_reader(_reader(arguments[0]))
    if origin is tuple:
        return _tuple_reader([_reader(one) for one in arguments])
    if origin is dict:
        return _dict_reader(_reader(arguments[0]), _reader(arguments[1]))
    if issubclass(kind, Enum):
        return lambda value, _rows: kind(value)
    return _plain_reader(kind)


def _plain_reader(kind: type) -> Reader:
    def read(value: Any, _rows: Rows) -> Any:
        if type(value) is not kind:
            raise ValueError(f"no {kind}")
        return value

    return read


def _list_reader(one: Reader) -> Reader:
    def read(value: Any, rows: Rows) -> Any:
        return tuple([one(item, rows) for item in _plain_list(value)])

    return read


def _numbers_reader(kind: type) -> Reader:
    def read(value: Any, rows: Rows) -> Any:
        return tuple(map(rows[kind].__getitem__, _plain_list(value)))

    return read


def _tuple_reader(each: Sequence[Reader]) -> Reader:
    def read(value: Any, rows: Rows) -> Any:
        return tuple([one(item, rows) for one, item in zip(each, _plain_list(value), strict=True)])

    return read


def _dict_reader(name: Reader, one: Reader) -> Reader:
    def read(value: Any, rows: Rows) -> Any:
        if type(value) is not dict:
            raise ValueError("no object")
        return {name(key, rows): one(item, rows) for key, item in value.items()}

    return read


def _union_reader(each: Sequence[Reader]) -> Reader:
    def read(value: Any, rows: Rows) -> Any:
        for one in each:
            try:
                return one(value, rows)
            except (ValueError, KeyError, TypeError):
                continue
        raise ValueError("none of these kinds")

    return read


def _record_reader(kind: Any) -> Reader:
    hints = get_type_hints(kind)
    readers = [(field.name, _reader(hints[field.name])) for field in fields(kind)]

    def read(value: Any, rows: Rows) -> Any:
        if type(value) is not dict or len(value) != len(readers):
            raise ValueError(f"no {kind.__name__}")
        return kind(*[one(value[name], rows) for name, one in readers])

    return read


@cache
def _fields_reader(kind: Any) -> Reader:
    """Reads a row."""
    hints = get_type_hints(kind)
    read = _tuple_reader([_reader(hints[field.name]) for field in fields(kind)])
    return lambda value, rows: kind(*read(value, rows))


def _plain_list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError("no list")
    return value
