"""Tokens of C text."""

from __future__ import annotations

import pytest

from iretrace.linux.lex import lex
from iretrace.verdict import InputError


def texts(text: str) -> list[str]:
    return [token.text for token in lex(text, "a.c")]


def test_comments_are_white_space() -> None:
    assert texts("a/* b\n */c // d\ne") == ["a", "c", "e"]


def test_the_longest_punctuator_wins() -> None:
    assert texts("a<<=b->c---d...e") == ["a", "<<=", "b", "->", "c", "--", "-", "d", "...", "e"]


def test_tokens_know_their_lines_across_comments_and_continuations() -> None:
    tokens = lex("a /* x\n y */ b \\\n c\nd", "a.c", 10)
    assert [(token.text, token.line) for token in tokens] == [("a", 10), ("b", 11), ("c", 12), ("d", 13)]


def test_tokens_know_whether_space_stands_before_them() -> None:
    assert [token.spaced for token in lex("f (a)", "a.c")] == [False, True, False, False]


def test_kinds_are_told_apart() -> None:
    kinds = [token.kind for token in lex("""abc 0x1fULL 'a' '\\'' "s\\"t" +""", "a.c")]
    assert kinds == ["ident", "num", "char", "char", "str", "punct"]


def test_a_hexadecimal_number_does_not_swallow_an_operator() -> None:
    assert texts("0xe+1") == ["0xe", "+", "1"]


def test_an_exponent_keeps_its_sign() -> None:
    assert texts("1e+5") == ["1e+5"]


def test_a_comment_inside_a_string_is_text() -> None:
    assert texts('"/* no */" x') == ['"/* no */"', "x"]


def test_a_character_that_c_does_not_know_is_refused_with_its_line() -> None:
    with pytest.raises(InputError, match=r"a\.c:2: not C: unexpected '@'"):
        lex("a\n@", "a.c")


def test_macro_bodies_may_hold_any_character() -> None:
    assert [token.text for token in lex("@x", "a.c", anything=True)] == ["@", "x"]
