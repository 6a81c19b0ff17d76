"""Fetch the Debian kernel sources that tests, demo and bench use, and unpack the part that matters.

stdout: the directory that holds the trees (--path 6.1: the newest tree of that series). stderr: what is downloaded.
Exit status 1 and one line when there is nothing to be had. What the cache holds already is not fetched again.
Only regular files of a few directories are written, by their checked names: a package is data here, not software.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

WANTED = {"6.1": 2, "6.12": 1}
"""Series, and how many point releases of it: the newest, then the oldest that is still served."""

KEEP_DIRECTORIES = ("arch/x86/", "include/", "virt/", "kernel/sched/")
KEEP_FILES = ("Makefile", "Kbuild", "Kconfig", "COPYING")
MAX_FILE_BYTES = 32 << 20
MAX_TREE_BYTES = 512 << 20


class Unavailable(Exception):
    """A tree cannot be had; the message says why and what to do."""


def cache_directory() -> Path:
    """Where packages and trees are kept, by XDG custom."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "iretrace"


def makefile_version(tree: Path) -> tuple[int, int, int] | None:
    """(6, 1, 192) from the head of a kernel's Makefile, or None when it is not a kernel's."""
    try:
        with open(tree / "Makefile", encoding="latin-1") as makefile:
            head = makefile.read(1000)
    except OSError:
        return None
    numbers = [re.search(rf"^{name} = (\d+)$", head, re.MULTILINE) for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    if None in numbers:
        return None
    major, minor, point = (int(number[1]) for number in numbers if number)
    return major, minor, point


def trees_in(directory: Path) -> dict[str, list[Path]]:
    """Kernel trees in a directory, or the directory itself: series -> paths, newest first."""
    candidates = [directory]
    if directory.is_dir():
        candidates += sorted(path for path in directory.iterdir() if path.is_dir())
    found: dict[str, list[tuple[tuple[int, int, int], Path]]] = {}
    for path in candidates:
        version = makefile_version(path)
        if version:
            found.setdefault(f"{version[0]}.{version[1]}", []).append((version, path))
    return {series: [path for _, path in sorted(paths, reverse=True)] for series, paths in found.items()}


def run(*command: str, cwd: Path | None = None) -> str:
    """Output of a command; Unavailable with the last line of its complaint when it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} not found; name trees that you have: TREES=DIR") from None
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unavailable(f"{' '.join(command[:2])}: {complaint[-1]}; name trees that you have: TREES=DIR")
    return done.stdout


def served_versions(package: str) -> list[str]:
    """Debian versions of a package that apt knows of, newest first; fetches apt's lists if it has none."""
    madison = run("apt-cache", "madison", package)
    if not madison.strip() and os.geteuid() == 0:
        print("fetch_trees: apt-get update", file=sys.stderr)
        run("apt-get", "update", "-qq")
        madison = run("apt-cache", "madison", package)
    versions = [line.split("|")[1].strip() for line in madison.splitlines() if "Packages" in line]
    if not versions:
        raise Unavailable(f"apt does not know {package}; run apt-get update on Debian 12, or name trees: TREES=DIR")
    return list(dict.fromkeys(versions))


def choose(versions: list[str], count: int) -> list[str]:
    """The newest version, and if a second is wanted the oldest of another point release."""
    chosen = versions[:1]
    if count > 1 and upstream(versions[-1]) != upstream(versions[0]):
        chosen.append(versions[-1])
    return chosen


def upstream(version: str) -> str:
    """6.1.192 of 6.1.192-2."""
    return version.split("-")[0]


def download(package: str, version: str, packages: Path) -> Path:
    """The package file, from the cache or from Debian; apt checks its signature chain."""
    packages.mkdir(parents=True, exist_ok=True)
    name = f"{package}_{version}_all.deb".replace(":", "%3a")
    if (packages / name).exists():
        return packages / name
    size = re.search(r"^Size: (\d+)$", run("apt-cache", "show", f"{package}={version}"), re.MULTILINE)
    mebibytes = f"{int(size[1]) / 2**20:.0f} MiB" if size else "size unknown"
    print(f"fetch_trees: downloading {package} {version} ({mebibytes}) from Debian to {packages}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=packages) as partial:
        # As root apt would complain that its sandbox user cannot write here.
        options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        run("apt-get", *options, "-qq", "download", f"{package}={version}", cwd=Path(partial))
        files = list(Path(partial).glob("*.deb"))
        if len(files) != 1:
            raise Unavailable(f"apt-get download {package}={version} left no package file")
        return files[0].rename(packages / name)


def wanted(name: str) -> PurePosixPath | None:
    """The path inside the tree of an archive member that is kept, else None."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        return None
    inside = PurePosixPath(*path.parts[1:])
    kept = str(inside) in KEEP_FILES or str(inside).startswith(KEEP_DIRECTORIES)
    return inside if kept else None


def unpack_stream(archive: tarfile.TarFile, tree: Path) -> None:
    """Write the wanted regular files. No links, devices, owners or modes: nothing in an archive can point outside."""
    total = 0
    for member in archive:
        inside = wanted(member.name)
        if inside is None or not member.isreg():
            continue
        total += member.size
        if member.size > MAX_FILE_BYTES or total > MAX_TREE_BYTES:
            raise Unavailable(f"{member.name}: the archive is larger than any kernel; not unpacked")
        content = archive.extractfile(member)
        assert content is not None, "a regular file has content"
        target = tree / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as out:
            shutil.copyfileobj(content, out)


def unpack(deb: Path, package: str, trees: Path) -> Path:
    """Unpack a linux-source package into trees/linux-VERSION and return that directory."""
    print(f"fetch_trees: unpacking {deb.name}", file=sys.stderr)
    trees.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=trees))
    commands = [
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        ["tar", "-xO", f"./usr/src/{package}.tar.xz"],
        ["xz", "-dc", "-T0"],
    ]
    pipes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            source = pipes[-1].stdout if pipes else subprocess.DEVNULL
            pipes.append(subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE))
        assert pipes[-1].stdout is not None, "asked for a pipe"
        with tarfile.open(fileobj=pipes[-1].stdout, mode="r|", bufsize=1 << 20) as archive:
            unpack_stream(archive, partial)
        version = makefile_version(partial)
        if version is None:
            raise Unavailable(f"{deb}: no kernel Makefile in it; remove the file and try again")
        tree = trees / f"linux-{version[0]}.{version[1]}.{version[2]}"
        if not tree.exists():
            partial.rename(tree)
        return tree
    except (tarfile.TarError, FileNotFoundError) as error:
        raise Unavailable(f"{deb}: cannot be unpacked: {error}; remove the file and try again") from error
    finally:
        for process in pipes:
            if process.stdout:
                process.stdout.close()
            process.wait()
        shutil.rmtree(partial, ignore_errors=True)


def fetch(series: str, count: int, cache: Path) -> None:
    """Make sure that the cache holds `count` trees of a series, as far as Debian serves them."""
    if len(trees_in(cache / "trees").get(series, [])) >= count:
        return
    package = f"linux-source-{series}"
    for version in choose(served_versions(package), count):
        if not (cache / "trees" / f"linux-{upstream(version)}").exists():
            unpack(download(package, version, cache / "packages"), package, cache / "trees")


def locate(given: str, path: str) -> Path:
    """The directory of the trees, or the newest tree of series `path`; fetches unless the user named a directory."""
    directory = Path(given).resolve() if given else cache_directory() / "trees"
    if given and not directory.is_dir():
        raise Unavailable(f"TREES={given}: no such directory")
    if not given:
        for series, count in {path: 1}.items() if path else WANTED.items():
            fetch(series, count, cache_directory())
    found = trees_in(directory)
    if path and path not in found:
        raise Unavailable(f"{directory}: no Linux {path} tree (by its Makefile's VERSION and PATCHLEVEL) in it")
    if not found:
        raise Unavailable(f"{directory}: no kernel source tree in it")
    return found[path][0] if path else directory


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", default="", metavar="DIR", help="kernel trees that are here already")
    parser.add_argument("--path", default="", metavar="SERIES", help="print the newest tree of a series, e.g. 6.1")
    arguments = parser.parse_args()
    try:
        print(locate(arguments.trees, arguments.path))
    except (Unavailable, OSError) as error:
        print(f"fetch_trees: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
