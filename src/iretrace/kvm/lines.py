"""Which lines of our KVM have been executed.

Code that is made from C notes the basic blocks that it executes (linux/emit.py). The same is done to the functions of
this room, once, before the first vCPU is made: a mark is put in front of each run of statements, which tells nothing
but that it was passed. Lines and results stay what they are.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

ROOM = Path(__file__).resolve().parent
NOT_KVM = frozenset(
    ("hypervisor.py", "host.py", "passes.py", "trace.py", "lines.py", "revisions.py", "create.py", "__init__.py")
)
"""Files of this room that drive: no part of what KVM does."""

NAME = "_passed"
"""What the marks are called in the modules."""


class Marks:
    """Marks in the functions of some modules, each of them a byte that is set where it is passed."""

    def __init__(self, modules: Sequence[ModuleType]) -> None:
        self._lines: list[list[tuple[str, int]]] = []
        """For each mark the lines behind it: (file, line)."""
        for module in modules:
            self._put_into(module)
        self._passed = bytearray(len(self._lines))
        self._clean = bytes(self._passed)
        for module in modules:
            setattr(module, NAME, self._passed)

    def clear(self) -> None:
        """None was passed yet."""
        self._passed[:] = self._clean

    def passed(self) -> int:
        """Those passed since then, as a number."""
        return int.from_bytes(self._passed, "little")

    def lines(self, passed: int) -> set[tuple[str, int]]:
        """The lines behind marks that were passed."""
        return {line for number, lines in enumerate(self._lines) if passed >> 8 * number & 1 for line in lines}

    def _put_into(self, module: ModuleType) -> None:
        path = Path(str(module.__file__))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                node.body = self._marked(node.body, f"kvm/{path.name}")
        made = compile(tree, str(module.__file__), "exec")
        for code in made.co_consts:
            function = vars(module).get(code.co_name) if isinstance(code, CodeType) else None
            if isinstance(function, FunctionType):
                function.__code__ = code

    def _marked(self, body: list[ast.stmt], path: str) -> list[ast.stmt]:
        """Statements with a mark in front of each run that is left at its end only."""
        marked: list[ast.stmt] = []
        run: list[tuple[str, int]] | None = None
        for statement in body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                marked.append(statement)
                continue
            if run is None:
                run = []
                marked.append(_mark(len(self._lines), statement))
                self._lines.append(run)
            run.append((path, statement.lineno))
            if isinstance(statement, ast.If | ast.While | ast.For):
                statement.body = self._marked(statement.body, path)
                statement.orelse = self._marked(statement.orelse, path)
                run = None if _may_leave(statement) else run
            marked.append(statement)
        return marked


def _may_leave(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Return | ast.Break | ast.Continue) for node in ast.walk(statement))


def _mark(number: int, before: ast.stmt) -> ast.stmt:
    """`_passed[number] = 1`, on the line of the statement that it is before."""
    (mark,) = ast.parse(f"{NAME}[{number}] = 1").body
    for node in ast.walk(mark):
        ast.copy_location(node, before)
    return mark


@cache
def marks() -> Marks:
    """Those of our KVM, put there when first asked for."""
    names = sorted(path.stem for path in ROOM.glob("*.py") if path.name not in NOT_KVM)
    return Marks([import_module(f"iretrace.kvm.{name}") for name in names])
