"""Real trees as hypervisors, each read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.tree import open_tree


@pytest.fixture(scope="session")
def linux_6_1(tree_6_1: Path) -> TreeHypervisor:
    """The newest 6.1 tree as it is."""
    return TreeHypervisor(open_tree(tree_6_1))


@pytest.fixture(scope="session")
def linux_6_12(tree_6_12: Path) -> TreeHypervisor:
    """The newest 6.12 tree as it is."""
    return TreeHypervisor(open_tree(tree_6_12))


@pytest.fixture(scope="session")
def linux_7_3(tree_7_3: Path) -> TreeHypervisor:
    """The newest 7.3 tree as it is."""
    return TreeHypervisor(open_tree(tree_7_3))
