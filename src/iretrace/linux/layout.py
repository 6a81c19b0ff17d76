"""Types of a tree: definitions come from its index, constant expressions and typeof are lowered and thrown away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from iretrace.linux import ctree
from iretrace.linux.answers import Answer, ConditionId, Model, Rules, Site, Storage
from iretrace.linux.builder import Callee, Variable
from iretrace.linux.ctree import CType, Pos
from iretrace.linux.cursor import ParseError
from iretrace.linux.lower import FunctionLowering
from iretrace.linux.notes import Later, Notes
from iretrace.linux.places import NOTHING, Place
from iretrace.linux.resolve import Types
from iretrace.linux.types import Array, Func, Struct, Type
from iretrace.linux.unmodelled import Unmodelled


class Source(Protocol):
    """What is needed of index.Index. path: the file of use; definitions in it come first."""

    def function(self, name: str, path: str = "") -> ctree.Function | None:
        """A function's definition."""
        ...

    def signature(self, name: str, path: str = "") -> ctree.Function | None:
        """A function's definition, for who looks at its type and file only."""
        ...

    def struct(self, kind: str, tag: str, path: str = "") -> ctree.StructType | None:
        """A struct's or union's definition."""
        ...

    def typedef(self, name: str, path: str = "") -> CType | None:
        """What a typedef stands for."""
        ...

    def enum(self, tag: str, path: str = "") -> ctree.EnumType | None:
        """A tagged enum's definition."""
        ...

    def enumerator(self, name: str) -> tuple[ctree.EnumType, str] | None:
        """The enum that defines this constant, and its file."""
        ...

    def variable(self, name: str, path: str = "") -> ctree.Declaration | None:
        """A global variable, with its initializer if it has one."""
        ...

    def declared(self, name: str, path: str = "") -> CType | None:
        """The type of a function or variable that is declared."""
        ...


@contextmanager
def parsing() -> Iterator[None]:
    """A definition that cannot be parsed is something unmodelled, which matters only where it is needed."""
    try:
        yield
    except ParseError as error:
        raise Unmodelled(f"cannot parse {error.construct}", error.pos) from None


class NoRules:
    """Rules that answer nothing."""

    shared: frozenset[str] = frozenset()
    opaque_structs: Mapping[str, int] = {}
    static_calls: Mapping[str, str] = {}

    def function(self, name: str, path: str) -> Answer | None:
        """From source."""
        return None

    def global_(self, name: str, path: str) -> int | Storage | None:
        """Unknown."""
        return None

    def static_key(self, name: str) -> bool | None:
        """Unknown."""
        return None


class Layout(Types):
    """The types of a tree.

    layout.struct_named("struct", "kvm_vcpu"), layout.offset(struct, "arch.nmi_pending"), layout.size_of(type).
    """

    def __init__(self, source: Source, opaque: Mapping[str, int] | None = None, notes: Notes | None = None) -> None:
        super().__init__(opaque, notes)
        self.source = source
        self._prototypes: dict[tuple[str, str], Later[Func | None]] = {}

    # What Types wants to know.

    def constant(self, expr: ctree.Expr, path: str) -> int:
        """The value of an integer constant expression. Raises Unmodelled if it is none."""
        return FileLowering(self, path).constant(expr, path)

    def type_of(self, expr: ctree.Expr, path: str) -> Type:
        """The type of an expression outside functions."""
        return FileLowering(self, path).type_of(expr, path)

    def find_struct(self, kind: str, tag: str, path: str) -> ctree.StructType | None:
        """The definition of a tagged struct or union."""
        with parsing():
            return self.source.struct(kind, tag, path)

    def find_typedef(self, name: str, path: str) -> CType | None:
        """What a typedef stands for."""
        with parsing():
            return self.source.typedef(name, path)

    def find_enum(self, tag: str, path: str) -> ctree.EnumType | None:
        """The definition of a tagged enum."""
        with parsing():
            return self.source.enum(tag, path)

    # For everybody else.

    def named(self, words: str, path: str = "") -> Type:
        """A type by name: "struct kvm_vcpu", "union x", "enum y", or a typedef."""
        kind, _, tag = words.partition(" ")
        if kind in ("struct", "union"):
            return self.struct_named(kind, tag, path)
        if kind == "enum":
            return self.enum(ctree.EnumType(tag), path)
        return self.resolve(ctree.TypeName(words, path), path)

    def struct_named(self, kind: str, tag: str, path: str = "") -> Struct:
        """A tagged struct or union."""
        return self.struct(ctree.StructType(kind, tag), path)

    def place(self, kind: Type, members: str) -> tuple[int, Type, int | None]:
        """Bits from the start of `kind`, type, and bit-field width of a member path such as "arch.regs[3]"."""
        lowering = FileLowering(self, "")
        return lowering.member_path(kind, members)

    def offset(self, kind: Type, members: str) -> int:
        """offsetof(kind, members), in bytes."""
        return self.place(kind, members)[0] // 8

    def enumerator(self, name: str, path: str = "") -> int | None:
        """The value of an enumeration constant."""
        found = self.enumerator_variable(name, path)
        return None if found is None else found.value

    def enumerator_variable(self, name: str, path: str) -> Variable | None:
        """Type and value of an enumeration constant."""
        with parsing():
            found = self.source.enumerator(name)
        if not found:
            return None
        known = self.enumerators(*found)
        if name not in known:
            raise Unmodelled(f"enumeration constant {name} is used before it is defined")
        kind, value = known[name]
        return Variable(kind, value=value)

    def function(self, name: str, path: str) -> ctree.Function | None:
        """A function's definition, of which only the type and the file are looked at (see used.NotingIndex)."""
        with parsing():
            return self.source.signature(name, path)

    def variable(self, name: str, path: str = "") -> ctree.Declaration | None:
        """A global variable, one that is visible in the file `path` first."""
        with parsing():
            return self.source.variable(name, path) or self.source.variable(name)

    def declared(self, name: str, path: str) -> CType | None:
        """The type of a function or variable that is declared."""
        with parsing():
            return self.source.declared(name, path)

    def prototype(self, name: str, path: str) -> Func | None:
        """The type of a function, defined or only declared; None if there is no such function."""
        found = self._prototypes.get((name, path))
        if found is None:
            found = self._prototypes[name, path] = self.notes.later(lambda: self._find_prototype(name, path))
        return found()

    def _find_prototype(self, name: str, path: str) -> Func | None:
        written = self.declared(name, path)
        kind = None if written is None else self.resolve(written, path)
        return kind if isinstance(kind, Func) else None


