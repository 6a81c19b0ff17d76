"""What the parser has read of a litmus file before names are resolved: words with their places."""

from __future__ import annotations

from dataclasses import dataclass, field

from iretrace.litmus.lex import Token
from iretrace.litmus.test import Op, Reach


@dataclass(frozen=True, slots=True)
class Statement:
    """One instruction as written. operand: a label, the name of mark, the kind of vmgexit. arg: what numbers say."""

    op: Op
    at: Token
    operand: Token | None
    text: str
    labels: tuple[Token, ...] = ()
    arg: int = 0


@dataclass(slots=True)
class Section:
    """main or a handler. dangling: labels read that still wait for their instruction."""

    at: Token
    code: list[Statement] = field(default_factory=list)
    dangling: list[Token] = field(default_factory=list)

    @property
    def name(self) -> str:
        """main, or the handler's."""
        return self.at.text


@dataclass(frozen=True, slots=True)
class Coming:
    """An arrival as written. label: that of `at LABEL: nmi`, or of `in LABEL: init` (within). action, target: of
    `guest-debug break TARGET`."""

    event: Token
    promised: bool
    label: Token | None
    action: Token | None = None
    target: Token | None = None
    within: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """A clause as written."""

    quantifier: Token
    marks: tuple[Token, ...]


@dataclass(slots=True)
class Draft:
    """A whole file as written."""

    name: str = ""
    about: list[str] = field(default_factory=list)
    vcpus: list[Token] = field(default_factory=list)
    hosts: list[Token] = field(default_factory=list)
    outside: list[Coming] = field(default_factory=list)
    ist: list[Token] = field(default_factory=list)
    cold: list[Token] = field(default_factory=list)
    frame: tuple[Token, Token] | None = None
    """The stack and the label of `frame`."""
    interrupts: bool = False
    cpl: int = 0
    ap: bool = False
    sections: dict[str, Section] = field(default_factory=dict)
    reach: Reach | None = None
    claims: list[Claim] = field(default_factory=list)
    seen: dict[str, Token] = field(default_factory=dict)
    """The header words (and reach) read so far."""
