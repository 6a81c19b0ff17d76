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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT 2", "LIMIT 3"),
        ("int n;", "int n, m;"),
        ("static int limit", "int limit"),
        ("int count(struct state *s)", "int count(struct state *t)"),
        ("int count", "int more(void)\n{\n\treturn 0;\n}\n\nint count"),
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
    assert not bodies.concern(("struct", "struct", "state", ""), "")
