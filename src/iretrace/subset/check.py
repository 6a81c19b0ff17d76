"""`python -m iretrace.subset.check [FILE]...`: refuses what the restricted Python lacks (docs/subset.md).

Without files it checks MODULES. Prints "file:line: message" for each error; exit status 1 if there are any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

from iretrace.subset.bodies import Body
from iretrace.subset.modules import Module, declare

SOURCE = Path(__file__).resolve().parents[2]
"""The directory that holds the package."""

KVM = (
    "create debug differences exceptions kvm_host kvm_main lapic nested reset reset_hold senders sev smm "
    "svm svm_exits svm_h x86 x86_run"
).split()
MODULES = ("iretrace/machine/*.py", *(f"iretrace/kvm/{name}.py" for name in KVM))
"""Everything that a step reaches, as patterns below SOURCE."""


def shipped() -> list[Path]:
    """The files that MODULES names."""
    return sorted(path for pattern in MODULES for path in SOURCE.glob(pattern))


def module_name(path: Path) -> str:
    """iretrace.machine.cpu; for a file elsewhere its bare name."""
    resolved = path.resolve()
    if resolved.is_relative_to(SOURCE):
        return ".".join(resolved.relative_to(SOURCE).with_suffix("").parts)
    return path.stem


def load(path: Path) -> Module:
    """Parse a file. One that is no Python becomes an empty module with an error."""
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    module = Module(module_name(path), shown, ast.Module([], []))
    try:
        module.tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, UnicodeDecodeError, OSError) as error:
        module.errors.append(f"{shown}:{getattr(error, 'lineno', None) or 1}: cannot be read: {error}")
    return module


def load_all(paths: Iterable[Path]) -> dict[str, Module]:
    """The files, and of the shipped modules those that they import."""
    todo = list(paths)
    known = {module_name(path): path for path in shipped() if path not in todo}
    modules: dict[str, Module] = {}
    while todo:
        module = load(todo.pop(0))
        modules[module.name] = module
        todo += [known.pop(name) for name, _ in imported(module) if name in known]
    return modules


def imported(module: Module) -> list[tuple[str, ast.ImportFrom]]:
    """The modules that a module imports from."""
    return [(node.module, node) for node in module.tree.body if isinstance(node, ast.ImportFrom) and node.module]


def declare_all(modules: dict[str, Module]) -> None:
    """Declare each module after those that it imports."""
    declared: dict[str, Module] = {}
    open_: list[str] = []

    def visit(module: Module) -> None:
        open_.append(module.name)
        for name, node in imported(module):
            if name in open_:
                module.refuse(node, f"{name} imports this module in turn")
            elif name in modules and name not in declared:
                visit(modules[name])
        open_.pop()
        declare(module, declared)
        declared[module.name] = module

    for module in modules.values():
        if module.name not in declared:
            visit(module)


def refuse_recursion(modules: dict[str, Module], calls: dict[tuple[str, str], dict[tuple[str, str], ast.AST]]) -> None:
    """Note an error at each call that closes a cycle."""
    done: set[tuple[str, str]] = set()
    stack: list[tuple[str, str]] = []

    def visit(function: tuple[str, str]) -> None:
        stack.append(function)
        for callee, node in calls.get(function, {}).items():
            if callee in stack:
                cycle = [name for _, name in stack[stack.index(callee) :]]
                modules[function[0]].refuse(node, f"recursion: {' -> '.join([*cycle, callee[1]])}")
            elif callee not in done:
                visit(callee)
        stack.pop()
        done.add(function)

    for function in calls:
        if function not in done:
            visit(function)


def check(paths: Iterable[Path]) -> list[str]:
    """All errors of the files, which may import from each other and from the shipped modules."""
    wanted = [path.resolve() for path in paths]
    modules = load_all(wanted)
    declare_all(modules)
    calls: dict[tuple[str, str], dict[tuple[str, str], ast.AST]] = {}
    for module in modules.values():
        for function in module.functions:
            body = Body(module, function)
            body.check()
            calls[module.name, function.name] = body.calls
    refuse_recursion(modules, calls)
    names = {module_name(path) for path in wanted}
    return [error for module in modules.values() if module.name in names for error in module.errors]


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    given = sys.argv[1:] if arguments is None else arguments
    errors = check([Path(name) for name in given] or shipped())
    print("\n".join(errors), end="\n" if errors else "")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
