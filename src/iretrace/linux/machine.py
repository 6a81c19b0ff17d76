"""One tree made executable: its index, types and program, the objects of the first state, and what models ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from iretrace.linux.answers import ConditionId
from iretrace.linux.closure import Closure, vendor_targets
from iretrace.linux.ctree import Pos
from iretrace.linux.host import KernelRun
from iretrace.linux.index import Index
from iretrace.linux.initial import Places, build, member_words
from iretrace.linux.layout import Layout
from iretrace.linux.memory import load
from iretrace.linux.prims import MODELS
from iretrace.linux.program import Program
from iretrace.linux.rules import Rules, load_rules
from iretrace.linux.sleepers import sleepers
from iretrace.linux.tree import Tree
from iretrace.linux.types import VOID, Ptr, Type
from iretrace.linux.unmodelled import Unmodelled
from iretrace.verdict import CLine, InputError

TRACE_HEADERS = ("arch/x86/kvm/trace.h", "arch/x86/kvm/mmu/mmutrace.h", "include/trace/events/kvm.h")
FEATURE_HEADERS = ("arch/x86/include/asm/cpufeatures.h",)

RUN = "kvm_arch_vcpu_ioctl_run"
"""The vCPU thread's function: what KVM_RUN calls."""

ACCEPT = "__apic_accept_irq"
"""A sender's function: how an NMI reaches a vCPU inside the kernel (irqfd, MSI, another vCPU's ICR)."""

_TRACEPOINT = re.compile(r"^(?:TRACE_EVENT\w*\(|DEFINE_EVENT\w*\(\s*\w+\s*,)\s*(\w+)", re.MULTILINE)
_FEATURE = re.compile(r"^#define\s+(X86_FEATURE_\w+)\s+\(\s*(\d+)\s*\*\s*32\s*\+\s*(\d+)\s*\)", re.MULTILINE)


def tracepoints(tree: Tree) -> frozenset[str]:
    """The tracepoints that a tree declares for KVM."""
    return frozenset(name for path in TRACE_HEADERS for name in _TRACEPOINT.findall(tree.text(path) or ""))


