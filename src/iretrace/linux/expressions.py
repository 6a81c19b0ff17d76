"""Expressions of GNU C: precedence climbing over tokens to ctree."""

from __future__ import annotations

import re

from iretrace.linux import ctree
from iretrace.linux.ctree import CType, Expr, Pos
from iretrace.linux.cursor import (
    ANNOTATIONS,
    QUALIFIERS,
    STORAGE_WORDS,
    TAG_WORDS,
    TYPE_WORDS,
    TYPEOF_WORDS,
    Cursor,
    words,
)

ASSIGNMENTS = words("= += -= *= /= %= &= ^= |= <<= >>=")
PRECEDENCE = {
    op: level
    for level, ops in enumerate(("||", "&&", "|", "^", "&", "== !=", "< > <= >=", "<< >>", "+ -", "* / %"), start=1)
    for op in ops.split()
}
PREFIXES = words("- + ! ~ * & ++ --")
SIZEOF_WORDS = words("sizeof _Alignof __alignof__ __alignof alignof")

_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)([uUlL]*)")
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]+)|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b", "\n": ""}
_SUFFIXES = {"": "", "u": "u", "l": "l", "ll": "ll", "ul": "ul", "lu": "ul", "ull": "ull", "llu": "ull"}


def _unescape(match: re.Match[str]) -> str:
    octal, hexadecimal, other = match.groups()
    if octal:
        return chr(int(octal, 8) & 0xFF)
    if hexadecimal:
        return chr(int(hexadecimal, 16) & 0xFF)
    return _ESCAPES.get(other, other)


def string_value(text: str) -> str:
    """What a string token stands for, escapes decoded."""
    return _ESCAPE.sub(_unescape, text[text.index('"') + 1 : -1])


