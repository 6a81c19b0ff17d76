"""One tree made executable: its index, types and program, the objects of the first state, and what models ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from iretrace.linux.answers import ConditionId
from iretrace.linux.closure import Closure, Known, vendor_targets
from iretrace.linux.ctree import Pos
from iretrace.linux.layout import Layout
from iretrace.linux.models.table import MODELS
from iretrace.linux.notes import Later, Lowered, Note
from iretrace.linux.options import set_options
from iretrace.linux.program import Program
from iretrace.linux.rules import load_rules, rules_in
from iretrace.linux.sleepers import sleepers
from iretrace.linux.tree import Tree
from iretrace.linux.unmodelled import Unmodelled
from iretrace.linux.used import Definitions, NotingIndex, Used
from iretrace.verdict import CLine

TRACE_HEADERS = ("arch/x86/kvm/trace.h", "arch/x86/kvm/mmu/mmutrace.h", "include/trace/events/kvm.h")
FEATURE_HEADERS = ("arch/x86/include/asm/cpufeatures.h",)

RUN = "kvm_arch_vcpu_ioctl_run"
"""The vCPU thread's function: what KVM_RUN calls."""

ACCEPT = "__apic_accept_irq"
"""A sender's function: how an NMI or IRQ reaches a vCPU inside the kernel (irqfd, MSI, another vCPU's ICR)."""

SET_GUEST_DEBUG = "kvm_arch_vcpu_ioctl_set_guest_debug"
"""What KVM_SET_GUEST_DEBUG calls."""

VCPU_NMI = "kvm_vcpu_ioctl_nmi"
SET_EVENTS = "kvm_vcpu_ioctl_x86_set_vcpu_events"
"""What KVM_NMI and KVM_SET_VCPU_EVENTS call."""

SIGNAL = "signal_wake_up_state"
"""A sender's function: how a signal reaches a thread (kernel/signal.c; a model answers)."""

EXITS = {"sev_handle_vmgexit", "efer_trap", "kvm_emulate_cpuid", "kvm_emulate_halt", "interrupt_window_interception"}
"""Handlers of exits that are not named after them."""

_TRACEPOINT = re.compile(r"^(?:TRACE_EVENT\w*\(|DEFINE_EVENT\w*\(\s*\w+\s*,)\s*(\w+)", re.MULTILINE)
_FEATURE = re.compile(r"^#define\s+(X86_FEATURE_\w+)\s+\(\s*(\d+)\s*\*\s*32\s*\+\s*(\d+)\s*\)", re.MULTILINE)


def tracepoints(tree: Tree) -> frozenset[str]:
    """The tracepoints that a tree declares for KVM."""
    return frozenset(name for path in TRACE_HEADERS for name in _TRACEPOINT.findall(tree.text(path) or ""))


class RestsOn(NamedTuple):
    """What a function rests on: definitions of the tree, and what was noted of rules."""

    definitions: Used
    rows: set[Note]