class Machine:
    """A tree under rules and options. objects: name -> (address, type)."""

    def __init__(
        self, tree: Tree, rule_files: Sequence[Path], options: Mapping[str, int], negate: ConditionId | None
    ) -> None:
        self.tree = tree
        self.rules = load_rules(tree.version, rule_files, MODELS, tracepoints(tree))
        set_options(self.rules, options)
        self.index = Index(tree, self.rules.config, self.rules.opaque_macros)
        self.layout = Layout(self.index, self.rules.opaque_structs)
        self.program = Program(self.index, self.layout, self.rules, negate)
        self.objects: dict[str, tuple[int, Type]] = {}
        self._features = self._feature_names()
        self._offsets: dict[tuple[str, str], int] = {}
        self._declare_sleepers()

    def _declare_sleepers(self) -> None:
        rows = [row for table in ("function", "macro") for row in self.rules.table(table)]
        primitives = [row.name for row in rows if row.keys.get("pauses")]
        answered = {row.name: row for row in rows if row.what not in ("source", "intrinsic")}
        targets = vendor_targets(self.index, "svm_x86_ops")
        for name, path in sleepers(self.index, RUN, primitives, answered, targets):
            self.program.declare_pausing(name, path)

    # What models ask for.

    def _feature_names(self) -> dict[int, str]:
        return {
            32 * int(word) + int(bit): name
            for path in FEATURE_HEADERS
            for name, word, bit in reversed(_FEATURE.findall(self.tree.text(path) or ""))
        }

    def feature(self, number: int, who: str) -> bool:
        """Whether a CPU feature is there. Raises Unmodelled if no rule says it."""
        name = self._features.get(number)
        if name is None:
            raise Unmodelled(f"CPU feature number {number}, which {FEATURE_HEADERS[0]} does not name")
        on = self.rules.feature(name, who)
        if on is None:
            row = f'[[feature]]\nname = "{name}"\non = false\nwhy = "..."\n'
            raise Unmodelled(f"whether the {who} has {name} is not known", row=row)
        return on

    def member(self, struct: str, name: str) -> int:
        """Offset of a struct's member in bytes."""
        key = struct, name
        if key not in self._offsets:
            self._offsets[key] = self.layout.offset(self.layout.named(struct), name)
        return self._offsets[key]

    def line(self, pos: Pos, function: str = "") -> CLine:
        """A place with its source text."""
        text = self.tree.text(pos.path) or ""
        lines = text.split("\n", pos.line)
        source = lines[pos.line - 1].strip() if 0 < pos.line <= len(lines) else ""
        return CLine(pos.path, pos.line, function, source)

    def prepare(self, run: KernelRun) -> KernelRun:
        """Give a run what models ask for."""
        run.features = self.feature
        run.members = self.member
        run.allocator = self.allocate
        run.lines = lambda site: self.line(site.pos, site.function)
        run.ghcb = self.address("ghcb")
        run.task = self.address("sender_task" if run.cpu else "task")
        return run

    # Objects and the first state.

    def allocate(self, size: int) -> int:
        """Zeroed memory for the tree's allocations."""
        return self.program.space.allocate("allocated", size, 4096 if size >= 4096 else 64).address

    def address(self, name: str) -> int:
        """The address of an object of the first state."""
        return self.objects[name][0]

    def root(self, name: str) -> tuple[int, Type] | None:
        """An object, or a global with storage."""
        if name in self.objects:
            return self.objects[name]
        if self.rules.global_(name, "") is None:
            return None
        variable = self.program.identifier(name, Pos("", 0), False)
        return None if variable.address is None else (variable.address, variable.type)

    def first_state(self) -> tuple[KernelRun, Places]:
        """Make the objects and take the steps of the rules; the run whose memory is the first state."""
        for row in self.rules.table("object"):
            self.rules.row("object", row.name)
            if "at" in row.keys:
                continue
            kind = self.layout.named(str(row.keys["type"])) if "type" in row.keys else VOID
            size = int(row.keys["size"]) if kind is VOID else self.layout.size_of(kind)
            self.objects[row.name] = self.program.space.allocate(row.name, size, 4096).address, kind
        run = self.prepare(KernelRun(self.program))
        places = Places(self.layout, self.root)
        build(run, self.rules, self.layout, places)
        for row in self.rules.table("object"):
            if "at" in row.keys:
                spot = places.find(run, str(row.keys["at"]))
                if spot is None or not isinstance(spot.type, Ptr):
                    raise InputError(f"{row.where}: this tree has no pointer {row.keys['at']}")
                self.objects[row.name] = load(run, spot.address, spot.bit, 64), spot.type.to
        return run, places

    def words(self, table: str) -> dict[int, int]:
        """Word address -> bits of all members that the rows of a table name, as far as this tree has them."""
        found: dict[int, int] = {}
        for row in self.rules.table(table):
            try:
                places = member_words(self.layout, self.objects, row.name)
            except Unmodelled as error:
                if "has no member" not in error.what:
                    raise
                continue
            for word, mask in places:
                found[word] = found.get(word, 0) | mask
        return found

    def target(self, operation: str) -> tuple[str, str]:
        """(function, file) that the vendor's table has for an operation."""
        name = vendor_targets(self.index, "svm_x86_ops").get(operation, "")
        function = self.index.function(name)
        if function is None:
            raise Unmodelled(f"svm_x86_ops of this tree has no {operation}")
        return name, function.pos.path

    def closure(self) -> Closure:
        """Everything that the event path reaches, found without running it."""
        roots = [RUN, ACCEPT]
        roots += [row.name for row in self.rules.table("initial") if "call" in row.keys]
        targets = vendor_targets(self.index, "svm_x86_ops")
        roots += sorted(exit_handlers(self.index))
        return Closure(self.index, self.rules, targets, roots)


def exit_handlers(index: Index) -> set[str]:
    """Handlers of the exits that an SEV-ES guest of this slice causes."""
    wanted = {"intr_interception", "nmi_interception", "npf_interception", "iret_interception", "shutdown_interception"}
    return {name for name in wanted | {"sev_handle_vmgexit"} if index.function(name) is not None}


def set_options(rules: Rules, options: Mapping[str, int]) -> None:
    """Apply `--option NAME=VALUE`. InputError for a name that is no option."""
    for name, value in options.items():
        feature = rules.rows.get(("feature", name))
        variable = rules.rows.get(("global", name))
        if feature is not None:
            rules.constants["feature", name] = value
        elif variable is not None and variable.keys.get("option"):
            rules.constants["global", name] = value
        else:
            known = sorted(row.name for row in rules.table("global") if row.keys.get("option"))
            raise InputError(f"--option {name}: no such option; known are {', '.join(known)}, X86_FEATURE_*")
