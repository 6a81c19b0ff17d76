"""A tree of one C text, for tests of the back end: what index.Index offers, without an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from iretrace.linux import ctree
from iretrace.linux.answers import Answer, Model, Storage
from iretrace.linux.layout import Layout
from iretrace.linux.parse import Typedef, parse_translation_unit
from iretrace.linux.program import Program, Run

PATH = "test.c"


class TextSource:
    """The definitions of one text without preprocessor directives."""

    def __init__(self, text: str) -> None:
        self.functions: dict[str, ctree.Function] = {}
        self.structs: dict[tuple[str, str], ctree.StructType] = {}
        self.typedefs: dict[str, ctree.CType] = {}
        self.enums: dict[str, ctree.EnumType] = {}
        self.constants: dict[str, ctree.EnumType] = {}
        self.variables: dict[str, ctree.Declaration] = {}
        self.prototypes: dict[str, ctree.CType] = {}
        for node in parse_translation_unit(text, PATH):
            self._add(node)

    def _add(self, node: object) -> None:
        match node:
            case ctree.Function():
                self.functions[node.name] = node
            case Typedef():
                self.typedefs[node.name] = node.type
                self._add(node.type)
            case ctree.StructType() if node.fields is not None:
                self.structs[node.kind, node.tag] = node
            case ctree.EnumType() if node.items is not None:
                self.enums[node.tag] = node
                for name, _ in node.items:
                    self.constants[name] = node
            case ctree.Declaration():
                self._add(node.type)
                if isinstance(node.type, ctree.FunctionType):
                    self.prototypes[node.name] = node.type
                else:
                    self.variables[node.name] = node

    def function(self, name: str, path: str = "") -> ctree.Function | None:
        return self.functions.get(name)

    def signature(self, name: str, path: str = "") -> ctree.Function | None:
        return self.functions.get(name)

    def struct(self, kind: str, tag: str, path: str = "") -> ctree.StructType | None:
        return self.structs.get((kind, tag))

    def typedef(self, name: str, path: str = "") -> ctree.CType | None:
        return self.typedefs.get(name)

    def enum(self, tag: str, path: str = "") -> ctree.EnumType | None:
        return self.enums.get(tag)

    def enumerator(self, name: str) -> tuple[ctree.EnumType, str] | None:
        found = self.constants.get(name)
        return None if found is None else (found, PATH)

    def variable(self, name: str, path: str = "") -> ctree.Declaration | None:
        return self.variables.get(name)

    def declared(self, name: str, path: str = "") -> ctree.CType | None:
        if name in self.functions:
            return self.functions[name].type
        if name in self.variables:
            return self.variables[name].type
        return self.prototypes.get(name)


@dataclass
class DictRules:
    """Rules as plain dictionaries."""

    functions: dict[str, Answer] = field(default_factory=dict)
    globals: dict[str, int | Storage] = field(default_factory=dict)
    keys: dict[str, bool] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    opaque_structs: Mapping[str, int] = field(default_factory=dict)
    static_calls: Mapping[str, str] = field(default_factory=dict)

    def function(self, name: str, path: str) -> Answer | None:
        return self.functions.get(name)

    def global_(self, name: str, path: str) -> int | Storage | None:
        return self.globals.get(name)

    def static_key(self, name: str) -> bool | None:
        return self.keys.get(name)


def program_of(text: str, rules: DictRules | None = None, **options: object) -> Program:
    """A program of one C text."""
    source = TextSource(text)
    rules = rules or DictRules()
    return Program(source, Layout(source, rules.opaque_structs), rules, **options)  # type: ignore[arg-type]


def call(text: str, name: str, *args: int, rules: DictRules | None = None) -> object:
    """Call one function of a C text."""
    return Run(program_of(text, rules)).call(name, *args, path=PATH)


__all__ = ["PATH", "DictRules", "Model", "Run", "TextSource", "call", "program_of"]
