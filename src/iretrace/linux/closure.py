"""What a tree's event path reaches, found without running it: every name that no rule answers, all at once.

A walk over the syntax trees of the functions that execution can reach, cut where a rule answers. It sees more than a
run does (branches that no state takes), so a name that it reports need not matter; a name that it misses cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass

from iretrace.linux import ctree
from iretrace.linux.calls import INTRINSICS, MEMORY, STATIC_CALLS, STATIC_KEYS, root_name
from iretrace.linux.index import Index
from iretrace.linux.parse import ParseError
from iretrace.linux.rules import Rules


@dataclass(frozen=True, slots=True)
class Missing:
    """A name without an answer: the table that would answer it, what is wrong, and where it is used."""

    table: str
    name: str
    what: str
    where: ctree.Pos
    function: str

    @property
    def row(self) -> str:
        """The TOML row that answers it, to be completed."""
        answer = {
            "function": 'what = "neutral"  # or value=N, model=NAME, refuse',
            "global": 'what = "value=0"  # or zero, source',
            "static_key": "on = false",
            "feature": "on = false",
        }[self.table]
        place = f"# {self.where}, in {self.function}(): {self.what}"
        return f'{place}\n[[{self.table}]]\nname = "{self.name}"\n{answer}\nwhy = "..."\n'


def nodes(node: object) -> Iterator[object]:
    """A syntax tree's nodes, depth first; types are left out."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            stack.extend(reversed(item))
        elif is_dataclass(item) and not isinstance(item, ctree.Pos | ctree.FunctionType | ctree.StructType):
            yield item
            stack.extend(getattr(item, part.name) for part in reversed(fields(item)) if part.name != "pos")


class Closure:
    """The functions reached from some roots. functions: name -> definition; missing: names without an answer."""

    def __init__(self, index: Index, rules: Rules, targets: dict[str, str], roots: Sequence[str]) -> None:
        self.index = index
        self.rules = rules
        self.targets = targets
        self.functions: dict[str, ctree.Function] = {}
        self.missing: dict[str, Missing] = {}
        self._answered: set[str] = set()
        self._waiting = [(root, "", ctree.Pos("", 0), "") for root in roots]
        while self._waiting:
            self._visit(*self._waiting.pop())

    def _visit(self, name: str, path: str, pos: ctree.Pos, caller: str) -> None:
        if name in self.functions or name in self.missing or name.startswith("__builtin_"):
            return
        if self.rules.function(name, path) is not None or name in INTRINSICS or name in STATIC_KEYS or name in MEMORY:
            return
        try:
            function = self.index.function(name, path)
        except ParseError as error:
            self._miss("function", name, f"cannot be parsed ({error})", pos, caller)
            return
        if function is None:
            self._miss("function", name, "has no definition", pos, caller)
            return
        self.functions[name] = function
        self._walk(function)

    def _miss(self, table: str, name: str, what: str, pos: ctree.Pos, function: str) -> None:
        self.missing.setdefault(name, Missing(table, name, what, pos, function))

    def _walk(self, function: ctree.Function) -> None:
        """Look at every name that a function uses."""
        local = {param.name for param in function.type.params}
        local |= {node.name for node in nodes(function.body) if isinstance(node, ctree.Declaration | ctree.Label)}
        called: set[int] = set()
        for node in nodes(function.body):
            if isinstance(node, ctree.Asm):
                self._miss("function", function.name, "is assembly", node.pos, function.name)
            elif isinstance(node, ctree.Call):
                called |= self._call(node, function, local)
            elif isinstance(node, ctree.Name) and id(node) not in called and node.name not in local:
                self._name(node, function)

    def _call(self, call: ctree.Call, function: ctree.Function, local: set[str]) -> set[int]:
        """Follow a call; the ids of its Name nodes that are no variables."""
        match call.function:
            case ctree.Call(function=ctree.Name(name=macro) as naming, args=(ctree.Name(name=op) as target,)):
                if macro in STATIC_CALLS:
                    name = self.targets.get((STATIC_CALLS[macro] + op).removeprefix("kvm_x86_"), "")
                    if name:
                        self._waiting.append((name, function.pos.path, call.pos, function.name))
                    return {id(naming), id(target), id(call.function)}
            case ctree.Name(name=name) as named if name in STATIC_KEYS:
                key = root_name(call.args[0]) if call.args else ""
                if self.rules.static_key(key) is None:
                    self._miss("static_key", key, "is a static key that is not known", call.pos, function.name)
                return {id(named)} | {id(node) for node in nodes(call.args)}
            case ctree.Name(name=name) as named if name not in local and name not in STATIC_CALLS:
                self._waiting.append((name, function.pos.path, call.pos, function.name))
                return {id(named)}
            case ctree.Name() as named:
                return {id(named)}
        return set()

    def _name(self, node: ctree.Name, function: ctree.Function) -> None:
        """Look at a name that is used as a value: an enumerator, a function or a variable."""
        name, path = node.name, function.pos.path
        if name in self._answered:
            return
        self._answered.add(name)
        if self.rules.function(name, path) is not None or self.rules.global_(name, path) is not None:
            return
        if self.index.enumerator(name) is not None:
            return
        variable = self.index.variable(name, path)
        if variable is None and self.index.function(name, path) is not None:
            return
        if variable is None or not variable.const:
            self._miss("global", name, "is a variable whose value is not known", node.pos, function.name)


def vendor_targets(index: Index, table: str) -> dict[str, str]:
    """Member -> function of a vendor's table of functions."""
    variable = index.variable(table)
    if variable is None or not isinstance(variable.init, ctree.InitList):
        return {}
    return {
        str(path[0]): value.name
        for path, value in variable.init.items
        if len(path) == 1 and isinstance(value, ctree.Name)
    }
