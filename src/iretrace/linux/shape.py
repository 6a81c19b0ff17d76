"""Tidying basic blocks before they are emitted, so that the Python reads and runs like Python.

Empty blocks are skipped, straight lines joined, temporaries that are used once put where they are used, and blocks that
only decide become operands of `and` and `or`.
"""

from __future__ import annotations

from collections.abc import Callable

from iretrace.linux.ir import (
    Binary,
    Block,
    Branch,
    Call,
    Choose,
    Compare,
    Convert,
    Copy,
    Expr,
    Fill,
    Jump,
    Load,
    Local,
    Mark,
    Negate,
    Op,
    Return,
    Set,
    Store,
    Touch,
    children,
    locals_of,
    operands,
    successors,
)
from iretrace.linux.types import INT, LONG


class Called(Expr):
    """The value of a call inside an expression."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call = call
        self.type = LONG
        self.low, self.high = LONG.low, LONG.high
        self.reads = True


class Decide(Expr):
    """`left and right`, or with `any_` `left or right`; `block` is entered when right is evaluated."""

    __slots__ = ("any_", "block", "left", "right")

    def __init__(self, left: Expr, right: Expr, block: Block, any_: bool) -> None:
        self.left = left
        self.right = right
        self.block = block
        self.any_ = any_
        self.type = INT
        self.low, self.high = 0, 1
        self.reads = True


class Not(Expr):
    """Not x, of a Decide."""

    __slots__ = ("of",)

    def __init__(self, of: Expr) -> None:
        self.of = of
        self.type = INT
        self.low, self.high = 0, 1
        self.reads = True


def parts(expr: Expr) -> tuple[Expr, ...]:
    """The direct subexpressions, in the order of evaluation."""
    match expr:
        case Called():
            return operands(expr.call)
        case Decide():
            return (expr.left, expr.right)
        case Not():
            return (expr.of,)
    return children(expr)


def order(entry: Block) -> list[Block]:
    """The blocks that can be reached, each before what follows it (loops aside)."""
    seen = {entry}
    done: list[Block] = []
    stack = [(entry, iter(reversed(successors(entry))))]
    while stack:
        block, rest = stack[-1]
        for following in rest:
            if following not in seen:
                seen.add(following)
                stack.append((following, iter(reversed(successors(following)))))
                break
        else:
            done.append(block)
            stack.pop()
    done.reverse()
    return done


def predecessors(blocks: list[Block]) -> dict[Block, int]:
    """How many edges lead to each block."""
    count = dict.fromkeys(blocks, 0)
    for block in blocks:
        for following in successors(block):
            count[following] += 1
    return count


def retarget(block: Block, where: Callable[[Block], Block]) -> None:
    """Change where a block leads."""
    match block.end:
        case Jump():
            block.end.to = where(block.end.to)
        case Branch():
            block.end.then, block.end.other = where(block.end.then), where(block.end.other)
        case Choose():
            block.end.cases = [(low, high, where(to)) for low, high, to in block.end.cases]
            block.end.default = where(block.end.default)


def skip_empty(entry: Block) -> list[Block]:
    """Lead past blocks that do nothing. Returns the blocks that remain."""

    def where(block: Block) -> Block:
        seen = {block}
        while isinstance(block.end, Jump) and not (block.ops or block.conditions):
            block = block.end.to
            if block in seen:  # an endless empty loop stays
                break
            seen.add(block)
        return block

    blocks = order(entry)
    for block in blocks:
        retarget(block, where)
        if isinstance(block.end, Branch) and block.end.then is block.end.other and not block.conditions:
            block.end = Jump(block.end.then)
    return order(entry)


def join_lines(blocks: list[Block]) -> list[Block]:
    """Join a block with its only successor if it is that one's only predecessor."""
    count = predecessors(blocks)
    gone: set[Block] = set()
    for block in blocks:
        while block not in gone and isinstance(block.end, Jump):
            following = block.end.to
            if count[following] != 1 or following is block or following is blocks[0]:
                break
            if block.conditions and following.conditions:
                break  # conditions belong to the end of a block
            block.ops += following.ops
            block.conditions += following.conditions
            block.end = following.end
            gone.add(following)
    return [block for block in blocks if block not in gone]


def inline_temporaries(blocks: list[Block], keep: Callable[[Call], bool]) -> None:
    """Put a temporary that is used once, by the operation after it, into that operation. keep: calls to leave alone."""
    uses: dict[int, int] = {}
    for block in blocks:
        for root in _roots(block):
            for index in locals_of(root):
                uses[index] = uses.get(index, 0) + 1
    for block in blocks:
        made: list[Op] = []
        for op in block.ops:
            if not isinstance(op, Call) or not keep(op):
                while made and _absorb(made[-1], op, uses, keep):
                    made.pop()
            made.append(op)
        end = block.end
        if isinstance(end, Branch | Choose | Return):
            while made and _absorb(made[-1], end, uses, keep):
                made.pop()
        block.ops = made


