"""`--format b4` as the real b4 reads it: by its configuration line, from the mail to what it keeps. b4 is from PyPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iretrace.linux.tree import open_tree
from tests.linux.mini import SVM, write_tree
from tests.trees.edits import REVERT_ON_6_12, make_patch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

ASK = """
import argparse, email, json, sqlite3, sys
from email import policy
import b4
from b4.review import checks
b4.setup_config(argparse.Namespace(config={}))
commands, _ = checks.load_check_cmds()
mail = email.message_from_bytes(sys.stdin.buffer.read(), policy=policy.SMTP)
(found,) = checks.run_perpatch_checks([("id", mail)], commands, sys.argv[1]).values()
kept = sqlite3.connect(":memory:")
kept.row_factory = sqlite3.Row
kept.executescript(checks.SCHEMA_SQL)
checks.store_results(kept, "id", found)
print(json.dumps([commands, found, checks.get_cached_results(kept, ["id"]).get("id", [])]))
"""
"""b4's own functions: what is configured, what the commands answer to a mail, and what of it is kept and shown."""


@pytest.fixture(scope="module")
def b4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with b4."""
    target = tmp_path_factory.mktemp("b4")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "b4>=0.15"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.skip(f"b4 cannot be had from PyPI: {done.stderr.strip().splitlines()[-1]}")
    return target


def ask(b4: Path, tree: Path, tmp_path: Path, diff: str, *more: str) -> list[dict[str, str]]:
    """What b4 makes of a mail with this diff, with a configuration as docs/b4.md has it."""
    command = " ".join([sys.executable, "-m", "iretrace", "check", ".", "--patch", "-", "--format", "b4", *more])
    (tmp_path / "gitconfig").write_text(f"[b4]\n\treview-perpatch-check-cmd = {command}\n")
    environment = os.environ | {
        "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"),
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join((str(b4), str(ROOT / "src"))),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    head = "From: A <a@example.org>\nSubject: [PATCH] change\nMessage-Id: <1@example.org>\n\nWhy.\n"
    mail = f"{head}---\n{diff}--\n2.39\n"
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(tree)],
        input=mail.encode(),
        env=environment,
        cwd=tree,
        capture_output=True,
        check=True,
        timeout=300,
    )
    (configured, found, kept) = json.loads(done.stdout)
    assert configured == [command]
    assert kept == found, "b4 forgets one of several entries of the same tool"
    answer: Any = found
    return list(answer)


def test_b4_is_told_that_there_is_nothing_to_say(b4: Path, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "linux", {SVM: "int of_no_use;\n"})
    assert ask(b4, tree, tmp_path, f"--- a/{SVM}\n+++ b/{SVM}\n@@ -1 +1 @@\n-int of_no_use;\n+int of_none;\n") == []


def test_b4_is_told_that_a_patch_is_for_another_tree(b4: Path, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "linux", {SVM: "int of_no_use;\n"})
    (entry,) = ask(b4, tree, tmp_path, f"--- a/{SVM}\n+++ b/{SVM}\n@@ -1 +1 @@\n-int other;\n+int of_none;\n")
    assert (entry["tool"], entry["status"]) == ("iretrace", "warn")
    assert entry["summary"].startswith("not judged: <stdin>: [PATCH] change: ")


@pytest.mark.trees
def test_b4_is_told_of_a_defect_that_a_patch_brings(b4: Path, tree_6_12: Path, tmp_path: Path) -> None:
    diff = make_patch(open_tree(tree_6_12), REVERT_ON_6_12)
    (entry,) = ask(b4, tree_6_12, tmp_path, diff, "--test", "nmi-complete-then-spin", "--vcpu", "sev-es")
    assert entry["status"] == "fail"
    assert ": error: [nmi-complete-then-spin] an NMI that the processor would deliver never comes" in entry["summary"]
    assert "step 1: KVM: creates the vCPU" in entry["details"]
