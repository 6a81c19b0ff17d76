"""What names at file scope stand for in a run: constants, functions, variables in memory and their initial content."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from iretrace.linux import ctree
from iretrace.linux.answers import Rules, Storage
from iretrace.linux.builder import Names, Variable, word_type
from iretrace.linux.calls import root_name
from iretrace.linux.ctree import Pos
from iretrace.linux.ir import Const
from iretrace.linux.layout import Layout, global_type
from iretrace.linux.lower import FunctionLowering
from iretrace.linux.memory import Object, Space
from iretrace.linux.notes import Later
from iretrace.linux.types import INT, Func, Type
from iretrace.linux.unmodelled import Unmodelled


class Addresses(Names, Protocol):
    """The program, as far as globals need it."""

    def address_of(self, name: str, path: str = "") -> int:
        """The address of a function."""
        ...


class Globals:
    """The globals of a program."""

    def __init__(self, layout: Layout, rules: Rules, space: Space, initial: dict[int, int], program: Addresses) -> None:
        self.layout = layout
        self.rules = rules
        self.space = space
        self.initial = initial
        self.program = program
        self._known: dict[tuple[str, str], Later[Variable]] = {}
        self._objects: dict[str, Later[Object]] = {}
        self._statics: dict[int, Later[Object]] = {}
        self._strings: dict[str, int] = {}

    # Names.

    def identifier(self, name: str, pos: Pos, unevaluated: bool) -> Variable:
        """Enumeration constant, function or variable. unevaluated: only the type is wanted."""
        if unevaluated and self.layout.enumerator_variable(name, pos.path) is None:
            return Variable(global_type(self.layout, name, pos), address=0, given=True)
        known = self._known.get((name, pos.path))
        if known is None:
            known = self._known[name, pos.path] = self.layout.notes.later(lambda: self._find(name, pos))
        return known()

    def _find(self, name: str, pos: Pos) -> Variable:
        return self.layout.enumerator_variable(name, pos.path) or self._global(name, pos)

    def _global(self, name: str, pos: Pos) -> Variable:
        answer = self.rules.global_(name, pos.path)
        if isinstance(answer, int):
            kind = self._type_or_int(name, pos)
            word = word_type(kind)
            return Variable(kind, value=word.wrap(answer), given=True)
        kind = global_type(self.layout, name, pos)
        if isinstance(kind, Func):
            return Variable(kind, address=self.program.address_of(name, pos.path))
        declaration = self.layout.variable(name, pos.path)
        if answer is None:
            if declaration is None or declaration.init is None or not declaration.const:
                row = f'[[global]]\nname = "{name}"\nwhat = "value=0"\nwhy = "..."'
                raise Unmodelled(f"the value of the global variable `{name}` is not known", pos, row)
            answer = Storage("source", writable=False)
        return Variable(kind, address=self._object(name, kind, answer, declaration, pos).address)

    def _type_or_int(self, name: str, pos: Pos) -> Type:
        try:
            return global_type(self.layout, name, pos)
        except Unmodelled:
            return INT

    # Objects.

    def _object(
        self, name: str, kind: Type, storage: Storage, declaration: ctree.Declaration | None, pos: Pos
    ) -> Object:
        """The memory of a global variable."""
        path = declaration.pos.path if declaration is not None else ""
        key = f"{name} {path}"
        made = self._objects.get(key)
        if made is None:
            make = partial(self._make, name, kind, storage, declaration, pos)
            made = self._objects[key] = self.layout.notes.later(make)
            self._fill(made)
        return made()

    def _make(self, name: str, kind: Type, storage: Storage, declaration: ctree.Declaration | None, pos: Pos) -> Object:
        owner = declaration.pos.path if declaration is not None else ""
        made = self.space.allocate(name, self.layout.size_of(kind), owner, storage.writable)
        if storage.init.startswith("="):
            # Whoever copies a static table sits in another file than the table.
            declaration = self.layout.variable(storage.init[1:])
            if declaration is None:
                raise Unmodelled(f"`{storage.init[1:]}`, of which {name} is a copy, is not defined in the tree", pos)
        elif storage.init != "source":
            return made
        if declaration is not None and declaration.init is not None:
            self._initialize(made, kind, declaration)
        return made

    def _fill(self, made: Later[Object]) -> None:
        """Compute the initial content of an object that has just been made, as far as it can be, so that who reads it
        rests on the same whoever has read it before."""
        words = made().words
        with self.layout.notes.of(made):
            for address, word in words.items():
                if callable(word):
                    with suppress(Unmodelled):
                        words[address] = word()

    def _initialize(self, made: Object, kind: Type, declaration: ctree.Declaration) -> None:
        """Give an object the content of a C initializer, to be computed word by word."""
        lowering = StaticLowering(self.program, declaration.pos.path, declaration.name)
        assert declaration.init is not None
        fields: dict[int, list[tuple[int, int, Callable[[], int]]]] = {}
        for part in lowering.parts(kind, declaration.init):
            width = part.width or 8 * self.layout.size_of(part.type)
            address = made.address + part.bit // 64 * 8
            shift = part.bit % 64
            if shift + width > 64:
                raise Unmodelled("an initializer that crosses a word", declaration.pos)
            fields.setdefault(address, []).append((shift, width, lowering.later(part.value, part.type)))
        for address, parts in fields.items():
            made.words[address] = _word(parts)

    def materialise(self, name: str, path: str) -> None:
        """Make the initial value of a variable part of the state, so that it can be written."""
        variable = self.identifier(name, Pos(path, 0), False)
        made = self.space.find(variable.address or 0)
        if made is None:
            raise Unmodelled(f"`{name}` is not in memory")
        for address, word in made.words.items():
            self.initial[address] = word() if callable(word) else word
        made.words.clear()

    def static_local(self, function: str, declaration: ctree.Declaration, kind: Type) -> int:
        """The address of a function's static variable."""
        name = f"{function}.{declaration.name}"
        made = self._statics.get(id(declaration))
        if made is None:
            make = partial(self._make_static, name, declaration, kind)
            made = self._statics[id(declaration)] = self.layout.notes.later(make)
            self._fill(made)
        return made().address

    def _make_static(self, name: str, declaration: ctree.Declaration, kind: Type) -> Object:
        answer = self.rules.global_(name, declaration.pos.path)
        if isinstance(answer, int):
            raise Unmodelled(f"`{name}` needs storage", declaration.pos)
        storage = answer or Storage("source", writable=not declaration.const)
        return self._make(name, kind, storage, declaration, declaration.pos)

    def string(self, text: str) -> int:
        """The address of a string literal."""
        if text not in self._strings:
            data = text.encode("latin-1", "replace") + b"\0"
            made = self.space.allocate(f'"{text}"', len(data), writable=False)
            for offset in range(0, len(data), 8):
                made.words[made.address + offset] = int.from_bytes(data[offset : offset + 8], "little")
            self._strings[text] = made.address
        return self._strings[text]

    def filled(self) -> list[tuple[Object, Later[Object]]]:
        """The objects, each with the node of its initial content."""
        with self.layout.notes.collecting():
            return [(made(), made) for made in (*self._objects.values(), *self._statics.values())]

    # Static calls.

    def static_target(self, name: str, pos: Pos) -> str | None:
        """The function that a static call goes to; None for an optional one that is not there."""
        prefixes = [prefix for prefix in self.rules.static_calls if name.startswith(prefix)]
        if not prefixes:
            row = f'[[static_call]]\nname = "{name}"\ntable = "..."\nwhy = "..."'
            raise Unmodelled(f"the table of static call {name} is not known", pos, row)
        prefix = max(prefixes, key=len)
        table, member = self.rules.static_calls[prefix], name.removeprefix(prefix)
        declaration = self.layout.variable(table)
        if declaration is None or not isinstance(declaration.init, ctree.InitList):
            raise Unmodelled(f"`{table}`, the table of static call {name}, has no initializer in the tree", pos)
        for designators, value in declaration.init.items:
            if designators == (member,):
                target = root_name(value)
                if target and self.layout.enumerator(target) is None:
                    return target
        if self._optional(member):
            return None
        raise Unmodelled(f"{table} has no member {member}, and it is not optional", pos)

    def _optional(self, member: str) -> bool:
        ops = getattr(self.layout.source, "op_list", None)
        if ops is None:
            return False
        return any(member in ops(macro) for macro in ("KVM_X86_OP_OPTIONAL", "KVM_X86_OP_OPTIONAL_RET0"))


def _word(parts: list[tuple[int, int, Callable[[], int]]]) -> Callable[[], int]:
    """A word from its fields; of several for the same bits the last counts."""

    def compute() -> int:
        word = 0
        for shift, width, value in parts:
            mask = ((1 << width) - 1) << shift
            word = word & ~mask | value() << shift & mask
        return word

    return compute


class StaticLowering(FunctionLowering):
    """The scope of a static initializer: constants and addresses."""

    def __init__(self, names: Names, path: str, name: str) -> None:
        super().__init__(names, path, name)
        self.scopes = []

    def later(self, expr: ctree.Expr, kind: Type) -> Callable[[], int]:
        """A function that computes the initial value of a scalar."""

        def compute() -> int:
            value = self.convert(self.rvalue(expr), kind, expr.pos)
            if not isinstance(value.ir, Const):
                raise Unmodelled("an initial value that is not constant", expr.pos)
            return value.ir.value

        return compute
