"""From the text of a litmus file to a Test. The language is described in docs/litmus.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from iretrace.litmus.build import build
from iretrace.litmus.draft import Claim, Coming, Draft, Section
from iretrace.litmus.grammar import (
    CLAUSES,
    COMPARISONS,
    DEBUGGER_ACTIONS,
    EVENTS,
    FOOTERS,
    HEADERS,
    HOSTS,
    MAX_ARRIVALS,
    MAX_BYTES,
    MAX_INSTRUCTIONS,
    MAX_NUMBER,
    MNEMONICS,
    NOTHING,
    PROCESSORS,
    SECTIONS,
    SHARED_STACKS,
    STACKS,
    VCPUS,
    VIEW_FIELDS,
)
from iretrace.litmus.instructions import read_instruction
from iretrace.litmus.lex import Line, Source, Token, listed, nearest, printable, quote
from iretrace.litmus.test import VECTORS, Reach, Test
from iretrace.litmus.words import Words
from iretrace.verdict import InputError


def load(path: str | Path) -> Test:
    """Read and parse one litmus file. Raises InputError if it cannot be read, is not text, or is no valid test."""
    shown = printable(str(path))
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{shown}: no such file; give a .litmus file, a directory of them, or a name that we ship")
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror}); give a readable file") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{shown}:1:1: longer than {MAX_BYTES // 1024} KiB; write one small test per file")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise InputError(f"{shown}:{line}:{column}: not UTF-8 text; write the test as plain text") from None
    return parse(text, str(path))


def parse(text: str, path: str) -> Test:
    """Parse one litmus test; path is for messages only.

    Raises InputError "path:line:column: what is wrong; what to write instead", and nothing else, for any text.
    """
    source = Source(text, path)
    if len(text) > MAX_BYTES:
        source.fail(1, 1, f"longer than {MAX_BYTES // 1024} KiB; write one small test per file")
    return build(_Reader(source).read(), source)


class _Reader:
    """Reads a file line by line into a Draft."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.draft = Draft()
        self.section: Section | None = None
        self.about_line = -1
        self.instructions = 0
        self.headers = {
            "test": self.read_name,
            "vcpu": self.read_vcpus,
            "host": self.read_hosts,
            "outside": self.read_outside,
            "ist": self.read_ist,
            "cold": self.read_cold,
            "frame": self.read_frame,
            "interrupts": self.read_interrupts,
            "cpl": self.read_cpl,
            "processor": self.read_processor,
        }

    def read(self) -> Draft:
        """Read the whole file."""
        for line in self.source.lines():
            if self.continues_about(line) or not line.text:
                continue
            self.read_line(line)
        return self.draft

    def continues_about(self, line: Line) -> bool:
        """An indented line right below `about` continues it. It has no comments: `#VC` is text."""
        if line.number != self.about_line + 1 or line.raw[0] not in " \t":
            return False
        self.about_line = line.number
        self.draft.about.append(line.raw.strip())
        return True

    def read_line(self, line: Line) -> None:
        """Read a line that holds something."""
        first = line.text.split(maxsplit=1)[0]
        column = line.text.index(first) + 1
        if not self.draft.name and first != "test":
            self.source.fail(line.number, column, "a test starts with its name; write 'test NAME' first")
        if first == "about":
            self.read_about(Token(first, line.number, column), line)
            return
        words = Words(self.source, line)
        if words.peek() in self.headers and words.peek(1) != ":":
            self.read_header(words)
        elif words.peek() in FOOTERS:
            self.read_footer(words)
        elif words.peek(1) == ":" and words.peek() in SECTIONS:
            self.read_section(words)
        else:
            self.read_code(words)
        words.end()

    def once(self, token: Token) -> None:
        """A header line comes once, and before the program."""
        first = self.draft.seen.setdefault(token.text, token)
        if first is not token:
            self.source.fail_at(token, f"second '{token.text}' line, the first is line {first.line}; write one")
        if token.text in HEADERS and self.draft.sections:
            self.source.fail_at(token, f"'{token.text}' after the program; move the line above the first section")

    def read_about(self, token: Token, line: Line) -> None:
        self.once(token)
        self.about_line = line.number
        self.draft.about.append(line.raw.strip().removeprefix("about").strip())

    def read_header(self, words: Words) -> None:
        token = words.take("a header line")
        self.once(token)
        self.headers[token.text](words)

    def read_name(self, words: Words) -> None:
        self.draft.name = words.word("the name of the test, such as nmi-at-hlt").text

    def read_list(self, words: Words, known: Iterable[str], what: str) -> list[Token]:
        """WORD {, WORD} without repetition."""
        found: list[Token] = []
        while True:
            token = words.one_of(known, what)
            if any(token.text == other.text for other in found):
                self.source.fail_at(token, f"{what} {quote(token.text)} is listed twice; write it once")
            found.append(token)
            if not words.comma():
                return found

    def read_vcpus(self, words: Words) -> None:
        self.draft.vcpus = self.read_list(words, VCPUS, "vcpu kind")

    def read_hosts(self, words: Words) -> None:
        self.draft.hosts = self.read_list(words, HOSTS, "host")

    def read_ist(self, words: Words) -> None:
        self.draft.ist = self.read_list(words, VECTORS, "handler")
        for token in self.draft.ist:
            if token.text not in STACKS:
                what = f"handler {quote(token.text)} runs on the stack that it interrupts; {listed(STACKS)}"
                self.source.fail_at(token, what)

    def read_cold(self, words: Words) -> None:
        while True:
            token = words.word("'main', or another stack, or a label")
            if any(token.text == other.text for other in self.draft.cold):
                self.source.fail_at(token, f"stack {quote(token.text)} is listed twice; write it once")
            self.draft.cold.append(token)
            if not words.comma():
                return

    def read_frame(self, words: Words) -> None:
        stack = words.one_of((*SHARED_STACKS, *STACKS), "stack")
        words.sign(":", "'frame STACK: LABEL'")
        self.draft.frame = (stack, words.new_name("label"))

    def read_interrupts(self, words: Words) -> None:
        self.draft.interrupts = words.one_of(("on", "off"), "setting").text == "on"

    def read_cpl(self, words: Words) -> None:
        token = words.take("0 or 3")
        if token.text not in ("0", "3"):
            self.source.fail_at(token, f"unknown privilege level {quote(token.text)}; write 3 for a user program, or 0")
        self.draft.cpl = int(token.text)

    def read_processor(self, words: Words) -> None:
        self.draft.ap = words.one_of(PROCESSORS, "processor").text == "ap"

    def read_outside(self, words: Words) -> None:
        while True:
            self.draft.outside.append(self.read_arrival(words))
            if len(self.draft.outside) > MAX_ARRIVALS:
                self.source.fail_at(self.draft.outside[-1].event, f"too many arrivals; write at most {MAX_ARRIVALS}")
            if not words.comma():
                return

    def read_arrival(self, words: Words) -> Coming:
        """EVENT, `maybe` EVENT, `at` LABEL `:` EVENT, or `in` LABEL `:` EVENT."""
        promised = words.peek() != "maybe"
        within = words.peek() == "in"
        label = None
        if not promised:
            words.take("maybe")
        elif words.peek() in ("at", "in"):
            where = words.take("at or in").text
            label = words.new_name("label")
            words.sign(":", f"'{where} LABEL: nmi'")
        event = words.one_of(EVENTS, "event")
        if event.text != "guest-debug":
            return Coming(event, promised, label, within=within)
        action = words.one_of(DEBUGGER_ACTIONS, "action")
        target = words.new_name("label") if action.text == "break" else None
        return Coming(event, promised, label, action, target, within)

    def read_section(self, words: Words) -> None:
        token = words.take("a section")
        if token.text in self.draft.sections:
            first = self.draft.sections[token.text].at.line
            self.source.fail_at(token, f"second section '{token.text}:', the first is line {first}; write one")
        if self.footer_started():
            self.source.fail_at(token, f"section '{token.text}:' after reach and clauses; move it above them")
        words.sign(":", f"'{token.text}:'")
        self.section = Section(token)
        self.draft.sections[token.text] = self.section

    def footer_started(self) -> bool:
        """Whether `reach:` or a clause has been read."""
        return self.draft.reach is not None or bool(self.draft.claims)

    def read_code(self, words: Words) -> None:
        """{LABEL ':'} [INSTRUCTION] in a section."""
        if self.section is None or self.footer_started():
            self.fail_outside(words.take("a section"))
        while words.peek(1) == ":":
            self.section.dangling.append(words.new_name("label"))
            words.sign(":", "'LABEL:'")
        if not words.peek():
            return
        labels = tuple(self.section.dangling)
        self.section.dangling.clear()
        self.count_instruction(words)
        self.section.code.append(read_instruction(words, labels))

    def count_instruction(self, words: Words) -> None:
        """One more instruction, if there is room."""
        self.instructions += 1
        if self.instructions > MAX_INSTRUCTIONS:
            words.fail_next(f"too many instructions; write at most {MAX_INSTRUCTIONS}")

    def fail_outside(self, token: Token) -> NoReturn:
        """A line that belongs to no section: a mistyped header word, or an instruction in the wrong place."""
        if token.text in MNEMONICS:
            self.source.fail_at(token, f"{quote(token.text)} is in no section; write instructions below 'main:' or so")
        known = (*CLAUSES, "reach:") if self.draft.sections else (*HEADERS, "main:")
        self.source.fail_at(token, f"unknown {quote(token.text)}; {nearest(token.text, known)}")

    def read_footer(self, words: Words) -> None:
        token = words.take("a clause")
        if not self.draft.sections:
            self.source.fail_at(token, f"'{token.text}' before the program; move the line below the last section")
        if token.text == "reach":
            self.once(token)
            words.sign(":", "'reach:'")
            self.draft.reach = self.read_reach(words, token)
            return
        self.draft.claims.append(Claim(token, self.read_marks(words, token)))

    def read_marks(self, words: Words, clause: Token) -> tuple[Token, ...]:
        """MARK {MARK}, or `nothing`, which is the empty sequence."""
        wanted = f"marks in their order, or '{NOTHING}'"
        marks = [words.word(wanted) if words.peek() != ":" else words.take(wanted)]
        if marks[0].text == ":":
            self.source.fail_at(marks[0], f"unexpected ':'; write '{clause.text} MARK MARK' without it")
        if marks[0].text == NOTHING:
            return ()
        while words.peek():
            marks.append(words.word(wanted))
        return tuple(marks)

    def read_reach(self, words: Words, at: Token) -> Reach:
        """TERM {`and` TERM}."""
        start = words.next
        terms = [self.read_term(words)]
        while words.peek():
            words.sign("and", "'and' between two terms; there is no 'or'")
            terms.append(self.read_term(words))
        text = " ".join(token.text for token in words.tokens[start:])
        return Reach(tuple(terms), text, at.line)

    def read_term(self, words: Words) -> tuple[str, str, int]:
        """FIELD, `not` FIELD, or FIELD COMPARISON NUMBER."""
        if words.peek() == "not":
            words.take("not")
            return words.one_of(VIEW_FIELDS, "field").text, "==", 0
        field = words.one_of(VIEW_FIELDS, "field").text
        if words.peek() not in COMPARISONS:
            return field, "!=", 0
        comparison = words.take("a comparison").text
        return field, comparison, words.number(MAX_NUMBER, "a decimal or 0x number of at most 32 bits")
