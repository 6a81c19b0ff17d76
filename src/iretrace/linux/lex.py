"""C text to tokens: one compiled regex, comments and line continuations dropped, lines kept."""

from __future__ import annotations

import re
from typing import NamedTuple

from iretrace.verdict import InputError

NO_HIDE: frozenset[str] = frozenset()


class Token(NamedTuple):
    """A preprocessing token.

    kind: ident, num, str, char, punct or end. path and line: where it stands, or where the macro was used that made
    it. spaced: white space stands before it. hide: macros that must not be expanded in it again (C11 6.10.3.4).
    """

    kind: str
    text: str
    path: str
    line: int
    spaced: bool = False
    hide: frozenset[str] = NO_HIDE


PUNCTUATORS = """
    ... <<= >>= -> ++ -- << >> <= >= == != && || += -= *= /= %= &= ^= |= ##
    + - * / % & | ^ ~ ! < > = ? : ; , . ( ) [ ] { } #
"""

_TOKEN = re.compile(
    r"(?P<skip>(?:[ \t\r\f\v\n]|\\\r?\n|/\*.*?\*/|//(?:\\\n|[^\n])*)+)"
    r'|(?P<str>(?:L|u8?|U)?"(?:\\.|[^"\\\n])*")'
    r"|(?P<char>(?:L|u|U)?'(?:\\.|[^'\\\n])+')"
    r"|(?P<ident>[A-Za-z_$][\w$]*)"
    r"|(?P<num>0[xX]\w*|\.?\d(?:[eEpP][+-]|[\w.])*)"
    r"|(?P<punct>" + "|".join(re.escape(p) for p in PUNCTUATORS.split()) + r")"
    r"|(?P<bad>.)",
    re.DOTALL,
)


def lex(text: str, path: str, line: int = 1, anything: bool = False) -> list[Token]:
    """The tokens of `text`, whose first character stands on `line` of `path`.

    anything: keep characters that C does not know as punctuators of their own instead of refusing them (macro bodies
    may hold anything). InputError: an unfinished comment or string, or a character that C does not know.
    """
    tokens: list[Token] = []
    append = tokens.append
    spaced = False
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        part = match[0]
        if kind == "skip":
            line += part.count("\n")
            spaced = True
            continue
        if kind == "bad":
            if not anything:
                raise InputError(f"{path}:{line}: not C: unexpected {part!r}; the file seems to be damaged")
            kind = "punct"
        append(Token(kind or "", part, path, line, spaced))
        spaced = False
        if kind == "str" or kind == "char":
            line += part.count("\n")
    return tokens
