"""A mailed series on a real tree: from the mailbox to the verdict, the fix written anew from its description."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest

from iretrace.cli.main import main
from iretrace.linux.tree import open_tree
from tests.trees.edits import FIX_ON_6_1, make_patch

ENVELOPE = "From mboxrd@z Thu Jan  1 00:00:00 1970\n"
TEXT = "--- a/Documentation/x.rst\n+++ b/Documentation/x.rst\n@@ -1 +1 @@\n-old\n+new\n"
CHECK = ["check", "--patch", "-", "--test", "nmi-complete-then-spin", "--host", "tickless"]


@pytest.mark.trees
def test_a_mailed_series_turns_the_verdict(
    tree_6_1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    diff = make_patch(open_tree(tree_6_1), FIX_ON_6_1)
    encoded = base64.encodebytes(f"Why.\n---\n{diff}".encode()).decode()
    series = (
        f"{ENVELOPE}Subject: [PATCH 2/2] fix\nContent-Transfer-Encoding: base64\n\n{encoded}\n"
        f"{ENVELOPE}Subject: Re: [PATCH 2/2] fix\n\n{TEXT}\n"
        f"{ENVELOPE}Subject: [PATCH 1/2] text\n\n{TEXT}\n{ENVELOPE}Subject: [PATCH 0/2] cover\n\nHello.\n"
    )
    for mails, status, said in (
        (series, 0, "<stdin>: [PATCH 1/2] text: Documentation/x.rst: hunk 1 not looked at"),
        (f"Subject: [PATCH] text\n\n{TEXT}", 4, ""),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(mails.encode())))
        assert main([*CHECK, str(tree_6_1)]) == status
        assert said in capsys.readouterr().out
