"""Declarations of GNU C: specifiers, declarators, structs and enums to ctree types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from iretrace.linux import ctree
from iretrace.linux.ctree import CType, Expr, Pos
from iretrace.linux.cursor import (
    ANNOTATION_CALLS,
    ANNOTATIONS,
    ASM_WORDS,
    KEYWORDS,
    QUALIFIERS,
    STORAGE_WORDS,
    TAG_WORDS,
    TYPE_WORDS,
    TYPEOF_WORDS,
)
from iretrace.linux.expressions import ExpressionParser
from iretrace.linux.lex import Token

_WORD_ORDER = ("unsigned", "signed", "char", "short", "long", "int")
_ALIASES = {"__signed__": "signed", "__signed": "signed", "__int128_t": "__int128"}
_CANONICAL = {
    "signed": "int",
    "unsigned": "unsigned int",
    "signed int": "int",
    "short int": "short",
    "signed short": "short",
    "signed short int": "short",
    "unsigned short int": "unsigned short",
    "long int": "long",
    "signed long": "long",
    "signed long int": "long",
    "unsigned long int": "unsigned long",
    "long long int": "long long",
    "signed long long": "long long",
    "signed long long int": "long long",
    "unsigned long long int": "unsigned long long",
    "signed __int128": "__int128",
    "__uint128_t": "unsigned __int128",
}
_BASICS = frozenset(_CANONICAL.values()) | {
    "void", "char", "signed char", "unsigned char", "unsigned short", "unsigned long", "unsigned long long",
    "_Bool", "float", "double", "long double", "__int128",
}  # fmt: skip


def canonical_basic(words: Sequence[str]) -> str:
    """One name for each basic type: ("long", "unsigned", "int") is "unsigned long". "" if there is no such type."""
    words = [_ALIASES.get(word, word) for word in words]
    words.sort(key=lambda word: _WORD_ORDER.index(word) if word in _WORD_ORDER else len(_WORD_ORDER))
    name = " ".join(words)
    name = _CANONICAL.get(name, name)
    return name if name in _BASICS else ""


@dataclass(slots=True)
class Attributes:
    """The attributes that matter: for layout, and the function that cleans up a local variable."""

    packed: bool = False
    align: Expr | None = None
    cleanup: str = ""


@dataclass(slots=True)
class Specifiers:
    """What stands before the declarators: the type, storage class, const, and attributes."""

    type: CType
    storage: str = ""
    const: bool = False
    attributes: Attributes = field(default_factory=Attributes)


class DeclarationParser(ExpressionParser):
    """The declaration part of the parser."""

    def __init__(self, tokens: Sequence[Token], is_typedef: Callable[[str], bool], path: str = "") -> None:
        super().__init__(tokens, is_typedef, path)
        self.local_types: dict[str, CType | None] = {}
        """Typedefs inside a function; None for a variable that hides a typedef."""
        self.local_tags: dict[tuple[str, str], CType] = {}
        self.in_function = False
        self._sink = Attributes()
        self.pointer_const: bool | None = None
        """Where attributes inside a declarator go."""

    def is_type_name(self, name: str) -> bool:
        """Whether `name` is a typedef here."""
        if name in self.local_types:
            return self.local_types[name] is not None
        return self.is_typedef(name)

    def starts_declaration(self) -> bool:
        """Whether the next tokens are a declaration rather than a statement."""
        text = self.texts[self.at]
        if text in ANNOTATIONS or text == "__attribute__":
            at = self.at
            self.attributes(Attributes())
            found = self.starts_type()
            self.at = at
            return found
        return self.starts_type() and self.texts[self.at + 1] != ":"

    # Attributes. ------------------------------------------------------------------------------------------------

    def attributes(self, into: Attributes) -> None:
        """Pass over attributes and annotations; what matters goes `into`."""
        while True:
            text = self.texts[self.at]
            if text in ANNOTATIONS:
                self.at += 1
            elif text == "__attribute__" or text == "__attribute":
                self.at += 1
                start, end = self.skip_parentheses()
                self._read_attributes(start, end, into)
            elif text == "__packed":
                self.at += 1
                into.packed = True
            elif text in ANNOTATION_CALLS and self.texts[self.at + 1] == "(":
                if text in ("__aligned", "__cleanup"):
                    self._read_attributes(self.at, self.at + 2, into)
                self.at += 1
                self.skip_parentheses()
            else:
                return

    def _read_attributes(self, start: int, end: int, into: Attributes) -> None:
        after = self.at
        for at in range(start, end):
            word = self.texts[at].strip("_")
            if word == "packed":
                into.packed = True
            elif word == "cleanup":
                if not self.in_function or self.texts[at + 1] != "(":
                    raise self.error("a cleanup attribute")
                into.cleanup = self.texts[at + 2]
            elif word == "aligned":
                into.align = ctree.Num(self.pos(), 16)
                if self.texts[at + 1] == "(":
                    self.at = at + 2
                    into.align = self.conditional()
        self.at = after

    # Specifiers. ------------------------------------------------------------------------------------------------

    def specifiers(self) -> Specifiers:
        """Declaration specifiers in any order."""
        type_: CType | None = None
        words: list[str] = []
        spec = Specifiers(ctree.Basic("int"))
        while True:
            text = self.texts[self.at]
            if text in TYPE_WORDS:
                words.append(text)
                self.at += 1
            elif text in QUALIFIERS:
                spec.const = spec.const or "const" in text
                self.at += 1
            elif text in STORAGE_WORDS:
                if text in ("static", "extern", "register", "typedef"):
                    spec.storage = text
                self.at += 1
            elif text in ANNOTATIONS or text in ANNOTATION_CALLS or text == "__packed":
                self.attributes(spec.attributes)
            elif text in ("_Alignas", "alignas"):
                self.at += 1
                start, _ = self.skip_parentheses()
                after, self.at = self.at, start
                spec.attributes.align = self.conditional()
                self.at = after
            elif type_ is None and not words and (found := self._type_specifier(text, spec)):
                type_ = found
            else:
                break
        if words:
            name = canonical_basic(words)
            if not name:
                raise self.error(f"the type {' '.join(words)!r}")
            type_ = ctree.Basic(name)
        if type_ is not None:
            spec.type = type_
        elif not spec.storage:
            raise self.error(f"{self.texts[self.at] or 'the end'!r} where a type is expected")
        return spec

    def _type_specifier(self, text: str, spec: Specifiers) -> CType | None:
        """struct, union, enum, typeof or a typedef's name; None if it is none of these."""
        if text == "enum":
            return self._enum()
        if text in TAG_WORDS:
            return self._struct(spec)
        if text == "__auto_type":
            raise self.error("__auto_type without an initializer")
        if text in TYPEOF_WORDS:
            self.at += 1
            self.expect("(")
            of = self.type_name() if self.starts_type() else self.expression()
            self.expect(")")
            return ctree.TypeofType(of)
        if self.tokens[self.at].kind == "ident" and text not in KEYWORDS and self.is_type_name(text):
            self.at += 1
            return self.local_types.get(text) or ctree.TypeName(text, self.path)
        return None

    def _enum(self) -> CType:
        self.at += 1
        self.attributes(Attributes())
        tag = self.identifier() if self.tokens[self.at].kind == "ident" else ""
        if self.texts[self.at] == ":":
            self.at += 1
            self.type_name()
        if not self.accept("{"):
            return self.local_tags.get(("enum", tag)) or ctree.EnumType(tag)
        items: list[tuple[str, Expr | None]] = []
        while not self.accept("}"):
            name = self.identifier()
            self.attributes(Attributes())
            items.append((name, self.conditional() if self.accept("=") else None))
            if not self.accept(","):
                self.expect("}")
                break
        self.attributes(Attributes())
        return self._remember_tag("enum", tag, ctree.EnumType(tag, tuple(items)))

    def _struct(self, spec: Specifiers) -> CType:
        kind = self.texts[self.at]
        self.at += 1
        own = Attributes()
        self.attributes(own)
        tag = self.identifier() if self.tokens[self.at].kind == "ident" else ""
        self.attributes(own)
        if not self.accept("{"):
            if own.align is not None:
                spec.attributes.align = own.align
            known = self.local_tags.get((kind, tag))
            return known or ctree.StructType(kind, tag, path=self.path)
        fields: list[ctree.Field] = []
        while not self.accept("}"):
            fields.extend(self._fields())
        self.attributes(own)
        struct = ctree.StructType(kind, tag, tuple(fields), own.packed, own.align, self.path)
        return self._remember_tag(kind, tag, struct)

    def _remember_tag(self, kind: str, tag: str, type_: CType) -> CType:
        if tag and self.in_function:
            self.local_tags[kind, tag] = type_
        return type_

    def _fields(self) -> list[ctree.Field]:
        """One member declaration of a struct; several fields if it declares several."""
        if self.texts[self.at] in ("_Static_assert", "static_assert"):
            self.at += 1
            self.skip_parentheses()
            self.expect(";")
            return []
        if self.accept(";"):
            return []
        spec = self.specifiers()
        fields: list[ctree.Field] = []
        while True:
            pos = self.pos()
            own = replace(spec.attributes)
            self.attributes(own)
            self._sink = own
            name, type_ = ("", spec.type) if self.texts[self.at] in (":", ";") else self.declarator(spec.type)
            bits = self.conditional() if self.accept(":") else None
            self.attributes(own)
            fields.append(ctree.Field(name, type_, bits, pos, own.packed, own.align))
            if not self.accept(","):
                break
        self.expect(";")
        if len(fields) == 1 and not fields[0].name and fields[0].bits is None and not _is_body(spec.type):
            return []
        return fields

    # Declarators. -----------------------------------------------------------------------------------------------

    def type_name(self) -> CType:
        """A type name as in a cast: specifiers and an abstract declarator."""
        spec = self.specifiers()
        name, type_ = self.declarator(spec.type)
        if name:
            self.at -= 1
            raise self.error(f"the name {name!r} inside a type")
        return type_

    def declarator(self, base: CType) -> tuple[str, CType]:
        """A declarator, abstract or not: the declared name ("" if abstract) and its type."""
        base = self._pointers(base)
        if self.texts[self.at] == "(" and self._is_nested():
            start = self.at + 1
            self.skip_parentheses()
            base = self._suffixes(base)
            after, self.at = self.at, start
            self.attributes(self._sink)
            name, type_ = self.declarator(base)
            self.expect(")")
            self.at = after
            return name, type_
        name = ""
        pointer_const = self.pointer_const
        token = self.tokens[self.at]
        if token.kind == "ident" and token.text not in KEYWORDS:
            name = token.text
            self.at += 1
        type_ = self._suffixes(base)
        self.pointer_const = pointer_const
        return name, type_

    def _pointers(self, base: CType) -> CType:
        """The stars of a declarator; notes whether the last one is const (None: there is none)."""
        self.attributes(self._sink)
        self.pointer_const = None
        while True:
            text = self.texts[self.at]
            if text == "*":
                base = ctree.PointerType(base)
                self.pointer_const = False
            elif text not in QUALIFIERS:
                return base
            elif "const" in text and self.pointer_const is not None:
                self.pointer_const = True
            self.at += 1
            self.attributes(self._sink)

    def _is_nested(self) -> bool:
        """Whether the `(` that comes next encloses a declarator rather than parameters."""
        following = self.tokens[self.at + 1]
        if following.text in ("*", "(") or following.text == "__attribute__" or following.text in ANNOTATIONS:
            return True
        return following.kind == "ident" and following.text not in KEYWORDS and not self.is_type_name(following.text)

    def _suffixes(self, base: CType) -> CType:
        """Arrays and parameter lists behind a declarator; the first one written is the outermost type."""
        self.attributes(self._sink)
        if self.accept("["):
            while self.texts[self.at] in QUALIFIERS or self.texts[self.at] == "static":
                self.at += 1
            size = None if self.texts[self.at] == "]" else self.assignment()
            self.expect("]")
            return ctree.ArrayType(self._suffixes(base), size)
        if self.texts[self.at] == "(":
            self.at += 1
            outer, self._sink = self._sink, Attributes()
            params, variadic = self._parameters()
            self._sink = outer
            return ctree.FunctionType(self._suffixes(base), params, variadic)
        return base

    def _parameters(self) -> tuple[tuple[ctree.Param, ...], bool]:
        """Parameters behind `(`, and whether `...` ends them."""
        if self.accept(")"):
            return (), False
        params: list[ctree.Param] = []
        while not self.accept("..."):
            spec = self.specifiers()
            name, type_ = self.declarator(spec.type)
            self.attributes(Attributes())
            params.append(ctree.Param(name, type_))
            if not self.accept(","):
                self.expect(")")
                if params == [ctree.Param("", ctree.Basic("void"))]:
                    return (), False
                return tuple(params), False
        self.expect(")")
        return tuple(params), True

    # Declarations. ----------------------------------------------------------------------------------------------

    def auto_declaration(self) -> list[ctree.Declaration]:
        """`__auto_type name = value;`, possibly const."""
        const = False
        while self.texts[self.at] != "__auto_type":
            const = const or "const" in self.texts[self.at]
            self.at += 1
        self.at += 1
        attributes = Attributes()
        self.attributes(attributes)
        pos = self.pos()
        name = self.identifier()
        self.attributes(attributes)
        self.expect("=")
        value = self.assignment()
        self.expect(";")
        cleanup = cleanup_call(pos, name, attributes)
        return [ctree.Declaration(pos, name, ctree.TypeofType(value), value, const=const, cleanup=cleanup)]

    def declared(self, spec: Specifiers) -> tuple[Pos, str, CType]:
        """One declarator of a declaration, with asm names and attributes behind it."""
        pos = self.pos()
        self._sink = spec.attributes
        name, type_ = self.declarator(spec.type)
        self.attributes(spec.attributes)
        if self.texts[self.at] in ASM_WORDS:
            self.at += 1
            self.skip_parentheses()
            self.attributes(spec.attributes)
        return pos, name, type_


def cleanup_call(pos: Pos, name: str, attributes: Attributes) -> Expr | None:
    """What the attributes of the variable `name` have called at the end of its scope."""
    if not attributes.cleanup:
        return None
    return ctree.Call(pos, ctree.Name(pos, attributes.cleanup), (ctree.Unary(pos, "&", ctree.Name(pos, name)),))


def _is_body(type_: CType) -> bool:
    return isinstance(type_, ctree.StructType) and type_.fields is not None
