"""Checks the order of the rooms (docs/design.md): each room imports only rooms above it.

Prints "file:line: message" for each import against the order; exit status 1 if there are any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"

ROOMS = (
    "verdict",
    "subset",
    "explore",
    "machine",
    "litmus",
    "world",
    "kvm",
    "linux",
    "check",
    "seek",
    "mail",
    "compiled",
    "live",
    "traces",
    "report",
    "cli",
    "__main__",
)
"""From the top down."""

SHARED_WITH_HYPERVISORS = {
    "iretrace.machine.vectors",
    "iretrace.machine.vmcb",
    "iretrace.machine.ghcb",
    "iretrace.world.protocol",
}
"""All that kvm and linux may know of machine and world: a hypervisor does not look into the processor."""


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) for each import anywhere in a file. `from iretrace.a import b` counts as iretrace.a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in ("iretrace", "iretrace.machine", "iretrace.world"):
                for alias in node.names:
                    yield node.lineno, f"{module}.{alias.name}"
            else:
                yield node.lineno, module


def objection(room: str, module: str) -> str:
    """Why a file of this room may not import this module; empty if it may."""
    if module.startswith("."):
        return "relative import; write iretrace.ROOM.MODULE"
    parts = module.split(".")
    if parts[0] != "iretrace" or len(parts) == 1 or module == "iretrace.__version__":
        return ""
    target = parts[1]
    if target not in ROOMS:
        return f"iretrace.{target} is no room"
    if target == room:
        return ""
    if ROOMS.index(target) > ROOMS.index(room):
        return f"{room} stands above {target} and knows nothing of it"
    if room == "report" and target != "verdict":
        return f"report imports verdict only, not {target}"
    if room in ("kvm", "linux"):
        if target in ("kvm", "linux"):
            return f"{room} and {target} are two hypervisors that do not know each other"
        if target in ("machine", "world") and module not in SHARED_WITH_HYPERVISORS:
            return f"{room} shares only vmcb, ghcb, vectors and the protocol with the world, not {module}"
    return ""


def check(source: Path) -> list[str]:
    """All imports below source/iretrace that go against the order."""
    errors = []
    for path in sorted((source / "iretrace").rglob("*.py")):
        inside = path.relative_to(source / "iretrace")
        room = inside.parts[0].removesuffix(".py")
        shown = path.relative_to(source.parent)
        if room == "__init__":
            continue
        if room not in ROOMS:
            errors.append(f"{shown}:1: {room} is no room; the rooms are listed in tools/rooms.py")
            continue
        for line, module in imports(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            reason = objection(room, module)
            if reason:
                errors.append(f"{shown}:{line}: {reason}")
    return errors


def main() -> int:
    """Command line entry."""
    errors = check(SOURCE)
    print("\n".join(errors), end="\n" if errors else "")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
