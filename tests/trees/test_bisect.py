"""`git bisect run` on a history made of two kernels: which commit brought the bug, and what cannot be judged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iretrace.cli.main import main
from iretrace.linux.archive import DIRECTORIES

pytestmark = [pytest.mark.trees, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
SVM = Path("arch/x86/kvm/svm/svm.c")
TEST = ["--test", "nmi-complete-then-spin", "--vcpu", "sev-es"]


def git(repository: Path, *words: str) -> str:
    """What git says, without anybody's configuration."""
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    environment |= {"PYTHONPATH": str(ROOT / "src")}
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "gc.auto=0"]
    command = ["git", "-C", str(repository), *identity, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=500).stdout


def commit(repository: Path, subject: str) -> str:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", subject)
    return git(repository, "rev-parse", "HEAD").strip()


def put(tree: Path, repository: Path) -> None:
    """The files of a tree that are looked at, instead of those that are there."""
    for old in repository.iterdir():
        if old.name != ".git":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for file in (tree / "Makefile", *(file for top in DIRECTORIES for file in (tree / top).rglob("*.[ch]"))):
        target = repository / file.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def append(repository: Path, text: str) -> None:
    with open(repository / SVM, "a", encoding="utf-8") as file:
        file.write(text)


def test_git_bisect_run_finds_the_commit_and_passes_over_what_cannot_be_judged(
    tree_6_12: Path, tree_6_1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    repository = tmp_path / "linux"
    repository.mkdir()
    git(repository, "init", "--quiet")
    put(tree_6_12, repository)
    good = commit(repository, "6.12")
    put(tree_6_1, repository)
    culprit = commit(repository, "6.1")
    (repository / SVM).unlink()  # in the middle, so that git asks for it first
    broken = commit(repository, "a tree without svm.c")
    put(tree_6_1, repository)
    append(repository, "/* nothing */\n")
    commit(repository, "a comment")
    append(repository, "/* nothing more */\n")
    bad = commit(repository, "one more")

    git(repository, "bisect", "start", bad, good)
    said = git(repository, "bisect", "run", sys.executable, "-m", "iretrace", "check", ".", "--bisect", *TEST)
    assert f"{culprit} is the first bad commit" in said
    assert f"# skip: [{broken}] a tree without svm.c" in git(repository, "bisect", "log")

    git(repository, "bisect", "reset")
    revisions = (culprit, good, broken)
    assert [main(["check", str(repository), "--rev", rev, "--quiet", *TEST]) for rev in revisions] == [1, 0, 2]
