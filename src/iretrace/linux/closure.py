"""What a tree's event path reaches, found without running it: every name that no rule answers, all at once.

A walk over the syntax trees of the functions that execution can reach, cut where a rule answers. It sees more than a
run does (branches that no state takes), so a name that it reports need not matter; a name that it misses cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass

from iretrace.linux import ctree
from iretrace.linux.calls import INTRINSICS, MEMORY, STATIC_CALLS, STATIC_KEYS
from iretrace.linux.index import Index
from iretrace.linux.parse import ParseError
from iretrace.linux.rules import Rules


@dataclass(frozen=True, slots=True)
class Missing:
    """A name without an answer: what it is, where it is used, and the row to paste."""

    what: str
    name: str
    where: ctree.Pos
    function: str

    @property
    def row(self) -> str:
        """The TOML row that answers it, to be completed."""
        head = f"# {self.where}, in {self.function}(): {self.what}\n[[function]]\nname = \"{self.name}\"\n"
        return head + 'what = "neutral"  # or value=N, model=NAME, refuse\nwhy = "..."\n'


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
        waiting = [(root, "", ctree.Pos("", 0), "") for root in roots]
        while waiting:
            name, path, pos, caller = waiting.pop()
            waiting += self._visit(name, path, pos, caller)

    def _visit(self, name: str, path: str, pos: ctree.Pos, caller: str) -> list[tuple[str, str, ctree.Pos, str]]:
        if name in self.functions or name in self.missing or name.startswith("__builtin_"):
            return []
        if self.rules.function(name, path) is not None or name in INTRINSICS or name in STATIC_KEYS or name in MEMORY:
            return []
        try:
            function = self.index.function(name, path)
        except ParseError as error:
            self.missing[name] = Missing(f"cannot be parsed ({error})", name, pos, caller)
            return []
        if function is None:
            self.missing[name] = Missing("has no definition", name, pos, caller)
            return []
        self.functions[name] = function
        return [(callee, function.pos.path, place, name) for callee, place in self._callees(function)]

    def _callees(self, function: ctree.Function) -> Iterator[tuple[str, ctree.Pos]]:
        local = {param.name for param in function.type.params}
        for node in nodes(function.body):
            if isinstance(node, ctree.Declaration):
                local.add(node.name)
            elif isinstance(node, ctree.Asm):
                missing = Missing("is assembly", function.name, node.pos, function.name)
                self.missing.setdefault(function.name, missing)
            elif isinstance(node, ctree.Call):
                callee = self._callee(node)
                if callee and callee not in local and callee not in STATIC_CALLS:
                    yield callee, node.pos

    def _callee(self, call: ctree.Call) -> str:
        match call.function:
            case ctree.Name(name=name):
                return name
            case ctree.Call(function=ctree.Name(name=macro), args=(ctree.Name(name=op),)) if macro in STATIC_CALLS:
                return self.targets.get((STATIC_CALLS[macro] + op).removeprefix("kvm_x86_"), "")
        return ""


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
