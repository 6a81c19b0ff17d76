"""Basic blocks to Python source: `def fN(R, v0, v1, ...)`.

A block that only one other leads to is nested into it, and where alternatives meet again the code just goes on. Loop
heads and other meeting points are states of a `while True` that dispatches on b. A function that can pause is emitted
so that it can be entered again at each call that may pause, with the locals that are still needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from iretrace.linux.ctree import Pos
from iretrace.linux.dominators import dominator_children
from iretrace.linux.ir import (
    Block,
    Branch,
    Call,
    Choose,
    Const,
    Copy,
    Expr,
    Fail,
    Fill,
    Frame,
    Jump,
    Local,
    Lowered,
    Mark,
    Op,
    Return,
    Set,
    Store,
    Touch,
    operands,
    successors,
)
from iretrace.linux.pausing import PausePoint, Resumed, live_at, split_at_pauses
from iretrace.linux.pytext import Text, located, mask
from iretrace.linux.shape import (
    Decide,
    absorb_decisions,
    has_call,
    inline_temporaries,
    join_lines,
    operands_of,
    order,
    predecessors,
    skip_empty,
)

DEEPEST = 60
"""Indentation at which a block becomes a state of its own; Python allows 100."""

MOST_NESTED = 100
"""The same for the emitter's own recursion."""


