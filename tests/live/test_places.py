"""Where kernels and processors come from, and what is said when there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from iretrace.linux.debian import Unavailable
from iretrace.live.harness import Broken, end, read_lines, spawn
from iretrace.live.host import host_kernel
from iretrace.live.initramfs import archive
from iretrace.live.packages import find_kernel, kernels_in, unpack
from iretrace.verdict import InputError

MODULES = "lib/modules/6.1.0-9-cloud-amd64/kernel"
FILES = {
    "boot/vmlinuz-6.1.0-9-cloud-amd64": b"kernel",
    f"{MODULES}/virt/lib/irqbypass.ko": b"irqbypass",
    f"{MODULES}/arch/x86/kvm/kvm.ko": b"kvm",
    f"{MODULES}/arch/x86/kvm/kvm-amd.ko": b"kvm-amd",
    f"{MODULES}/arch/x86/kvm/kvm-intel.ko": b"not wanted",
}


def make_package(directory: Path, files: dict[str, bytes], version: str = "6.1.192-2") -> Path:
    """A Debian package."""
    root = directory / "root"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "DEBIAN").mkdir(parents=True, exist_ok=True)
    control = f"Package: linux-image\nVersion: {version}\nArchitecture: amd64\nMaintainer: a <a@b>\nDescription: x\n"
    (root / "DEBIAN/control").write_text(control)
    package = directory / "linux-image-6.1.0-9-cloud-amd64.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(package)], check=True, capture_output=True)
    return package


def test_a_kernel_and_its_modules_are_taken_out_of_a_package(tmp_path: Path) -> None:
    kernel = unpack([make_package(tmp_path, FILES)], tmp_path / "kernels")
    assert (kernel.version, kernel.upstream) == ("6.1.192-2", "6.1.192")
    assert [path.read_bytes() for path in (kernel.image, *kernel.modules)] == [
        b"kernel",
        b"irqbypass",
        b"kvm",
        b"kvm-amd",
    ]


def test_a_package_without_kvm_is_refused(tmp_path: Path) -> None:
    files = {name: content for name, content in FILES.items() if "kvm" not in name}
    with pytest.raises(InputError, match="no kvm.ko in it; this must be a linux-image"):
        unpack([make_package(tmp_path, files)], tmp_path / "kernels")
    assert list((tmp_path / "kernels").iterdir()) == []


def test_a_file_that_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "linux-image.deb").write_bytes(b"no package")
    with pytest.raises(InputError, match="linux-image.deb"):
        unpack([tmp_path / "linux-image.deb"], tmp_path / "kernels")


def test_the_newest_kernel_of_a_series_comes_first(tmp_path: Path) -> None:
    for version in ("6.1.99-1", "6.1.192-2", "6.12.1-1"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "vmlinuz").touch()
    assert [kernel.version for kernel in kernels_in(tmp_path, "6.1")] == ["6.1.192-2", "6.1.99-1"]


def test_a_kernel_that_is_no_series_is_refused() -> None:
    with pytest.raises(InputError, match="write a kernel series such as 6.1"):
        find_kernel("newest", lambda text: None)


def test_a_kvm_of_another_vendor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kvm").touch()
    (tmp_path / "sys/module/kvm_intel").mkdir(parents=True)
    with pytest.raises(Unavailable, match="not that of kvm_amd .it belongs to kvm_intel.; use --on qemu"):
        host_kernel(tmp_path)


def test_a_kvm_amd_without_svm_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kvm").touch()
    (tmp_path / "sys/module/kvm_amd").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags : fpu vme\n")
    with pytest.raises(Unavailable, match="no SVM"):
        host_kernel(tmp_path)


def test_an_archive_has_its_directories_and_ends_with_a_trailer() -> None:
    data = archive({"modules/0.ko": b"abc"})
    assert data.startswith(b"070701")
    assert data.index(b"modules\0") < data.index(b"modules/0.ko\0") < data.index(b"TRAILER!!!\0")
    assert len(data) % 4 == 0


def lines_of(script: str, tmp_path: Path) -> list[str]:
    process = spawn(["sh", "-c", script], tmp_path / "complaints")
    try:
        return list(read_lines(process))
    finally:
        end(process)


def test_lines_are_read_until_it_says_that_it_is_done(tmp_path: Path) -> None:
    assert lines_of("echo ready; echo begin 0; echo done; sleep 100", tmp_path) == ["ready", "begin 0"]


def test_a_program_that_ends_too_early_broke(tmp_path: Path) -> None:
    with pytest.raises(Broken, match="ended too early, with status 3"):
        lines_of("echo ready; exit 3", tmp_path)


def test_what_the_program_cannot_do_is_told(tmp_path: Path) -> None:
    with pytest.raises(Broken, match="module 2: Operation not supported"):
        lines_of("echo fatal module 2: Operation not supported; sleep 100", tmp_path)


def test_a_program_that_falls_silent_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iretrace.live.harness.SILENCE_LIMIT", 0.2)
    with pytest.raises(Broken, match="no sign of life"):
        lines_of("echo ready; sleep 100", tmp_path)
