"""Macro expansion over tokens (C11 6.10.3): arguments, # and ##, __VA_ARGS__, __VA_OPT__, GNU's named variadics.

Every token that comes out of a macro stands where the macro was used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from iretrace.linux.lex import Token, lex
from iretrace.verdict import InputError

MAX_TOKENS = 500_000
"""Expansion of one definition stops here with an error: a hostile tree could double a macro a hundred times."""


@dataclass
class Macro:
    """A macro: params is None for an object-like one; variadic: the name of the last parameter if it takes the rest."""

    name: str
    params: tuple[str, ...] | None
    variadic: str
    text: str
    path: str
    line: int

    @cached_property
    def body(self) -> list[Token]:
        """The replacement list."""
        return lex(self.text, self.path, self.line, anything=True)

    @cached_property
    def plain(self) -> bool:
        """Whether the body needs no # and ##."""
        return not any(token.text in ("#", "##", "__VA_OPT__") for token in self.body)


Find = Callable[[str], Macro | None]
Builtin = Callable[[str, list[list[Token]]], str | None]

BUILTINS = frozenset(
    ("IS_ENABLED", "IS_BUILTIN", "IS_MODULE", "IS_REACHABLE", "__has_attribute", "__has_builtin", "__has_feature",
     "__has_include", "__has_extension")
)  # fmt: skip
"""Function-like macros that `builtin` is asked about instead of `find`."""


def make_macro(name: str, rest: str, path: str, line: int) -> Macro:
    """The macro that `#define name rest` defines; a ( right behind the name begins parameters."""
    if not rest.startswith("("):
        return Macro(name, None, "", rest, path, line)
    close = rest.find(")")
    names = [part.strip() for part in rest[1:close].replace("\\\n", " ").split(",")]
    variadic = ""
    if names[-1].endswith("..."):
        variadic = names[-1][:-3].strip() or "__VA_ARGS__"
        names[-1] = variadic
    params = tuple(name for name in names if name)
    return Macro(name, params, variadic, rest[close + 1 :], path, line)


def expand(tokens: list[Token], find: Find, builtin: Builtin | None = None) -> list[Token]:
    """`tokens` with all macros that `find` knows expanded. InputError when the expansion grows beyond all measure."""
    return _Expander(find, builtin).expand(tokens)


class _Expander:
    """One expansion: counts the tokens made and the uses of __COUNTER__, arguments included."""

    def __init__(self, find: Find, builtin: Builtin | None) -> None:
        self.find = find
        self.builtin = builtin
        self.made = 0
        self.counter = 0

    def expand(self, tokens: list[Token]) -> list[Token]:
        """Expand until nothing is left to expand."""
        out: list[Token] = []
        todo = tokens[::-1]
        while todo:
            token = todo.pop()
            name = token.text
            if token.kind != "ident" or name in token.hide:
                out.append(token)
                continue
            result = self._replacement(token, name, todo)
            if result is None:
                out.append(token)
                continue
            self.made += len(result)
            if self.made > MAX_TOKENS:
                raise InputError(f"{token.path}:{token.line}: macro {name} expands to more than {MAX_TOKENS} tokens")
            todo.extend(reversed(result))
        return out

    def _replacement(self, token: Token, name: str, todo: list[Token]) -> list[Token] | None:
        """What replaces `token` (and the arguments that are taken off `todo`); None if it is no macro's use."""
        if name in _POSITIONS:
            return [self._position(token)]
        if self.builtin is not None and name in BUILTINS:
            args = _take_arguments(todo)
            return None if args is None else self._call_builtin(token, args)
        macro = self.find(name)
        if macro is None:
            return None
        if macro.params is None:
            result = _place(macro.body, token, token.hide | {name})
            return result if macro.plain else _paste(result)
        args = _take_arguments(todo)
        return None if args is None else self._substitute(macro, args, token)

    def _position(self, token: Token) -> Token:
        if token.text == "__FILE__":
            return token._replace(kind="str", text=f'"{token.path}"')
        if token.text == "__LINE__":
            return token._replace(kind="num", text=str(token.line))
        self.counter += 1
        return token._replace(kind="num", text=str(self.counter - 1))

    def _call_builtin(self, token: Token, args: list[list[Token]]) -> list[Token]:
        """The value of a builtin; one that gives no answer stays a call."""
        value = self.builtin(token.text, args) if self.builtin else None
        if value is not None:
            return [Token("num", value, token.path, token.line, token.spaced)]
        hidden = token._replace(hide=token.hide | {token.text})
        return [hidden, *_call_tokens(token, args)]

    def _substitute(self, macro: Macro, args: list[list[Token]], use: Token) -> list[Token]:
        """The body of a function-like macro with its arguments in place."""
        bound = _bind(macro, args)
        hide = use.hide | {macro.name}
        expanded: dict[str, list[Token]] = {}
        body = macro.body if macro.plain else _drop_va_opt(macro, bound)
        out: list[Token] = []
        last = len(body) - 1
        for at, token in enumerate(body):
            name = token.text
            if token.kind != "ident" or name not in bound:
                out.append(Token(token.kind, name, use.path, use.line, token.spaced, hide))
                continue
            before = body[at - 1].text if at else ""
            if before == "#":
                out[-1] = _stringize(bound[name], use)
                continue
            if before == "##" and name == macro.variadic and len(out) > 1 and out[-2].text == ",":
                _drop_paste_comma(out, bool(bound[name]))
                before = ""
            pasted = before == "##" or (at < last and body[at + 1].text == "##")
            if not pasted and name not in expanded:
                expanded[name] = self.expand(bound[name])
            _append_argument(out, bound[name] if pasted else expanded[name], token.spaced, use, hide, pasted)
        return out if macro.plain else _paste(out)