REST = "C_rest"
"""The call by which a function that can be resumed says that it stands between two statements (Run.rest)."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """A function as Python. positions: the C place of each line. roots: resume points by number (resumable only)."""

    source: str
    positions: tuple[Pos, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """What the emitter asks of the program.

    enter(statements, conditions): the number of a basic block, to be put into the trace. fail(op): a number for the
    error. may_pause(call): whether a call can return PAUSE.
    """

    enter: Callable[[Sequence[Pos], Sequence[int]], int]
    fail: Callable[[Fail], int]
    may_pause: Callable[[Call], bool]


def emit(function: Lowered, name: str, resumable: bool, context: Context) -> Emitted:
    """The Python of a lowered function, which is used up by this."""
    blocks = join_lines(skip_empty(function.entry))
    keep = context.may_pause if resumable else _none
    inline_temporaries(blocks, keep)
    blocks = absorb_decisions(blocks)
    points: list[PausePoint] = []
    if resumable:
        _add_rests(blocks)
        points = split_at_pauses(blocks, context.may_pause)
        blocks = order(blocks[0])
    return _Emitter(function, name, blocks, points, resumable, context).emit()


def _add_rests(blocks: list[Block]) -> None:
    """Put a rest before each statement that calls C."""
    for block in blocks:
        ops: list[Op] = []
        calls = isinstance(block.end, Branch | Choose | Return) and any(map(has_call, operands_of(block.end)))
        for op in reversed(block.ops):
            ops.append(op)
            if isinstance(op, Mark) and calls:
                ops.append(Call(op.pos, None, REST, ()))
            calls = not isinstance(op, Mark) and (calls or reaches_c(op))
        block.ops = ops[::-1]


def _none(call: Call) -> bool:
    return False


@dataclass(slots=True)
class Segment:
    """A part of a block that is one entry of the trace. id: its number in the program, -1 before it has one."""

    statements: list[Pos] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    conditions: list[int] = field(default_factory=list)
    id: int = -1


def reaches_c(op: Op) -> bool:
    """Whether other C code may run and leave its own trace: a call, or a shared access at which others come in."""
    return isinstance(op, Touch | Call) or any(has_call(expr) for expr in operands(op))


class _Emitter:
    """The state of emitting one function."""

    def __init__(
        self,
        function: Lowered,
        name: str,
        blocks: list[Block],
        points: list[PausePoint],
        resumable: bool,
        context: Context,
    ) -> None:
        self.function = function
        self.name = name
        self.blocks = blocks
        self.points = {id(point.end): point for point in points}
        self.resumable = resumable
        self.context = context
        self.text = Text(self.mark_of_decide)
        self.lines: list[str] = []
        self.positions: list[Pos] = []
        self.pos = function.pos
        self.count = predecessors(blocks)
        self.children = dominator_children(blocks)
        self.rank = {block: number for number, block in enumerate(blocks)}
        self.roots: dict[Block, int] = {}
        self.pending: list[Block] = []
        self.heads: set[Block] = set()
        self.cut: dict[Block, list[Segment]] = {}
        self.nesting = 0
        self.live, self.uninitialized = live_at(points, blocks, function.params) if resumable else ({}, [])
        self.kept = sorted({local for locals_ in self.live.values() for local in locals_})

    # The whole.

    def emit(self) -> Emitted:
        """The function."""
        self.root(self.blocks[0])
        for block in self.blocks:  # what a loop goes back to, and where a pause is resumed
            for following in successors(block):
                if self.rank[following] <= self.rank[block]:
                    self.heads.add(following)
                    self.root(following)
        for point in self.points.values():
            self.root(point.resume)
        bodies: list[tuple[list[str], list[Pos]]] = []
        while len(bodies) < len(self.roots):
            self.lines, self.positions = [], []
            root = self.pending[len(bodies)]
            if root in self.heads:
                self.line(0, "R.fuel-=1")
                self.line(0, "if R.fuel<0:raise C_endless()")
            self.region(root, None, 0)
            bodies.append((self.lines, self.positions))
        self.lines, self.positions = [], []
        self.pos = self.function.pos
        self.prologue(len(bodies) > 1)
        if len(bodies) == 1 and not self.loops():
            self.body(bodies[0], 1)
        else:
            self.line(1, "while True:")
            self.dispatch(bodies, 0, len(bodies), 2)
        return Emitted("\n".join(self.lines) + "\n", tuple(self.positions))

    def loops(self) -> bool:
        """Whether something jumps to the only state."""
        return any(self.blocks[0] in successors(block) for block in self.blocks)

    def prologue(self, dispatches: bool) -> None:
        """The header, the names that are used, and for a resumed call its locals."""
        params = "".join(f",v{number}" for number in range(self.function.params))
        again = ",b=0,q=None,x=None" if self.resumable else ""
        self.line(0, f"def {self.name}(R{params}{again}):")
        used = self.text.used
        if used & {"m", "g"}:
            self.line(1, "m=R.m")
        for name, text in (("g", "m.get"), ("Z", "R.read"), ("W", "R.write"), ("T", "R.trace.append")):
            if name in used:
                self.line(1, f"{name}={text}")
        if self.function.stack:
            self.text.use("s")
        stack = [f"s=R.sp;R.sp=s+{self.function.stack}"] if self.function.stack else []
        if not self.resumable:
            if stack:
                self.line(1, stack[0])
            if dispatches or self.loops():
                self.line(1, "b=0")
            return
        restored = "".join(f"v{local}," for local in self.kept) + ("s," if stack else "")
        fresh = stack + [f"v{local}=0" for local in self.uninitialized]
        if restored:
            self.line(1, f"if b:{restored}=q")
            if fresh:
                self.line(1, "else:" + ";".join(fresh))
        elif fresh:
            self.line(1, ";".join(fresh))

    def dispatch(self, bodies: list[tuple[list[str], list[Pos]]], low: int, high: int, depth: int) -> None:
        """Find the state by halving."""
        if high - low == 1:
            self.body(bodies[low], depth)
            return
        middle = (low + high) // 2
        self.line(depth, f"if b<{middle}:")
        self.dispatch(bodies, low, middle, depth + 1)
        self.line(depth, "else:")
        self.dispatch(bodies, middle, high, depth + 1)

    def body(self, body: tuple[list[str], list[Pos]], depth: int) -> None:
        """The lines of a state."""
        lines, positions = body
        self.lines += [" " * depth + line for line in lines]
        self.positions += positions

    def line(self, depth: int, text: str) -> None:
        """One line."""
        self.lines.append(" " * depth + text)
        self.positions.append(self.pos)

    # Control flow.

    def root(self, block: Block) -> int:
        """The number of the state that starts with a block."""
        if block not in self.roots:
            self.roots[block] = len(self.roots)
            self.pending.append(block)
        return self.roots[block]

    def region(self, block: Block, follow: Block | None, depth: int) -> bool:
        """Emit a block and what it dominates, then go on to `follow`. Returns whether it falls through to there."""
        meets = sorted(
            (b for b in self.children.get(block, ()) if self.count[b] > 1 and b not in self.roots),
            key=self.rank.__getitem__,
        )
        falls = self.block(block, meets[0] if meets else follow, depth)
        for number, meet in enumerate(meets):
            if not falls:
                continue  # what leads here does so by its number
            following = meets[number + 1] if number + 1 < len(meets) else follow
            falls = self.goto(meet, None, depth) if meet in self.roots else self.region(meet, following, depth)
        return falls

    def goto(self, block: Block, follow: Block | None, depth: int) -> bool:
        """Go to a block from the end of another. Returns whether the code falls through to what follows."""
        if block is follow:
            return True
        if block not in self.roots and self.count[block] == 1 and depth < DEEPEST and self.nesting < MOST_NESTED:
            self.nesting += 1
            falls = self.region(block, follow, depth)
            self.nesting -= 1
            return falls
        self.line(depth, f"b={self.root(block)};continue")
        return False

    def block(self, block: Block, follow: Block | None, depth: int) -> bool:
        """Emit one block."""
        start = len(self.lines)
        for number, segment in enumerate(self.segments(block)):
            if segment.statements:
                self.pos = segment.statements[0]
            entering = self.enter(block, number)
            if entering:
                self.line(depth, entering)
            for op in segment.ops:
                self.pos = op.pos
                self.op(op, depth)
        end = block.end
        match end:
            case Jump():
                point = self.points.get(id(end))
                if point is not None:
                    self.pause(point, depth)
                falls = self.goto(end.to, follow, depth)
            case Branch():
                falls = self.branch(end, follow, depth)
            case Choose():
                falls = self.choose(end, follow, depth)
            case Return():
                self.pos = end.pos
                self.leave(end.value, depth)
                falls = False
            case _:
                falls = False
        if len(self.lines) == start:
            self.line(depth, "pass")
        return falls

    def segments(self, block: Block) -> list[Segment]:
        """The block, cut where a statement starts after a call, so that traces are in the order of execution."""
        if block not in self.cut:
            made = [Segment()]
            called = False
            for op in block.ops:
                if isinstance(op, Mark):
                    if called:
                        made.append(Segment())
                        called = False
                    made[-1].statements.append(op.pos)
                else:
                    made[-1].ops.append(op)
                    called = called or reaches_c(op)
            made[-1].conditions = block.conditions
            self.cut[block] = made
        return self.cut[block]

    def enter(self, block: Block, number: int) -> str:
        """The text that notes in the trace that a segment is entered, "" for one that holds nothing of the source.
        The one with which the function begins is always noted: that it was called counts."""
        segment = self.segments(block)[number]
        begins = block is self.blocks[0] and number == 0
        if not segment.statements and not segment.conditions and not begins:
            return ""
        if segment.id < 0:
            segment.id = self.context.enter(segment.statements, segment.conditions)
        return f"{self.text.use('T')}({segment.id})"

    def mark_of_decide(self, decide: Decide) -> str:
        """The same, inside a condition."""
        return self.enter(decide.block, 0)

    def branch(self, end: Branch, follow: Block | None, depth: int) -> bool:
        """if / else."""
        if end.then is follow:
            self.line(depth, f"if {self.text.condition(end.cond, negated=True)}:")
            self.goto_in(end.other, follow, depth + 1)
            return True
        self.line(depth, f"if {self.text.condition(end.cond)}:")
        falls = self.goto_in(end.then, follow, depth + 1)
        if end.other is follow:
            return True
        if not falls:
            return self.goto(end.other, follow, depth)
        self.line(depth, "else:")
        return self.goto_in(end.other, follow, depth + 1) or falls

    def goto_in(self, block: Block, follow: Block | None, depth: int) -> bool:
        """The body of an if."""
        start = len(self.lines)
        falls = self.goto(block, follow, depth)
        if len(self.lines) == start:
            self.line(depth, "pass")
        return falls

    def choose(self, end: Choose, follow: Block | None, depth: int) -> bool:
        """A switch: a chain of tests."""
        value = self.text.value(end.value)
        if not isinstance(end.value, Local | Const):
            self.line(depth, f"y={value}")
            value = "y"
        falls = False
        word = "if"
        for low, high, block in end.cases:
            test = f"{value}=={low}" if low == high else f"{low}<={value}<={high}"
            self.line(depth, f"{word} {test}:")
            falls |= self.goto_in(block, follow, depth + 1)
            word = "elif"
        if not end.cases:
            return self.goto(end.default, follow, depth)
        self.line(depth, "else:")
        return self.goto_in(end.default, follow, depth + 1) or falls

    def leave(self, value: Expr | None, depth: int) -> None:
        """return."""
        text = "" if value is None else self.text.value(value)
        if self.function.stack:
            if text and not isinstance(value, Const | Local):
                self.line(depth, f"x={text}")
                text = "x"
            self.line(depth, f"R.sp=s;C_leave(R,s,{self.function.stack})")
        self.line(depth, f"return {text}" if text else "return")

    def pause(self, point: PausePoint, depth: int) -> None:
        """A call that may pause."""
        self.pos = point.call.pos
        live = self.live[id(point.end)]
        saved = "".join(f"v{local}," if local in live else "0," for local in self.kept)
        saved += "s," if self.function.stack else ""
        self.line(depth, f"x={self.text.called(point.call)}")
        self.line(depth, "if x is PAUSE:")
        self.line(depth + 1, f"R.frames+=(('{self.name}',{self.root(point.resume)},({saved})),)")
        self.line(depth + 1, "return x")

    # Operations.

    def op(self, op: Op, depth: int) -> None:
        """One operation."""
        text = self.text
        match op:
            case Set():
                value = "x" if isinstance(op.value, Resumed) else text.value(op.value)
                self.line(depth, f"v{op.local}={value}")
            case Call():
                called = text.called(op)
                self.line(depth, called if op.dest is None else f"v{op.dest}={called}")
            case Store():
                self.store(op, depth)
            case Touch():
                self.touch(op, depth)
            case Copy():
                self.line(depth, f"C_copy(R,{text.value(op.to)},{text.value(op.source)},{op.size})")
            case Fill():
                self.line(depth, f"C_fill(R,{text.value(op.to)},{op.size})")
            case Fail():
                self.line(depth, f"raise C_fail({self.context.fail(op)})")

    def touch(self, op: Touch, depth: int) -> None:
        """Announce an access to shared memory."""
        base, bit = located(op.base, op.bit)
        if not op.sure:
            address = self.text.address(base, bit // 8)
            self.line(depth, f"C_touch(R,{address},{bit % 8},{op.width},{op.write})")
            return
        shift = bit % 64
        address = self.text.address(base, bit // 64 * 8)
        bits = hex(((1 << op.width) - 1) << shift)
        self.line(depth, f"R.shared({address},{bits},{op.write})")

    def store(self, op: Store, depth: int) -> None:
        """A store: inline if the position of the bits in the word is known."""
        text = self.text
        base, bit = located(op.base, op.bit)
        shift = bit % 64
        if (op.align < 8 and not isinstance(base, Const)) or shift + op.width > 64:
            self.far_store(base, bit, op, depth)
            return
        value = text.value(op.value)
        word = text.address(base, bit // 64 * 8)
        text.use("m")
        if not (isinstance(base, Frame | Const) or (isinstance(base, Local) and bit < 64)):
            self.line(depth, f"w={word}")
            word = "w"
        if op.assumed and not isinstance(base, Const | Frame):
            self.line(depth, f"if {word}&7:C_store(R,{word},{shift},{op.width},{value})")
            self.line(depth, f"else:{self.near_store(op, word, shift, value, base)}")
        else:
            self.line(depth, self.near_store(op, word, shift, value, base))

    def near_store(self, op: Store, word: str, shift: int, value: str, base: Expr) -> str:
        """A store within one word at a known position."""
        if op.width == 64:
            check = "" if isinstance(base, Frame) else f"{self.text.use('W')}[{word}];"
            if op.value.low < 0:
                value = f"{value}&{mask(64)}"
            return f"{check}m[{word}]={value}"
        self.text.used.update(("g", "W"))
        field = (1 << op.width) - 1
        text = f"m[{word}]=(g({word}) or W[{word}])&{hex(((1 << 64) - 1) & ~(field << shift))}"
        if isinstance(op.value, Const):
            bits = (op.value.value & field) << shift
            return f"{text}|{hex(bits)}" if bits else text
        if op.value.low < 0 or op.value.high > field:
            value = f"({value}&{hex(field)})"
        return f"{text}|{value}<<{shift}" if shift else f"{text}|{value}"

    def far_store(self, base: Expr, bit: int, op: Store, depth: int) -> None:
        """A store at a position that only the run knows, or over two words."""
        address = self.text.address(base, bit // 8)
        self.line(depth, f"C_store(R,{address},{bit % 8},{op.width},{self.text.value(op.value)})")
