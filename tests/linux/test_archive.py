"""Trees in tarballs and packages, some of them hostile: what is unpacked, what is refused, and that nothing is left."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from iretrace.linux import archive as archives
from iretrace.linux import streams
from iretrace.linux.archive import cache_directory, is_looked_at, open_archive
from iretrace.linux.index import NEAREST_FIRST
from iretrace.linux.tree import NothingInScope, open_tree
from iretrace.verdict import InputError
from tests.linux.mini import MAKEFILE, SEV, SVM

KERNEL = {"Makefile": MAKEFILE, SVM: "int a;\n", SEV: "int sev_handle_vmgexit(void);\n", "fs/a.c": "int no;\n"}

Member = tuple[str, bytes, str]
"""Name, tar type, content (of a link: where it leads)."""

needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "iretrace" / "archives"


def tar(*members: Member, kernel: bool = True, top: str = "linux-6.1.7/", dialect: int = tarfile.GNU_FORMAT) -> bytes:
    """A tarball with the kernel's files and then these."""
    buffer = io.BytesIO()
    files = [(top + name, tarfile.REGTYPE, text) for name, text in KERNEL.items()] if kernel else []
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as out:
        for name, kind, text in (*files, *members):
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = text
            info.size = len(text.encode()) if kind == tarfile.REGTYPE else 0
            out.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout


def ar(**members: bytes) -> bytes:
    """An ar archive; the names' underscores are dots and dashes."""
    made = b"!<arch>\n"
    for name, data in members.items():
        head = f"{name.replace('__', '-').replace('_', '.'):16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n"
        made += head.encode() + data + b"\n" * (len(data) % 2)
    return made


