"""Fetching kernel trees: what is found, what is chosen, and that an archive cannot write elsewhere."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tools import fetch_trees
from tools.fetch_trees import Unavailable, choose, locate, makefile_version, trees_in, unpack_stream, wanted

MAKEFILE = "# SPDX\nVERSION = {}\nPATCHLEVEL = {}\nSUBLEVEL = {}\nEXTRAVERSION =\n"


def make_tree(directory: Path, *version: int) -> Path:
    directory.mkdir(parents=True)
    (directory / "Makefile").write_text(MAKEFILE.format(*version))
    return directory


def archive(*members: tuple[str, bytes, bytes]) -> tarfile.TarFile:
    """A tar archive of (name, type, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    buffer.seek(0)
    return tarfile.open(fileobj=buffer, mode="r|")


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
    monkeypatch.setattr(fetch_trees, "run", lambda *command, cwd=None: pytest.fail(f"ran {command}"))
    for name, version in {"a": (6, 1, 2), "b": (6, 1, 1), "c": (6, 12, 1)}.items():
        make_tree(tmp_path / "iretrace" / "trees" / name, *version)
    assert locate("", "") == tmp_path / "iretrace" / "trees"


def test_without_apt_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="apt-cache not found; .*TREES=DIR"):
        locate("", "")


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


@pytest.mark.parametrize(
    "name",
    [
        "/arch/x86/a.c",
        "linux/../arch/x86/a.c",
        "linux/arch/x86/../../../a",
        "linux/drivers/a.c",
        "Makefile",
        "linux/.config",
    ],
)
def test_a_member_that_is_not_wanted_is_left(name: str) -> None:
    assert wanted(name) is None


def test_only_regular_files_of_wanted_directories_are_written(tmp_path: Path) -> None:
    members = [
        ("linux/arch/x86/kvm/a.c", tarfile.REGTYPE, b"int a;"),
        ("linux/arch/x86/link", tarfile.SYMTYPE, b""),
        ("linux/arch/x86/hard", tarfile.LNKTYPE, b""),
        ("linux/include/fifo", tarfile.FIFOTYPE, b""),
        ("linux/fs/b.c", tarfile.REGTYPE, b"int b;"),
    ]
    unpack_stream(archive(*members), tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()] == [
        "arch/x86/kvm/a.c"
    ]


def test_an_archive_larger_than_a_kernel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_trees, "MAX_TREE_BYTES", 10)
    with pytest.raises(Unavailable, match="larger than any kernel"):
        unpack_stream(archive(("linux/include/a.h", tarfile.REGTYPE, b"x" * 11)), tmp_path)
