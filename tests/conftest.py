"""For all tests: real kernel trees, when there are any, and Hypothesis without a look at the clock."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from iretrace.linux.tree import tree_version
from iretrace.verdict import InputError

# How fast a machine is decides nothing.
settings.register_profile("iretrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("iretrace")


LONG = (
    "trees/test_verdicts.py", "trees/test_agreement.py", "trees/test_negation.py", "trees/test_reintroduced.py",
    "trees/test_point_release.py", "kvm/test_verdicts.py",
    "trees/test_the_mail.py", "trees/test_mutants.py", "linux/test_against_gcc.py", "kvm/test_agrees_with_trees.py",
    "trees/test_mail_page.py", "test_mail.py", "world/test_plain_oracle.py", "trees/test_debug_registers.py",
)  # fmt: skip
"""Files that take long, longest first: so none of them is still running when there is nothing else left to run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first (with --no-loadscope-reorder for xdist, which would rather begin with what is many)."""
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    """What has been loaded stays, and trees that are read leave few cycles: collect garbage more rarely."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _tree(series: str) -> Path:
    """The newest tree of a series (such as 6.1) in IRETRACE_TREES, which may also be a tree itself; else skip."""
    given = os.environ.get("IRETRACE_TREES")
    if not given:
        pytest.skip("IRETRACE_TREES names no directory with kernel sources; see make trees")
    found: list[tuple[int, Path]] = []
    for path in (Path(given), *sorted(Path(given).iterdir())):
        try:
            version = tree_version(path)
        except InputError:
            continue
        if version.startswith(series + "."):
            found.append((int(version.rpartition(".")[2]), path))
    if not found:
        pytest.skip(f"no Linux {series} in {given}")
    return max(found)[1]


@pytest.fixture(scope="session")
def tree_6_1() -> Path:
    """A Linux 6.1 tree: the last long-term series with NMI singlestepping for SEV-ES guests."""
    return _tree("6.1")


@pytest.fixture(scope="session")
def tree_6_12() -> Path:
    """A Linux 6.12 tree: NMI_COMPLETE unmasks at once, vNMI, queued NMIs apart from pending ones."""
    return _tree("6.12")


@pytest.fixture(scope="session")
def tree_7_3() -> Path:
    """A Linux 7.3 tree: x86.c split into files, allow-listed GHCB exits, scoped guards."""
    return _tree("7.3")


@pytest.fixture(scope="session")
def tree_5_10() -> Path:
    """A Linux 5.10 tree: no SEV-ES host code, so nothing that is checked here."""
    return _tree("5.10")
