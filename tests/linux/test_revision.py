"""A git revision as a tree: only its blobs are read, and nothing of the repository is obeyed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from iretrace.linux.revision import open_revision
from iretrace.linux.tree import open_tree
from iretrace.verdict import InputError
from tests.linux.mini import SVM, write_tree

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git not found")


def quiet(_text: str) -> None:
    """No progress."""


@pytest.fixture(autouse=True)
def no_earlier_revisions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def git(repository: Path, *words: str) -> str:
    names = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull} | names
    done = subprocess.run(["git", *words], cwd=repository, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits: the first, tagged v1, holds `one`, the second `two`; the work tree holds neither."""
    root = write_tree(tmp_path / "linux", {SVM: "int one;\n"})
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    git(root, "tag", "v1")
    (root / SVM).write_text("int two;\n")
    git(root, "commit", "-q", "-a", "-m", "two")
    (root / SVM).write_text("int dirty;\n")
    return root


@pytest.mark.parametrize(("revision", "number"), [("v1", "one"), ("main", "two"), ("HEAD", "two"), ("main~1", "one")])
def test_a_revision_is_read_and_not_the_work_tree(revision: str, number: str, repository: Path) -> None:
    assert open_tree(open_revision(repository, revision, quiet)).text(SVM) == f"int {number};\n"
    assert (repository / SVM).read_text() == "int dirty;\n"


@pytest.mark.parametrize("how", ["packed", "bare", "linked"])
def test_repositories_come_in_several_shapes(how: str, repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    if how == "packed":
        git(repository, "gc", "-q")
        other = repository
    elif how == "bare":
        git(repository, "clone", "-q", "--bare", str(repository), str(other))
    else:
        git(repository, "worktree", "add", "-q", str(other), "v1")
    assert open_tree(open_revision(other, "v1", quiet)).text(SVM) == "int one;\n"


@pytest.mark.parametrize("revision", ["v2", "", "--output=x", "v1\x1b[2J", "0" * 40, "main:Makefile"])
def test_what_is_no_revision_is_one_harmless_line(revision: str, repository: Path) -> None:
    with pytest.raises(InputError) as error:
        open_revision(repository, revision, quiet)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_what_is_no_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no git repository; --rev needs one"):
        open_revision(tmp_path, "v1", quiet)


def test_nothing_of_a_hostile_repository_is_obeyed(repository: Path, tmp_path: Path) -> None:
    """Hooks, a file system monitor, filters, an alias, a promisor that is a program: none of them runs."""
    touched = tmp_path / "touched"
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {touched}\ncat\n")
    trap.chmod(0o755)
    for hook in ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc"):
        shutil.copy(trap, repository / ".git" / "hooks" / hook)
    (repository / ".git" / "info").mkdir(exist_ok=True)
    (repository / ".git" / "info" / "attributes").write_text("* filter=evil diff=evil text eol=crlf export-subst\n")
    (repository / ".gitattributes").write_text("* filter=evil\n")
    with open(repository / ".git" / "config", "a") as config:
        config.write(
            f"[core]\n\tfsmonitor = {trap}\n\tpager = {trap}\n\tsshCommand = {trap}\n\thooksPath = .git/hooks\n"
            f'[filter "evil"]\n\tsmudge = {trap}\n\tclean = {trap}\n[diff "evil"]\n\ttextconv = {trap}\n'
            f'[alias]\n\trev-parse = !{trap}\n\tcat-file = !{trap}\n[remote "origin"]\n\tpromisor = true\n'
            f"\turl = ext::{trap}\n[extensions]\n\tpartialClone = origin\n[protocol]\n\tallow = always\n"
        )
    assert open_tree(open_revision(repository, "v1", quiet)).text(SVM) == "int one;\n"
    blob = git_object(repository, f"v1:{SVM}")
    blob.unlink()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(InputError, match="an object is missing|no Linux source tree|larger"):
        open_revision(repository, "v1", quiet)
    assert not touched.exists()
    assert not any((tmp_path / "cache" / "iretrace" / "revisions").iterdir())


def git_object(repository: Path, name: str) -> Path:
    """The loose object of a name, asked of a clean clone of the refs: the hostile configuration must not be used."""
    clean = repository.parent / "clean"
    shutil.copytree(repository / ".git", clean / ".git", ignore=shutil.ignore_patterns("config", "hooks", "info"))
    (clean / ".git" / "config").write_text("[core]\n\trepositoryformatversion = 0\n")
    digest = git(clean, "rev-parse", name)
    return repository / ".git" / "objects" / digest[:2] / digest[2:]


def test_links_and_submodules_are_passed_over(repository: Path) -> None:
    (repository / "include").mkdir(exist_ok=True)
    (repository / "include" / "out.h").symlink_to("/etc/passwd")
    git(repository, "add", "include/out.h")
    git(repository, "commit", "-q", "-m", "link")
    assert open_tree(open_revision(repository, "HEAD", quiet)).text("include/out.h") is None
