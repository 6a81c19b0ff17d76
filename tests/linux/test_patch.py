"""Unified diffs on texts."""

from __future__ import annotations

import difflib
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iretrace.linux.archive import is_looked_at
from iretrace.linux.patch import PatchedFile, Record, apply_patches, changed_paths, parse_patch
from iretrace.verdict import InputError

OLD = "".join(f"line {number}\n" for number in range(1, 21))


def make_diff(path: str, old: str, new: str) -> str:
    """A unified diff as diff -u writes it."""
    lines: list[str] = []
    for line in difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{path}", f"b/{path}"):
        lines.append(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n")
    return "".join(lines)


def apply(texts: dict[str, str], *patches: str) -> dict[str, PatchedFile]:
    return apply_patches(texts.get, [(f"{number}.patch", patch) for number, patch in enumerate(patches, start=1)])


def test_a_diff_changes_the_text_and_says_which_lines_it_added() -> None:
    new = OLD.replace("line 7\n", "seven\nseven and a half\n")
    assert apply({"a.c": OLD}, make_diff("a.c", OLD, new)) == {"a.c": PatchedFile(new, frozenset((7, 8)))}


def test_a_hunk_is_found_at_an_offset() -> None:
    new = OLD.replace("line 7\n", "seven\n")
    moved = "more\n" * 5 + OLD
    done = apply({"a.c": moved}, make_diff("a.c", OLD, new))
    assert done["a.c"] == PatchedFile("more\n" * 5 + new, frozenset((12,)))


def test_of_two_places_the_nearer_is_taken() -> None:
    block = "a\nb\nc\n"
    patch = "--- a/x\n+++ b/x\n@@ -9,3 +9,3 @@\n a\n-b\n+B\n c\n"
    done = apply({"x": block + "1\n2\n3\n4\n" + block}, patch)
    assert done["x"].text == block + "1\n2\n3\n4\n" + "a\nB\nc\n"


def test_patches_build_on_each_other_and_keep_added_lines() -> None:
    first = OLD.replace("line 7\n", "seven\n")
    second = first.replace("line 2\n", "")
    done = apply({"a.c": OLD}, make_diff("a.c", OLD, first), make_diff("a.c", first, second))
    assert done["a.c"] == PatchedFile(second, frozenset((6,)))


def test_an_mbox_of_two_mails_applies_in_order() -> None:
    first = OLD.replace("line 7\n", "seven\n")
    second = first.replace("seven\n", "VII\n")
    mail = "From 0123 Mon Sep 17 00:00:00 2001\nFrom: A\nSubject: [PATCH] x\n\nWhy.\n---\n a.c | 2 +-\n\n"
    mbox = "".join(
        f"{mail}diff --git a/a.c b/a.c\nindex 1..2 100644\n{make_diff('a.c', old, new)}-- \n2.39.2\n\n"
        for old, new in ((OLD, first), (first, second))
    )
    assert apply({"a.c": OLD}, mbox)["a.c"].text == second


def test_files_are_created_deleted_and_renamed() -> None:
    patch = (
        "diff --git a/new.c b/new.c\nnew file mode 100644\nindex 0..1\n"
        "--- /dev/null\n+++ b/new.c\n@@ -0,0 +1,2 @@\n+a\n+b\n"
        "diff --git a/old.c b/old.c\ndeleted file mode 100644\nindex 1..0\n"
        "--- a/old.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"
        "diff --git a/from.c b/to.c\nsimilarity index 100%\nrename from from.c\nrename to to.c\n"
    )
    done = apply({"old.c": "x\n", "from.c": OLD}, patch)
    assert {path: file.text for path, file in done.items()} == {
        "new.c": "a\nb\n", "old.c": None, "from.c": None, "to.c": OLD
    }  # fmt: skip


@pytest.mark.parametrize("new", ["svm.c", "to.c", "arch/x86/kvm/svm/copy.c", "a/much/longer/name/than/before.c"])
def test_the_names_of_a_rename_may_be_of_any_length(new: str) -> None:
    old = "arch/x86/kvm/svm/svm.c"
    patch = f"diff --git a/{old} b/{new}\nsimilarity index 100%\nrename from {old}\nrename to {new}\n"
    assert {path: file.text for path, file in apply({old: OLD}, patch).items()} == {old: None, new: OLD}


@pytest.mark.parametrize("header", ["", "diff --git arch/x86/kvm/a.c arch/x86/kvm/a.c\nindex 1..2 100644\n"])
@pytest.mark.parametrize("prefixes", [("", ""), ("a/", "b/"), ("i/", "w/"), ("linux-6.1.orig/", "linux-6.1/")])
def test_names_may_lack_a_prefix(prefixes: tuple[str, str], header: str) -> None:
    """diff.noprefix: nothing of the path may be left out then, or the patch changes a file that nothing looks at."""
    new = OLD.replace("line 7\n", "seven\n")
    patch = make_diff("arch/x86/kvm/a.c", OLD, new)
    for written, prefix in zip(("--- a/", "+++ b/"), prefixes, strict=True):
        patch = patch.replace(written, written[:4] + prefix)
    done = apply_patches({"arch/x86/kvm/a.c": OLD}.get, [("1.patch", header + patch)], is_looked_at)
    assert done["arch/x86/kvm/a.c"].text == new


def test_a_new_file_may_lack_a_prefix() -> None:
    patch = "--- /dev/null\n+++ arch/x86/kvm/new.c\n@@ -0,0 +1 @@\n+a\n"
    assert list(apply_patches(dict[str, str]().get, [("1.patch", patch)], is_looked_at)) == ["arch/x86/kvm/new.c"]


@pytest.mark.parametrize(
    "name", ["f\u00e9.c", 'a"b.c', "back\\slash.c", "tab\tbell\a.c", "\u00fc \u4e2d.c", "plain name.c"]
)
def test_names_that_git_quotes_are_read_as_it_meant_them(name: str, tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    (tmp_path / name).write_text("a\n")
    (tmp_path / "moved.c").write_text(OLD)
    git("add", ".")
    git("commit", "-qm", "1")
    (tmp_path / name).write_text("b\n")
    (tmp_path / "moved.c").rename(tmp_path / f"to {name}")
    git("add", ".")
    diff = git("diff", "--cached", "-M")
    if "\\" in name:
        with pytest.raises(InputError, match="leads out of the tree"):
            apply({}, diff)
        return
    done = apply({name: "a\n", "moved.c": OLD}, diff)
    assert {path: file.text for path, file in done.items()} == {name: "b\n", "moved.c": None, f"to {name}": OLD}


def test_a_rename_with_changes_applies_to_the_new_path() -> None:
    new = OLD.replace("line 7\n", "seven\n")
    header = "diff --git a/from.c b/to.c\nsimilarity index 90%\nrename from from.c\nrename to to.c\nindex 1..2 100644\n"
    hunks = make_diff("to.c", OLD, new).replace("a/to.c", "a/from.c")
    done = apply({"from.c": OLD}, header + hunks)
    assert done["from.c"].text is None
    assert done["to.c"].text == new


def test_an_empty_context_line_without_its_space_is_accepted() -> None:
    patch = "--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n a\n\n-b\n+B\n"
    assert apply({"x": "a\n\nb\n"}, patch)["x"].text == "a\n\nB\n"


@pytest.mark.parametrize(
    ("patch", "complaint"),
    [
        (make_diff("a.c", OLD.replace("line 6", "six"), OLD), r"1\.patch: a\.c: hunk 1 \(@@"),
        (make_diff("b.c", OLD, OLD + "x\n"), "b.c: no such file"),
        ("--- /dev/null\n+++ b/a.c\n@@ -0,0 +1 @@\n+x\n", "a.c: the patch creates it, but the tree has it"),
        ("--- a/a.c\n+++ b/../../etc/passwd\n@@ -1 +1 @@\n-a\n+b\n", "leads out of the tree"),
        ("--- a/a.c\n+++ /etc/passwd\n@@ -1 +1 @@\n-a\n+b\n", "leads out of the tree"),
        ("Subject: hello\n\nNo diff.\n", "no unified diff inside"),
        ("--- a/a.c\n+++ b/a.c\n@@ -1,2 +1,2 @@\n line 1\n", "hunk .* is cut short"),
        ("--- a/a.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-line 1\n", "not all of its lines"),
        ("diff --git a/a.c b/a.c\nBinary files a/a.c and b/a.c differ\n", "a binary patch"),
    ],
)
def test_what_does_not_apply_is_refused_in_one_line(patch: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        apply({"a.c": OLD}, patch)
    assert "\n" not in str(caught.value)


def test_changed_paths_are_told_once_each() -> None:
    new = OLD.replace("line 7\n", "seven\n")
    patch = make_diff("a.c", OLD, new) + make_diff("b.c", OLD, new) + make_diff("a.c", new, OLD)
    assert list(changed_paths(parse_patch(patch, "x"))) == ["a.c", "b.c"]


_texts = st.lists(st.sampled_from("abcd"), max_size=12).map(lambda lines: "".join(line + "\n" for line in lines))


@settings(max_examples=80)
@given(_texts, _texts, st.booleans())
def test_a_diff_of_two_texts_makes_one_of_the_other(old: str, new: str, cut: bool) -> None:
    new = new.rstrip("\n") if cut else new
    patch = make_diff("a.c", old, new)
    if patch:
        assert apply({"a.c": old}, patch)["a.c"].text == new


def test_a_change_to_a_file_that_is_neither_there_nor_looked_at_is_passed_over() -> None:
    """A series touches selftests as well; trees in the cache hold only what is looked at."""
    change = "--- a/tools/a.c\n+++ b/tools/a.c\n@@ -1 +1 @@\n-old\n+new\n"
    none: dict[str, str] = {}
    assert apply_patches(none.get, [("a.patch", change)], lambda path: not path.startswith("tools/")) == {}
    with pytest.raises(InputError, match=r"tools/a\.c: no such file"):
        apply_patches(none.get, [("a.patch", change)])


def test_a_change_to_a_file_that_is_there_must_apply_even_if_nothing_looks_at_it() -> None:
    change = "--- a/tools/a.c\n+++ b/tools/a.c\n@@ -1 +1 @@\n-old\n+new\n"
    with pytest.raises(InputError, match="does not apply"):
        apply_patches({"tools/a.c": "other\n"}.get, [("a.patch", change)], lambda path: False)


def recorded(texts: dict[str, str], *patches: str) -> Record:
    record = Record()
    apply_patches(texts.get, [(f"{n}.patch", patch) for n, patch in enumerate(patches, start=1)], record=record)
    return record


def test_a_hunk_that_had_moved_is_told() -> None:
    new = OLD.replace("line 7\n", "seven\n")
    assert recorded({"a.c": "more\n" * 5 + OLD}, make_diff("a.c", OLD, new)).remarks == [
        "1.patch: a.c: hunk 1 applied 5 lines further down, at line 9"
    ]
    assert recorded({"a.c": OLD.replace("line 1\n", "")}, make_diff("a.c", OLD, new)).remarks == [
        "1.patch: a.c: hunk 1 applied 1 line further up, at line 3"
    ]
    assert recorded({"a.c": OLD}, make_diff("a.c", OLD, new)).remarks == []


def test_every_hunk_is_recorded_with_its_lines_before_and_after() -> None:
    new = OLD.replace("line 2\n", "").replace("line 17\n", "seventeen\nmore\n")
    touches = recorded({"a.c": OLD}, make_diff("a.c", OLD, new)).touches
    assert [(touch.number, touch.removed, touch.added) for touch in touches] == [(1, (2,), ()), (2, (17,), (16, 17))]
    assert {(touch.path, touch.before, touch.after) for touch in touches} == {("a.c", OLD, new)}


def changed(*numbers: int) -> str:
    """OLD with other lines."""
    return "".join(f"line {number}{' is other' * (number in numbers)}\n" for number in range(1, 21))


SEVEN = make_diff("a.c", OLD, OLD.replace("line 7\n", "seven\n"))
"""Lines 4 to 10."""


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ((4,), "with fuzz 1 (the outermost line of its context not looked for), at line 5"),
        ((10,), "with fuzz 1 (the outermost line of its context not looked for), at line 5"),
        ((4, 10), "with fuzz 1 (the outermost line of its context not looked for), at line 5"),
        ((5, 10), "with fuzz 2 (the outermost 2 lines of its context not looked for), at line 6"),
    ],
)
def test_context_that_differs_at_the_ends_of_a_hunk_is_fuzz_and_told(other: tuple[int, ...], told: str) -> None:
    text = changed(*other)
    assert apply({"a.c": text}, SEVEN)["a.c"] == PatchedFile(text.replace("line 7\n", "seven\n"), frozenset((7,)))
    record = recorded({"a.c": text}, SEVEN)
    assert record.remarks == [f"1.patch: a.c: hunk 1 applied {told}"]
    assert [(touch.removed, touch.added) for touch in record.touches] == [((7,), (7,))]


def test_fuzz_and_offset_are_told_together() -> None:
    (remark,) = recorded({"a.c": "more\n" * 5 + changed(4)}, SEVEN).remarks
    assert remark.startswith("1.patch: a.c: hunk 1 applied with fuzz 1 (")
    assert remark.endswith("), 5 lines further down, at line 10")


@pytest.mark.parametrize("other", [(6,), (7,), (8,), (6, 8)])
def test_what_a_hunk_removes_and_the_lines_beside_it_must_be_there(other: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"1\.patch: a\.c: hunk 1 \(@@.*@@\) does not apply; wrong version\?"):
        apply({"a.c": changed(*other)}, SEVEN)


def test_with_fuzz_a_hunk_must_fit_in_one_place_only() -> None:
    text = changed(4) + "and again\n" + changed(4)
    with pytest.raises(InputError, match=r"with fuzz 1 it fits in several places \(lines 5, 26\); wrong version"):
        apply({"a.c": text}, SEVEN)


def test_fuzz_is_tried_only_where_no_place_has_all_of_the_context() -> None:
    text = changed(4) + OLD
    assert recorded({"a.c": text}, SEVEN).remarks == ["1.patch: a.c: hunk 1 applied 20 lines further down, at line 24"]


def test_the_shorter_context_of_a_hunk_at_an_end_of_its_file_must_be_there() -> None:
    """As for patch(1): a hunk with one line above and three below it loses lines below only."""
    second = make_diff("a.c", OLD, OLD.replace("line 2\n", "two\n"))
    assert apply({"a.c": changed(5)}, second)["a.c"].text == changed(5).replace("line 2\n", "two\n")
    with pytest.raises(InputError, match="does not apply"):
        apply({"a.c": changed(1, 4)}, second)


def test_hunks_behind_a_fuzzy_one_are_found_where_it_left_them() -> None:
    new = OLD.replace("line 2\n", "two\nand a half\n").replace("line 17\n", "seventeen\n")
    record = recorded({"a.c": changed(5)}, make_diff("a.c", OLD, new))
    assert len(record.remarks) == 1
    assert [(touch.removed, touch.added) for touch in record.touches] == [((2,), (2, 3)), ((17,), (18,))]


def test_without_context_there_is_no_fuzz() -> None:
    with pytest.raises(InputError, match="does not apply; wrong version"):
        apply({"a.c": OLD}, "--- a/a.c\n+++ b/a.c\n@@ -7 +7 @@\n-seven\n+line seven\n")


def test_a_hunk_that_is_applied_already_is_told_so_and_fuzz_does_not_apply_it_again() -> None:
    twice = make_diff("a.c", OLD, OLD.replace("line 7\n", "line 7\nseven and a half\n"))
    with pytest.raises(InputError, match="does not apply; is it applied already"):
        apply({"a.c": OLD.replace("line 7\n", "line 7\nseven and a half\n")}, twice)


def test_hunks_that_fit_everywhere_do_not_take_for_ever() -> None:
    same = "--- a/a.c\n+++ b/a.c\n@@ -1,40 +1,41 @@\n" + " x\n" * 39 + " y\n+z\n"
    with pytest.raises(InputError, match="fit nearly everywhere"):
        apply_patches({"a.c": "x\n" * 5000}.get, [("1.patch", same)], record=Record(work=1000))


def test_hunks_and_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    new = OLD.replace("line 2\n", "two\n").replace("line 17\n", "seventeen\nmore\n")
    monkeypatch.setattr("iretrace.linux.patch.MAX_HUNKS", 1)
    with pytest.raises(InputError, match="more than 1 hunks"):
        apply({"a.c": OLD}, make_diff("a.c", OLD, new))
    monkeypatch.undo()
    monkeypatch.setattr("iretrace.linux.patch.MAX_LINES", 20)
    with pytest.raises(InputError, match="more than 20 lines"):
        apply({"a.c": OLD}, make_diff("a.c", OLD, new))


@pytest.mark.parametrize("more", ["", "new file mode 100644\n"])
def test_headers_without_hunks_are_no_work(more: str) -> None:
    began = time.process_time()
    with suppress(InputError):
        parse_patch(f"diff --git a/x b/y\n{more}" * 200_000, "1.patch")
    assert time.process_time() - began < 5


def test_numbers_of_lines_may_be_absurd() -> None:
    patch = "--- a/a.c\n+++ b/a.c\n@@ -{0} +{0} @@\n-line 20\n+twenty\n"
    assert apply({"a.c": OLD}, patch.format(999_999_999))["a.c"].text == OLD.replace("line 20", "twenty")
    with pytest.raises(InputError, match="no unified diff"):
        apply({"a.c": OLD}, patch.format("9" * 5000))


def test_a_file_is_not_renamed_onto_another() -> None:
    patch = "diff --git a/a.c b/b.c\nsimilarity index 100%\nrename from a.c\nrename to b.c\n"
    with pytest.raises(InputError, match=r"b\.c: the patch creates it, but the tree has it"):
        apply({"a.c": OLD, "b.c": OLD}, patch)
