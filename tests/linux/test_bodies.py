"""When only bodies of functions differ, the other definitions are as they were; where that is doubtful, nothing is."""

from __future__ import annotations

import pytest

from iretrace.linux.bodies import Bodies, changed_in

BEFORE = """
#define LIMIT 2

struct state { int n; };

static int limit(struct state *s)
{
	/* as long as it takes */
	return s->n < LIMIT;
}

int count(struct state *s)
{
#ifdef CONFIG_SLOW
	s->n = 0;
#endif
	return s->n++;
}
"""


def names(old: str, new: str) -> frozenset[str] | None:
    """What changes when a part of the file becomes another."""
    assert old in BEFORE
    return changed_in(BEFORE, BEFORE.replace(old, new))


def test_functions_whose_bodies_differ_are_named() -> None:
    assert changed_in(BEFORE, BEFORE) == frozenset()
    assert names("n++", "n += 2") == frozenset({"count", "s", "state"}), "the name is one of the words"
    assert names("s->n < LIMIT", "1 || s->n < LIMIT") == frozenset({"limit", "s", "state"})
    longer = names("return s->n < LIMIT;", "if (!s)\n\t\treturn 0;\n\n\treturn s->n < LIMIT;")
    assert longer is not None and "limit" in longer


def test_functions_that_come_and_go_are_named() -> None:
    more = "int more(long m)\n{\n\treturn 0;\n}\n\n"
    assert names("int count", f"{more}int count") == frozenset({"more", "m"})
    assert names("int count", f"/* More. */\n{more}int count") == frozenset({"more", "m"}), "comments are no code"
    assert changed_in(BEFORE.replace("int count", f"{more}int count"), BEFORE) == frozenset({"more", "m"})
    assert changed_in(BEFORE, BEFORE + more) == frozenset({"more", "m"})
    assert changed_in("", more) == frozenset({"more", "m"})


def test_a_function_with_another_head_has_come_and_gone() -> None:
    assert names("static int limit", "int limit") == frozenset({"limit", "s", "state"})
    assert names("int count(struct state *s)", "int count(struct state *t)") is None, "there is a directive in it"
    both = names("static int limit(struct state *s)", "int count(struct state *s, int s)")
    assert both == frozenset({"limit", "count", "s", "state"})


def test_code_between_functions_stays_between_the_same_ones() -> None:
    one, two = "int one(int x)\n{\n\treturn LIMIT;\n}\n", "int two(int x)\n{\n\treturn LIMIT;\n}\n"
    limit = "#define LIMIT 1\n"
    assert changed_in(one + limit + two, one + two + limit) is None
    assert changed_in(one + limit + two, limit + one + two) is None
    assert changed_in(one + limit + two, limit + two) is not None


def test_what_goes_on_in_the_next_line_is_no_head() -> None:
    """The extent of a function is told by eye: here it begins inside of a macro."""
    before = "#define LIMIT \\\n 2\nint f(void)\n{\n\treturn 1;\n}\n"
    assert changed_in(before, before.replace("2", "3")) is None
    assert changed_in(before, before.replace("1", "3")) == frozenset({"f"})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT 2", "LIMIT 3"),
        ("int n;", "int n, m;"),
        ("int count(struct state *s)", "SYSCALL_DEFINE1(count, struct state *, s)"),
        ("int count", "MODULE_LICENSE(s)\nint count"),
        ("int count", "static DEFINE_STATE(t)\n{\n\treturn 0;\n}\n\nint count"),
        ("int count", "int more(void)\n{\n\tstruct less { int n; } l;\n\treturn 0;\n}\n\nint count"),
        ("int count", "int more(void)\n{\n#define LIMIT 3\n\treturn 0;\n}\n\nint count"),
        ("int count", "int more;\n\nint count"),
        ("struct state { int n; };\n", "struct state { int n; };\n#undef LIMIT\n"),
        ("\n#ifdef CONFIG_SLOW\n", "\n#ifdef CONFIG_FAST\n"),
        ("return s->n++;", "#define LIMIT 9\n\treturn s->n++;"),
        ("return s->n++;", "struct inner { int n; } i;\n\treturn s->n++;"),
        ("return s->n++;", "return \\\n\ts->n++;"),
        ("return s->n < LIMIT;", "return s->n < LIMIT; /*"),
        ("return s->n++;\n}\n", "return s->n++;\n}\n\n#undef LIMIT\n"),
        ("return s->n++;\n}\n", "return s->n++;\n"),
    ],
)
def test_where_more_may_differ_nothing_is_known(old: str, new: str) -> None:
    assert names(old, new) is None


def test_what_has_to_be_looked_at_is_in_a_touched_file_or_has_a_name_of_theirs() -> None:
    bodies = Bodies(frozenset({"a.c"}), frozenset({"count"}))
    assert bodies.concern(("function", "count", ""), "b.c")
    assert bodies.concern(("signature", "count", "b.c"), "")
    assert bodies.concern(("function", "other", ""), "a.c"), "it may stand on other lines"
    assert bodies.concern(("functions_in", "a.c"), ""), "there may be others"
    assert not bodies.concern(("struct", "struct", "state", ""), "")
