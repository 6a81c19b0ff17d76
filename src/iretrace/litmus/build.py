"""The second half of parsing: resolve labels and marks, add what is implied, and refuse programs that make no sense."""

from __future__ import annotations

from typing import NoReturn

from iretrace.litmus.draft import Coming, Draft, Section, Statement
from iretrace.litmus.grammar import (
    BARE,
    CHANGES_RAX,
    DEFAULT_VC,
    DR7,
    DR_ACCESS,
    ENCRYPTED_VCPUS,
    ERROR_CODE_SECTIONS,
    HANDLED_EVENTS,
    HANDLER_OF,
    IN_HOLD,
    MAX_INSTRUCTIONS,
    MSR_ACCESS,
    NEEDS_SVME,
    NOT_ENCRYPTED,
    NOT_IN_IDT,
    NOTHING,
    RAISES_OWN_VC,
    RAISES_VC,
    RETURNS,
    SHARED_STACKS,
    STACKS,
    USES_RAX,
    VMGEXITS,
)
from iretrace.litmus.lex import Source, Token, nearest, quote
from iretrace.litmus.test import VECTORS, Arrival, Clause, Instruction, Op, Test


def build(draft: Draft, source: Source) -> Test:
    """The Test that a draft means. Raises InputError where it means none."""
    return _Builder(draft, source).build()


def is_hold(statement: Statement) -> bool:
    """`vmgexit ap_reset_hold`, which stands for two instructions: the request, and a look at its answer."""
    return statement.text in ("vmgexit ap_reset_hold", "vmgexit ap_reset_hold_msr")


