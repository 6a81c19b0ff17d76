"""A tree by name: functions, types, enumerators and variables, found in one pass and parsed when asked for.

A name may be defined more than once (static functions, one definition per configuration). What counts is active under
the given configuration and nearest: the file of use, its directory, then KVM's SVM code, KVM, x86, the generic headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TypeVar

from iretrace.linux import ctree
from iretrace.linux.ctree import CType, Pos
from iretrace.linux.extent import boundaries, until_arguments_end, until_brace, until_semicolon
from iretrace.linux.invocations import Invocations
from iretrace.linux.lex import lex
from iretrace.linux.parse import ParseError, Parser, TopLevel, Typedef, parse_expression
from iretrace.linux.preprocess import Preprocessor, Use
from iretrace.linux.scan import Names, Place, enums
from iretrace.linux.source import Source
from iretrace.linux.tree import Tree

NEAREST_FIRST = (
    ("arch/x86/kvm/svm", True),
    ("arch/x86/kvm", False),
    ("virt/kvm", True),
    ("arch/x86/kvm", True),
    ("arch/x86/include/asm", True),
    ("arch/x86/include/uapi", True),
    ("include/kvm", True),
    ("include/linux", False),
    ("include/linux/atomic", True),
    ("include/linux/sched", True),
    ("include/vdso", True),
    ("include/uapi/linux", False),
    ("include/uapi/asm-generic", True),
    ("include/asm-generic", True),
    ("include/hyperv", True),
)
"""The directories that are read, with or without those below them, in the order in which a definition is preferred."""

LEFT_OUT = re.compile(
    r"_(32|32_types|up|api_up|types_up|rt)\.h$|/pgtable-[23]level|/int-l64\.h$|/compiler-(clang|intel)\.h$|/generated/|^include/kvm/arm_"
)
"""Headers that x86-64 with SMP and GCC never includes, but that define the same names as those which it does."""

OPS = "arch/x86/include/asm/kvm-x86-ops.h"

_STATIC = re.compile(r"[\w\s*]*\bstatic\b")

T = TypeVar("T")


class Index:
    """The names of a tree under one configuration. All lookups are memoised; None means that there is no such name.

    config: CONFIG_* as in a .config. opaque_macros: macros that are not expanded but stay names and calls.
    ParseError comes from a lookup when the definition is there but cannot be parsed.
    """

    def __init__(self, tree: Tree, config: Mapping[str, str], opaque_macros: Iterable[str] = ()) -> None:
        self.tree = tree
        self.sources: list[Source] = []
        self.names = Names()
        self._numbers: dict[str, int] = {}
        self._read_sources()
        self.preprocessor = Preprocessor(config, opaque_macros, self._defining)
        self._ends: dict[Place, int] = {}
        self._parsed: dict[Place, list[TopLevel]] = {}
        self._functions: dict[tuple[str, str], ctree.Function | None] = {}
        self._structs: dict[tuple[str, str, str], ctree.StructType | None] = {}
        self._enums: dict[str, ctree.EnumType | None] = {}
        self._typedefs: dict[tuple[str, str], CType | None] = {}
        self._variables: dict[tuple[str, str], ctree.Declaration | None] = {}
        self._is_typedef: dict[str, bool] = {}
        self._making_types = False
        self._invocations = Invocations(self.names, self.sources, self._defining)

    def _read_sources(self) -> None:
        for rank, (directory, recursive) in enumerate(NEAREST_FIRST):
            for path in self.tree.files(directory, recursive):
                if path in self._numbers or LEFT_OUT.search(path):
                    continue
                text = self.tree.text(path)
                if text is None:
                    continue
                source = Source(path, text, rank)
                self._numbers[path] = len(self.sources)
                self.names.add(len(self.sources), source.raw)
                self.sources.append(source)

    def _defining(self, name: str) -> Iterator[Source]:
        return (self.sources[number] for number in self.names.macros.get(name, ()))

    @property
    def paths(self) -> Iterable[str]:
        """The files in which definitions are looked for."""
        return self._numbers

    def covers(self, path: str) -> bool:
        """Whether definitions are looked for in the file `path`."""
        return path in self._numbers

    # Lookups. ---------------------------------------------------------------------------------------------------

    def function(self, name: str, path: str = "") -> ctree.Function | None:
        """The definition of a function, a static one preferably of the file `path`."""
        key = name, path
        if key not in self._functions:
            self._functions[key] = self._find_function(name, path)
        return self._functions[key]

    def signature(self, name: str, path: str = "") -> ctree.Function | None:
        """As `function`, for who looks at the type and the file only."""
        return self.function(name, path)

    def struct(self, kind: str, tag: str, path: str = "") -> ctree.StructType | None:
        """The definition (with fields) of `struct tag` or `union tag`; kind is struct or union."""
        key = kind, tag, path
        if key not in self._structs:
            self._structs[key] = self._find_struct(kind, tag, path)
        return self._structs[key]

    def enum(self, tag: str, path: str = "") -> ctree.EnumType | None:
        """The definition (with constants) of `enum tag`."""
        if tag not in self._enums:
            self._enums[tag] = self._find_enum(tag, path)
        return self._enums[tag]

    def typedef(self, name: str, path: str = "") -> CType | None:
        """The type that a typedef names."""
        key = name, path
        if key not in self._typedefs:
            self._typedefs[key] = self._find_typedef(name, path)
        return self._typedefs[key]

    def is_typedef(self, name: str) -> bool:
        """Whether `name` is a typedef in an active part of the tree."""
        known = self._is_typedef.get(name)
        if known is None:
            places = self.names.typedefs.get(name, ())
            known = any(self._is_active(place) for place in places) or self._is_made(name)
            if known or not self._making_types:
                self._is_typedef[name] = known
        return known

    def _is_made(self, name: str) -> bool:
        """Whether a macro at the top level makes a typedef `name`; all such names end in _t.

        While those macros are parsed, none of them is known.
        """
        if self._making_types or not name.endswith("_t"):
            return False
        self._making_types = True
        made = name in self._made_types
        self._making_types = False
        return made

    def enumerator(self, name: str) -> tuple[ctree.EnumType, str] | None:
        """The enum that defines the constant `name`, and the file that holds it."""
        for place, enum in self._enums_at(name, ""):
            if any(item == name for item, _ in enum.items or ()):
                return enum, self.sources[place[0]].path
        return None

    def variable(self, name: str, path: str = "") -> ctree.Declaration | None:
        """A global variable: the definition with an initializer if there is one, else one without, else `extern`."""
        key = name, path
        if key not in self._variables:
            self._variables[key] = self._find_variable(name, path)
        return self._variables[key]

    def declared(self, name: str, path: str = "") -> CType | None:
        """The type of a function or variable, whether it is defined in the tree that was read or only declared."""
        try:
            function = self.function(name, path)
        except ParseError:
            function = None  # the type may be known all the same
        if function is not None:
            return function.type
        variable = self.variable(name, path)
        if variable is not None:
            return variable.type
        for declaration in self._declarations(name, path):
            return declaration.type
        return None

    def macro(self, name: str, path: str = "") -> ctree.Expr | None:
        """The expression that an object-like macro stands for (in the file `path`, or seen from KVM's SVM code).

        None if there is no such macro, or if it is no expression.
        """
        number = self._numbers.get(path, 0)
        if not self.sources:
            return None
        source = self.sources[number]
        use = Use(source, len(source.text), len(source.text))
        found = self.preprocessor.macro(name, use)
        if found is None or found.params is not None:
            return None
        tokens = self.preprocessor.expanded(lex(name, found.path, found.line), use)
        try:
            return parse_expression(tokens, self.is_typedef, found.path) if tokens else None
        except ParseError:
            return None

    def op_list(self, macro: str) -> tuple[str, ...]:
        """The names that `macro` (KVM_X86_OP, KVM_X86_OP_OPTIONAL, KVM_X86_OP_OPTIONAL_RET0) lists as x86 ops."""
        if OPS not in self._numbers:
            return ()
        source = self.sources[self._numbers[OPS]]
        text = self.preprocessor.active_text(source, 0, len(source.text))
        return tuple(re.findall(rf"^[ \t]*{re.escape(macro)}\(\s*(\w+)\s*\)", text, re.MULTILINE))

    def functions_in(self, path: str) -> list[str]:
        """The names of the functions that a file defines in its active parts, in the order of the file."""
        number = self._numbers.get(path)
        found = [
            (place, name)
            for name, places in self.names.items.items()
            for place in places
            if place[0] == number and self._is_active(place) and self._function_end(place)
        ]
        return [name for _, name in sorted(found)]

    # Finding. ---------------------------------------------------------------------------------------------------

    def _find_function(self, name: str, path: str) -> ctree.Function | None:
        hidden: list[Place] = []
        for place in self._ordered(self.names.items.get(name, ()), path):
            source = self.sources[place[0]]
            if not self._function_end(place):
                continue
            if path and not source.is_header and source.path != path and _STATIC.match(source.text, place[1]):
                hidden.append(place)
                continue
            if found := self._function_at(place, name):
                return found
        made = self._made_function(name)
        if made is not None:
            return made
        return next((found for place in hidden if (found := self._function_at(place, name))), None)

    def _function_at(self, place: Place, name: str) -> ctree.Function | None:
        return _first(self._parse(place, self._function_end), ctree.Function, name)

    def _find_struct(self, kind: str, tag: str, path: str) -> ctree.StructType | None:
        for place in self._ordered(self.names.tags.get(f"{kind} {tag}", ()), path):
            for node in self._parse(place, self._semicolon):
                struct = _strip(node if isinstance(node, ctree.StructType) else getattr(node, "type", None))
                if isinstance(struct, ctree.StructType) and struct.tag == tag and struct.fields is not None:
                    return struct
        made = self._made_types.get(f"{kind} {tag}")
        if isinstance(made, ctree.StructType):
            return made
        return self._struct_with_macro_head(kind, tag)

    def _struct_with_macro_head(self, kind: str, tag: str) -> ctree.StructType | None:
        """A struct whose definition begins with a macro: `context_lock_struct(mutex) { ... };`."""
        for node in self._made(self._invocations.with_argument(tag)):
            if isinstance(node, ctree.StructType) and (node.kind, node.tag) == (kind, tag) and node.fields is not None:
                return node
        return None

    def _find_enum(self, tag: str, path: str) -> ctree.EnumType | None:
        found = (enum for _, enum in self._enums_at(f"enum {tag}", path))
        return next((enum for enum in found if enum.tag == tag and enum.items is not None), None)

    def _enums_at(self, name: str, path: str) -> Iterator[tuple[Place, ctree.EnumType]]:
        """What stands where enums are that a name (_enum_places) may be found in."""
        for place in self._ordered(self._enum_places.get(name, ()), path):
            for node in self._parse(place, self._semicolon):
                enum = _strip(node if isinstance(node, ctree.EnumType) else getattr(node, "type", None))
                if isinstance(enum, ctree.EnumType):
                    yield place, enum

    def _find_typedef(self, name: str, path: str) -> CType | None:
        for place in self._ordered(self.names.typedefs.get(name, ()), path):
            found = _first(self._parse(place, self._semicolon), Typedef, name)
            if found:
                return found.type
        return self._made_types.get(name)

    def _find_variable(self, name: str, path: str) -> ctree.Declaration | None:
        best: ctree.Declaration | None = None
        for declaration in self._declarations(name, path):
            if isinstance(declaration.type, ctree.FunctionType):
                continue
            if declaration.init is not None:
                return declaration
            if best is None or (best.storage == "extern" and declaration.storage != "extern"):
                best = declaration
        return best

    def _declarations(self, name: str, path: str) -> Iterator[ctree.Declaration]:
        """What declares `name` and is no function definition: plainly, or through a macro at the top level."""
        for place in self._ordered(self.names.items.get(name, ()), path):
            if self._function_end(place):
                continue
            source = self.sources[place[0]]
            if path and not source.is_header and source.path != path and _STATIC.match(source.text, place[1]):
                continue
            found = _first(self._parse(place, self._semicolon), ctree.Declaration, name)
            if found:
                yield found
        for node in self._made(self._invocations.with_argument(name)):
            if isinstance(node, ctree.Declaration) and node.name == name:
                yield node

    def _made_function(self, name: str) -> ctree.Function | None:
        """A function whose definition comes out of a macro that is used at the top level."""
        return _first(self._made(self._invocations.may_define_function(name)), ctree.Function, name)

    def _made(self, places: Iterable[Place]) -> Iterator[TopLevel]:
        """What the active ones of some uses of macros define. Uses that make no declarations are passed over."""
        for place in places:
            if not self._is_active(place):
                continue
            try:
                yield from self._parse(place, self._invocation_end)
            except ParseError:
                continue

    @cached_property
    def _made_types(self) -> dict[str, CType]:
        """Types that macros define: typedefs by name, structs by "struct tag"."""
        found: dict[str, CType] = {}
        for node in self._made(self._invocations.defining_types):
            if isinstance(node, Typedef):
                found.setdefault(node.name, node.type)
            struct = _strip(node if isinstance(node, ctree.StructType) else getattr(node, "type", None))
            if isinstance(struct, ctree.StructType) and struct.tag and struct.fields is not None:
                found.setdefault(f"{struct.kind} {struct.tag}", struct)
        return found

    @cached_property
    def _enum_places(self) -> dict[str, list[Place]]:
        """Where enums are, by "enum tag" and by each of their enumerators."""
        found: dict[str, list[Place]] = {}
        for number, source in enumerate(self.sources):
            for tag, names, offset in enums(source.raw):
                for name in (f"enum {tag}", *names):
                    found.setdefault(name, []).append((number, offset))
        return found

    # Places. ----------------------------------------------------------------------------------------------------

    def _ordered(self, places: Iterable[Place], path: str) -> list[Place]:
        """The active ones of `places`: those in `path` first, then its directory's, then as the tree was read."""
        directory = path.rpartition("/")[0]

        def distance(place: Place) -> int:
            other = self.sources[place[0]].path
            if other == path:
                return 0
            return 1 if directory and other.rpartition("/")[0] == directory else 2

        return sorted((place for place in places if self._is_active(place)), key=distance)

    def _is_active(self, place: Place) -> bool:
        """Whether conditionals let the place through, and it is neither in a comment nor in a directive."""
        source = self.sources[place[0]]
        offset = place[1]
        if source.text[offset] == " " or source.text[offset] == "\n":
            return False
        return not source.in_directive(offset) and self.preprocessor.is_active(source, offset)

    def _function_end(self, place: Place) -> int:
        """Where the function definition at `place` ends; 0 if there stands something else."""
        if place not in self._ends:
            source = self.sources[place[0]]
            self._ends[place] = until_brace(boundaries(self.preprocessor, source, place[1]))
        return self._ends[place]

    def _invocation_end(self, place: Place) -> int:
        """Where the use of a macro at the top level ends: with an initializer, or a struct's body, if they follow."""
        source = self.sources[place[0]]
        end = until_arguments_end(boundaries(self.preprocessor, source, place[1]))
        following = source.text[end : end + 200].lstrip()[:1]
        body_end = self._function_end(place) if following == "{" else 0
        if following in ("=", ";") or (body_end and source.text[body_end : body_end + 1] == ";"):
            return until_semicolon(boundaries(self.preprocessor, source, place[1]))
        return end

    def _semicolon(self, place: Place) -> int:
        """Where the declaration at `place` ends."""
        return until_semicolon(boundaries(self.preprocessor, self.sources[place[0]], place[1]))

    def _parse(self, place: Place, until: Callable[[Place], int]) -> list[TopLevel]:
        """The nodes that stand from `place` to where `until` says."""
        if place not in self._parsed:
            source = self.sources[place[0]]
            try:
                tokens = self.preprocessor.tokens(source, place[1], until(place))
                self._parsed[place] = Parser(tokens, self.is_typedef, source.path).top_level()
            except RecursionError:
                raise ParseError(Pos(source.path, source.line(place[1])), "so deep a nesting") from None
        return self._parsed[place]


def _first(nodes: Iterable[TopLevel], kind: type[T], name: str) -> T | None:
    """The node of a kind that has a name."""
    return next((node for node in nodes if isinstance(node, kind) and getattr(node, "name", "") == name), None)


def _strip(type_: CType | None) -> CType | None:
    """The type inside pointers and arrays."""
    while isinstance(type_, ctree.PointerType | ctree.ArrayType):
        type_ = type_.to if isinstance(type_, ctree.PointerType) else type_.of
    return type_
