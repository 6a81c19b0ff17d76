"""Trees that a small hypervisor plays, and a cache that is empty."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import iretrace.cli.demo  # noqa: F401  (bound to the real sources before a test puts others in their place)
from tests.cli.small_source import SmallSource


@pytest.fixture
def no_earlier_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test begins with an empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes every tree behave like the small hypervisor with a mistake."""

    def play(mistake: str) -> None:
        monkeypatch.setattr("iretrace.cli.driver.source_of", lambda _request, _progress: SmallSource(mistake))
        monkeypatch.setattr("iretrace.cli.demo.source_of", lambda _request, _progress: SmallSource(mistake))

    return play
