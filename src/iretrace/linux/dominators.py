"""Dominators of basic blocks (Cooper, Harvey, Kennedy: A Simple, Fast Dominance Algorithm)."""

from __future__ import annotations

from iretrace.linux.ir import Block, successors


def dominator_children(blocks: list[Block]) -> dict[Block, list[Block]]:
    """For each block those that it immediately dominates. blocks: in reverse postorder, the entry first."""
    rank = {block: number for number, block in enumerate(blocks)}
    before: list[list[int]] = [[] for _ in blocks]
    for number, block in enumerate(blocks):
        for following in successors(block):
            before[rank[following]].append(number)
    above: list[int] = [-1] * len(blocks)
    above[0] = 0
    changed = True
    while changed:
        changed = False
        for number in range(1, len(blocks)):
            best = -1
            for other in before[number]:
                if above[other] < 0:
                    continue
                best = other if best < 0 else _meet(best, other, above)
            if above[number] != best:
                above[number] = best
                changed = True
    children: dict[Block, list[Block]] = {}
    for number in range(1, len(blocks)):
        children.setdefault(blocks[above[number]], []).append(blocks[number])
    return children


def _meet(a: int, b: int, above: list[int]) -> int:
    while a != b:
        if a > b:
            a = above[a]
        else:
            b = above[b]
    return a
