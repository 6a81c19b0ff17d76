"""C expressions as text, for messages and for models that want to know what they were called with."""

from __future__ import annotations

from iretrace.linux import ctree


def text_of(expr: ctree.Expr) -> str:
    """The expression roughly as it was written; names and numbers exactly, the rest abbreviated."""
    match expr:
        case ctree.Num():
            return str(expr.value)
        case ctree.Str():
            return f'"{expr.text}"'
        case ctree.Name():
            return expr.name
        case ctree.Unary():
            return expr.op + text_of(expr.of)
        case ctree.Postfix():
            return text_of(expr.of) + expr.op
        case ctree.Binary() | ctree.Assign():
            return f"{text_of(expr.left)} {expr.op} {text_of(expr.right)}"
        case ctree.Call():
            return f"{text_of(expr.function)}({', '.join(text_of(arg) for arg in expr.args)})"
        case ctree.Member():
            return f"{text_of(expr.of)}{'->' if expr.arrow else '.'}{expr.name}"
        case ctree.Index():
            return f"{text_of(expr.of)}[{text_of(expr.index)}]"
        case ctree.Cast():
            return text_of(expr.of)
    return "..."
