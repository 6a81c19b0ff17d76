"""Debian's package archive, asked through apt, which checks signatures. A package is data: nothing is installed."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from iretrace.linux.archive import cache_directory
from iretrace.verdict import InputError

SUITES = {
    "5.10": ("http://deb.debian.org/debian-security", "bullseye-security"),
    "6.1": ("http://deb.debian.org/debian-security", "bookworm-security"),
    "6.12": ("http://deb.debian.org/debian-security", "trixie-security"),
    "7.3": ("http://deb.debian.org/debian", "trixie-backports"),
}
"""Where Debian serves the kernels of a series."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TIMEOUT = 600
"""Seconds for one command."""

Say = Callable[[str], None]
Apt = Sequence[str]
"""Options for apt; none: the machine's own lists."""


class Unavailable(InputError):
    """Something cannot be had here; the message says why and what to do."""


def run(*command: str, cwd: Path | None = None) -> str:
    """Output of a command; Unavailable with the last line of its complaint when it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TIMEOUT
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} not found; packages are fetched by a Debian system's apt") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command[:2])}: no answer in {TIMEOUT} s; try it by hand") from None
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unavailable(f"{' '.join(command[:2])}: {complaint[-1]}; try it by hand")
    return done.stdout


def apt_for(series: str, say: Say) -> Apt:
    """The suite that serves a series, asked now: the lists of the machine's own apt can be old. Those, and a word about
    it, where the suite cannot be asked."""
    try:
        return own_apt(series, say)
    except Unavailable as error:
        say(f"{error}; going by the lists that this machine's apt has")
        return ()


def own_apt(series: str, say: Say) -> Apt:
    """Options that make apt work on lists of its own in the cache, with the one suite that serves a series.

    Nothing of the machine's apt is changed, and no root is needed."""
    if series not in SUITES:
        raise Unavailable(f"no suite is known that serves Linux {series}")
    if not KEYRING.exists():
        raise Unavailable(f"{KEYRING} not found (apt install debian-archive-keyring)")
    home = cache_directory() / "apt" / series
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
    say(f"asking {uri} for {suite}")
    run("apt-get", *options, *_as_root(), "-qq", "update")
    return options


def _as_root() -> list[str]:
    """As root, apt would complain that its sandbox user cannot write to the cache."""
    return ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []


def served_versions(package: str, apt: Apt) -> list[str]:
    """Debian versions of a package that apt knows of, newest first."""
    madison = run("apt-cache", *apt, "madison", package)
    versions = [line.split("|")[1].strip() for line in madison.splitlines() if "Packages" in line]
    return list(dict.fromkeys(versions))


def download(package: str, version: str, apt: Apt, say: Say) -> Path:
    """The package file, from the cache or from Debian."""
    packages = cache_directory() / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for architecture in ("amd64", "all"):
        kept = packages / f"{package}_{version}_{architecture}.deb".replace(":", "%3a")
        if kept.exists():
            return kept
    size = re.search(r"^Size: (\d+)$", run("apt-cache", *apt, "show", f"{package}={version}"), re.MULTILINE)
    mebibytes = f" ({int(size[1]) / 2**20:.0f} MiB)" if size else ""
    say(f"downloading {package} {version}{mebibytes} from Debian to {packages}")
    with tempfile.TemporaryDirectory(dir=packages) as partial:
        run("apt-get", *apt, *_as_root(), "-qq", "download", f"{package}={version}", cwd=Path(partial))
        files = list(Path(partial).glob("*.deb"))
        if len(files) != 1:
            raise Unavailable(f"apt-get download {package}={version} left no package file; try it by hand")
        return files[0].rename(packages / files[0].name)
