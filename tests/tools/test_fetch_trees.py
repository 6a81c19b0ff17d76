"""Fetching kernel trees: what is found, what is chosen, and where it is asked for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from iretrace.linux import debian
from iretrace.linux.debian import Unavailable
from tools import fetch_trees
from tools.fetch_trees import choose, locate, makefile_version, trees_in

MAKEFILE = "# SPDX\nVERSION = {}\nPATCHLEVEL = {}\nSUBLEVEL = {}\nEXTRAVERSION =\n"


def make_tree(directory: Path, *version: int) -> Path:
    directory.mkdir(parents=True)
    (directory / "Makefile").write_text(MAKEFILE.format(*version))
    return directory


def test_a_tree_is_known_by_its_makefile(tmp_path: Path) -> None:
    assert makefile_version(make_tree(tmp_path / "any name", 6, 1, 192)) == (6, 1, 192)


def test_a_directory_without_a_kernel_makefile_is_no_tree(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:\n")
    assert makefile_version(tmp_path) is None


def test_trees_of_a_series_come_newest_first(tmp_path: Path) -> None:
    for point in (9, 170, 192):
        make_tree(tmp_path / str(point), 6, 1, point)
    make_tree(tmp_path / "other", 6, 12, 1)
    found = trees_in(tmp_path)
    assert [path.name for path in found["6.1"]] == ["192", "170", "9"]
    assert [path.name for path in found["6.12"]] == ["other"]


def test_trees_may_name_one_tree_itself(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "linux", 6, 1, 5)
    assert locate(str(tree), "6.1") == tree


def test_named_trees_are_never_completed_by_a_download(tmp_path: Path) -> None:
    make_tree(tmp_path / "linux", 6, 12, 5)
    with pytest.raises(Unavailable, match=r"no Linux 6\.1 tree"):
        locate(str(tmp_path), "6.1")


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no such directory"):
        locate(str(tmp_path / "nowhere"), "")


def test_cached_trees_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(debian, "run", lambda *command, cwd=None: pytest.fail(f"ran {command}"))
    held = {"a": (6, 1, 2), "b": (6, 1, 1), "c": (6, 12, 1), "d": (7, 3, 4), "e": (5, 10, 262)}
    for name, version in held.items():
        make_tree(tmp_path / "iretrace" / "trees" / name, *version)
    assert locate("", "") == tmp_path / "iretrace" / "trees"


def test_without_apt_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["fetch_trees.py", "--path", "6.1"])
    assert fetch_trees.main() == 1
    assert re.search("apt-cache not found; .*TREES=DIR", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("versions", "count", "chosen"),
    [
        (["6.1.192-2", "6.1.192-1", "6.1.170-3"], 2, ["6.1.192-2", "6.1.170-3"]),
        (["6.1.192-2", "6.1.192-1"], 2, ["6.1.192-2"]),
        (["6.12.117-1", "6.12.107-1"], 1, ["6.12.117-1"]),
    ],
)
def test_the_newest_and_the_oldest_point_release_are_chosen(versions: list[str], count: int, chosen: list[str]) -> None:
    assert choose(versions, count) == chosen


def test_a_series_is_asked_for_in_its_suite_whatever_lists_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*command: str, cwd: Path | None = None) -> str:
        commands.append(command)
        if "madison" in command and len(command) > 3:
            return " linux-source-7.3 | 7.3.4-1 | http://deb.debian.org/debian trixie-backports/main amd64 Packages"
        if "download" in command and cwd:
            (cwd / "a.deb").write_bytes(b"")
        return ""

    cache = tmp_path / "iretrace"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(debian, "run", run)
    monkeypatch.setattr(debian, "KEYRING", tmp_path)
    monkeypatch.setattr(fetch_trees, "unpack_into", lambda _deb, tree, _progress: make_tree(tree, 7, 3, 4))
    fetch_trees.fetch("7.3", 1, cache)
    assert [path.name for path in trees_in(cache / "trees")["7.3"]] == ["linux-7.3.4"]
    sources = (cache / "apt/7.3/debian.sources").read_text()
    assert "Suites: trixie-backports\n" in sources
    assert f"Signed-By: {tmp_path}\n" in sources
    assert all(f"Dir::State::lists={cache}/apt/7.3/lists" in command for command in commands)


def test_a_series_that_is_not_to_be_had_is_told_and_the_others_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(series: str, _count: int, cache: Path) -> None:
        if series == "7.3":
            raise Unavailable("gone")
        make_tree(cache / "trees" / series, *(int(part) for part in series.split(".")), 1)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fetch_trees, "fetch", fetch)
    assert locate("", "") == tmp_path / "iretrace" / "trees"
    assert capsys.readouterr().err == "fetch_trees: Linux 7.3: gone\n"


def test_a_damaged_package_is_an_error_and_leaves_no_tree(tmp_path: Path) -> None:
    (tmp_path / "a.deb").write_bytes(b"!<arch>\nno")
    with pytest.raises(Unavailable, match="remove the file and try again"):
        fetch_trees.unpack(tmp_path / "a.deb", tmp_path / "trees")
    assert list((tmp_path / "trees").iterdir()) == []
