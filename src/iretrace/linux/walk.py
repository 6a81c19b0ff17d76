"""Walking over a syntax tree without looking at what its nodes mean."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

from iretrace.linux import ctree

_PLAIN = frozenset(("pos", "op", "name", "suffix", "hex", "arrow", "text", "label", "storage", "const", "path", "tag"))
"""Fields that never hold nodes."""

_FIELDS: dict[type, tuple[str, ...]] = {
    str: (),
    int: (),
    bool: (),
    type(None): (),
    ctree.Pos: (),
    ctree.Name: (),
    ctree.Num: (),
    ctree.Str: (),
}


def nodes(root: object) -> list[object]:
    """All nodes below and including `root`, in no particular order."""
    found: list[object] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if type(node) is tuple:
            stack += node
            continue
        names = _FIELDS.get(type(node))
        if names is None:
            names = _fields_of(node)
        if names:
            found.append(node)
            for name in names:
                stack.append(getattr(node, name))
    return found


def _fields_of(node: object) -> tuple[str, ...]:
    """The fields of a node's class that can hold nodes."""
    names = tuple(f.name for f in fields(node) if f.name not in _PLAIN) if is_dataclass(node) else ()
    _FIELDS[type(node)] = names
    return names
