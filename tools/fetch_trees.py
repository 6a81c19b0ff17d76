"""Fetch the Debian kernel sources that tests, demo and bench use, and unpack the part that matters.

stdout: the directory that holds the trees (--path 6.1: the newest tree of that series). stderr: what is downloaded.
Exit status 1 and one line when there is nothing to be had. What the cache holds already is not fetched again.
Only regular files of a few directories are written (iretrace.linux.archive): a package is data here, not software.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # works before Iretrace is installed

from iretrace.linux.archive import cache_directory, unpack_into
from iretrace.verdict import InputError

WANTED = {"6.1": 2, "6.12": 1, "7.3": 1, "5.10": 1}
"""Series, and how many point releases of it: the newest, then the oldest that is still served."""

SUITES = {
    "5.10": ("http://deb.debian.org/debian-security", "bullseye-security"),
    "6.1": ("http://deb.debian.org/debian-security", "bookworm-security"),
    "6.12": ("http://deb.debian.org/debian-security", "trixie-security"),
    "7.3": ("http://deb.debian.org/debian", "trixie-backports"),
}
"""Where Debian serves a series."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Unavailable(Exception):
    """A tree cannot be had; the message says why and what to do."""


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


def served_versions(package: str, apt: Sequence[str]) -> list[str]:
    """Debian versions of a package that apt knows of, newest first."""
    madison = run("apt-cache", *apt, "madison", package)
    versions = [line.split("|")[1].strip() for line in madison.splitlines() if "Packages" in line]
    return list(dict.fromkeys(versions))


def own_apt(series: str, cache: Path) -> list[str]:
    """Options that make apt work on lists of its own in the cache, with the one suite that serves a series.

    Nothing of the machine's apt is changed, and no root is needed. apt checks signatures by Debian's keyring.
    """
    if series not in SUITES:
        raise Unavailable(f"no suite is known that serves Linux {series}; name trees that you have: TREES=DIR")
    if not KEYRING.exists():
        raise Unavailable(f"{KEYRING} not found (apt install debian-archive-keyring), or name trees: TREES=DIR")
    home = cache / "apt" / series
    for directory in ("lists/partial", "archives/partial"):
        (home / directory).mkdir(parents=True, exist_ok=True)
    uri, suite = SUITES[series]
    sources = home / "debian.sources"
    sources.write_text(f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": home / "lists",
        "Dir::Cache": home,
        "Acquire::Languages": "none",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    print(f"fetch_trees: asking {uri} for {suite}", file=sys.stderr)
    run("apt-get", *options, *as_root(), "-qq", "update")
    return options


def served(package: str, series: str, cache: Path) -> tuple[Sequence[str], list[str]]:
    """(options for apt, versions of a package, newest first): of the suite itself, since the lists of the machine's own
    apt can be old; of those where the suite cannot be asked."""
    try:
        apt = own_apt(series, cache)
    except Unavailable as error:
        print(f"fetch_trees: {error}; going by the lists that this machine's apt has", file=sys.stderr)
        apt = []
    return apt, served_versions(package, apt)


def as_root() -> list[str]:
    """As root, apt would complain that its sandbox user cannot write to the cache."""
    return ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []


def choose(versions: list[str], count: int) -> list[str]:
    """The newest version, and if a second is wanted the oldest of another point release."""
    chosen = versions[:1]
    if count > 1 and upstream(versions[-1]) != upstream(versions[0]):
        chosen.append(versions[-1])
    return chosen


def upstream(version: str) -> str:
    """6.1.192 of 6.1.192-2."""
    return version.split("-")[0]


def download(package: str, version: str, packages: Path, apt: Sequence[str]) -> Path:
    """The package file, from the cache or from Debian; apt checks its signature chain."""
    packages.mkdir(parents=True, exist_ok=True)
    name = f"{package}_{version}_all.deb".replace(":", "%3a")
    if (packages / name).exists():
        return packages / name
    size = re.search(r"^Size: (\d+)$", run("apt-cache", *apt, "show", f"{package}={version}"), re.MULTILINE)
    mebibytes = f"{int(size[1]) / 2**20:.0f} MiB" if size else "size unknown"
    print(f"fetch_trees: downloading {package} {version} ({mebibytes}) from Debian to {packages}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=packages) as partial:
        run("apt-get", *apt, *as_root(), "-qq", "download", f"{package}={version}", cwd=Path(partial))
        files = list(Path(partial).glob("*.deb"))
        if len(files) != 1:
            raise Unavailable(f"apt-get download {package}={version} left no package file")
        return files[0].rename(packages / name)


def unpack(deb: Path, trees: Path) -> Path:
    """Unpack a linux-source package into trees/linux-VERSION and return that directory."""
    print(f"fetch_trees: unpacking {deb.name}", file=sys.stderr)
    trees.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=trees) as partial:
        unpacked = Path(partial) / "tree"
        try:
            unpack_into(deb, unpacked, lambda _text: None)
        except InputError as error:
            raise Unavailable(f"{error}; remove the file and try again") from None
        version = makefile_version(unpacked)
        if version is None:
            raise Unavailable(f"{deb}: no kernel Makefile in it; remove the file and try again")
        tree = trees / f"linux-{version[0]}.{version[1]}.{version[2]}"
        if not tree.exists():
            unpacked.rename(tree)
        return tree


def fetch(series: str, count: int, cache: Path) -> None:
    """Make sure that the cache holds `count` trees of a series, as far as Debian serves them."""
    if len(trees_in(cache / "trees").get(series, [])) >= count:
        return
    package = f"linux-source-{series}"
    apt, versions = served(package, series, cache)
    if not versions:
        raise Unavailable(f"Debian's {SUITES[series][1]} serves no {package} any more; name trees: TREES=DIR")
    for version in choose(versions, count):
        if not (cache / "trees" / f"linux-{upstream(version)}").exists():
            unpack(download(package, version, cache / "packages", apt), cache / "trees")


def fetch_all(cache: Path) -> None:
    """Fetch what is wanted, as far as it is to be had. Unavailable when nothing is."""
    failures = []
    for series, count in WANTED.items():
        try:
            fetch(series, count, cache)
        except Unavailable as error:
            failures.append(error)
            print(f"fetch_trees: Linux {series}: {error}", file=sys.stderr)
    if failures and not trees_in(cache / "trees"):
        raise failures[0]


def locate(given: str, path: str) -> Path:
    """The directory of the trees, or the newest tree of series `path`; fetches unless the user named a directory."""
    directory = Path(given).resolve() if given else cache_directory() / "trees"
    if given and not directory.is_dir():
        raise Unavailable(f"TREES={given}: no such directory")
    if not given and path:
        fetch(path, 1, cache_directory())
    elif not given:
        fetch_all(cache_directory())
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
