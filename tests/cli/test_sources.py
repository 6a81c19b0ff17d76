"""Where hypervisors come from, and the command lines that name them again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from iretrace.cli.sources import TreeSource
from tests.linux.mini import SVM, write_tree
from tests.linux.test_revision import git

pytestmark = pytest.mark.usefixtures("no_earlier_results")


@pytest.mark.skipif(shutil.which("git") is None, reason="git not found")
def test_the_command_for_a_branch_names_the_commit_as_a_branch_moves(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "linux", {SVM: "int one;\n"})
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    commit = git(root, "rev-parse", "HEAD")
    source = TreeSource(root, rev="main")
    assert source.command() == ["iretrace", "check", str(root), "--rev", commit[:12]]
    assert TreeSource(root, rev=commit[:12]).tree.root == source.tree.root