class FileLowering(FunctionLowering):
    """The scope outside of functions: expressions are evaluated for their type and constant value only."""

    def __init__(self, layout: Layout, path: str) -> None:
        super().__init__(FileNames(layout), path, "")
        self.scopes = []

    def member_path(self, kind: Type, members: str) -> tuple[int, Type, int | None]:
        """See Layout.place."""
        place = Place(kind, None, NOTHING)
        pos = Pos(self.path, 0)
        for part in members.replace("]", "").replace("[", ".#").split("."):
            if part.startswith("#"):
                assert isinstance(place.type, Array)
                bits = 8 * self.types.size_of(place.type.of) * int(part[1:])
                place = place._replace(type=place.type.of, bit=place.bit + bits)
            else:
                place = self.select(place, part, pos)
        return place.bit, place.type, place.width


class FileNames:
    """Names at file scope, where only types and enumeration constants matter."""

    negated: ConditionId | None = None
    rules: Rules = NoRules()

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.types: Types = layout

    def identifier(self, name: str, pos: Pos, unevaluated: bool) -> Variable:
        """An enumeration constant, or the type of a global."""
        found = self.layout.enumerator_variable(name, pos.path)
        if found is not None:
            return found
        return Variable(global_type(self.layout, name, pos), address=0, given=True)

    def callee(self, name: str, pos: Pos) -> Callee:
        """Nothing is called here."""
        raise Unmodelled(f"{name}() is called in a constant expression", pos)

    def prototype(self, name: str, pos: Pos) -> Func | None:
        """The type of a function."""
        return self.layout.prototype(name, pos.path)

    def model(self, name: str, answer: Model, site: Site | None) -> str:
        """Nothing is called here."""
        raise Unmodelled(f"{name}() is called in a constant expression")

    def static_target(self, name: str, pos: Pos) -> str | None:
        """Nothing is called here."""
        raise Unmodelled(f"{name}() is called in a constant expression", pos)

    def string(self, text: str) -> int:
        """Strings have no address here."""
        return 0

    def static_local(self, function: str, declaration: ctree.Declaration, kind: Type) -> int:
        """There are no static variables here."""
        return 0


def global_type(layout: Layout, name: str, pos: Pos) -> Type:
    """The type of a global variable or function. `[]` gets its size from the initializer."""
    variable = layout.variable(name, pos.path)
    if variable is not None:
        kind = layout.resolve(variable.type, variable.pos.path)
        if variable.init is not None:
            kind = FileLowering(layout, variable.pos.path).completed(kind, variable.init)
        return kind
    written = layout.declared(name, pos.path)
    if written is not None:
        return layout.resolve(written, pos.path)
    function = layout.prototype(name, pos.path)
    if function is not None:
        return function
    row = f'[[global]]\nname = "{name}"\nwhat = "value=..."\nwhy = "..."'
    raise Unmodelled(f"`{name}` is not defined anywhere in the tree", pos, row)
