"""Opening kernel trees, some of them hostile."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from iretrace.linux import tree as tree_module
from iretrace.linux.tree import NothingInScope, open_tree, tree_version
from iretrace.verdict import InputError
from tests.linux.mini import MAKEFILE, SEV, SVM, mini_tree, write_tree

CREATE = "--- /dev/null\n+++ b/arch/x86/kvm/svm/new.h\n@@ -0,0 +1 @@\n+int a;\n"


def test_the_version_comes_from_the_makefile(tmp_path: Path) -> None:
    assert mini_tree(tmp_path, {}).version == "6.1.7"
    assert tree_version(tmp_path) == "6.1.7"


def test_texts_are_read_by_their_path(tmp_path: Path) -> None:
    tree = mini_tree(tmp_path, {SVM: "int a;\n"})
    assert tree.text(SVM) == "int a;\n"
    assert tree.text("arch/x86/kvm/none.c") is None


def test_files_are_sources_and_headers_in_order(tmp_path: Path) -> None:
    tree = mini_tree(tmp_path, {"virt/kvm/b.c": "", "virt/kvm/a.h": "", "virt/kvm/Kconfig": "", "virt/kvm/x/c.c": ""})
    assert list(tree.files("virt/kvm")) == ["virt/kvm/a.h", "virt/kvm/b.c", "virt/kvm/x/c.c"]
    assert list(tree.files("virt/kvm", recursive=False)) == ["virt/kvm/a.h", "virt/kvm/b.c"]


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "the directory is empty"),
        ({"README": ""}, "no Makefile"),
        ({"Makefile": "all:\n"}, "this is no Linux source tree"),
        ({"Makefile": MAKEFILE}, r"Linux 6\.1\.7 without arch/x86/kvm/svm/svm\.c"),
    ],
)
def test_what_is_no_tree_is_refused_in_one_line(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    for path, text in files.items():
        (tmp_path / path).write_text(text)
    with pytest.raises(InputError, match=complaint) as caught:
        open_tree(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        open_tree(tmp_path / "none")


def test_a_tree_that_cannot_host_sev_es_is_out_of_scope(tmp_path: Path) -> None:
    write_tree(tmp_path, {SEV: "int sev_guest_init(void);\n"})
    with pytest.raises(NothingInScope, match="cannot host SEV-ES guests"):
        open_tree(tmp_path)


def test_a_link_out_of_the_tree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.c").write_text("int secret;\n")
    tree = mini_tree(tmp_path / "linux", {})
    (tmp_path / "linux/virt").symlink_to(tmp_path)
    (tmp_path / "linux/arch/x86/kvm/link.c").symlink_to(tmp_path / "secret.c")
    assert list(tree.files("arch/x86/kvm")) == [SEV, SVM]
    for path in ("arch/x86/kvm/link.c", "virt/secret.c", "../secret.c"):
        with pytest.raises(InputError, match="leads out of the tree"):
            tree.text(path)


def test_a_link_inside_the_tree_is_followed(tmp_path: Path) -> None:
    tree = mini_tree(tmp_path, {SVM: "int a;\n"})
    (tmp_path / "arch/x86/kvm/link.c").symlink_to("svm/svm.c")
    assert tree.text("arch/x86/kvm/link.c") == "int a;\n"


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "MAX_BYTES", 100)
    tree = mini_tree(tmp_path, {"virt/kvm/a.c": "/" * 101})
    with pytest.raises(InputError, match="101 bytes are too many"):
        tree.text("virt/kvm/a.c")


def test_a_text_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    tree = mini_tree(tmp_path, {})
    (tmp_path / SVM).write_bytes(b"/* \xe4 */\r\nint a;\n")
    assert tree_module.decode(b"\xe4") == "ä"
    assert open_tree(tmp_path).text(SVM) == "/* ä */\nint a;\n"
    assert tree.version == "6.1.7"


def test_a_patched_tree_shows_patched_texts_and_new_files(tmp_path: Path) -> None:
    tree = open_tree(write_tree(tmp_path, {}), [("a.patch", CREATE)])
    assert tree.text("arch/x86/kvm/svm/new.h") == "int a;\n"
    assert "arch/x86/kvm/svm/new.h" in tree.files("arch/x86/kvm")
    assert not (tmp_path / "arch/x86/kvm/svm/new.h").exists()
    assert tree.patched["arch/x86/kvm/svm/new.h"].added == {1}


def test_what_was_read_is_the_same_until_it_changes(tmp_path: Path) -> None:
    tree = mini_tree(tmp_path, {SVM: "int a;\n", "virt/kvm/a.h": "", "virt/kvm/b.h": ""})
    tree.text(SVM)
    tree.text("virt/kvm/none.h")
    list(tree.files("virt/kvm"))
    read = tree.read_so_far()
    assert open_tree(tmp_path).still_reads(read)
    (tmp_path / "virt/kvm/a.h").write_text("int not_read;\n")
    assert open_tree(tmp_path).still_reads(read)
    (tmp_path / SVM).write_text("int b;\n")
    assert not open_tree(tmp_path).still_reads(read)


@pytest.mark.parametrize("name", ["virt/kvm/none.h", "virt/kvm/new.c"])
def test_a_file_that_was_missing_or_not_listed_is_a_change(name: str, tmp_path: Path) -> None:
    tree = mini_tree(tmp_path, {SVM: "int a;\n"})
    tree.text("virt/kvm/none.h")
    list(tree.files("virt/kvm"))
    read = tree.read_so_far()
    (tmp_path / "virt/kvm").mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("")
    assert not open_tree(tmp_path).still_reads(read)


def test_a_patch_is_a_change(tmp_path: Path) -> None:
    tree = mini_tree(tmp_path, {SVM: "int a;\n"})
    list(tree.files("arch/x86/kvm/svm"))
    assert not open_tree(tmp_path, [("p", CREATE)]).still_reads(tree.read_so_far())


@pytest.mark.parametrize("name", ["../outside.h", "/etc/passwd", "/dev/zero", "../*"])
def test_a_name_that_leads_out_of_the_tree_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "outside.h").write_text("")
    mini_tree(tmp_path / "tree", {SVM: "int a;\n"})
    assert not open_tree(tmp_path / "tree").still_reads({name: hashlib.sha256(b"").hexdigest()})
