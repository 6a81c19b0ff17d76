"""What can go wrong around a live run, told in one line each, with a QEMU that does it; nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iretrace.litmus.corpus import select
from iretrace.live.guests import make_guests
from tests.live.test_observed import line
from tests.live.test_places import FILES, make_package

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("dpkg-deb"), reason="no gcc or dpkg-deb"),
]

FAKE = """\
#!/bin/sh
case $1 in --version) echo "QEMU emulator version 11.1.3"; exit;; esac
echo $$ > {pid}
for word; do case $word in file:*) console=${{word#file:}};; esac; done
{does}
"""

LIMIT = 60.0


class Bench:
    """A machine with a QEMU of ours, a package of Debian's, and directories of its own."""

    def __init__(self, directory: Path) -> None:
        self.pid, self.said, self.temporary = (directory / name for name in ("pid", "said", "temporary"))
        self.temporary.mkdir()
        (directory / "package").mkdir()
        self.package = make_package(directory / "package", FILES)
        self._path = directory / "bin"
        self._path.mkdir()
        self.environment = os.environ | {
            "PATH": f"{self._path}:{os.environ['PATH']}",
            "TMPDIR": str(self.temporary),
            "XDG_CACHE_HOME": str(directory / "cache"),
        }

    def start(self, does: str, *arguments: str) -> subprocess.Popen[str]:
        """`iretrace run` with a QEMU that does this."""
        fake = self._path / "qemu-system-x86_64"
        fake.write_text(FAKE.format(pid=self.pid, does=does.format(said=self.said)))
        fake.chmod(0o755)
        command = [sys.executable, "-m", "iretrace", "run", "two-nmis-at-once", *arguments]
        command += [] if "--on" in arguments else ["--on", f"qemu:{self.package}"]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )

    def run(self, does: str, *arguments: str) -> tuple[int, str, str]:
        """(exit status, output, complaints)"""
        process = self.start(does, *arguments)
        out, complaints = process.communicate(timeout=LIMIT)
        return process.returncode, out, complaints

    def alive(self, process: int) -> bool:
        """Whether the QEMU that was started is still there, or anything of this process's group."""
        try:
            os.killpg(process, 0)
        except ProcessLookupError:
            return Path(f"/proc/{self.pid.read_text().strip()}").exists()
        return True

    def left(self) -> list[str]:
        """Files that a run has left behind."""
        return [path.name for path in self.temporary.rglob("*")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


BEGINS = "echo boot; echo ready; echo begin 0; "
SLEEPS = "sleep 1; touch {said}; exec sleep 1000"
"""What it has said by then was heard."""


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("echo boot; echo 'fatal module 2: Operation not supported'", "module 2: Operation not supported"),
        ("echo 'qemu: no such machine' >&2; exit 1", "ended too early, with status 1: qemu: no such machine"),
        ("echo '[ 1.0] Kernel panic - not syncing: no init' > $console", "Kernel panic - not syncing: no init"),
    ],
)
def test_a_machine_that_does_not_come_up_is_told_in_one_line(bench: Bench, does: str, told: str) -> None:
    status, _, complaints = bench.run(does)
    assert (status, told in complaints, complaints.count("\n")) == (2, True, 1), complaints
    assert bench.left() == []


def test_a_qemu_that_aborts_in_the_middle_costs_the_guest_and_is_told(bench: Bench) -> None:
    status, out, complaints = bench.run(BEGINS + "echo 'assertion failed' >&2; kill -ABRT $$")
    assert (status, complaints) == (3, "")
    told = " ".join(out.split())
    assert "Broke 2 times: two-nmis-at-once: ended too early, with status -6: assertion failed" in told
    assert bench.left() == []


def test_no_qemu_is_told_in_one_line(bench: Bench) -> None:
    bench.environment["PATH"] = str(bench.temporary)
    status, _, complaints = bench.run("")
    assert (status, "apt install qemu-system-x86" in complaints, complaints.count("\n")) == (2, True, 1)


def test_a_package_without_a_kernel_is_told_in_one_line(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    package = make_package(tmp_path / "other", {"usr/share/doc/x": b""})
    status, _, complaints = bench.run("", "--on", f"qemu:{package}")
    assert (status, "no vmlinuz in it" in complaints, complaints.count("\n")) == (2, True, 1)


def end(bench: Bench, process: subprocess.Popen[str], how: signal.Signals, times: int = 1) -> tuple[str, str]:
    """(output, complaints) of a run that is ended from outside when its QEMU has said all it has to say; nothing of it
    is left, but the files of one that was killed."""
    limit = time.monotonic() + LIMIT
    while not bench.said.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    for _ in range(times):
        process.send_signal(how)
    told = process.communicate(timeout=LIMIT)
    while bench.alive(process.pid) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not bench.alive(process.pid)
    if how != signal.SIGKILL:
        assert bench.left() == []
    return told


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_from_outside_leaves_no_process_and_no_file(bench: Bench, how: signal.Signals) -> None:
    end(bench, bench.start(BEGINS + SLEEPS), how)


@pytest.mark.parametrize(("how", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_what_has_come_until_the_end_from_outside_is_told(bench: Bench, how: signal.Signals, times: int) -> None:
    """`timeout` signals a process and its group: twice."""
    [guest, *rest] = make_guests(select(["two-nmis-at-once"])[0], 10, 0)
    runs = "".join(f"echo '{line(guest, '', 0)}'; " for _ in range(3))
    process = bench.start(BEGINS + runs + SLEEPS)
    out, complaints = end(bench, process, how, times)
    missing = guest.repeat - 3 + sum(guest.repeat for guest in rest)
    assert (process.returncode, complaints) == (130, "iretrace: interrupted\n")
    assert f"\nInterrupted: 3 runs, {missing} did not come\n" in out
    assert "Confirmed defect of KVM" in out


@pytest.mark.trees
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_finds_verdicts_meanwhile_is_ended_too(bench: Bench, tree_6_1: Path, how: signal.Signals) -> None:
    [guest, *_] = make_guests(select(["two-nmis-at-once"])[0], 10, 0)
    process = bench.start(BEGINS + f"echo '{line(guest, '', 0)}'; " + SLEEPS, "--compare", str(tree_6_1))
    out, _ = end(bench, process, how)
    assert how == signal.SIGKILL or "Interrupted, not compared: two-nmis-at-once" in out
