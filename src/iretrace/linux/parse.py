"""Recursive-descent parser for the C that kernels are written in: expanded tokens to ctree.

Errors are ParseError(pos, construct). Attributes and annotations are dropped, but packed and aligned are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iretrace.linux import ctree
from iretrace.linux.ctree import CType, Expr, Pos, Statement
from iretrace.linux.cursor import ASM_WORDS, QUALIFIERS, ParseError
from iretrace.linux.declarations import Attributes, DeclarationParser, Specifiers, canonical_basic, cleanup_call
from iretrace.linux.lex import Token, lex

__all__ = [
    "ParseError", "Parser", "TopLevel", "Typedef", "canonical_basic", "parse_expression", "parse_function",
    "parse_translation_unit", "parse_type_definition",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Typedef:
    """`typedef type name;`"""

    pos: Pos
    name: str
    type: CType


TopLevel = ctree.Function | ctree.Declaration | Typedef | ctree.StructType | ctree.EnumType


class Parser(DeclarationParser):
    """The whole parser: statements and what stands at the top level of a file."""

    # Top level. -------------------------------------------------------------------------------------------------

    def top_level(self) -> list[TopLevel]:
        """Everything up to the end of the tokens."""
        found: list[TopLevel] = []
        while self.texts[self.at]:
            found.extend(self.external())
        return found

    def external(self) -> list[TopLevel]:
        """One definition or declaration at the top level. A declaration of several names is several nodes."""
        if self.accept(";"):
            return []
        text = self.texts[self.at]
        if text in ASM_WORDS or text in ("_Static_assert", "static_assert"):
            self._asm_or_assertion()
            return []
        start = self.pos()
        spec = self.specifiers()
        if self.accept(";"):
            is_type = isinstance(spec.type, ctree.StructType | ctree.EnumType)
            return [spec.type] if is_type else []  # type: ignore[list-item]
        found: list[TopLevel] = []
        while True:
            pos, name, type_ = self.declared(spec)
            if self.texts[self.at] == "{" and isinstance(type_, ctree.FunctionType):
                return [self._function(start, name, type_, spec)]
            if spec.storage == "typedef":
                found.append(Typedef(pos, name, type_))
                self.local_types[name] = ctree.TypeName(name, self.path)
            else:
                init = self.initializer() if self.accept("=") else None
                found.append(ctree.Declaration(pos, name, type_, init, spec.storage, self._is_const(spec)))
            if not self.accept(","):
                self.expect(";")
                return found

    def _function(self, pos: Pos, name: str, type_: ctree.FunctionType, spec: Specifiers) -> ctree.Function:
        types, tags = dict(self.local_types), dict(self.local_tags)
        for param in type_.params:
            self._hide(param.name)
        self.in_function = True
        body = self.block()
        self.in_function = False
        self.local_types, self.local_tags = types, tags
        last = self.tokens[self.at - 1].line
        return ctree.Function(pos, name, type_, body, spec.storage == "static", last)

    def _is_const(self, spec: Specifiers) -> bool:
        """Whether what was declared last is itself const: in `const char *p` it is not, in `char *const p[2]` it is."""
        return spec.const if self.pointer_const is None else self.pointer_const

    def _hide(self, name: str) -> None:
        """A variable called like a typedef hides it."""
        if name and self.is_type_name(name):
            self.local_types[name] = None

    # Statements. ------------------------------------------------------------------------------------------------

    def block(self) -> ctree.Block:
        """`{ ... }`"""
        pos = self.pos()
        self.expect("{")
        items: list[Statement] = []
        while not self.accept("}"):
            if self.texts[self.at] == "__label__":
                self._local_labels()
            elif self.starts_declaration():
                items.extend(self.declaration())
            else:
                items.append(self.statement())
        return ctree.Block(pos, tuple(items))

    def _local_labels(self) -> None:
        while not self.accept(";"):
            self.at += 1
            if not self.texts[self.at]:
                raise self.error("__label__ without an end")

    def declaration(self) -> Sequence[Statement]:
        """A declaration inside a function."""
        start = self.pos()
        at = self.at
        while self.texts[at] in QUALIFIERS:
            at += 1
        if self.texts[at] == "__auto_type":
            return self.auto_declaration()
        spec = self.specifiers()
        if self.accept(";"):
            return (ctree.Empty(start),)
        found: list[Statement] = []
        cleanup_of_all = spec.attributes.cleanup
        while True:
            spec.attributes.cleanup = cleanup_of_all
            pos, name, type_ = self.declared(spec)
            cleanup = cleanup_call(pos, name, spec.attributes)
            if cleanup is not None and spec.storage not in ("", "register"):
                raise self.error(f"a cleanup attribute of something {spec.storage}")
            const = self._is_const(spec)
            init = self._declare(name, type_, spec)
            if spec.storage == "typedef" or isinstance(type_, ctree.FunctionType):
                found.append(ctree.Empty(pos))
            else:
                found.append(ctree.Declaration(pos, name, type_, init, spec.storage, const, cleanup))
            if not self.accept(","):
                self.expect(";")
                return found

    def _declare(self, name: str, type_: CType, spec: Specifiers) -> Expr | None:
        """Make a local name known, and pass over its initializer."""
        if spec.storage == "typedef":
            self.local_types[name] = type_
            return None
        self._hide(name)
        return self.initializer() if self.accept("=") else None

    def statement(self) -> Statement:
        """One statement that is no declaration."""
        text = self.texts[self.at]
        handler = _STATEMENTS.get(text)
        if handler:
            return handler(self, self.pos())
        pos = self.pos()
        if text in ASM_WORDS or text in ("_Static_assert", "static_assert"):
            return self._asm_or_assertion()
        if self.tokens[self.at].kind == "ident" and self.texts[self.at + 1] == ":":
            self.at += 2
            self.attributes(Attributes())
            return ctree.Label(pos, text, self._labelled())
        if text == "__attribute__":
            self.attributes(Attributes())
            return self.statement()
        expr = self.expression()
        self.expect(";")
        return ctree.ExprStatement(pos, expr)

    def _labelled(self) -> Statement:
        """The statement behind a label. C23 and GNU allow a declaration or the end of the block there."""
        if self.texts[self.at] == "}":
            return ctree.Empty(self.pos())
        if self.starts_declaration():
            return self._one(self.declaration())
        return self.statement()

    def _one(self, items: Sequence[Statement]) -> Statement:
        if len(items) != 1:
            raise self.error("several declarations behind a label")
        return items[0]

    def _asm_or_assertion(self) -> Statement:
        """asm as text; a static assertion is empty."""
        pos = self.pos()
        start = self.at
        while self.texts[self.at] != "(":
            self.at += 1
            if not self.texts[self.at]:
                raise self.error("asm without operands")
        self.skip_parentheses()
        words = self.texts[start : self.at]
        self.expect(";")
        if words[0] not in ASM_WORDS:
            return ctree.Empty(pos)
        return ctree.Asm(pos, " ".join(words))

    def _condition(self) -> Expr:
        self.expect("(")
        cond = self.expression()
        self.expect(")")
        return cond

    def _if(self, pos: Pos) -> Statement:
        self.at += 1
        cond = self._condition()
        then = self.statement()
        return ctree.If(pos, cond, then, self.statement() if self.accept("else") else None)

    def _while(self, pos: Pos) -> Statement:
        self.at += 1
        cond = self._condition()
        return ctree.While(pos, cond, self.statement())

    def _do(self, pos: Pos) -> Statement:
        self.at += 1
        body = self.statement()
        self.expect("while")
        cond = self._condition()
        self.expect(";")
        return ctree.While(pos, cond, body, do_first=True)

    def _for(self, pos: Pos) -> Statement:
        self.at += 1
        self.expect("(")
        init: tuple[Statement, ...] = ()
        if self.starts_declaration():
            init = tuple(self.declaration())
        elif not self.accept(";"):
            init = (ctree.ExprStatement(self.pos(), self.expression()),)
            self.expect(";")
        cond = None if self.texts[self.at] == ";" else self.expression()
        self.expect(";")
        step = None if self.texts[self.at] == ")" else self.expression()
        self.expect(")")
        return ctree.For(pos, init, cond, step, self.statement())

    def _switch(self, pos: Pos) -> Statement:
        self.at += 1
        value = self._condition()
        return ctree.Switch(pos, value, self.statement())

    def _case(self, pos: Pos) -> Statement:
        self.at += 1
        low = self.conditional()
        high = self.conditional() if self.accept("...") else None
        self.expect(":")
        return ctree.Case(pos, low, high, self._labelled())

    def _default(self, pos: Pos) -> Statement:
        self.at += 1
        self.expect(":")
        return ctree.Case(pos, None, None, self._labelled())

    def _goto(self, pos: Pos) -> Statement:
        self.at += 1
        if self.texts[self.at] == "*":
            raise self.error("a computed goto")
        label = self.identifier()
        self.expect(";")
        return ctree.Goto(pos, label)

    def _return(self, pos: Pos) -> Statement:
        self.at += 1
        value = None if self.texts[self.at] == ";" else self.expression()
        self.expect(";")
        return ctree.Return(pos, value)

    def _break(self, pos: Pos) -> Statement:
        self.at += 1
        self.expect(";")
        return ctree.Break(pos)

    def _continue(self, pos: Pos) -> Statement:
        self.at += 1
        self.expect(";")
        return ctree.Continue(pos)

    def _empty(self, pos: Pos) -> Statement:
        self.at += 1
        return ctree.Empty(pos)

    def _block(self, _pos: Pos) -> Statement:
        return self.block()


_STATEMENTS: dict[str, Callable[[Parser, Pos], Statement]] = {
    "{": Parser._block,
    ";": Parser._empty,
    "if": Parser._if,
    "while": Parser._while,
    "do": Parser._do,
    "for": Parser._for,
    "switch": Parser._switch,
    "case": Parser._case,
    "default": Parser._default,
    "goto": Parser._goto,
    "return": Parser._return,
    "break": Parser._break,
    "continue": Parser._continue,
}


def _never(_name: str) -> bool:
    return False


def parse_function(
    tokens: Sequence[Token], is_typedef: Callable[[str], bool] = _never, path: str = ""
) -> ctree.Function:
    """The function that `tokens` define. ParseError if they do not begin with a function definition."""
    parser = Parser(tokens, is_typedef, path)
    found = parser.external()
    if len(found) == 1 and isinstance(found[0], ctree.Function):
        return found[0]
    raise ParseError(Pos(tokens[0].path, tokens[0].line), "what should be a function definition")


def parse_type_definition(
    tokens: Sequence[Token], is_typedef: Callable[[str], bool] = _never, path: str = ""
) -> list[TopLevel]:
    """The struct, union, enum, typedef or declaration that `tokens` begin with (several names are several nodes)."""
    return Parser(tokens, is_typedef, path).external()


def parse_expression(tokens: Sequence[Token], is_typedef: Callable[[str], bool] = _never, path: str = "") -> Expr:
    """The expression that `tokens` are. ParseError if something is left over."""
    parser = Parser(tokens, is_typedef, path)
    expr = parser.expression()
    if parser.texts[parser.at]:
        raise parser.error(f"{parser.texts[parser.at]!r} behind an expression")
    return expr


def parse_translation_unit(text: str, path: str = "test.c") -> list[TopLevel]:
    """A whole file without directives: functions, declarations, typedefs, structs and enums in order."""
    return Parser(lex(text, path), _never, path).top_level()
