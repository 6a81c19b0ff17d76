"""A kernel tree's C as callable Python: functions are lowered when they are first called, rules answer what is not C.

    program = Program(index, Layout(index, rules.opaque_structs), rules)
    run = Run(program)
    run.call("svm_get_nmi_mask", vcpu)

A value is the C value as an int: signed types negative where C is negative, pointers unsigned. Memory is `Run.m`.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from sys import _getframe
from types import CodeType, FrameType
from typing import Any, Protocol

from iretrace.linux import ctree, ir, memory
from iretrace.linux.answers import (
    Answer,
    ConditionId,
    Model,
    Neutral,
    Rules,
    Site,
    Storage,
    Value,
)
from iretrace.linux.blocks import BlockInfo, Blocks
from iretrace.linux.builder import Callee, Variable
from iretrace.linux.ctree import Pos
from iretrace.linux.emit import REST, Context, emit
from iretrace.linux.globals import Globals
from iretrace.linux.ir import Call, Fail
from iretrace.linux.layout import Layout
from iretrace.linux.lower import FunctionLowering
from iretrace.linux.memory import Space
from iretrace.linux.notes import BLOCKS, Lowered, Note, Uses
from iretrace.linux.primitives import EMITTED, PRIMITIVES
from iretrace.linux.run import PAUSE, Pausing, Retry, Run
from iretrace.linux.targets import Targets
from iretrace.linux.types import Func, Type
from iretrace.linux.unmodelled import Unmodelled
from iretrace.verdict import CLine

__all__ = [
    "PAUSE",
    "Answer",
    "ConditionId",
    "Model",
    "Neutral",
    "Pausing",
    "Program",
    "Retry",
    "Rules",
    "Run",
    "Site",
    "Storage",
    "Unmodelled",
    "Value",
]


@dataclass(slots=True)
class Function:
    """A function of the program: its C, and when it has been emitted, the Python and the C place of each line.

    function, path: its name in C, and its file. definition: None if nobody has looked for it yet."""

    name: str
    function: str
    path: str
    definition: ctree.Function | None = None
    params: int = 0
    resumable: bool = False
    source: str = ""
    positions: tuple[Pos, ...] = ()
    code: CodeType | None = None


class Kept(Protocol):
    """What an earlier run has found, as far as it holds here (lowerings.KeptLowerings)."""

    def function(self, name: str) -> ir.Lowered | None:
        """What a function of the program is lowered to. On what that rests is noted."""
        ...

    def content(self, own: str) -> tuple[bool, Mapping[int, int | None]] | None:
        """Whether an object (memory.Object.own) can be written, and its initial content by address; None for a word
        that nobody could compute."""
        ...


@dataclass
class Program:
    """See the module. negate: a condition to flip. One Program serves many runs, one at a time.

    initial: content of writable globals at the start. namespace: the globals of the generated code.
    """

    index: Any
    layout: Layout
    rules: Rules
    negate: ConditionId | None = None
    line_text: Callable[[str, int], str] | None = None
    """Text of a line of the tree, for CLine.text; default: from index.tree."""

    space: Space = field(init=False, default_factory=Space)
    initial: dict[int, int] = field(init=False, default_factory=dict)
    namespace: dict[str, Any] = field(init=False, default_factory=dict)
    blocks: Blocks = field(init=False, default_factory=Blocks)
    functions: Targets = field(init=False)
    """Address -> callable, for calls through pointers."""
    models: dict[str, tuple[str, Site | None]] = field(init=False, default_factory=dict)
    """Name in the program of Python -> the function that it answers for, and where, if that counts."""
    kept: list[Kept] = field(init=False, default_factory=list)
    """What earlier runs have found."""
    tell: list[Callable[[str, ir.Lowered], None]] = field(init=False, default_factory=list)
    """Are told what functions of the program are lowered to here."""

    def __post_init__(self) -> None:
        self.globals = Globals(self.layout, self.rules, self.space, self.initial, self)
        self.functions = Targets(self)
        self._functions: dict[str, Function] = {}
        self._by_definition: dict[int, str] = {}
        self._twins: set[str] = set()
        """Names of functions that are in their file twice."""
        self._renamed: dict[str, str] = {}
        self._by_code: dict[CodeType, Function] = {}
        self._models: dict[tuple[int, Site | None], tuple[str, Model]] = {}
        self._lines: dict[str, list[str]] = {}
        self._pausing: set[str] = {REST}
        self._uses: dict[Uses, Uses] = {}
        self._failures: list[Fail] = []
        self._addresses: dict[str, int] = {}
        self._address_names: dict[int, tuple[str, str]] = {}
        self.namespace.update(
            {
                "F": self.functions,
                "PAUSE": PAUSE,
                "C_fail": self._failure,
                "C_endless": _endless,
                REST: _rest,
                **EMITTED,
                **PRIMITIVES,
            }
        )
        self.space.make = self._make

    # Calling.

    def materialise(self, *names: str, path: str = "") -> None:
        """Make the initial values of globals part of the state, before the first run: C code changes them."""
        for name in names:
            self.globals.materialise(name, path)

    def run(self) -> Run:
        """A run that starts with the initial content of the globals."""
        return Run(self)

    def entry(self, name: str, path: str = "") -> Callable[..., Any]:
        """The callable of a C function, called as f(run, *args): from a rule, or from source."""
        answer = self.rules.function(name, path)
        if isinstance(answer, Model):
            model: Callable[..., Any] = self.namespace[self.model(name, answer, self._outer_site(name, answer))]
            return model
        if isinstance(answer, Value):
            value = answer.value
            return lambda run, *args: value
        if isinstance(answer, Neutral):
            return lambda run, *args: None
        callee = self.callee(name, Pos(path, 0)).name
        function: Callable[..., Any] = self.namespace[callee]
        return function

    def _outer_site(self, name: str, answer: Model) -> Site | None:
        return Site(Pos("", 0), "", (), (), ()) if answer.site else None

    def source_of(self, name: str, path: str = "") -> str:
        """The Python of a C function, "" before its first call."""
        return self._functions[self.callee(name, Pos(path, 0)).name].source

    def c_name(self, name: str) -> tuple[str, str] | None:
        """Name and file in C of a function of the program; None if it is none, or if these do not tell which it is."""
        function = self._functions.get(name)
        if function is None or self.known_as(function.function, function.path) != name or name in self._twins:
            return None
        return function.function, function.path

    def params(self, name: str) -> int:
        """How many Python parameters a function of the program has."""
        return self._functions[name].params

    # What was executed.

    def block_lines(self, block: int) -> tuple[CLine, ...]:
        """The C statements of a basic block."""
        info = self.blocks[block]
        return tuple(self.line(pos, info.function) for pos in info.statements)

    def statements_of(self, name: str, path: str = "") -> tuple[CLine, ...]:
        """The C statements of a function, executed or not, as far as the configuration has them."""
        function = self._functions[self.callee(name, Pos(path, 0)).name]
        if function.code is None:
            self.emit(function.name)
        blocks = [info for info in self.blocks if info.function == name]
        return tuple(self.line(pos, name) for info in blocks for pos in info.statements)

    def line(self, pos: Pos, function: str = "") -> CLine:
        """A place with its text."""
        return CLine(pos.path, pos.line, function, self._text(pos))

    def _text(self, pos: Pos) -> str:
        if self.line_text is not None:
            return self.line_text(pos.path, pos.line)
        lines = self._lines.get(pos.path)
        if lines is None:
            tree = getattr(self.index, "tree", None)
            lines = self._lines[pos.path] = (tree.text(pos.path) or "").split("\n") if tree is not None else []
        return lines[pos.line - 1].strip() if 0 < pos.line <= len(lines) else ""

    def uses(self, trace: Iterable[int], notes: Iterable[Note] = ()) -> Uses:
        """The node of what was executed, with what was noted meanwhile; one for all that are alike."""
        made = Uses(array(BLOCKS, trace).tobytes(), frozenset(notes))
        known = self._uses.get(made)
        if known is None:
            known = self._uses[made] = made
            self.layout.notes.parts[made] = made.notes
        return known

    def executed(self, notes: Iterable[Note]) -> set[int]:
        """The basic blocks of all nodes of executions."""
        return set[int]().union(*(note.blocks() for note in notes if isinstance(note, Uses)))

    @contextmanager
    def noting(self, run: Run) -> Iterator[None]:
        """What a run executes meanwhile is noted."""
        try:
            yield
        finally:
            for function in self.blocks.functions(run.trace):
                self.layout.notes.note(function)

    def invert(self, condition: ConditionId) -> None:
        """Negate another condition from now on; only functions that held the last one or hold this are emitted anew."""
        names = {condition.function} | ({self.negate.function} if self.negate else set())
        self.negate = condition
        for function in self._functions.values():
            if function.function in names:
                self.namespace[function.name] = self._stub(function.name)

    def explain(self, error: BaseException) -> None:
        """Give an error of generated code its C place. Python errors that C can cause become Unmodelled."""
        pos = self._position(error)
        if isinstance(error, Unmodelled):
            if error.where is None:
                error.where = pos
            return
        if isinstance(error, ZeroDivisionError):
            raise Unmodelled("division by zero", pos) from error
        if isinstance(error, UnboundLocalError) and self._in_generated_code(error):
            raise Unmodelled("a variable is read before it is written", pos) from error
        if isinstance(error, RecursionError):
            raise Unmodelled("the C recurses without end", pos) from error

    def _position(self, error: BaseException) -> Pos | None:
        """The C place of the innermost generated code in a traceback."""
        found = None
        trace = error.__traceback__
        while trace is not None:
            function = self._by_code.get(trace.tb_frame.f_code)
            if function is not None and trace.tb_lineno:
                found = function.positions[trace.tb_lineno - 1]
            trace = trace.tb_next
        return found

    def places(self, frame: FrameType | None) -> Iterator[tuple[Pos, str]]:
        """Where C is on a Python stack, innermost call first: (place, function)."""
        while frame is not None and frame.f_code is not Run._run.__code__:
            function = self._by_code.get(frame.f_code)
            if function is not None and frame.f_lineno:
                yield function.positions[frame.f_lineno - 1], function.function
            frame = frame.f_back

    @contextmanager
    def watched(self, name: str, path: str, seen: Callable[[Run, Any], None]) -> Iterator[None]:
        """While this lasts, seen(run, result) is told of every return of a C function."""
        key = self.callee(name, Pos(path, 0)).name
        original: Callable[..., Any] = self.namespace[key]

        def watching(run: Run, *args: Any) -> Any:
            result = original(run, *args)
            seen(run, result)
            return result

        self.namespace[key] = watching
        try:
            yield
        finally:
            if self.namespace[key] is watching:
                self.namespace[key] = original

    def _in_generated_code(self, error: BaseException) -> bool:
        """Whether generated code itself raised it, not a model that it called."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        return trace is not None and trace.tb_frame.f_code in self._by_code

    def _failure(self, number: int) -> Unmodelled:
        fail = self._failures[number]
        return Unmodelled(fail.what, fail.pos, fail.row)

    # Lowering. These methods are builder.Names.

    @property
    def types(self) -> Layout:
        """The types."""
        return self.layout

    @property
    def negated(self) -> ConditionId | None:
        """The condition to negate."""
        return self.negate

    def identifier(self, name: str, pos: Pos, unevaluated: bool) -> Variable:
        """A name at file scope."""
        return self.globals.identifier(name, pos, unevaluated)

    def string(self, text: str) -> int:
        """The address of a string literal."""
        return self.globals.string(text)

    def static_local(self, function: str, declaration: ctree.Declaration, kind: Type) -> int:
        """The address of a function's static variable."""
        return self.globals.static_local(function, declaration, kind)

    def static_target(self, name: str, pos: Pos) -> str | None:
        """The function that a static call goes to; None for an optional one that is not there."""
        return self.globals.static_target(name, pos)

    def prototype(self, name: str, pos: Pos) -> Func | None:
        """The type of a function."""
        return self.layout.prototype(name, pos.path)

    def callee(self, name: str, pos: Pos) -> Callee:
        """A function to call from source; it is lowered when it is first called."""
        definition = self.layout.function(name, pos.path)
        if definition is None:
            row = f'[[function]]\nname = "{name}"\nwhat = "neutral"\nwhy = "..."'
            raise Unmodelled(f"{name}() has no definition in the tree and no rule", pos, row)
        kind = self.layout.resolve(definition.type, definition.pos.path)
        assert isinstance(kind, Func)
        known = self._by_definition.get(id(definition))
        if known is None:
            known = self._by_definition[id(definition)] = self._named(definition)
        return Callee(known, kind)

    def _named(self, definition: ctree.Function) -> str:
        """The name in the program of a definition; where a file has two of one name, the second has its line in it."""
        known = self.known_as(definition.name, definition.pos.path)
        function = self._functions[known]
        if function.definition is None:
            function.definition = definition
            return known
        twin = f"{known}_{definition.pos.line}"
        self._twins.add(known)
        self._add(Function(twin, definition.name, definition.pos.path, definition))
        return twin

    def known_as(self, function: str, path: str) -> str:
        """The name in the program of a function of a file, which is there: the same one in every process."""
        name = f"f_{function}_{memory.number_of(path) >> 32:08x}"
        if name not in self._functions:
            self._add(Function(name, function, path))
        return name

    def _add(self, function: Function) -> None:
        self._functions[function.name] = function
        self.namespace[function.name] = self._stub(function.name)

    def adopt(self, name: str, function: str, path: str, blocks: Sequence[Sequence[Pos]]) -> range:
        """Numbers for the basic blocks of a function that another process has lowered, which is in a tree as here."""
        first = len(self.blocks)
        for statements in blocks:
            self.blocks.add(BlockInfo(function, path, name, tuple(statements), ()))
        return range(first, len(self.blocks))

    def rename(self, name: str) -> None:
        """Frames and places of a function have a name from now on that they have in no other process: there it is
        another one."""
        self._renamed.setdefault(name, f"{name}_{secrets.token_hex(8)}")
        if name in self._functions:
            self.namespace[name] = self._stub(name)

    def ready(self, name: str, function: str, path: str) -> None:
        """Make sure that paused frames of a function can be resumed. ValueError: here they cannot."""
        if self.callee(function, Pos(path, 0)).name != name or not self._functions[name].resumable:
            raise ValueError(f"{function}() is another one here")
        if self._functions[name].code is None:
            self.emit(name)

    def addresses(self) -> list[tuple[str, int, str, str]]:
        """Of the functions whose address has been taken: what tells it from others, address, name, file."""
        return [(key, address, *self._address_names[address]) for key, address in self._addresses.items()]

    def adopt_address(self, key: str, address: int, name: str, path: str) -> None:
        """The same of another process. ValueError: another function is there."""
        if self.space.address_of_function(key) != address:
            raise ValueError(f"another function is where {name}() was")
        self._address_names.setdefault(address, (name, path))

    def _make(self, own: str) -> None:
        """Make an object that another process has made. Its content will do where that is known."""
        content = next((found for kept in self.kept if (found := kept.content(own)) is not None), None)
        if content is None:
            self._make_itself(own)
            return
        writable, words = content
        later = {at: partial(self._word_of_itself, own, at) if word is None else word for at, word in words.items()}
        self.space.stand_in(own, writable, later)

    def _word_of_itself(self, own: str, address: int) -> int:
        self._make_itself(own)
        made = self.space.find(address)
        word = 0 if made is None else made.words.get(address, 0)
        return word() if callable(word) else word

    def _make_itself(self, own: str) -> None:
        """Make a string, a function's static variable, or a global one."""
        name, owner = memory.name_of(own), memory.owner_of(own)
        with self.layout.notes.collecting():  # who took the address has noted this
            if name.startswith('"'):
                self.globals.string(name[1:-1])
            elif "." in name:
                self._lower(self._functions[self.callee(name.partition(".")[0], Pos(owner, 0)).name])
            else:
                self.globals.identifier(name, Pos(owner, 0), False)

    def _stub(self, name: str) -> Callable[..., Any]:
        """Stands for a function until it is called."""
        return partial(_lower_and_call, self, name)

    def emit(self, name: str) -> None:
        """Lower a function of the program and compile its Python."""
        function = self._functions[name]
        with self.layout.notes.of(Lowered(function.name)):
            lowered = self._lowered_before(name) or self._lower(function)

        def enter(statements: Sequence[Pos], conditions: Sequence[int]) -> int:
            ids = tuple(ConditionId(*lowered.conditions[number], function.function) for number in conditions)
            return self.blocks.add(BlockInfo(function.function, function.path, name, tuple(statements), ids))

        known_as = self._renamed.get(name, name)
        emitted = emit(lowered, known_as, function.resumable, Context(enter, self._fail, self._may_pause))
        function.params = lowered.params
        function.source = emitted.source
        function.positions = emitted.positions
        try:
            module = compile(emitted.source, f"<{known_as}{' again' * function.resumable}>", "exec")
        except SyntaxError:  # "too many nested parentheses"
            raise Unmodelled("so deep a nesting", lowered.pos) from None
        exec(module, self.namespace)  # generated from basic blocks; holds no text of the tree
        self.namespace[name], self._functions[known_as] = self.namespace[known_as], function
        code = self.namespace[name].__code__
        function.code = code
        self._by_code[code] = function

    def _lowered_before(self, name: str) -> ir.Lowered | None:
        """What earlier runs have lowered a function to."""
        if self.negate is not None:
            return None
        return next((found for kept in self.kept if (found := kept.function(name)) is not None), None)

    def _definition(self, function: Function) -> ctree.Function:
        with self.layout.notes.collecting():  # who called it has noted that it is there
            definition = self.layout.function(function.function, function.path)
        assert definition is not None, "it was there"
        return definition

    def _lower(self, function: Function) -> ir.Lowered:
        definition = function.definition or self._definition(function)
        self.index.function(definition.name, definition.pos.path)  # notes that its body counts
        try:
            lowered = FunctionLowering(self, definition.pos.path, definition.name).function_body(definition)
        except Unmodelled as error:
            raise Unmodelled(error.what, error.where or definition.pos, error.row) from None
        except RecursionError:
            raise Unmodelled("so deep a nesting", definition.pos) from None
        for tell in self.tell:
            tell(function.name, lowered)
        return lowered

    def _fail(self, fail: Fail) -> int:
        self._failures.append(fail)
        return len(self._failures) - 1

    # Pausing.

    def _may_pause(self, call: Call) -> bool:
        """Whether a call can return PAUSE; one through a pointer always may."""
        return not isinstance(call.callee, str) or call.callee in self._pausing

    def declare_pausing(self, name: str, path: str = "") -> None:
        """Say before the first run that a function can pause, so that no run has to find out (see Retry)."""
        callee = self.callee(name, Pos(path, 0)).name
        self._functions[callee].resumable = True
        self._pausing.add(callee)

    def _make_resumable(self, frame: FrameType | None) -> bool:
        """Make every function on the Python stack resumable, down to Run._run. Returns whether one was not."""
        changed = False
        while frame is not None and frame.f_code is not Run._run.__code__:
            function = self._by_code.get(frame.f_code)
            if function is not None and not function.resumable:
                function.resumable = True
                self._pausing.add(function.name)
                self.namespace[function.name] = self._stub(function.name)
                changed = True
            frame = frame.f_back
        return changed

    def can_resume(self, frame: FrameType | None) -> bool:
        """Whether every function on the Python stack can, down to Run._run."""
        while frame is not None and frame.f_code is not Run._run.__code__:
            function = self._by_code.get(frame.f_code)
            if function is None or not function.resumable:
                return False
            frame = frame.f_back
        return True

    def model(self, name: str, answer: Model, site: Site | None) -> str:
        """The name in the program of the Python that answers for a function."""
        key = (id(answer), site)
        known = self._models.get(key)
        if known is None:
            known = f"p{len(self._models)}", answer  # keeps the answer alive, so its id stays its own
            self._models[key] = known
            self.models[known[0]] = name, site
            self.namespace[known[0]] = self._bound(known[0], answer, site)
        return known[0]

    def _bound(self, known: str, answer: Model, site: Site | None) -> Callable[..., Any]:
        call = answer.call
        if site is not None:
            inner = call

            def call(run: Run, *args: int) -> Any:
                return inner(run, site, *args)

        if not answer.pauses:
            return call
        self._pausing.add(known)

        def pausing(run: Run, *args: int) -> Any:
            value = call(run, *args)
            if value is PAUSE and self._make_resumable(_getframe(1)):
                raise Retry
            return value

        return pausing

    # Addresses of functions.

    def address_of(self, name: str, path: str = "") -> int:
        """The address of a function; every function has one."""
        definition = self.layout.function(name, path)
        key = name if definition is None else f"{name} {definition.pos.path}"
        if key not in self._addresses:
            self._addresses[key] = self.space.address_of_function(key)
            self._address_names[self._addresses[key]] = (name, path if definition is None else definition.pos.path)
        return self._addresses[key]

    def function_at(self, address: int) -> tuple[str, str] | None:
        """Name and file of the function at an address."""
        return self._address_names.get(address)


def _lower_and_call(program: Program, name: str, run: Run, *args: Any) -> Any:
    program.emit(name)
    return program.namespace[name](run, *args)


LOWERS = _lower_and_call.__code__
"""On the Python stack below a function that was lowered for this call."""


def _rest(run: Run) -> Any:
    return run.rest()


def _endless() -> Unmodelled:
    return Unmodelled("a loop does not end")
