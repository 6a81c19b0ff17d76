"""Small changes to a kernel tree, described by a function and a few tokens in it, and made into patches when needed.

No kernel text is kept here beyond the tokens that find the place. The patch is a unified diff against the tree at hand,
so that a change goes the same way as a developer's (`--patch`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iretrace.linux.tree import Tree, open_tree

SVM = "arch/x86/kvm/svm/svm.c"
SEV = "arch/x86/kvm/svm/sev.c"
X86 = "arch/x86/kvm/x86.c"


@dataclass(frozen=True, slots=True)
class Edit:
    """In `function` of the file `path`, replace `old` by `new`. Spaces in `old` match any white space.

    `old` must occur once in the function. `before`: text to put before the function.
    """

    path: str
    function: str
    old: str
    new: str
    before: str = ""


def patched(root: Path, name: str, edits: Sequence[Edit]) -> Tree:
    """The tree with the edits, applied as a patch of that name."""
    return open_tree(root, [(name, make_patch(open_tree(root), edits))])


def make_patch(tree: Tree, edits: Sequence[Edit]) -> str:
    """The unified diff that makes the edits. LookupError for a place that the tree does not have exactly once."""
    texts: dict[str, str] = {}
    for edit in edits:
        before = texts.get(edit.path) or tree.text(edit.path) or ""
        texts[edit.path] = _apply(before, edit)
    return "".join(_diff(path, tree.text(path) or "", after) for path, after in texts.items())


def _diff(path: str, before: str, after: str) -> str:
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return "".join(difflib.unified_diff(old, new, f"a/{path}", f"b/{path}"))


def _apply(text: str, edit: Edit) -> str:
    start, end = _extent(text, edit)
    found = list(re.finditer(_spaced(edit.old), text[start:end]))
    if len(found) != 1:
        raise LookupError(f"{edit.path}: {edit.function}() holds {edit.old!r} {len(found)} times, not once")
    at = found[0]
    return text[:start] + edit.before + text[start : start + at.start()] + edit.new + text[start + at.end() :]


def _extent(text: str, edit: Edit) -> tuple[int, int]:
    """Where the function begins and ends: from the line that names it in the first column's declaration to `}`."""
    found = list(re.finditer(rf"^[a-z][\w \t*]*\b{edit.function}\([^;{{]*\{{.*?^\}}", text, re.MULTILINE | re.DOTALL))
    if len(found) != 1:
        raise LookupError(f"{edit.path}: {len(found)} functions are called {edit.function}, not one")
    return found[0].span()


def _spaced(fragment: str) -> str:
    return r"\s+".join(re.escape(word) for word in fragment.split())
