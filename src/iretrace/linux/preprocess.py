"""The C preprocessor by name: macros are looked up in the whole tree instead of through #include.

A tree is read unconfigured and without generated headers, so following #include would fail at the first of them.
Instead each name has one definition that counts: the nearest active one (same file, then KVM, then x86, then generic).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from iretrace.linux import ctree
from iretrace.linux.cursor import ANNOTATION_CALLS, ANNOTATIONS, ParseError
from iretrace.linux.expand import Macro, expand, make_macro
from iretrace.linux.lex import Token, lex
from iretrace.linux.parse import parse_expression
from iretrace.linux.source import Branch, Definition, Source, blank
from iretrace.verdict import InputError

PREDEFINED = {
    "__KERNEL__": "1", "__x86_64__": "1", "__x86_64": "1", "__amd64__": "1", "__LP64__": "1", "_LP64": "1",
    "__GNUC__": "12", "__GNUC_MINOR__": "2", "__GNUC_PATCHLEVEL__": "0",
    "__STDC__": "1", "__STDC_VERSION__": "201112L",
    "__CHAR_BIT__": "8", "__SIZEOF_INT__": "4", "__SIZEOF_LONG__": "8", "__SIZEOF_POINTER__": "8",
    "__SIZEOF_LONG_LONG__": "8", "__SIZEOF_INT128__": "16", "__INT_MAX__": "0x7fffffff",
    "__LONG_MAX__": "0x7fffffffffffffffL", "__ORDER_LITTLE_ENDIAN__": "1234", "__ORDER_BIG_ENDIAN__": "4321",
    "__BYTE_ORDER__": "1234", "__OPTIMIZE__": "1", "__GCC_ASM_FLAG_OUTPUTS__": "1", "KBUILD_MODNAME": '"kvm_amd"',
    "__SIZE_TYPE__": "unsigned long", "__PTRDIFF_TYPE__": "long", "__INT64_TYPE__": "long",
    "__UINT64_TYPE__": "unsigned long", "__UINT32_TYPE__": "unsigned int", "__INTPTR_TYPE__": "long",
}  # fmt: skip
"""What GCC 12 for x86-64 and Kbuild define, as far as kernel headers ask."""

UNDEFINED = frozenset(("DEBUG", "MODULE", "__CHECKER__", "__ASSEMBLY__", "__ASSEMBLER__", "__cplusplus", "__clang__"))
"""Never defined, although some header of the tree may define it for its own users."""

_ENABLED = frozenset(("IS_ENABLED", "IS_BUILTIN", "IS_MODULE", "IS_REACHABLE"))
_HAS = {
    "__has_attribute": "1", "__has_builtin": "0", "__has_feature": "0", "__has_include": "0", "__has_extension": "0",
}  # fmt: skip
_NEVER_EXPANDED = (ANNOTATIONS | ANNOTATION_CALLS | {"__packed"}) - {"__extension__"}


@dataclass(frozen=True, slots=True)
class Use:
    """Where a macro is used: in which file, in the range of which definition (offsets)."""

    source: Source
    start: int
    end: int


class Preprocessor:
    """Conditions and macros of a tree.

    config: CONFIG_* as a .config has them ("y", "m", "n" or a value). opaque: names of macros that stay as they are.
    defining: the files that define a macro, from the nearest to the farthest.
    """

    def __init__(
        self, config: Mapping[str, str], opaque: Iterable[str], defining: Callable[[str], Iterable[Source]]
    ) -> None:
        self.config = config
        self.opaque = frozenset(opaque) | _NEVER_EXPANDED
        self._defining = defining
        self._predefined = {name: make_macro(name, " " + body, "", 0) for name, body in PREDEFINED.items()}
        self._predefined |= _config_macros(config)
        self._shared: dict[tuple[str, str], Macro | None] = {}
        self._made: dict[tuple[str, int], Macro] = {}

    # Macros. ----------------------------------------------------------------------------------------------------

    def macro(self, name: str, use: Use) -> Macro | None:
        """The definition of `name` that counts where it is used; None if it is no macro there or opaque."""
        if name in self.opaque:
            return None
        own = use.source.directives.macros.get(name)
        if own:
            found, macro = self._own_macro(own, use)
            if found:
                return macro
        key = name, use.source.path
        if key not in self._shared:
            self._shared[key] = None
            self._shared[key] = self._shared_macro(name, use.source)
        return self._shared[key]

    def _own_macro(self, own: list[Definition], use: Use) -> tuple[bool, Macro | None]:
        """The last definition in the using file before the end of the use. #undef inside the use does not count."""
        for definition in reversed(own):
            if definition.offset >= use.end or not self.is_active(use.source, definition.offset):
                continue
            if definition.body is not None:
                return True, self._make(use.source, definition)
            if definition.offset < use.start:
                return True, None
        return False, None

    def _shared_macro(self, name: str, user: Source) -> Macro | None:
        if name in self._predefined:
            return self._predefined[name]
        if name in UNDEFINED or name.startswith("CONFIG_"):
            return None
        for source in self._defining(name):
            if source is user or not source.is_header:
                continue
            definition = self._left_by(source, name)
            if definition is not None:
                return self._make(source, definition)
        return None

    def _left_by(self, source: Source, name: str) -> Definition | None:
        """The definition of a macro that stands when a header has been read to its end."""
        for definition in reversed(source.directives.macros.get(name, [])):
            if self.is_active(source, definition.offset):
                return definition if definition.body is not None else None
        return None

    def _make(self, source: Source, definition: Definition) -> Macro:
        key = source.path, definition.offset
        if key not in self._made:
            line = source.line(definition.offset)
            self._made[key] = make_macro(definition.name, definition.body or "", source.path, line)
        return self._made[key]

    # Conditions. ------------------------------------------------------------------------------------------------

    def is_active(self, source: Source, offset: int) -> bool:
        """Whether the conditionals around `offset` let it through. InputError: they nest without end."""
        branch = source.branch(offset)
        try:
            return branch is None or self._is_taken(source, branch)
        except RecursionError:
            raise InputError(f"{source.path}: conditionals are nested too deeply to be followed") from None

    def _is_taken(self, source: Source, branch: Branch) -> bool:
        if branch.active is None:
            if branch.busy:
                return False
            branch.busy = True
            branch.active = self._decide(source, branch)
            branch.busy = False
        return branch.active

    def _decide(self, source: Source, branch: Branch) -> bool:
        if branch.parent and not self._is_taken(source, branch.parent):
            return False
        earlier = branch.earlier
        while earlier:
            if self._is_taken(source, earlier):
                return False
            earlier = earlier.earlier
        kind = branch.kind
        if kind == "else":
            return True
        if kind in ("if", "elif"):
            return self._evaluate(source, branch) != 0
        words = branch.text.split()
        defined = bool(words) and self._is_defined(words[0], source, branch)
        return defined != kind.endswith("ndef")

    def _is_defined(self, name: str, source: Source, branch: Branch) -> bool:
        """Whether `name` is defined where the condition of `branch` stands.

        A branch that itself begins by defining the name is an include guard or a default: for it only nearer files
        count, which could have been included before.
        """
        if name in self._predefined:
            return True
        if name in UNDEFINED or name.startswith("CONFIG_"):
            return False
        if name in _HAS or name in _ENABLED:
            return True
        for definition in reversed(source.directives.macros.get(name, [])):
            if definition.offset < branch.offset and self.is_active(source, definition.offset):
                return definition.body is not None
        for other in self._defining(name):
            if other is source or not other.is_header or (branch.defines == name and other.rank >= source.rank):
                continue
            if self._left_by(other, name) is not None:
                return True
        return False

    def _evaluate(self, source: Source, branch: Branch) -> int:
        """The value of an #if. What C's preprocessor does not know is 0."""
        try:
            tokens = lex(branch.text, source.path, 1, anything=True)
        except InputError:
            return 0
        tokens = self._answer_defined(tokens, source, branch)
        use = Use(source, branch.offset, branch.offset)
        tokens = expand(tokens, lambda name: self.macro(name, use), self.builtin)
        try:
            return _constant(parse_expression(tokens, path=source.path)) if tokens else 0
        except (ParseError, RecursionError):
            return 0

    def _answer_defined(self, tokens: list[Token], source: Source, branch: Branch) -> list[Token]:
        """Replace `defined X` and `defined(X)` by 0 or 1."""
        out: list[Token] = []
        at = 0
        while at < len(tokens):
            token = tokens[at]
            at += 1
            if token.text != "defined" or at >= len(tokens):
                out.append(token)
                continue
            parenthesized = tokens[at].text == "(" and at + 1 < len(tokens)
            name = tokens[at + parenthesized].text
            at += 3 if parenthesized else 1
            value = "1" if self._is_defined(name, source, branch) else "0"
            out.append(Token("num", value, token.path, token.line, True))
        return out

    def builtin(self, name: str, args: list[list[Token]]) -> str | None:
        """What a macro that the compiler or Kconfig provides is replaced by; None if `name` is no such macro."""
        if name in _HAS:
            return _HAS[name]
        if name not in _ENABLED or len(args) != 1 or len(args[0]) != 1:
            return None
        value = self.config.get(args[0][0].text, "n")
        wanted = {"IS_BUILTIN": "y", "IS_MODULE": "m"}.get(name, "ym")
        return "1" if value and value in wanted else "0"

    # Text. ------------------------------------------------------------------------------------------------------

    def active_text(self, source: Source, start: int, end: int) -> str:
        """source.text[start:end] with directives and inactive branches blanked out."""
        directives = source.directives
        parts: list[str] = []
        done = start
        for first, last in directives.spans:
            if last <= start:
                continue
            if first >= end:
                break
            if first > done:
                parts.append(self._piece(source, done, first))
            parts.append(blank(source.text[max(first, done) : min(last, end)]))
            done = min(last, end)
        if done < end:
            parts.append(self._piece(source, done, end))
        return "".join(parts)

    def _piece(self, source: Source, start: int, end: int) -> str:
        """A piece of text without directives inside."""
        text = source.text[start:end]
        return text if self.is_active(source, start) else blank(text)

    def tokens(self, source: Source, start: int, end: int) -> list[Token]:
        """The tokens of source.text[start:end] with its directives obeyed and its macros expanded."""
        tokens = lex(self.active_text(source, start, end), source.path, source.line(start))
        return self.expanded(tokens, Use(source, start, end))

    def expanded(self, tokens: list[Token], use: Use) -> list[Token]:
        """Tokens that stand at `use` with their macros expanded."""
        known: dict[str, Macro | None] = {}

        def find(name: str) -> Macro | None:
            if name not in known:
                known[name] = self.macro(name, use)
            return known[name]

        return expand(tokens, find, self.builtin)