class ExpressionParser(Cursor):
    """The expression part of the parser; types and statements come from its subclasses."""

    def type_name(self) -> CType:
        """A type name as in a cast. Supplied by DeclarationParser."""
        raise NotImplementedError

    def block(self) -> ctree.Block:
        """A block. Supplied by Parser."""
        raise NotImplementedError

    def starts_type(self) -> bool:
        """Whether the next token can begin a type."""
        at = self.at
        while self.texts[at] in ANNOTATIONS:
            at += 1
        token = self.tokens[at]
        if token.kind != "ident":
            return False
        text = token.text
        return (
            text in TYPE_WORDS
            or text in TAG_WORDS
            or text in QUALIFIERS
            or text in TYPEOF_WORDS
            or text in STORAGE_WORDS
            or self.is_type_name(text)
        )

    def is_type_name(self, name: str) -> bool:
        """Whether `name` is a typedef here. Refined by DeclarationParser, which knows local ones."""
        return self.is_typedef(name)

    def expression(self) -> Expr:
        """An expression, comma operator included."""
        left = self.assignment()
        while self.texts[self.at] == ",":
            pos = self.pos()
            self.at += 1
            left = ctree.Binary(pos, ",", left, self.assignment())
        return left

    def assignment(self) -> Expr:
        """An expression without the comma operator."""
        left = self.conditional()
        op = self.texts[self.at]
        if op not in ASSIGNMENTS:
            return left
        pos = self.pos()
        self.at += 1
        return ctree.Assign(pos, op, left, self.assignment())

    def conditional(self) -> Expr:
        """An expression without assignment: also what is allowed as a constant expression."""
        cond = self.binary(1)
        if self.texts[self.at] != "?":
            return cond
        pos = self.pos()
        self.at += 1
        if self.accept(":"):
            return ctree.Conditional(pos, cond, None, self.conditional())
        then = self.expression()
        self.expect(":")
        return ctree.Conditional(pos, cond, then, self.conditional())

    def binary(self, lowest: int) -> Expr:
        """Binary operators that bind at least as tightly as `lowest`."""
        left = self.unary()
        while (level := PRECEDENCE.get(self.texts[self.at], 0)) >= lowest:
            pos = self.pos()
            op = self.texts[self.at]
            self.at += 1
            left = ctree.Binary(pos, op, left, self.binary(level + 1))
        return left

    def unary(self) -> Expr:
        """A prefix operator, a cast, sizeof, or what stands behind them. `&&label` is Unary("&&", Name)."""
        text = self.texts[self.at]
        if text == "(":
            return self._parenthesized()
        pos = self.pos()
        if text in PREFIXES:
            self.at += 1
            return ctree.Unary(pos, text, self.unary())
        if text in SIZEOF_WORDS:
            self.at += 1
            return ctree.SizeOf(pos, self._type_or_expression(), text != "sizeof")
        if text == "__extension__":
            self.at += 1
            return self.unary()
        if text == "&&":
            self.at += 1
            return ctree.Unary(pos, "&&", ctree.Name(pos, self.identifier()))
        return self.postfix(self._primary(pos))

    def _parenthesized(self) -> Expr:
        """`(`: a cast, a compound literal, a statement expression or a parenthesized expression."""
        pos = self.pos()
        self.at += 1
        if self.texts[self.at] == "{":
            body = self.block()
            self.expect(")")
            return self.postfix(ctree.StatementExpr(pos, body))
        if not self.starts_type():
            inner = self.expression()
            self.expect(")")
            return self.postfix(inner)
        type_ = self.type_name()
        self.expect(")")
        if self.texts[self.at] == "{":
            return self.postfix(ctree.CompoundLiteral(pos, type_, self.init_list()))
        return ctree.Cast(pos, type_, self.unary())

    def _type_or_expression(self) -> Expr | CType:
        """The operand of sizeof: `(type)` or a unary expression."""
        if self.texts[self.at] != "(":
            return self.unary()
        start = self.at
        self.at += 1
        if not self.starts_type():
            self.at = start
            return self.unary()
        type_ = self.type_name()
        self.expect(")")
        if self.texts[self.at] != "{":
            return type_
        return self.postfix(ctree.CompoundLiteral(self.pos(), type_, self.init_list()))

    def _primary(self, pos: Pos) -> Expr:
        token = self.tokens[self.at]
        if token.kind == "ident":
            special = _BUILTINS.get(token.text)
            self.at += 1
            return special(self, pos) if special else ctree.Name(pos, token.text)
        if token.kind == "num":
            self.at += 1
            return self._number(pos, token.text)
        if token.kind == "str":
            return self.string()
        if token.kind == "char":
            self.at += 1
            value = ord(string_value(token.text.replace("'", '"', 1)) or "\0")
            return ctree.Num(pos, value - 256 if value > 127 else value)
        raise self.error(f"{token.text or 'the end'!r} where an expression is expected")

    def _number(self, pos: Pos, text: str) -> ctree.Num:
        match = _NUMBER.fullmatch(text)
        suffix = _SUFFIXES.get(match[2].lower()) if match else None
        if match is None or suffix is None:
            self.at -= 1
            raise self.error(f"the constant {text}")
        digits = match[1]
        octal = len(digits) > 1 and digits.isdigit() and digits[0] == "0"
        try:
            value = int(digits, 8 if octal else 0)
        except ValueError:
            self.at -= 1
            raise self.error(f"the constant {text}") from None
        return ctree.Num(pos, value, suffix, octal or not digits.isdigit())

    def string(self) -> ctree.Str:
        """Adjacent string tokens as one string."""
        pos = self.pos()
        parts = []
        while self.tokens[self.at].kind == "str":
            parts.append(string_value(self.texts[self.at]))
            self.at += 1
        return ctree.Str(pos, "".join(parts))

    def postfix(self, expr: Expr) -> Expr:
        """Calls, members, indices, ++ and -- behind `expr`."""
        while True:
            text = self.texts[self.at]
            if text not in _POSTFIXES:
                return expr
            pos = self.pos()
            self.at += 1
            if text == "->" or text == ".":
                expr = ctree.Member(pos, expr, self.identifier(), text == "->")
            elif text == "(":
                expr = ctree.Call(pos, expr, self._arguments())
            elif text == "[":
                index = self.expression()
                self.expect("]")
                expr = ctree.Index(pos, expr, index)
            else:
                expr = ctree.Postfix(pos, text, expr)

    def _arguments(self) -> tuple[Expr, ...]:
        """The arguments of a call, behind its `(`."""
        if self.accept(")"):
            return ()
        args = [self.assignment()]
        while self.accept(","):
            args.append(self.assignment())
        self.expect(")")
        return tuple(args)

    def initializer(self) -> Expr:
        """What stands behind `=` in a declaration."""
        return self.init_list() if self.texts[self.at] == "{" else self.assignment()

    def init_list(self) -> ctree.InitList:
        """`{ ... }` with designators."""
        pos = self.pos()
        self.expect("{")
        items = []
        while not self.accept("}"):
            designators = self._designators()
            items.append((designators, self.initializer()))
            if not self.accept(","):
                self.expect("}")
                break
        return ctree.InitList(pos, tuple(items))

    def _designators(self) -> tuple[str | Expr | tuple[Expr, Expr], ...]:
        """`.a[1].b =`, `[1 ... 3] =` and GNU's old `a:`; empty if there are none."""
        if self.texts[self.at + 1 : self.at + 2] == [":"] and self.tokens[self.at].kind == "ident":
            name = self.identifier()
            self.at += 1
            return (name,)
        found: list[str | Expr | tuple[Expr, Expr]] = []
        while self.texts[self.at] in (".", "["):
            if self.accept("."):
                found.append(self.identifier())
                continue
            self.at += 1
            low = self.conditional()
            found.append((low, self.conditional()) if self.accept("...") else low)
            self.expect("]")
        if found:
            self.expect("=")
        return tuple(found)

    def offset_of(self, pos: Pos) -> Expr:
        """Behind __builtin_offsetof."""
        self.expect("(")
        type_ = self.type_name()
        self.expect(",")
        path: list[str | Expr] = [self.identifier()]
        while not self.accept(")"):
            if self.accept("."):
                path.append(self.identifier())
            else:
                self.expect("[")
                path.append(self.expression())
                self.expect("]")
        return ctree.OffsetOf(pos, type_, tuple(path))

    def types_compatible(self, pos: Pos) -> Expr:
        """Behind __builtin_types_compatible_p."""
        self.expect("(")
        left = self.type_name()
        self.expect(",")
        right = self.type_name()
        self.expect(")")
        return ctree.TypesCompatible(pos, left, right)

    def generic(self, pos: Pos) -> Expr:
        """Behind _Generic."""
        self.expect("(")
        control = self.assignment()
        choices: list[tuple[CType | None, Expr]] = []
        while self.accept(","):
            type_ = None if self.accept("default") else self.type_name()
            self.expect(":")
            choices.append((type_, self.assignment()))
        self.expect(")")
        return ctree.Generic(pos, control, tuple(choices))

    def va_arg(self, pos: Pos) -> Expr:
        """Behind __builtin_va_arg, whose second argument is a type; ctree has no node for it."""
        self.at -= 1
        raise self.error("va_arg")


_POSTFIXES = words("-> . ( [ ++ --")
_BUILTINS = {
    "__builtin_offsetof": ExpressionParser.offset_of,
    "__builtin_types_compatible_p": ExpressionParser.types_compatible,
    "_Generic": ExpressionParser.generic,
    "__builtin_va_arg": ExpressionParser.va_arg,
}