_POSITIONS = frozenset(("__LINE__", "__FILE__", "__COUNTER__"))


def _call_tokens(token: Token, args: list[list[Token]]) -> list[Token]:
    """Arguments as they stood, with their parentheses."""
    out = [Token("punct", "(", token.path, token.line)]
    for number, arg in enumerate(args):
        if number:
            out.append(Token("punct", ",", token.path, token.line))
        out.extend(arg)
    out.append(Token("punct", ")", token.path, token.line))
    return out


def _place(body: list[Token], use: Token, hide: frozenset[str]) -> list[Token]:
    """The body's tokens at the place of use."""
    path, line = use.path, use.line
    return [Token(t.kind, t.text, path, line, t.spaced, hide) for t in body]


def _take_arguments(todo: list[Token]) -> list[list[Token]] | None:
    """Take `( ... )` off the end of the reversed `todo`; None, and nothing taken, if there is none."""
    if not todo or todo[-1].text != "(":
        return None
    args: list[list[Token]] = [[]]
    depth = 0
    at = len(todo) - 2
    while at >= 0:
        token = todo[at]
        text = token.text
        if text == ")" and depth == 0:
            del todo[at:]
            return args
        if text == "," and depth == 0:
            args.append([])
        else:
            depth += (text == "(") - (text == ")")
            args[-1].append(token)
        at -= 1
    return None


def _bind(macro: Macro, args: list[list[Token]]) -> dict[str, list[Token]]:
    """Arguments by parameter; what a variadic macro gets too much goes to its last parameter."""
    params = macro.params or ()
    if macro.variadic:
        fixed = len(params) - 1
        rest: list[Token] = []
        for number, arg in enumerate(args[fixed:]):
            if number:
                rest.append(Token("punct", ",", "", 0))
            rest.extend(arg)
        args = [*args[:fixed], *([[]] * (fixed - len(args))), rest]
    elif len(args) < len(params):
        args = [*args, *([[]] * (len(params) - len(args)))]
    return dict(zip(params, args, strict=False))


_PLACEMARKER = ""


def _append_argument(
    out: list[Token], tokens: list[Token], spaced: bool, use: Token, hide: frozenset[str], pasted: bool
) -> None:
    """An argument in place of a parameter. An empty one next to ## leaves a placemarker."""
    if not tokens and pasted:
        out.append(Token("punct", _PLACEMARKER, use.path, use.line, spaced, hide))
    for number, token in enumerate(tokens):
        own = token.hide | hide if token.hide else hide
        out.append(Token(token.kind, token.text, use.path, use.line, token.spaced if number else spaced, own))


def _drop_paste_comma(out: list[Token], present: bool) -> None:
    """GNU's `, ## args`: the ## goes, and without arguments the comma, too."""
    del out[-1]
    if not present:
        del out[-1]


def _drop_va_opt(macro: Macro, bound: dict[str, list[Token]]) -> list[Token]:
    """The body with __VA_OPT__(x) replaced by x or nothing."""
    body = macro.body
    if not any(token.text == "__VA_OPT__" for token in body):
        return body
    keep = bool(bound.get(macro.variadic))
    out: list[Token] = []
    at = 0
    while at < len(body):
        if body[at].text != "__VA_OPT__":
            out.append(body[at])
            at += 1
            continue
        reverse = body[:at:-1]
        inner = _take_arguments(reverse)
        if inner is None:
            at += 1
            continue
        start, at = at + 2, len(body) - len(reverse)
        if keep:
            out.extend(body[start : at - 1])
    return out


def _stringize(tokens: list[Token], use: Token) -> Token:
    parts = []
    for number, token in enumerate(tokens):
        text = token.text
        if token.kind in ("str", "char"):
            text = text.replace("\\", "\\\\").replace('"', '\\"')
        parts.append((" " if token.spaced and number else "") + text)
    return Token("str", '"' + "".join(parts) + '"', use.path, use.line, True)


def _paste(tokens: list[Token]) -> list[Token]:
    """Carry out ##, and drop placemarkers."""
    out: list[Token] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token.text == "##" and out and at + 1 < len(tokens):
            left, right = out.pop(), tokens[at + 1]
            out.append(_join(left, right))
            at += 2
        else:
            out.append(token)
            at += 1
    return [token for token in out if token.text != _PLACEMARKER]


def _join(left: Token, right: Token) -> Token:
    text = left.text + right.text
    made = lex(text, left.path, left.line, anything=True)
    kind = made[0].kind if len(made) == 1 else "punct"
    return Token(kind, text, left.path, left.line, left.spaced, left.hide | right.hide)
