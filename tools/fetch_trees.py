"""Fetch the Debian kernel sources that tests, demo and bench use, and unpack the part that matters.

stdout: the directory that holds the trees (--path 6.1: the newest tree of that series). stderr: what is downloaded.
Exit status 1 and one line when there is nothing to be had. What the cache holds already is not fetched again.
Only regular files of a few directories are written (iretrace.linux.archive): a package is data here, not software.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # works before Iretrace is installed

from iretrace.linux.archive import cache_directory, unpack_into
from iretrace.linux.debian import Unavailable, apt_for, download, served_versions
from iretrace.verdict import InputError

WANTED = {"6.1": 2, "6.12": 1, "7.3": 1, "5.10": 1}
"""Series, and how many point releases of it: the newest, then the oldest that is still served."""


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


def choose(versions: list[str], count: int) -> list[str]:
    """The newest version, and if a second is wanted the oldest of another point release."""
    chosen = versions[:1]
    if count > 1 and upstream(versions[-1]) != upstream(versions[0]):
        chosen.append(versions[-1])
    return chosen


def upstream(version: str) -> str:
    """6.1.192 of 6.1.192-2."""
    return version.split("-")[0]


def unpack(deb: Path, trees: Path) -> Path:
    """Unpack a linux-source package into trees/linux-VERSION and return that directory."""
    say(f"unpacking {deb.name}")
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
    apt = apt_for(series, say)
    versions = served_versions(package, apt)
    if not versions:
        raise Unavailable(f"Debian serves no {package} any more")
    for version in choose(versions, count):
        if not (cache / "trees" / f"linux-{upstream(version)}").exists():
            unpack(download(package, version, apt, say), cache / "trees")


def say(what: str) -> None:
    """A word on what goes on."""
    print(f"fetch_trees: {what}", file=sys.stderr)


def fetch_all(cache: Path) -> None:
    """Fetch what is wanted, as far as it is to be had. Unavailable when nothing is."""
    failures = []
    for series, count in WANTED.items():
        try:
            fetch(series, count, cache)
        except Unavailable as error:
            failures.append(error)
            say(f"Linux {series}: {error}")
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
        say(f"{error}; or name trees that you have: TREES=DIR")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
