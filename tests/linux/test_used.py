"""What a run used of a tree: digests that a definition keeps where it moves, and loses where it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.linux.notes import Notes
from iretrace.linux.used import Definition, Definitions, NotingIndex
from tests.linux.mini import SVM, SVM_H, mini_tree

TEXT = """\
#define LIMIT 2
struct box {
	int held;
};

static int of_no_use(void)
{
	return 7;
}

int counted(struct box *box)
{
	if (box->held > LIMIT)
		return LIMIT;
	return box->held; /* text */
}
"""
QUERIES = (("function", "counted", SVM), ("struct", "struct", "box", SVM), ("macro", "LIMIT", SVM))


def definitions(root: Path, text: str, header: str = "") -> Definitions:
    return Definitions(NotingIndex(Notes(), mini_tree(root, {SVM: text, SVM_H: header}), {}), {"fact": 1})


def used(root: Path, queries: tuple[tuple[str, ...], ...] = QUERIES) -> dict[str, Definition]:
    """By who asks these queries of a tree."""
    notes = Notes()
    index = NotingIndex(notes, mini_tree(root, {SVM: TEXT}), {})
    for kind, *arguments in queries:
        assert getattr(index, kind)(*arguments) is not None
    return Definitions(index, {"fact": 1}).used(notes.noted())


def is_the_same(root: Path, queries: tuple[tuple[str, ...], ...], old: str, new: str) -> bool:
    """Whether the queries are answered alike where something has changed."""
    assert TEXT.count(old) == 1
    return definitions(root / "b", TEXT.replace(old, new)).moves(used(root / "a", queries)) is not None


def test_everything_that_was_asked_for_is_noted(tmp_path: Path) -> None:
    assert set(used(tmp_path)) == {"fact", *("\t".join(query) for query in QUERIES)}


def test_what_is_asked_for_other_purposes_is_not_noted(tmp_path: Path) -> None:
    index = NotingIndex(notes := Notes(), mini_tree(tmp_path, {SVM: TEXT}), {})
    with notes.collecting():
        index.function("counted", SVM)
    assert not notes.noted()


def test_a_function_that_moves_is_the_same_and_its_lines_are_followed(tmp_path: Path) -> None:
    before = used(tmp_path / "a")
    moves = definitions(tmp_path / "b", f"int more;\n\n{TEXT}").moves(before)
    assert moves is not None
    assert [moves[SVM, line] for line in (11, 13, 14, 15)] == [13, 15, 16, 17]


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("return 7;", "return 8;", True),
        ("static int of_no_use", "/* text */\nstatic int of_no_use", True),
        ("box->held > LIMIT", "box->held >= LIMIT", False),
        ("#define LIMIT 2", "#define LIMIT 3", False),
        ("int held;", "long held;", False),
        ("/* text */", "/* words */", False),
        ("int counted(struct", "#ifdef CONFIG_NONE\nint counted(void) { return 0; }\n#endif\nint counted(struct", True),
        ("int counted(struct", "static int counted(struct", False),
        ("int counted", "int no_longer_counted", False),
    ],
)
def test_only_a_change_to_what_was_used_counts(old: str, new: str, same: bool, tmp_path: Path) -> None:
    assert is_the_same(tmp_path, QUERIES, old, new) is same


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("return LIMIT;", "return 0;", True),
        ("int counted", "\nint counted", True),
        ("struct box *box)", "struct box *box, int more)", False),
        ("int counted(struct", "long counted(struct", False),
        ("int counted", "int no_longer_counted", False),
    ],
)
def test_of_a_function_that_is_not_executed_only_the_signature_counts(
    old: str, new: str, same: bool, tmp_path: Path
) -> None:
    assert is_the_same(tmp_path, (("signature", "counted", SVM),), old, new) is same


def test_a_definition_that_hides_another_one_is_another_answer(tmp_path: Path) -> None:
    index = NotingIndex(notes := Notes(), mini_tree(tmp_path / "a", {"include/linux/far.h": "#define FAR 1\n"}), {})
    assert index.macro("FAR", SVM) is not None
    before = Definitions(index, {}).used(notes.noted())
    assert definitions(tmp_path / "b", "#define FAR 2\n").moves(before) is None


def test_a_fact_that_changed_counts(tmp_path: Path) -> None:
    before = used(tmp_path / "a")
    index = NotingIndex(Notes(), mini_tree(tmp_path / "b", {SVM: TEXT}), {})
    assert Definitions(index, {"fact": 2}).moves(before) is None


@pytest.mark.parametrize("name", ["tree", "__init__\tx", "function", "function\ta\tb\tc\td", ""])
def test_a_name_that_is_no_query_is_never_the_same(name: str, tmp_path: Path) -> None:
    before = used(tmp_path / "a")
    before[name] = before["fact"]
    assert definitions(tmp_path / "b", TEXT).moves(before) is None
