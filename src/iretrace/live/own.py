"""A user's own KVM: modules that are already built, or built here from a source tree, for a Debian kernel to load.

Building executes what the tree says (its Makefiles and tools), with the rights of the caller. So it is done only where
it is asked for in so many words, and `check` never comes here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from iretrace.linux.archive import cache_directory
from iretrace.linux.debian import download
from iretrace.live.packages import Kernel, depends, packages_named, unpack_all
from iretrace.verdict import InputError

OWN_MODULES = ("kvm.ko", "kvm-amd.ko")
PLACES = (Path(), Path("arch/x86/kvm"), Path("kernel/arch/x86/kvm"))
"""Where they lie: together in a directory, in a tree that was built, below a directory of installed modules."""

SOURCES = ("arch/x86/kvm", "virt")
HEADERS = (
    "arch/x86/include/asm/kvm*.h",
    "arch/x86/include/asm/svm.h",
    "arch/x86/include/uapi/asm/kvm*.h",
    "arch/x86/include/uapi/asm/svm.h",
    "include/linux/kvm*.h",
    "include/trace/events/kvm.h",
    "include/uapi/linux/kvm.h",
)
"""What of the tree is built. All other headers are those of the kernel that loads the modules."""

COMMON_IN, HEADERS_IN = "usr/src/common", "usr/src/headers"
"""Where the directory of a build has the headers."""

COMPLAINT = re.compile(r"error:|[Nn]ot found|No (such|rule)")
"""The first such line of a build tells what is wrong."""

BUILD_LIMIT = 1800
"""Seconds for the whole build."""

Say = Callable[[str], None]


def release(module: Path) -> str:
    """The kernel that a module was built for, as `uname -r` says it; InputError if it is no module."""
    found = re.search(rb"vermagic=([!-~]+) ", module.read_bytes())
    if not found:
        raise InputError(f"{module}: no kernel module")
    return found[1].decode("ascii")


def with_modules(kernel: Kernel, directory: Path) -> Kernel:
    """This kernel with the KVM of a directory. InputError where it is not for this kernel."""
    place = next((directory / place for place in PLACES if (directory / place / OWN_MODULES[0]).is_file()), directory)
    modules = [place / name for name in OWN_MODULES]
    for module in modules:
        if not module.is_file():
            raise InputError(f"--kvm {directory}: no {module.name} there; build it, or use --build TREE")
    wanted = release(kernel.modules[1])
    for module in modules:
        if release(module) != wanted:
            raise InputError(f"{module}: built for {release(module)}, but --on boots {wanted}; build it for that one")
    return replace(kernel, modules=(kernel.modules[0], *modules))


def build(kernel: Kernel, tree: Path, say: Say) -> Kernel:
    """This kernel with the KVM of a source tree, built against Debian's headers. It executes the tree's build."""
    if not (tree / "arch/x86/kvm/svm/svm.c").is_file():
        raise InputError(f"--build {tree}: no arch/x86/kvm/svm/svm.c there; give the top directory of a Linux source")
    wanted = release(kernel.modules[1])
    root = _headers(kernel, wanted, say)
    name = hashlib.sha256(str(tree.resolve()).encode()).hexdigest()[:12]
    place = cache_directory() / "build" / f"{wanted}-{name}"
    _prepare(root, wanted, place)
    for source, target in _overlay(tree, place / COMMON_IN):
        _refresh(source, target)
    say(f"building the KVM of {tree} for {wanted}, as its own build says, in {place}")
    _make(place)
    built, stripped = place / COMMON_IN / "arch/x86/kvm", place / "modules"
    stripped.mkdir(exist_ok=True)
    for module in OWN_MODULES:
        subprocess.run(["strip", "--strip-debug", "-o", str(stripped / module), str(built / module)], check=True)
    return with_modules(kernel, stripped)


def _headers(kernel: Kernel, wanted: str, say: Say) -> Path:
    """Where the header packages of a kernel are unpacked."""
    root = cache_directory() / "headers" / wanted
    if not root.exists():
        package = f"linux-headers-{wanted}"
        apt = packages_named(package, kernel.version, say)
        files = [download(package, kernel.version, apt, say)]
        for name in depends(files[0]):
            if re.fullmatch(r"linux-(headers|kbuild)-[\w.+~-]+", name):
                files.append(download(name, kernel.version, apt, say))
        unpack_all(files, root)
    return root


def _prepare(root: Path, wanted: str, place: Path) -> None:
    """A copy of the headers to build in, by links: the first build makes it, later ones use it.

    Its scripts and tools are links to ../../lib, so it has the shape of the packages."""
    if (place / HEADERS_IN / "Makefile").exists():
        return
    shutil.rmtree(place, ignore_errors=True)
    [common] = (root / "usr/src").glob("linux-headers-*-common")
    shutil.copytree(common, place / COMMON_IN, symlinks=True, copy_function=os.link)
    own = root / "usr/src" / f"linux-headers-{wanted}"
    shutil.copytree(own, place / HEADERS_IN, symlinks=True, copy_function=os.link)
    for made_anew in ("Makefile", "vmlinux"):  # vmlinux is there for type information, which nobody needs here
        (place / HEADERS_IN / made_anew).unlink(missing_ok=True)
    (place / "usr/lib").symlink_to(root / "usr/lib")
    (place / HEADERS_IN / "Makefile").write_text(f"include {place / COMMON_IN}/Makefile\n")


def _overlay(tree: Path, common: Path) -> Iterator[tuple[Path, Path]]:
    """(file of the tree, where the build takes it from)."""
    for name in SOURCES:
        for path in sorted((tree / name).rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix not in (".o", ".ko", ".cmd", ".mod"):
                yield path, common / path.relative_to(tree)
    for pattern in HEADERS:
        for path in sorted(tree.glob(pattern)):
            yield path, common / path.relative_to(tree)


def _refresh(source: Path, target: Path) -> None:
    """Copy a file that is another; one that is the same keeps its time, so that it is not built again."""
    data = source.read_bytes()
    if target.is_file() and target.read_bytes() == data:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.write_bytes(data)


def _make(place: Path) -> None:
    """InputError with the compiler's first complaint if it fails."""
    log = place / "log"
    module = place / COMMON_IN / "arch/x86/kvm"
    options = [f"M={module}", "CONFIG_KVM_INTEL=n", "CONFIG_KVM_WERROR=n", "CONFIG_DEBUG_INFO_BTF_MODULES=n"]
    with open(log, "wb") as out:
        try:
            process = subprocess.Popen(
                ["make", "-C", str(place / HEADERS_IN), f"-j{os.cpu_count()}", *options, "modules"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        except FileNotFoundError:
            raise InputError("--build: make not found; apt install make gcc") from None
        try:
            status = process.wait(BUILD_LIMIT)
        except subprocess.TimeoutExpired:
            raise InputError(f"--build: not done in {BUILD_LIMIT} s; {log} tells how far it came") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status or any(not (module / name).is_file() for name in OWN_MODULES):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        complaint = next((line for line in lines if COMPLAINT.search(line)), "it made no modules")
        raise InputError(f"--build: {complaint.strip()}; {log} has all of it")
