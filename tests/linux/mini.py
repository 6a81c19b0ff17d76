"""Small kernel trees for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from iretrace.linux.index import Index
from iretrace.linux.tree import Tree, open_tree

MAKEFILE = "VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 7\nEXTRAVERSION =\n"
SVM = "arch/x86/kvm/svm/svm.c"
SEV = "arch/x86/kvm/svm/sev.c"
SVM_H = "arch/x86/kvm/svm/svm.h"


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """A tree that open_tree accepts, with these files besides."""
    least = {"Makefile": MAKEFILE, SVM: "", SEV: "int sev_handle_vmgexit(void);\n"}
    for path, text in (least | dict(files)).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def mini_tree(root: Path, files: Mapping[str, str]) -> Tree:
    """The same, opened."""
    return open_tree(write_tree(root, files))


def mini_index(
    root: Path, files: Mapping[str, str], config: Mapping[str, str] | None = None, opaque: frozenset[str] = frozenset()
) -> Index:
    """The same, indexed."""
    return Index(mini_tree(root, files), config or {}, opaque)
