"""Hostile input, as a process of its own with little memory: one clear line, nothing raw on the terminal."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.linux.mini import MAKEFILE, SVM, write_tree

MEMORY = 600 << 20
SECONDS = 60
"""Many times what any of these takes on a machine that is not busy."""

HUNK = f"--- a/{SVM}\n+++ b/{SVM}\n@@ -1 +1 @@\n-int a;\n+int b;\n"


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def check(tmp_path: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "iretrace", "check", *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, check=False, timeout=SECONDS, env=environment, preexec_fn=limited
    )


def refused(done: subprocess.CompletedProcess[bytes], *said: bytes) -> None:
    """One line on standard error, nothing on standard output, status 2, no control character."""
    assert (done.returncode, done.stdout) == (2, b""), done.stderr
    assert done.stderr.count(b"\n") == 1
    assert all(char >= 0x20 for char in done.stderr[:-1])
    assert all(words in done.stderr for words in said), done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> str:
    return str(write_tree(tmp_path / "linux", {SVM: "int a;\n"}))


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", "a/../../etc/passwd", "a\\..\\b.c"])
def test_a_path_that_leads_out_of_the_tree(path: str, tree: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(f"--- {path}\n+++ {path}\n@@ -1 +1 @@\n-a\n+b\n")
    refused(check(tmp_path, tree, "--patch", str(tmp_path / "x")), b"leads out of the tree")


@pytest.mark.parametrize("how", ["file", "standard input"])
def test_a_hunk_of_100_mb(how: str, tree: str, tmp_path: Path) -> None:
    hunk = HUNK.encode() + b"+" + b"x" * (100 << 20)
    if how == "file":
        (tmp_path / "x").write_bytes(hunk)
        refused(check(tmp_path, tree, "--patch", str(tmp_path / "x")), b"larger than 16 MiB")
    else:
        refused(check(tmp_path, tree, "--patch", "-", stdin=hunk), b"larger than 16 MiB")


def test_a_hunk_that_promises_more_than_it_holds(tree: str, tmp_path: Path) -> None:
    text = HUNK.replace("-1 +1", "-1,999999999 +1,999999999")
    refused(check(tmp_path, tree, "--patch", "-", stdin=text.encode()), b"is cut short or wrapped")


@pytest.mark.parametrize(
    "line", ["static int a(void)\n{\n", "/* x \n", "#if A\n", "enum {\n", "struct a {\n", "int a((((\n", '"a\\"\n']
)
def test_a_file_in_which_nothing_ends(line: str, tree: str, tmp_path: Path) -> None:
    count = (1 << 20) // len(line)
    added = "".join(f"+{part}\n" for part in (line * count).split("\n")[:-1])
    text = f"--- a/{SVM}\n+++ b/{SVM}\n@@ -1 +1,{added.count(chr(10)) + 1} @@\n int a;\n{added}"
    began = time.monotonic()
    done = check(tmp_path, tree, "--patch", "-", stdin=text.encode())
    assert (done.returncode, done.stdout) == (4, b"")
    assert time.monotonic() - began < SECONDS


def test_a_mail_of_nothing_but_parts(tree: str, tmp_path: Path) -> None:
    depth = 3000
    head = "".join(f'Content-Type: multipart/mixed; boundary="b{n}"\n\n--b{n}\n' for n in range(depth))
    refused(check(tmp_path, tree, "--patch", "-", stdin=f"Subject: x\n{head}".encode()), b"")


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "\x1b[2J", "\u202e", "a\rb", "\x9b2J", "\x00"])
def test_control_characters_in_names_and_subjects_do_not_reach_the_terminal(
    name: str, tree: str, tmp_path: Path
) -> None:
    path = f"arch/x86/kvm/svm/{name}.c"
    mail = f"Subject: [PATCH] {name} subject\n\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-a\n+b\n"
    done = check(tmp_path, tree, "--patch", "-", stdin=mail.encode("utf-8", "surrogateescape"))
    assert done.returncode in (2, 4)
    for output in (done.stdout, done.stderr):
        text = output.decode("utf-8", "replace")
        assert not [char for char in text if not char.isprintable() and char != "\n"]


def test_a_link_out_of_the_tree(tree: str, tmp_path: Path) -> None:
    (tmp_path / "secret.c").write_text("int secret;\n")
    (Path(tree) / SVM).unlink()
    (Path(tree) / SVM).symlink_to(tmp_path / "secret.c")
    refused(check(tmp_path, tree), b"leads out of the tree; replace the link by the file")


@pytest.mark.parametrize("made", ["fifo", "endless link", "device"])
def test_what_is_no_file_is_not_waited_for(made: str, tree: str, tmp_path: Path) -> None:
    target = Path(tree) / SVM
    target.unlink()
    if made == "fifo":
        os.mkfifo(target)
    else:
        target.symlink_to(target.name if made == "endless link" else "/dev/zero")
    done = check(tmp_path, tree)
    refused(done, b"svm.c")


def bomb(path: Path, size: int) -> Path:
    """A kernel in which one header is `size` zeros, compressed to next to nothing."""
    with tarfile.open(path, "w:xz") as archive:
        for name, content in (("linux/Makefile", MAKEFILE.encode()), (f"linux/{SVM}", b"int a;\n")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("linux/include/linux/bomb.h")
        info.size = size
        with open("/dev/zero", "rb") as zeros:
            archive.addfile(info, zeros)
    return path


@pytest.mark.slow
def test_a_tarball_that_grows_is_left_before_it_fills_the_disk(tmp_path: Path) -> None:
    archive = bomb(tmp_path / "bomb.tar.xz", 200 << 20)
    assert archive.stat().st_size < 1 << 20
    began = time.monotonic()
    refused(check(tmp_path, str(archive)), b"larger than any kernel")
    assert time.monotonic() - began < SECONDS
    assert not [path for path in (tmp_path / "iretrace").rglob("*") if path.is_file()]
