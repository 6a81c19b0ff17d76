"""Debian's cloud kernels: fetched with apt, which checks their signatures, and unpacked as far as they are needed.

A package is data here: nothing of it is installed or run on this machine, only inside the virtual machine.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from iretrace.verdict import InputError

MODULES = ("irqbypass", "kvm", "kvm-amd")
"""In the order of loading."""

MAX_MEMBER_BYTES = 64 << 20
APT_TIMEOUT = 600
"""Seconds for one command of apt."""

Say = Callable[[str], None]


class Unavailable(InputError):
    """A live run cannot be had here; the message says why and what to do."""


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


def cache_directory() -> Path:
    """Where packages and kernels are kept, by XDG custom."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "iretrace"


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
    package, version = newest_package(wanted)
    return unpack([download(package, version, say)], cache_directory() / "kernels")


def kernels_in(directory: Path, wanted: str) -> list[Kernel]:
    """The unpacked kernels of a series or version, newest first."""
    found = []
    for path in directory.glob("*/vmlinuz"):
        version = path.parent.name
        if version.split("-")[0] == wanted or version.startswith(f"{wanted}."):
            modules = tuple(path.parent / f"{name}.ko" for name in MODULES)
            found.append(Kernel(version, path, modules))
    return sorted(found, key=lambda kernel: _numbers(kernel.version), reverse=True)


def newest_package(wanted: str) -> tuple[str, str]:
    """(package, version) of the newest cloud kernel of a series that apt knows of, or of exactly this version."""
    series = ".".join(wanted.split(".")[:2])
    names = _run("apt-cache", "pkgnames", f"linux-image-{series}.").split()
    found = []
    for name in names:
        if not name.endswith("-cloud-amd64"):
            continue
        for line in _run("apt-cache", "madison", name).splitlines():
            version = line.split("|")[1].strip()
            if "Packages" in line and (version.split("-")[0] == wanted or version.startswith(f"{wanted}.")):
                found.append((_numbers(version), name, version))
    if not found:
        raise Unavailable(
            f"--on qemu:{wanted}: apt knows no linux-image-{series}*-cloud-amd64; "
            "run apt-get update on a Debian that has it, or name the package file: --on qemu:FILE.deb"
        )
    return max(found)[1:]


def download(package: str, version: str, say: Say) -> Path:
    """The package file, from the cache or from Debian."""
    packages = cache_directory() / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    kept = packages / f"{package}_{version}_amd64.deb".replace(":", "%3a")
    if kept.exists():
        return kept
    say(f"downloading {package} {version} from Debian to {packages}")
    with tempfile.TemporaryDirectory(dir=packages) as partial:
        # As root apt would complain that its sandbox user cannot write here.
        options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        _run("apt-get", *options, "-qq", "download", f"{package}={version}", cwd=Path(partial))
        files = list(Path(partial).glob("*.deb"))
        if len(files) != 1:
            raise Unavailable(f"apt-get download {package}={version} left no package file; try it by hand")
        return files[0].rename(kept)


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
        version = _run("dpkg-deb", "--field", str(packages[0]), "Version").strip()
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


def _run(*command: str, cwd: Path | None = None) -> str:
    """Output of a command; Unavailable with the last line of its complaint when it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=APT_TIMEOUT
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} not found; live runs fetch kernels on a Debian system") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command[:2])}: no answer in {APT_TIMEOUT} s; try it by hand") from None
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unavailable(f"{' '.join(command[:2])}: {complaint[-1]}; try it by hand")
    return done.stdout
