"""What a tree's event path reaches, found without running it: every name that no rule answers, all at once.

A walk over the syntax trees of the functions that execution can reach, cut where a rule answers. It sees more than a
run does (branches that no state takes), so a name that it reports need not matter; a name that it misses cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import NamedTuple

from iretrace.linux import ctree
from iretrace.linux.calls import INTRINSICS, MEMORY, STATIC_CALLS, STATIC_KEYS, root_name
from iretrace.linux.index import Index
from iretrace.linux.parse import ParseError
from iretrace.linux.rules import Rules

SEPARATOR = "\t"
"""Between the words of a lookup; neither C names nor paths that are read hold it."""


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


class Use(NamedTuple):
    """A name that a function uses. kind: call, value or static_key; assembly: of the function itself."""

    kind: str
    name: str
    pos: ctree.Pos = ctree.Pos("", 0)


@dataclass(frozen=True, slots=True)
class Known:
    """What a closure need not look up again, while targets are these. functions: the file and the uses (kind, name) of
    each, by name and file of the lookup (see looked_up); values: names used as values that are answered."""

    targets: dict[str, str]
    functions: dict[str, tuple[str, tuple[tuple[str, str], ...]]]
    values: tuple[str, ...]


def looked_up(name: str, path: str) -> str:
    """A lookup in a file as one word."""
    return f"{name}{SEPARATOR}{path}"


class Closure:
    """The functions reached from some roots. functions: name -> file; missing: names without an answer, whose places
    are not told where they are known."""

    def __init__(
        self,
        index: Index,
        rules: Rules,
        targets: dict[str, str],
        roots: Sequence[str],
        known: Known | None = None,
    ) -> None:
        self.index = index
        self.rules = rules
        self.targets = targets
        self.functions: dict[str, str] = {}
        self.missing: dict[str, Missing] = {}
        self._known = known if known is not None and known.targets == targets else Known(targets, {}, ())
        self._found: dict[str, tuple[str, Sequence[Use]]] = {}
        self._values = dict.fromkeys(self._known.values)
        self._answered: set[str] = set()
        self._waiting = [(root, "", ctree.Pos("", 0), "") for root in roots]
        while self._waiting:
            self._visit(*self._waiting.pop())

    def known(self) -> Known:
        """What this has found, for closures of trees in which it is the same."""
        found = {
            name: (path, tuple((use.kind, use.name) for use in uses)) for name, (path, uses) in self._found.items()
        }
        return Known(self.targets, found, tuple(self._values))

    def _visit(self, name: str, path: str, pos: ctree.Pos, caller: str) -> None:
        if name in self.functions or name in self.missing or name.startswith("__builtin_"):
            return
        if self.rules.function(name, path) is not None or name in INTRINSICS or name in STATIC_KEYS or name in MEMORY:
            return
        try:
            found = self._uses(name, path)
        except ParseError as error:
            self._miss("function", name, f"cannot be parsed ({error})", pos, caller)
            return
        if found is None:
            self._miss("function", name, "has no definition", pos, caller)
            return
        self._found[looked_up(name, path)] = found
        self.functions[name], uses = found
        for use in uses:
            self._take(use, name)

    def _uses(self, name: str, path: str) -> tuple[str, Sequence[Use]] | None:
        known = self._known.functions.get(looked_up(name, path))
        if known is not None:
            return known[0], [Use(*use) for use in known[1]]
        function = self.index.function(name, path)
        return None if function is None else (function.pos.path, list(uses(function, self.targets)))

    def _miss(self, table: str, name: str, what: str, pos: ctree.Pos, function: str) -> None:
        self.missing.setdefault(name, Missing(table, name, what, pos, function))

    def _take(self, use: Use, function: str) -> None:
        """Look at a name that a function uses."""
        if use.kind == "call":
            self._waiting.append((use.name, self.functions[function], use.pos, function))
        elif use.kind == "value":
            self._value(use, function)
        elif use.kind == "assembly":
            self._miss("function", function, "is assembly", use.pos, function)
        elif self.rules.static_key(use.name) is None:
            self._miss("static_key", use.name, "is a static key that is not known", use.pos, function)

    def _value(self, use: Use, function: str) -> None:
        """Look at a name that is used as a value: an enumerator, a function or a variable."""
        name, path = use.name, self.functions[function]
        if name in self._answered:
            return
        self._answered.add(name)
        if self.rules.function(name, path) is not None or self.rules.global_(name, path) is not None:
            return
        if looked_up(name, path) in self._values:
            return
        if self.index.enumerator(name) is None and not self._is_constant(name, path):
            self._miss("global", name, "is a variable whose value is not known", use.pos, function)
            return
        self._values[looked_up(name, path)] = None

    def _is_constant(self, name: str, path: str) -> bool:
        """Whether a name is a function, or a variable that nothing changes."""
        variable = self.index.variable(name, path)
        return variable.const if variable is not None else self.index.function(name, path) is not None


def uses(function: ctree.Function, targets: Mapping[str, str]) -> Iterator[Use]:
    """Every name that a function uses, in order. targets: member of the vendor's table -> function."""
    local = {param.name for param in function.type.params}
    local |= {node.name for node in nodes(function.body) if isinstance(node, ctree.Declaration | ctree.Label)}
    called: set[int] = set()
    for node in nodes(function.body):
        if isinstance(node, ctree.Asm):
            yield Use("assembly", function.name, node.pos)
        elif isinstance(node, ctree.Call):
            use, others = _call(node, targets, local)
            called |= others
            if use is not None:
                yield use
        elif isinstance(node, ctree.Name) and id(node) not in called and node.name not in local:
            yield Use("value", node.name, node.pos)


def _call(call: ctree.Call, targets: Mapping[str, str], local: set[str]) -> tuple[Use | None, set[int]]:
    """What a call uses, and the ids of its Name nodes that are no variables."""
    match call.function:
        case ctree.Call(function=ctree.Name(name=macro) as naming, args=(ctree.Name(name=op) as target,)):
            if macro in STATIC_CALLS:
                name = targets.get((STATIC_CALLS[macro] + op).removeprefix("kvm_x86_"), "")
                use = Use("call", name, call.pos) if name else None
                return use, {id(naming), id(target), id(call.function)}
        case ctree.Name(name=name) as named if name in STATIC_KEYS:
            key = root_name(call.args[0]) if call.args else ""
            return Use("static_key", key, call.pos), {id(named)} | {id(node) for node in nodes(call.args)}
        case ctree.Name(name=name) as named if name not in local and name not in STATIC_CALLS:
            return Use("call", name, call.pos), {id(named)}
        case ctree.Name() as named:
            return None, {id(named)}
    return None, set()


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