def _config_macros(config: Mapping[str, str]) -> dict[str, Macro]:
    """The macros that Kconfig makes of a .config."""
    macros = {}
    for name, value in config.items():
        if value in ("n", ""):
            continue
        if value == "m":
            name, value = name + "_MODULE", "1"
        macros[name] = make_macro(name, " " + ("1" if value == "y" else value), "", 0)
    return macros


def _constant(expr: ctree.Expr) -> int:
    """The value of an integer constant expression as #if computes it; names and calls are 0."""
    if isinstance(expr, ctree.Num):
        return expr.value
    if isinstance(expr, ctree.Unary):
        value = _constant(expr.of)
        return {"-": -value, "+": value, "!": int(not value), "~": ~value}.get(expr.op, 0)
    if isinstance(expr, ctree.Conditional):
        cond = _constant(expr.cond)
        if cond:
            return _constant(expr.then) if expr.then else cond
        return _constant(expr.other)
    if isinstance(expr, ctree.Binary):
        return _binary(expr.op, _constant(expr.left), _constant(expr.right))
    return 0


def _binary(op: str, left: int, right: int) -> int:
    if op in ("/", "%"):
        if right == 0:
            return 0
        quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
        return quotient if op == "/" else left - quotient * right
    if op in ("<<", ">>"):
        return (left << (right & 63) if op == "<<" else left >> (right & 63)) & 0xFFFFFFFFFFFFFFFF
    return int(_OPERATORS[op](left, right))


_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "||": lambda a, b: bool(a or b),
    "&&": lambda a, b: bool(a and b),
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "&": lambda a, b: a & b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    ",": lambda a, b: b,
}