class _Builder:
    """One draft on its way to a Test. starts and labels: instruction indices of sections and labels."""

    def __init__(self, draft: Draft, source: Source) -> None:
        self.draft = draft
        self.source = source
        self.code: list[Instruction] = []
        self.starts: dict[str, int] = {}
        self.labels: dict[str, tuple[int, Token]] = {}
        self.marks: dict[str, int] = {}

    def build(self) -> Test:
        """Check and assemble."""
        draft = self.draft
        self.check_header()
        self.add_default_vc()
        self.check_rax()
        for section in draft.sections.values():
            self.check_section(section)
            self.check_kinds(section)
        self.place()
        for section in draft.sections.values():
            self.emit(section)
        self.check_stacks()
        return Test(
            name=draft.name,
            about=" ".join(draft.about).strip(),
            path=self.source.path,
            vcpus=tuple(token.text for token in draft.vcpus),
            hosts=tuple(token.text for token in draft.hosts) or ("tickless",),
            outside=tuple(self.arrival(coming) for coming in draft.outside),
            code=tuple(self.code),
            main=self.starts["main"],
            handlers=tuple((VECTORS[name], at) for name, at in self.starts.items() if name in VECTORS),
            ist=frozenset(VECTORS[token.text] for token in draft.ist),
            cold=frozenset(token.text for token in draft.cold if token.text not in self.labels),
            interrupts=draft.interrupts,
            marks=tuple(self.marks),
            reach=draft.reach,
            clauses=self.clauses(),
            cpl=draft.cpl,
            syscall=self.starts.get("syscall", -1),
            cold_code=self.cold_code(),
            frame=self.frame(),
            smi=self.starts.get("smi", -1),
            init=self.starts.get("init", -1),
            ap=draft.ap,
        )

    def check_header(self) -> None:
        """Name, vcpu and main must be there."""
        last = self.source.text.count("\n") + 1
        if not self.draft.name:
            self.source.fail(1, 1, "no test in this file; write 'test NAME' first")
        if not self.draft.vcpus:
            self.source.fail(last, 1, "no vcpu line; write 'vcpu sev-es' below the name")
        if "main" not in self.draft.sections:
            self.source.fail(last, 1, "no main; write 'main:' and the program below it")

    def kinds(self, encrypted: bool) -> list[str]:
        """The vCPU kinds of the test whose state is, or is not, encrypted."""
        return [token.text for token in self.draft.vcpus if (token.text in ENCRYPTED_VCPUS) == encrypted]

    def add_default_vc(self) -> None:
        """A test that can raise #VC and does not handle it gets a handler like Linux's."""
        sections = self.draft.sections
        if "vc" in sections or not self.kinds(encrypted=True):
            return
        code = [statement for part in sections.values() for statement in part.code]
        cause = next((s.at for s in code if s.op in RAISES_VC or (s.op in DR_ACCESS and s.arg == DR7)), None)
        steps = sections["db"].at if "db" in sections else None
        cause = cause or steps
        if cause is None:
            return
        section = Section(Token("vc", 0, 0))
        for text in ("vc_db", *DEFAULT_VC) if steps is not None else DEFAULT_VC:
            word, _, operand = text.partition(" ")
            op = BARE.get(word, Op.VMGEXIT)
            section.code.append(Statement(op, Token(word, 0, 0), Token(operand, 0, 0) if operand else None, text))
        sections["vc"] = section
        if sum(len(part.code) for part in sections.values()) > MAX_INSTRUCTIONS:
            what = f"no room for the #VC handler that {quote(cause.text)} needs; write at most {MAX_INSTRUCTIONS}"
            self.source.fail_at(cause, what)

    def check_rax(self) -> None:
        """What CPUID leaves in RAX is the hypervisor's business, so that no test may look at it."""
        code = [statement for part in self.draft.sections.values() for statement in part.code]
        for statement in code:
            if statement.op in CHANGES_RAX and any(other.op in USES_RAX for other in code):
                what = "cpuid in a test that uses RAX or RCX: what it leaves there is no processor's; drop it"
                self.source.fail_at(statement.at, what)
            if statement.op == Op.SYSCALL and any(other.op in MSR_ACCESS for other in code):
                what = "syscall in a test that accesses EFER: both use RCX; write two tests"
                self.source.fail_at(statement.at, what)

    def check_section(self, section: Section) -> None:
        """A section ends where it cannot run on, and holds only what makes sense there."""
        name = section.name
        user = name == "main" and self.draft.cpl != 0
        ends = [*RETURNS.get(name, ("iretq",)), "spin", *(() if user else ("hlt",))]
        choice = " or ".join(part for part in (", ".join(ends[:-1]), ends[-1]) if part)
        if section.dangling:
            token = section.dangling[0]
            self.source.fail_at(token, f"label {quote(token.text)} names no instruction; write one below it")
        if not section.code:
            self.source.fail_at(section.at, f"section '{name}:' is empty; end it with {choice}")
        for statement in section.code:
            self.check_place(name, statement)
        if name == "vc":
            self.check_vc(section)
        if name in ERROR_CODE_SECTIONS:
            self.check_error_code(section)
        last = section.code[-1]
        if last.at.text not in ends:
            self.source.fail_at(last.at, f"the program runs off the end of '{name}:' here; end it with {choice}")

    def check_place(self, name: str, statement: Statement) -> None:
        """Instructions that only make sense in a certain section."""
        at = statement.at
        handler = "ud" if self.is_ud(statement) else HANDLER_OF.get(statement.op, name)
        if self.draft.cpl and statement.op == Op.INT and name == "main":
            handler = "gp"  # its gate is shut to user mode
        if not {handler, "np", "df"} & self.draft.sections.keys():
            what = f"there is no section '{handler}:' to handle this; write one that ends in iretq"
            self.source.fail_at(at, what)
        if statement.op == Op.RSM and name != "smi" and not {"ud", "np", "df"} & self.draft.sections.keys():
            what = "rsm outside of smi: raises #UD and there is no section 'ud:'; write one that ends in iretq"
            self.source.fail_at(at, what)
        if statement.op == Op.IRETQ and name == "main" and self.draft.cpl == 0:
            self.source.fail_at(at, "iretq in main: finds no frame to pop; end main: with spin or hlt")
        if statement.op == Op.IRETQ and name in NOT_IN_IDT:
            end = "rsm" if name == "smi" else "spin or hlt"
            self.source.fail_at(at, f"iretq in {name}: finds no frame to pop; end {name}: with {end}")
        if statement.op == Op.IRETQ and name == "df":
            self.source.fail_at(at, "iretq in df: returns nowhere, #DF is an abort; end df: with spin or hlt")
        if statement.op == Op.SYSCALL and "syscall" not in self.draft.sections:
            self.source.fail_at(at, "there is no section 'syscall:' to go to; write one that ends in sysretq")
        if statement.op == Op.SYSRET and name != "syscall":
            self.source.fail_at(at, "sysretq makes sense in syscall: only; write iretq to return from an event")
        if statement.op == Op.IRETQ and name == "syscall":
            self.source.fail_at(at, "iretq in syscall: finds no frame to pop; write sysretq")
        if statement.op == Op.LOAD_BAD:
            self.check_bad_load(statement)
        if name == "vc":
            return
        if statement.op == Op.VC_DB:
            self.source.fail_at(at, "vc_db makes sense in vc: only; #DB itself goes to db: anyway")
        if statement.op == Op.SKIP:
            self.source.fail_at(at, "skip makes sense in vc: only; write nop for an instruction that does nothing")
        if statement.text == "vmgexit forward":
            self.source.fail_at(at, "vmgexit forward makes sense in vc: only; write the event, such as vmgexit cpuid")

    def is_ud(self, statement: Statement) -> bool:
        """CLGI, STGI or VMRUN of a guest that never writes EFER, nor gets #VC for it."""
        code = [other for part in self.draft.sections.values() for other in part.code]
        writes = any(other.op == Op.WRMSR for other in code)
        return statement.op in NEEDS_SVME and not writes and bool(self.kinds(encrypted=False))

    def check_bad_load(self, statement: Statement) -> None:
        """#PF or #GP needs a handler, or one for what its absence makes of it."""
        handler = ("pf", "gp")[statement.arg]
        if not {handler, "np", "df"} & self.draft.sections.keys():
            what = f"there is no section '{handler}:' to handle this; write one that ends in iretq"
            self.source.fail_at(statement.at, what)

    def check_kinds(self, section: Section) -> None:
        """Only encrypted guests have #VC and a GHCB, which has no event for CLGI, STGI and VMRUN."""
        encrypted, others = self.kinds(encrypted=True), self.kinds(encrypted=False)
        if section.name == "vc" and not encrypted:
            self.source.fail_at(section.at, f"'{others[0]}' guests get no #VC; drop 'vc:', or write 'vcpu sev-es'")
        for statement in section.code:
            at = statement.at
            if is_hold(statement) and not self.draft.ap:
                self.source.fail_at(at, "ap_reset_hold is for an application processor; write 'processor ap'")
            if statement.op == Op.VMGEXIT and others and section.name != "vc":
                what = f"vmgexit is for encrypted guests; write another test for '{others[0]}' without it"
                self.source.fail_at(at, what)
            if statement.op in NOT_ENCRYPTED and encrypted:
                what = f"{at.text} in an encrypted guest is not supported yet; drop '{encrypted[0]}' from vcpu"
                self.source.fail_at(at, what)
            if statement.op in RAISES_OWN_VC and encrypted and "vc" not in self.draft.sections:
                self.source.fail_at(at, f"{at.text} of an encrypted guest raises #VC; write 'vc:' that deals with it")

    def check_error_code(self, section: Section) -> None:
        """#GP and #PF push an error code, which iretq must not find."""
        for statement in section.code:
            if statement.op == Op.ADD_RSP:
                return
            if statement.op == Op.IRETQ:
                what = "iretq before add finds the error code on the stack; write 'add rsp, 8' above it"
                self.source.fail_at(statement.at, what)

    def check_vc(self, section: Section) -> None:
        """`skip` drops the error code of #VC: forward needs it before, iretq must not find it."""
        skipped = False
        for statement in section.code:
            at = statement.at
            if statement.op == Op.SKIP:
                if skipped:
                    self.source.fail_at(at, "second skip; write one, it steps over the instruction that raised #VC")
                skipped = True
            elif statement.op == Op.IRETQ and not skipped:
                self.source.fail_at(at, "iretq before skip finds the error code on the stack; write skip above it")
            elif statement.text == "vmgexit forward" and skipped:
                self.source.fail_at(at, "vmgexit forward after skip: the error code is gone; write it above skip")

    def place(self) -> None:
        """Give every section and label its instruction index."""
        index = 0
        for section in self.draft.sections.values():
            self.starts[section.name] = index
            for statement in section.code:
                for label in statement.labels:
                    self.define(label, index)
                index += 1 + is_hold(statement)
            if section.code[-1].op == Op.HLT:
                index += 1
        if index > MAX_INSTRUCTIONS:
            at = self.draft.sections["main"].at
            what = f"too many instructions with those implied by a last hlt; write at most {MAX_INSTRUCTIONS} in all"
            self.source.fail_at(at, what)

    def define(self, label: Token, index: int) -> None:
        """A label is defined once in a file."""
        if label.text in self.labels:
            first = self.labels[label.text][1].line
            self.source.fail_at(label, f"label {quote(label.text)} is defined in line {first} already; choose another")
        self.labels[label.text] = (index, label)

    def resolve(self, label: Token) -> int:
        """The instruction index of a label that is used."""
        if label.text not in self.labels:
            advice = nearest(label.text, self.labels, f"write '{label.text[:40]}:' in front of an instruction")
            self.source.fail_at(label, f"label {quote(label.text)} is not defined; {advice}")
        return self.labels[label.text][0]

    def emit(self, section: Section) -> None:
        """Append a section's instructions. A last hlt halts again whenever it is woken, as an idle loop does."""
        holds = sum(is_hold(statement) for statement in section.code)
        end = self.starts[section.name] + len(section.code) + holds
        for statement in section.code:
            label = statement.labels[0].text if statement.labels else ""
            arg = self.argument(statement, end)
            self.code.append(Instruction(statement.op, arg, statement.text, statement.at.line, label))
            if is_hold(statement):
                text = "ap_reset_hold: back to vmgexit if it was no SIPI"
                self.code.append(Instruction(Op.LOOK_AT_HOLD, arg, text, statement.at.line))
        if section.code[-1].op == Op.HLT:
            line = section.code[-1].at.line
            self.code.append(Instruction(Op.JMP, end - 1, "jmp back to hlt", line))

    def argument(self, statement: Statement, end: int) -> int:
        """Instruction.arg of a statement in a section that ends before index `end`."""
        operand = statement.operand
        if operand is None:
            return statement.arg
        if statement.op == Op.MARK:
            return self.marks.setdefault(operand.text, len(self.marks))
        if statement.op == Op.VMGEXIT:
            return VMGEXITS[operand.text]
        target = self.resolve(operand)
        if statement.op == Op.MOV_STACK:
            return statement.arg | target
        if statement.op == Op.MOV_RAX:
            return target
        if target <= len(self.code):
            self.source.fail_at(operand, "jmp goes forward only; write spin to wait for ever, it is the only loop")
        if target >= end:
            self.source.fail_at(operand, f"label {quote(operand.text)} is in another section; jump within one")
        return target

    def check_stacks(self) -> None:
        """`ist` names handlers of the test, `cold` names stacks that it has."""
        own = {token.text for token in self.draft.ist}
        for token in self.draft.ist:
            if token.text not in self.starts:
                self.source.fail_at(token, f"there is no section '{token.text}:'; write it, or drop it from ist")
        for token in self.draft.cold:
            if token.text not in (*SHARED_STACKS, *STACKS, *self.labels):
                known = (*SHARED_STACKS, *STACKS, *self.labels)
                self.source.fail_at(token, f"unknown stack or label {quote(token.text)}; {nearest(token.text, known)}")
            if token.text in STACKS and token.text not in own:
                what = f"handler '{token.text}' has no stack of its own; write 'ist {token.text}', or 'cold main'"
                self.source.fail_at(token, what)
        if self.draft.frame and self.draft.frame[0].text in set(STACKS) - own:
            stack = self.draft.frame[0]
            what = f"handler '{stack.text}' has no stack of its own; write 'ist {stack.text}'"
            self.source.fail_at(stack, what)

    def frame(self) -> tuple[str, int] | None:
        """The stack that `frame` names, and the instruction to which its frame returns."""
        return (self.draft.frame[0].text, self.resolve(self.draft.frame[1])) if self.draft.frame else None

    def cold_code(self) -> int:
        """The instruction of the label that `cold` names, or -1."""
        found = [token for token in self.draft.cold if token.text in self.labels]
        if len(found) > 1:
            self.source.fail_at(found[1], f"second instruction, the first is {quote(found[0].text)}; write one")
        return self.resolve(found[0]) if found else -1

    def arrival(self, coming: Coming) -> Arrival:
        """An arrival with its label resolved. An event for the guest needs a handler, or df:."""
        event = coming.event
        handler = HANDLED_EVENTS.get(event.text)
        if handler and not {handler, "np", "df"} & self.starts.keys():
            what = f"there is no section '{handler}:' to handle it; write one that ends in iretq"
            self.source.fail_at(event, what)
        if event.text in NOT_IN_IDT:
            self.check_not_in_idt(event)
        at = self.resolve(coming.label) if coming.label is not None and not coming.within else -1
        within = self.hold(coming.label) if coming.label is not None and coming.within else -1
        self.check_hold(event, within)
        target = self.resolve(coming.target) if coming.target is not None else -1
        action = coming.action.text if coming.action else ""
        return Arrival(event.text, coming.promised, at, event.line, action, target, within)

    def hold(self, label: Token) -> int:
        """Where the guest looks at the hold that a label names, when it ends."""
        at = self.resolve(label)
        if at + 1 >= len(self.code) or self.code[at + 1].op != Op.LOOK_AT_HOLD:
            what = f"label {quote(label.text)} names no 'vmgexit ap_reset_hold'; write 'at' for 'in'"
            self.source.fail_at(label, what)
        return at + 1

    def check_hold(self, event: Token, within: int) -> None:
        """What the GHCB protocol says of INIT and SIPI it says of a guest that is held."""
        encrypted = self.kinds(encrypted=True)
        if within >= 0 and event.text not in (*IN_HOLD, "nmi"):
            self.source.fail_at(event, f"{event.text} in a hold is not supported yet; write init, sipi or nmi")
        if encrypted and event.text in IN_HOLD and within < 0:
            what = f"{event.text} to an encrypted guest belongs in a hold"
            self.source.fail_at(event, f"{what}; write 'in LABEL: {event.text}', or drop '{encrypted[0]}' from vcpu")

    def check_not_in_idt(self, event: Token) -> None:
        """An SMI or an INIT needs its section, and a guest that KVM has them for and that this model has. An encrypted
        guest has no SMM: an SMI that is sent to it must do nothing."""
        encrypted = self.kinds(encrypted=True)
        if event.text == "init" and encrypted and not self.kinds(encrypted=False):
            return
        if event.text == "smi" and encrypted and not self.kinds(encrypted=False) and "smi" not in self.starts:
            return
        if event.text not in self.starts:
            end = "rsm" if event.text == "smi" else "spin"
            what = f"there is no section '{event.text}:' for it; write one that ends in {end}"
            self.source.fail_at(event, what)
        if encrypted:
            what = f"{event.text} to an encrypted guest does not go there; drop '{encrypted[0]}' from vcpu"
            what = what if event.text == "init" else f"an encrypted guest has no SMM; drop '{encrypted[0]}' from vcpu"
            self.source.fail_at(event, what)

    def visible_marks(self) -> list[str]:
        """The marks that clauses can speak of: those made outside vc:, in the order of the file."""
        found: dict[str, None] = {}
        for section in self.draft.sections.values():
            for statement in section.code:
                if statement.op == Op.MARK and statement.operand is not None and section.name != "vc":
                    found[statement.operand.text] = None
        return list(found)

    def clauses(self) -> tuple[Clause, ...]:
        """The clauses, each of whose marks some instruction makes."""
        visible = self.visible_marks()
        for claim in self.draft.claims:
            for token in claim.marks:
                if token.text not in visible:
                    self.fail_mark(token, visible)
        return tuple(
            Clause(claim.quantifier.text, tuple(token.text for token in claim.marks), claim.quantifier.line)
            for claim in self.draft.claims
        )

    def fail_mark(self, token: Token, visible: list[str]) -> NoReturn:
        """A clause names a mark that never shows."""
        if token.text == NOTHING:
            self.source.fail_at(token, f"'{NOTHING}' stands alone in a clause; write marks or '{NOTHING}'")
        if token.text in self.marks:
            what = f"mark {quote(token.text)} is made in vc: only, which no clause sees; write another mark"
            self.source.fail_at(token, what)
        advice = nearest(token.text, visible, f"write 'mark {token.text[:40]}' where it happens")
        self.source.fail_at(token, f"no instruction marks {quote(token.text)}; {advice}")
