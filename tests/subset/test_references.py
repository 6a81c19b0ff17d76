"""Records that refer to records, and the one primitive that drivers provide."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.subset import pack, record, shared, u8, unpack
from iretrace.subset.check import check

SAMPLE = '''"""A module of the subset."""

from __future__ import annotations

from iretrace.subset import record, shared, u8


@record
class Inner:
    """Referred to."""

    a: u8 = 0
    b: u8 = 0


@record
class Outer:
    """Refers."""

    inner: Inner
    x: u8 = 0
    y: u8 = 0


def step(outer: Outer, other: Inner) -> None:
    inner = outer.inner
    shared(outer.inner, 1, 2, 0)
    BODY
'''


@record
class Inner:
    a: u8 = 0
    b: u8 = 0

    def access(self, cell: int, bits: int, how: int) -> None:
        """What a driver would do."""
        self.a, self.b = cell, bits


@record
class Outer:
    inner: Inner
    x: u8 = 0
    y: u8 = 0


def errors(tmp_path: Path, body: str) -> list[str]:
    path = tmp_path / "sample.py"
    path.write_text(SAMPLE.replace("BODY", body))
    return check([path])


@pytest.mark.parametrize("body", ["inner.a = outer.inner.b", "outer.inner.a = 3", "outer.x = inner.a"])
def test_a_reference_is_followed(tmp_path: Path, body: str) -> None:
    assert errors(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("outer.inner = other", "set by the driver"),
        ("outer.inner.a = 256", "may be 256"),
        ("shared(outer.x, 1, 2, 0)", "a record and three integers"),
        ("shared(outer.inner, other, 2, 0)", "a record and three integers"),
        ("shared(outer.inner, 1)", "no function of the subset"),
        ("outer.x = shared(outer.inner, 1, 2, 0)", "another type"),
    ],
)
def test_what_a_reference_is_not_for_is_refused(tmp_path: Path, body: str, message: str) -> None:
    assert any(message in error for error in errors(tmp_path, body))


def test_a_reference_is_no_part_of_the_state() -> None:
    outer = Outer(Inner(1, 2), 3, 4)
    assert pack(outer) == (3, 4)
    again = unpack(Outer, pack(outer))
    assert (again.x, again.y) == (3, 4)
    assert again.inner is None


def test_shared_tells_the_driver_what_is_accessed() -> None:
    inner = Inner()
    shared(inner, 5, 6, 0)
    assert (inner.a, inner.b) == (5, 6)
