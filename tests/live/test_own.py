"""A user's own KVM: what is not for the kernel that boots is refused before anything boots."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.live.own import build, release, with_modules
from iretrace.live.packages import Kernel
from iretrace.verdict import InputError


def module(path: Path, version: str) -> Path:
    """A file that says for which kernel it was built, as modules do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF\0license=GPL\0vermagic=" + version.encode() + b" SMP mod_unload modversions \0")
    return path


def kernel(directory: Path, version: str = "6.1.0-56-cloud-amd64") -> Kernel:
    """A kernel with its modules."""
    modules = tuple(module(directory / name, version) for name in ("irqbypass.ko", "kvm.ko", "kvm-amd.ko"))
    return Kernel("6.1.192-2", directory / "vmlinuz", modules)


def test_a_module_says_for_which_kernel_it_is(tmp_path: Path) -> None:
    assert release(module(tmp_path / "kvm.ko", "6.1.0-56-cloud-amd64")) == "6.1.0-56-cloud-amd64"


def test_own_modules_take_the_place_of_the_kernels(tmp_path: Path) -> None:
    stock = kernel(tmp_path / "stock")
    for name in ("kvm.ko", "kvm-amd.ko"):
        module(tmp_path / "own/arch/x86/kvm" / name, "6.1.0-56-cloud-amd64")
    places = [path.parent.name for path in with_modules(stock, tmp_path / "own").modules]
    assert places == ["stock", "kvm", "kvm"]


def test_modules_for_another_kernel_are_refused(tmp_path: Path) -> None:
    for name in ("kvm.ko", "kvm-amd.ko"):
        module(tmp_path / "own" / name, "6.1.0-99-amd64")
    with pytest.raises(InputError, match=r"kvm.ko: built for 6.1.0-99-amd64, but --on boots 6.1.0-56-cloud-amd64"):
        with_modules(kernel(tmp_path / "stock"), tmp_path / "own")


def test_a_directory_without_modules_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(InputError, match="no kvm.ko there; build it, or use --build"):
        with_modules(kernel(tmp_path / "stock"), tmp_path / "own")


def test_a_file_that_is_no_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kvm.ko").write_bytes(b"text")
    with pytest.raises(InputError, match="kvm.ko: no kernel module"):
        release(tmp_path / "kvm.ko")


def test_only_a_linux_source_is_built(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the top directory of a Linux source"):
        build(kernel(tmp_path / "stock"), tmp_path, lambda text: None)