class Machine:
    """A tree under rules and options, as a program that vCPUs of every kind share (see Vm)."""

    def __init__(
        self,
        tree: Tree,
        rule_files: Sequence[Path] = (),
        options: Mapping[str, int] | None = None,
        negate: ConditionId | None = None,
    ) -> None:
        self.tree = tree
        traced = tracepoints(tree)
        self.rules = load_rules(tree.version, rule_files, MODELS, traced)
        self.notes = self.rules.notes
        set_options(self.rules, options or {})
        with self.notes.collecting() as self.noted:
            self._read(tree, traced, negate)

    def _read(self, tree: Tree, traced: frozenset[str], negate: ConditionId | None) -> None:
        self.index = NotingIndex(self.notes, tree, self.rules.config, self.rules.opaque_macros)
        self.layout = Layout(self.index, self.rules.opaque_structs, self.notes)
        self.program = Program(self.index, self.layout, self.rules, negate)
        self._features = self._feature_names()
        self._offsets: dict[tuple[str, str], Later[int]] = {}
        facts = {"tracepoints": sorted(traced), "features": self._features, "sleepers": self._declare_sleepers()}
        self.definitions = Definitions(self.index, facts)
        self._rests_on: dict[Lowered, RestsOn] = {}

    def _declare_sleepers(self) -> list[tuple[str, str]]:
        rows = [row for table in ("function", "macro") for row in self.rules.table(table)]
        primitives = [row.name for row in rows if row.keys.get("pauses")]
        answered = {row.name: row for row in rows if row.what not in ("source", "intrinsic")}
        targets = vendor_targets(self.index, "svm_x86_ops")
        found = sleepers(self.index, RUN, primitives, answered, targets)
        for name, path in found:
            self.program.declare_pausing(name, path)
        return found

    def rests_on(self, function: Lowered) -> RestsOn:
        """What a function that was executed rests on, one object for each."""
        known = self._rests_on.get(function)
        if known is None:
            notes = self.notes.reached([function])
            known = self._rests_on[function] = RestsOn(self.definitions.used(notes), rules_in(notes))
        return known

    # What models ask for.

    def _feature_names(self) -> dict[int, str]:
        return {
            32 * int(word) + int(bit): name
            for path in FEATURE_HEADERS
            for name, word, bit in reversed(_FEATURE.findall(self.tree.text(path) or ""))
        }

    def feature(self, number: int, who: str, vcpu: str) -> bool:
        """Whether a CPU feature is there. Raises Unmodelled if no rule says it."""
        name = self._features.get(number)
        if name is None:
            raise Unmodelled(f"CPU feature number {number}, which {FEATURE_HEADERS[0]} does not name")
        on = self.rules.feature(name, who, vcpu)
        if on is None:
            row = f'[[feature]]\nname = "{name}"\non = false\nwhy = "..."\n'
            raise Unmodelled(f"whether the {who} has {name} is not known", row=row)
        return on

    def feature_name(self, number: int) -> str:
        """The name of a CPU feature, or ""."""
        return self._features.get(number, "")

    def member(self, struct: str, name: str) -> int:
        """Offset of a struct's member in bytes."""
        found = self._offsets.get((struct, name))
        if found is None:
            find = partial(self._find_offset, struct, name)
            found = self._offsets[struct, name] = self.notes.later(find)
        return found()

    def _find_offset(self, struct: str, name: str) -> int:
        return self.layout.offset(self.layout.named(struct), name)

    def line(self, pos: Pos, function: str = "") -> CLine:
        """A place with its source text."""
        text = self.tree.text(pos.path) or ""
        lines = text.split("\n", pos.line)
        source = lines[pos.line - 1].strip() if 0 < pos.line <= len(lines) else ""
        return CLine(pos.path, pos.line, function, source)

    def target(self, operation: str) -> tuple[str, str]:
        """(function, file) that the vendor's table has for an operation."""
        name = vendor_targets(self.index, "svm_x86_ops").get(operation, "")
        function = self.index.function(name)
        if function is None:
            raise Unmodelled(f"svm_x86_ops of this tree has no {operation}")
        return name, function.pos.path

    def closure(self, known: Known | None = None) -> Closure:
        """Everything that the event path reaches, found without running it. No run used what only this looked at."""
        with self.notes.collecting():
            return self._closure(known)

    def _closure(self, known: Known | None) -> Closure:
        roots = [RUN, ACCEPT, SET_GUEST_DEBUG, VCPU_NMI, SET_EVENTS]
        roots += [row.name for row in self.rules.table("initial") if "call" in row.keys]
        targets = vendor_targets(self.index, "svm_x86_ops")
        roots += sorted(exit_handlers(self.index))
        return Closure(self.index, self.rules, targets, roots, known)


def exit_handlers(index: NotingIndex) -> set[str]:
    """Handlers of the exits that a guest of this slice causes. Only whether they are there is asked."""
    events = ("intr", "nmi", "npf", "shutdown", "iret", "db", "dr", "ud", "stgi", "clgi", "vmrun", "msr")
    wanted = {f"{event}_interception" for event in events} | EXITS
    with index.notes.collecting():
        return {name for name in wanted if index.function(name) is not None}


def dry_run(tree: Tree, rule_files: Sequence[Path] = ()) -> list[str]:
    """The rows for every name that the event path of a tree reaches and that nobody answers, all at once."""
    closure = Machine(tree, rule_files).closure()
    return [missing.row for missing in closure.missing.values()]