def deb(
    inner: bytes, name: str = "./usr/src/linux-source-6.1.tar.xz", zip_data: Callable[[bytes], bytes] = lzma.compress
) -> bytes:
    """A Debian package with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        info = tarfile.TarInfo(name)
        info.size = len(inner)
        out.addfile(tarfile.TarInfo("./usr/share/doc/copyright"))
        out.addfile(info, io.BytesIO(inner))
    data = zip_data(buffer.getvalue())
    return ar(debian__binary=b"2.0\n", control_tar_xz=lzma.compress(b"odd"), data_tar_xz=data)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def silent(_text: str) -> None:
    pass


def refused(path: Path, cache: Path, complaint: str) -> None:
    """One line about an archive, and nothing in the cache."""
    with pytest.raises(InputError, match=complaint) as caught:
        open_archive(path, silent)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert list(cache.iterdir()) == []


# What is unpacked. ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "zip_", [bytes, lzma.compress, gzip.compress, bz2.compress, pytest.param(zstd, marks=needs_zstd)]
)
def test_a_tarball_is_a_tree(tmp_path: Path, zip_: Callable[[bytes], bytes]) -> None:
    tree = open_tree(write(tmp_path / "a.tar", zip_(tar())))
    assert tree.version == "6.1.7"
    assert tree.text(SVM) == "int a;\n"


@pytest.mark.parametrize("zip_", [lzma.compress, gzip.compress, bytes, pytest.param(zstd, marks=needs_zstd)])
def test_a_debian_source_package_is_a_tree(tmp_path: Path, zip_: Callable[[bytes], bytes]) -> None:
    for number, inner in enumerate((lzma.compress, zip_)):
        data = deb(inner(tar()), zip_data=zip_)
        assert open_tree(write(tmp_path / f"{number}.deb", data)).version == "6.1.7"


def test_ubuntu_keeps_the_tarball_one_directory_deeper(tmp_path: Path) -> None:
    data = deb(bz2.compress(tar()), "./usr/src/linux-source-6.8.0/linux-source-6.8.0.tar.bz2", bytes)
    assert open_tree(write(tmp_path / "a.deb", data)).version == "6.1.7"


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_are_understood_in_every_dialect(tmp_path: Path, dialect: int) -> None:
    name = "include/" + "long/" * 25 + "name.h"
    data = tar(("linux-6.1.7/" + name, tarfile.REGTYPE, "int long_name;\n"), dialect=dialect)
    assert open_tree(write(tmp_path / "a.tar", data)).text(name) == "int long_name;\n"


@pytest.mark.parametrize("top", ["", "./", "./linux/", "any thing/"])
def test_the_top_directory_may_be_called_anything(tmp_path: Path, top: str) -> None:
    assert open_tree(write(tmp_path / "a.tar", tar(top=top))).version == "6.1.7"


def test_only_what_is_looked_at_is_unpacked(tmp_path: Path, cache: Path) -> None:
    root = open_archive(write(tmp_path / "a.tar", tar()), silent)
    assert root.parent == cache
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == ["Makefile", SEV, SVM]


def test_the_index_reads_nothing_that_is_left_out() -> None:
    assert [directory for directory, _ in NEAREST_FIRST if not is_looked_at(f"{directory}/a.c")] == []


def test_links_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "secret.h").write_text("int secret;\n")
    data = tar(
        ("linux-6.1.7/include/secret", tarfile.SYMTYPE, str(tmp_path)),
        ("linux-6.1.7/include/hard.h", tarfile.LNKTYPE, str(tmp_path / "secret.h")),
        ("linux-6.1.7/include/secret/new.h", tarfile.REGTYPE, "int mine;\n"),
    )
    root = open_archive(write(tmp_path / "a.tar", data), silent)
    assert [path for path in root.rglob("*") if path.is_symlink() or path.name == "hard.h"] == []
    assert (root / "include/secret/new.h").read_text() == "int mine;\n"
    assert not (tmp_path / "new.h").exists()


def test_modes_and_owners_of_the_archive_are_not_taken_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        info = tarfile.TarInfo("linux/include/a.h")
        info.mode, info.uid = 0o7777, 12345
        out.addfile(info)
        info = tarfile.TarInfo("linux/Makefile")
        info.size = len(MAKEFILE)
        out.addfile(info, io.BytesIO(MAKEFILE.encode()))
    found = (open_archive(write(tmp_path / "a.tar", buffer.getvalue()), silent) / "include/a.h").stat()
    assert (found.st_mode & 0o7133, found.st_uid) == (0, os.getuid())


def test_an_archive_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_archive(write(tmp_path / "a.tar", tar()), silent)
    monkeypatch.setattr(archives, "unpack_into", lambda *_: pytest.fail("unpacked again"))
    assert open_archive(write(tmp_path / "renamed.tar", tar()), silent) == first


def test_another_content_is_another_tree(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", tar())
    first = open_archive(path, silent)
    assert open_archive(write(path, tar(("linux-6.1.7/include/a.h", tarfile.REGTYPE, ""))), silent) != first


def test_progress_tells_how_far_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    open_archive(write(tmp_path / "a.tar", tar()), said.append)
    assert said[0] == "reading a.tar"
    assert said[-1].startswith("unpacking a.tar: ")


def test_the_archive_is_named_when_its_kernel_is_too_old(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name, text in {**KERNEL, SEV: "int sev_guest_init(void);\n"}.items():
            info = tarfile.TarInfo("linux/" + name)
            info.size = len(text)
            out.addfile(info, io.BytesIO(text.encode()))
    path = write(tmp_path / "old.tar", buffer.getvalue())
    with pytest.raises(NothingInScope, match=str(path)):
        open_tree(path)


# What is refused. -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/linux/include/a.h", "linux-6.1.7/../../a.h", "linux-6.1.7/include/../../../a.h"])
def test_a_name_that_leads_out_of_the_tree_is_refused(tmp_path: Path, cache: Path, name: str) -> None:
    refused(write(tmp_path / "a.tar", tar((name, tarfile.REGTYPE, "x"))), cache, "leads out of the tree")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_is_refused(tmp_path: Path, cache: Path, kind: bytes) -> None:
    refused(write(tmp_path / "a.tar", tar(("linux-6.1.7/include/a.h", kind, ""))), cache, "no file, directory or link")


@pytest.mark.parametrize(
    "zip_", [bytes, lzma.compress, gzip.compress, bz2.compress, pytest.param(zstd, marks=needs_zstd)]
)
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_a_truncated_tarball_is_refused(
    tmp_path: Path, cache: Path, zip_: Callable[[bytes], bytes], part: float
) -> None:
    noise = "".join(f"int a{number * number % 7919};\n" for number in range(5000))
    data = zip_(tar(("linux-6.1.7/include/noise.h", tarfile.REGTYPE, noise)))
    refused(write(tmp_path / "a.tar", data[: int(len(data) * part)]), cache, "cannot be unpacked")


@pytest.mark.parametrize("lost", [1, 7, 12])
def test_an_archive_that_lacks_its_last_bytes_is_refused(tmp_path: Path, cache: Path, lost: int) -> None:
    """The tarball inside is whole, but its checksum is not there to say so."""
    refused(write(tmp_path / "a.tar.xz", lzma.compress(tar())[:-lost]), cache, "ends too early")


def test_a_changed_byte_is_noticed_by_the_checksum(tmp_path: Path, cache: Path) -> None:
    data = bytearray(gzip.compress(tar(), compresslevel=0))
    data[data.index(b"int a;")] ^= 1
    refused(write(tmp_path / "a.tar.gz", bytes(data)), cache, "cannot be unpacked")


def test_a_truncated_package_is_refused(tmp_path: Path, cache: Path) -> None:
    data = deb(lzma.compress(tar()))
    for end in (30, 100, 200, len(data) // 2, len(data) - 20):
        refused(write(tmp_path / "a.deb", data[:end]), cache, "cannot be unpacked")


@pytest.mark.parametrize(
    "text", ["diff --git a/x b/x\n", "Subject: one\n\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n" + 600 * "\n"]
)
def test_a_patch_that_is_given_for_the_tree_is_told_where_it_belongs(text: str, tmp_path: Path, cache: Path) -> None:
    refused(write(tmp_path / "a.patch", text.encode()), cache, "a patch, no tree; write the tree first, then --patch")


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"int main;\n" * 100, b"!<arch>\n" + b"x" * 60, lzma.compress(b"text"), b"\xfd7zXZ\0 no", b"\x1f\x8b"],
)
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, cache: Path, data: bytes) -> None:
    refused(write(tmp_path / "a.tar.xz", data), cache, "cannot be unpacked")


def test_a_tarball_without_a_kernel_is_refused(tmp_path: Path, cache: Path) -> None:
    data = tar(("a/Makefile", tarfile.REGTYPE, "all:\n"), kernel=False)
    refused(write(tmp_path / "a.tar", data), cache, "no Linux source tree in it")


def test_a_package_without_kernel_source_is_refused(tmp_path: Path, cache: Path) -> None:
    refused(write(tmp_path / "a.deb", deb(b"", "./usr/bin/a")), cache, "no linux-source tarball in the package")


def test_two_trees_in_one_archive_are_refused(tmp_path: Path, cache: Path) -> None:
    data = tar(("linux-old/include/a.h", tarfile.REGTYPE, ""))
    refused(write(tmp_path / "a.tar", data), cache, "more than one tree in it: linux-6.1.7, linux-old")


@pytest.mark.parametrize(
    ("limit", "value"),
    [("MAX_FILE_BYTES", 2), ("MAX_TREE_BYTES", 60), ("MAX_FILES", 1), ("MAX_MEMBERS", 2), ("MAX_STREAM_BYTES", 2000)],
)
def test_an_archive_larger_than_any_kernel_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(archives, limit, value)
    refused(write(tmp_path / "a.tar.xz", lzma.compress(tar())), cache, "than any kernel|than in any kernel")


def test_a_file_that_claims_to_be_huge_is_refused_before_it_is_read(tmp_path: Path, cache: Path) -> None:
    """A header says 1 TB; a sparse or zipped archive could even deliver it."""
    info = tarfile.TarInfo("linux/include/a.h")
    info.size = 1 << 40
    data = lzma.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    refused(write(tmp_path / "a.tar.xz", data), cache, "larger than any kernel")


def test_a_header_that_claims_to_be_huge_takes_no_memory(tmp_path: Path, cache: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)
    refused(write(tmp_path / "a.tar", data), cache, "a header that is too large")


def test_an_xz_that_asks_for_much_memory_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_DICTIONARY", 1 << 16)
    refused(write(tmp_path / "a.tar.xz", lzma.compress(tar())), cache, "[Mm]emory")


def test_a_file_where_a_directory_should_be_is_refused(tmp_path: Path) -> None:
    data = tar(("linux-6.1.7/include/a.h", tarfile.REGTYPE, ""), ("linux-6.1.7/include/a.h/b.h", tarfile.REGTYPE, ""))
    with pytest.raises(InputError, match=r"a\.h"):
        open_archive(write(tmp_path / "a.tar", data), silent)
    assert not list(tmp_path.rglob(".partial-*"))


def test_without_zstd_the_message_says_what_to_install(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    path = write(tmp_path / "a.tar.zst", b"\x28\xb5\x2f\xfd and more")
    refused(path, cache, "apt install zstd")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(write(tmp_path / "file", b"")))
    with pytest.raises(InputError, match="file.*; XDG_CACHE_HOME names the cache"):
        open_archive(write(tmp_path / "a.tar", tar()), silent)


def test_what_a_killed_run_left_is_removed_when_it_is_old(tmp_path: Path, cache: Path) -> None:
    for name, age in {".partial-old": 7200, ".partial-new": 0}.items():
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    open_archive(write(tmp_path / "a.tar", tar()), silent)
    assert [path.name for path in cache.glob(".partial-*")] == [".partial-new"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    def interrupt(text: str) -> None:
        if text.startswith("unpacking"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_archive(write(tmp_path / "a.tar", tar()), interrupt)
    assert list(cache.iterdir()) == []


def test_the_cache_follows_the_custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "iretrace"
