"""Functions that can pause: where they are entered again, and which locals they need then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iretrace.linux.ir import Block, Call, Expr, Jump, Local, Set, successors
from iretrace.linux.shape import operands_of, parts


class Resumed(Expr):
    """The value that a resumed call returns."""

    __slots__ = ()

    def __init__(self) -> None:
        self.reads = True


@dataclass(slots=True, eq=False)
class PausePoint:
    """A call that may pause: it ends a block, and `resume` is where the function goes on."""

    call: Call
    end: Jump
    resume: Block


def split_at_pauses(blocks: list[Block], may_pause: Callable[[Call], bool]) -> list[PausePoint]:
    """End a block at every call that may pause."""
    points: list[PausePoint] = []
    waiting = list(blocks)
    while waiting:
        block = waiting.pop()
        for number, op in enumerate(block.ops):
            if isinstance(op, Call) and may_pause(op):
                rest = Block(-1, block.ops[number + 1 :], block.end)
                if op.dest is not None:
                    value = Resumed()
                    rest.ops.insert(0, Set(op.pos, op.dest, value))
                jump = Jump(rest)
                block.ops, block.end = block.ops[:number], jump
                points.append(PausePoint(op, jump, rest))
                waiting.append(rest)
                break
    return points


def live_at(points: list[PausePoint], blocks: list[Block], params: int) -> tuple[dict[int, set[int]], list[int]]:
    """The locals needed after each point (by id of its end), and those that may be read before they are written."""
    calls = {id(point.end): point.call for point in points}
    entry_of: dict[Block, set[int]] = {block: set() for block in blocks}
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks):
            live = _before(block, entry_of, calls)
            if live != entry_of[block]:
                entry_of[block] = live
                changed = True
    after = {id(point.end): entry_of[point.resume] for point in points}
    early = sorted(local for local in entry_of[blocks[0]] if local >= params)
    return after, early


def _before(block: Block, entry_of: dict[Block, set[int]], calls: dict[int, Call]) -> set[int]:
    """What is needed when a block is entered."""
    live: set[int] = set()
    for following in successors(block):
        live |= entry_of[following]
    call = calls.get(id(block.end))
    if call is not None:
        live |= used_by(call)
    else:
        live |= used_by(block.end)
    for op in reversed(block.ops):
        if isinstance(op, Set):
            live.discard(op.local)
        elif isinstance(op, Call) and op.dest is not None:
            live.discard(op.dest)
        live |= used_by(op)
    return live


def used_by(thing: object) -> set[int]:
    """The locals that an operation, an end of a block, or an expression reads."""
    found: set[int] = set()
    stack: list[Expr] = list(operands_of(thing))
    while stack:
        expr = stack.pop()
        if isinstance(expr, Local):
            found.add(expr.index)
        stack += parts(expr)
    return found