def _roots(block: Block) -> list[Expr]:
    """The expressions of a block."""
    found = [expr for op in block.ops for expr in operands(op)]
    match block.end:
        case Branch():
            found.append(block.end.cond)
        case Choose():
            found.append(block.end.value)
        case Return() if block.end.value is not None:
            found.append(block.end.value)
    return found


def _absorb(
    source: Op, into: Op | Branch | Choose | Return, uses: dict[int, int], keep: Callable[[Call], bool]
) -> bool:
    """Put what `source` computes into the operation that follows it, if that changes nothing."""
    if isinstance(source, Set):
        index, value = source.local, source.value
    elif isinstance(source, Call) and source.dest is not None and not keep(source):
        index, value = source.dest, Called(source)
    else:
        return False
    if uses.get(index) != 1:
        return False
    calls = has_call(value)
    if calls and not isinstance(into, Set | Call | Branch | Choose | Return):
        return False  # stores evaluate their operands more than once
    roots = operands_of(into)
    if not calls and value.reads and any(has_call(root) for root in roots):
        return False
    if calls and not _is_first(index, roots):
        return False
    return _substitute(into, index, value)


def operands_of(into: object) -> tuple[Expr, ...]:
    """The expressions of an operation or of the end of a block."""
    match into:
        case Branch():
            return (into.cond,)
        case Choose():
            return (into.value,)
        case Return():
            return () if into.value is None else (into.value,)
        case Set() | Store() | Call() | Touch() | Copy() | Fill():
            return operands(into)
    return ()


def has_call(expr: Expr) -> bool:
    """Whether an expression holds a call."""
    return isinstance(expr, Called) or any(has_call(part) for part in parts(expr))


def _is_first(index: int, roots: tuple[Expr, ...]) -> bool:
    """Whether nothing that depends on memory is evaluated before the temporary."""
    for root in roots:
        if not isinstance(root, Called) and index in locals_of(root):
            return not parts(root) or _is_first(index, parts(root))
        if root.reads or isinstance(root, Called):
            return isinstance(root, Called) and _is_first(index, parts(root))
    return False


def _substitute(into: object, index: int, value: Expr) -> bool:
    """Replace the one use of a temporary in an operation or expression."""
    for name in _SLOTS.get(type(into), ()):
        part = getattr(into, name)
        if isinstance(part, tuple):
            for number, item in enumerate(part):
                if isinstance(item, Local) and item.index == index:
                    setattr(into, name, (*part[:number], value, *part[number + 1 :]))
                    return True
                if _substitute(item, index, value):
                    return True
        elif isinstance(part, Local) and part.index == index:
            setattr(into, name, value)
            return True
        elif _substitute(part, index, value):
            return True
    return False


def absorb_decisions(blocks: list[Block]) -> list[Block]:
    """Turn blocks that only decide, on the way to a common target, into `and` and `or`."""
    count = predecessors(blocks)
    gone: set[Block] = set()
    for block in reversed(blocks):
        while isinstance(block.end, Branch):
            absorbed = _absorb_decision(block.end, count)
            if absorbed is None:
                break
            gone.add(absorbed)
    return [block for block in blocks if block not in gone]


def _only_decides(block: Block) -> bool:
    """Whether a block does nothing but end by a branch."""
    return all(isinstance(op, Mark) for op in block.ops)


def _absorb_decision(end: Branch, count: dict[Block, int]) -> Block | None:
    for inner, shared, on_true in ((end.then, end.other, True), (end.other, end.then, False)):
        if inner is shared or not _only_decides(inner) or count[inner] != 1 or not isinstance(inner.end, Branch):
            continue
        then, other = inner.end.then, inner.end.other
        right = inner.end.cond
        if shared not in (then, other) or then is other:
            continue
        # then-side: left and right leads on; else-side: left or right does.
        if (then is shared) == on_true:
            right, then, other = Not(right), other, then
        end.cond = Decide(end.cond, right, inner, any_=not on_true)
        if on_true:
            end.then = then
        else:
            end.other = other
        count[shared] -= 1
        return inner
    return None


_SLOTS: dict[type, tuple[str, ...]] = {
    Set: ("value",), Store: ("base", "value"), Call: ("callee", "args"), Touch: ("base",), Copy: ("to", "source"),
    Fill: ("to",), Branch: ("cond",), Choose: ("value",), Return: ("value",), Binary: ("left", "right"),
    Compare: ("left", "right"), Load: ("base",), Negate: ("of",), Convert: ("of",), Called: ("call",),
    Decide: ("left", "right"), Not: ("of",),
}  # fmt: skip
"""The attributes of operations and expressions that hold expressions."""
