"""Debian's cloud kernels: fetched with apt, which checks their signatures, and unpacked as far as they are needed.

A package is data here: nothing of it is installed or run on this machine, only inside the virtual machine.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iretrace.linux.archive import cache_directory
from iretrace.linux.debian import Apt, Say, Unavailable, apt_for, download, run, served_versions
from iretrace.verdict import InputError

MODULES = ("irqbypass", "kvm", "kvm-amd")
"""In the order of loading."""

MAX_MEMBER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel to boot. version as Debian writes it, e.g. 6.1.192-2; modules in the order of loading."""

    version: str
    image: Path
    modules: tuple[Path, ...]

    @property
    def upstream(self) -> str:
        """The version of the source, e.g. 6.1.192."""
        return self.version.split("-")[0]


def find_kernel(wanted: str, say: Say) -> Kernel:
    """The kernel of a series (6.1), of a version (6.1.192), or from package files (a .deb, or a directory of them).

    What the cache holds is not fetched again. Unavailable if there is none to be had.
    """
    path = Path(wanted)
    if wanted.endswith(".deb") or path.is_dir():
        files = [path] if wanted.endswith(".deb") else sorted(path.glob("linux-*cloud-amd64*.deb"))
        return unpack(files, cache_directory() / "kernels")
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", wanted):
        raise InputError(f"--on qemu:{wanted}: write a kernel series such as 6.1, or a linux-image-*-cloud-amd64 .deb")
    kept = kernels_in(cache_directory() / "kernels", wanted)
    if kept:
        return kept[0]
    apt = apt_for(_series(wanted), say)
    packages = newest_packages(wanted, apt)
    if not packages:
        raise Unavailable(f"--on qemu:{wanted}: Debian serves no such cloud kernel; name a package: --on qemu:FILE.deb")
    files = [download(package, version, apt, say) for package, version in packages]
    return unpack(files, cache_directory() / "kernels")


def kernels_in(directory: Path, wanted: str) -> list[Kernel]:
    """The unpacked kernels of a series or version, newest first."""
    found = []
    for path in directory.glob("*/vmlinuz"):
        version = path.parent.name
        if version.split("-")[0] == wanted or version.startswith(f"{wanted}."):
            modules = tuple(path.parent / f"{name}.ko" for name in MODULES)
            found.append(Kernel(version, path, modules))
    return sorted(found, key=lambda kernel: _numbers(kernel.version), reverse=True)


def newest_packages(wanted: str, apt: Apt) -> list[tuple[str, str]]:
    """(package, version) of what makes the newest cloud kernel of a series, or exactly this version, that apt knows.

    Kernel and modules are one package (linux-image), or, from 7.x on, two (linux-binary, linux-modules)."""
    series = _series(wanted)
    found: list[tuple[list[int], list[tuple[str, str]]]] = []
    names = set(run("apt-cache", *apt, "pkgnames", "linux-").split())
    for name in names:
        kind = re.fullmatch(rf"linux-(image|binary)-({re.escape(series)}\..*-cloud-amd64)", name)
        if not kind or (kind[1] == "image" and f"linux-binary-{kind[2]}" in names):
            continue
        parts = [name, f"linux-modules-{kind[2]}"] if kind[1] == "binary" else [name]
        for version in served_versions(name, apt):
            if version.split("-")[0] == wanted or version.startswith(f"{wanted}."):
                found.append((_numbers(version), [(part, version) for part in parts]))
    return max(found)[1] if found else []


def packages_named(package: str, version: str, say: Say) -> Apt:
    """Options with which apt knows this version of a package; Unavailable if it knows none."""
    apt = apt_for(_series(version), say)
    if version not in served_versions(package, apt):
        raise Unavailable(f"Debian serves no {package} {version} any more; use a newer kernel")
    return apt


def depends(package: Path) -> list[str]:
    """The names of what a package file depends on."""
    text = run("dpkg-deb", "--field", str(package), "Depends")
    return [part.split()[0] for part in text.split(",") if part.split()]


def unpack_all(packages: Sequence[Path], target: Path) -> None:
    """All of some packages, into a directory that is complete or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        for package in packages:
            run("dpkg-deb", "--extract", str(package), str(partial))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unpack(packages: Sequence[Path], kernels: Path) -> Kernel:
    """The kernel and the modules out of one package, or of two that hold a half each, into a directory of `kernels`."""
    if not packages:
        raise InputError("no linux-*cloud-amd64*.deb there; write a package file or a directory that holds some")
    kernels.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=kernels))
    try:
        for package in packages:
            _take(package, partial)
        missing = [name for name in ("vmlinuz", *(f"{m}.ko" for m in MODULES)) if not (partial / name).exists()]
        if missing:
            raise InputError(f"{packages[0]}: no {missing[0]} in it; this must be a linux-image-*-cloud-amd64 package")
        version = run("dpkg-deb", "--field", str(packages[0]), "Version").strip()
        if not re.fullmatch(r"\d[\w.+~-]*", version):
            raise InputError(f"{packages[0]}: no version of a kernel package; remove the file and try again")
        if not (kernels / version).exists():
            partial.rename(kernels / version)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return kernels_in(kernels, version.split("-")[0])[0]


def _take(package: Path, target: Path) -> None:
    """Write the wanted regular files of a package into target, modules unpacked."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    try:
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as archive,
        ):
            for member in archive:
                name = _wanted(member.name)
                if not name or not member.isreg():
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    raise InputError(f"{package}: {member.name} is larger than any kernel; not unpacked")
                content = archive.extractfile(member)
                assert content is not None, "a regular file has content"
                data = content.read()
                (target / name).write_bytes(lzma.decompress(data) if member.name.endswith(".xz") else data)
    except (tarfile.TarError, lzma.LZMAError) as error:
        raise InputError(f"{package}: cannot be unpacked: {error}; remove the file and try again") from None
    except FileNotFoundError:
        raise Unavailable("dpkg-deb not found; live runs need a Debian system: apt install dpkg") from None


def _wanted(member: str) -> str:
    """The name under which a member of the package is kept; "" if it is not."""
    name = member.rsplit("/", 1)[-1]
    if name.startswith("vmlinuz"):
        return "vmlinuz"
    name = name.removesuffix(".xz")
    return name if "/kernel/" in member and name in [f"{module}.ko" for module in MODULES] else ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _series(version: str) -> str:
    """6.1 of 6.1.192."""
    return ".".join(version.split(".")[:2])
