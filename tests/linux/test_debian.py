"""Asking Debian's archive: of which lists, and what is said where it cannot be asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.linux import debian


def test_where_the_suite_cannot_be_asked_the_machines_own_lists_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "no keyring")
    assert debian.apt_for("6.1", said.append) == ()
    assert len(said) == 1 and said[0].endswith("; going by the lists that this machine's apt has")


def test_versions_come_as_apt_lists_them_and_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = """linux-source-6.1 | 6.1.192-3 | http://x bookworm-security/main amd64 Packages
linux-source-6.1 | 6.1.192-3 | http://y bookworm/main amd64 Packages
linux-source-6.1 | 6.1.170-3 | http://y bookworm/main Sources
linux-source-6.1 | 6.1.170-1 | http://y bookworm/main amd64 Packages
"""
    monkeypatch.setattr(debian, "run", lambda *_command: listed)
    assert debian.served_versions("linux-source-6.1", ()) == ["6.1.192-3", "6.1.170-1"]


def test_a_command_that_fails_is_one_line_with_its_last_complaint() -> None:
    with pytest.raises(debian.Unavailable, match=r"^sh -c: second; try it by hand$"):
        debian.run("sh", "-c", "echo first >&2; echo second >&2; exit 3")
