"""One VM with one vCPU, made by the steps of the rules: its objects, and what models ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from iretrace.linux.ctree import Pos
from iretrace.linux.debugger import launch_debugged
from iretrace.linux.host import KernelRun
from iretrace.linux.initial import Places, build, member_words
from iretrace.linux.machine import Machine
from iretrace.linux.memory import load, store
from iretrace.linux.models.table import MODELS
from iretrace.linux.rules import Row, load_rules
from iretrace.linux.tree import NothingInScope
from iretrace.linux.types import VOID, Ptr, Type
from iretrace.linux.unmodelled import Unmodelled
from iretrace.verdict import InputError
from iretrace.world.protocol import HOST_DEBUG, NO_HOST_DEBUG, Processor

KINDS = ("sev-es", "sev-es-vnmi", "sev-es-debugswap", "plain", "vnmi")
"""The vCPU kinds that have a first state (rules/initial.toml)."""

LAUNCH = "__sev_launch_update_vmsa"
"""The step by which the state of an encrypted guest becomes its own."""

SVM_SEV_FEAT_SNP_ACTIVE = 1 << 0
"""Of SEV_FEATURES (arch/x86/include/asm/svm.h)."""

KIND_FEATURES = {
    "vnmi": ("X86_FEATURE_VNMI",),
    "sev-es-vnmi": ("X86_FEATURE_VNMI",),
    "sev-es-debugswap": ("X86_FEATURE_DEBUG_SWAP", "X86_FEATURE_NO_NESTED_DATA_BP"),
}
"""What the host CPU has for a kind of vCPU, beside what the rules say (rules/hardware.toml)."""


def lacks(version: str, vcpu: str) -> str:
    """Why KVM of a Linux version has no such kind of vCPU; "" if it has one, as far as the version says it."""
    return next((str(row.keys["refused"]) for row in _initial(version) if row.is_for(vcpu) and row.never), "")


@cache
def _initial(version: str) -> Sequence[Row]:
    """The steps to first states that the shipped rules have."""
    return load_rules(version, (), MODELS, frozenset()).table("initial")


class Vm:
    """A VM with one vCPU of a kind: its objects, and how it gets to its first state. objects: name -> (address, type).

    Memory belongs to runs, so that VMs of several kinds can share a machine.
    """

    def __init__(self, machine: Machine, vcpu: str) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.encrypted = vcpu.startswith("sev-es")
        self.rules = machine.rules
        self.layout = machine.layout
        self.program = machine.program
        self.objects: dict[str, tuple[int, Type]] = {}

    def prepare(self, run: KernelRun) -> KernelRun:
        """Give a run what models ask for."""
        machine = self.machine
        run.features = self._feature
        run.members = machine.member
        run.allocator = self.allocate
        run.lines = lambda site: machine.line(site.pos, site.function)
        run.ghcb = self.address("ghcb")
        run.smram = self.address("smram")
        run.task = self.address("sender_task" if run.cpu else "task")
        return run

    def feature_named(self, name: str) -> bool:
        """Whether the host CPU has a feature: what the kind needs it has, unless the user says otherwise."""
        if name in KIND_FEATURES.get(self.vcpu, ()) and ("feature", name) not in self.rules.constants:
            return True
        return bool(self.rules.feature(name, "host"))

    @property
    def guest_svm(self) -> bool:
        """Whether a guest that is not encrypted has SVM in its CPUID."""
        return self.rules.global_("guest_svm", "") != 0

    @property
    def snp_features(self) -> int:
        """SEV_FEATURES that an encrypted guest has chosen by itself, which makes it an SNP guest; 0 for any other."""
        chosen = self.rules.global_("snp_guest_features", "")
        return chosen if isinstance(chosen, int) and self.encrypted else 0

    def processor(self) -> Processor:
        """The processor that KVM runs on."""
        debug = HOST_DEBUG if self.rules.global_("host_breakpoints", "") else NO_HOST_DEBUG
        debugctl = self.rules.global_("host_debugctl", "")
        assert isinstance(debugctl, int)
        no_nested = self.feature_named("X86_FEATURE_NO_NESTED_DATA_BP")
        return Processor(not no_nested, debug._replace(debugctl=debugctl), self.guest_svm)

    def _feature(self, number: int, who: str) -> bool:
        name = self.machine.feature_name(number)
        if who == "host" and name in KIND_FEATURES.get(self.vcpu, ()):
            return self.feature_named(name)
        if who == "guest" and name == "X86_FEATURE_SVM" and not self.guest_svm:
            return False
        return self.machine.feature(number, who, self.vcpu)

    # Objects and the first state.

    def allocate(self, size: int) -> int:
        """Zeroed memory for the tree's allocations."""
        return self.program.space.allocate("allocated", size, self.vcpu).address

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
        objects = [row for row in self.rules.table("object") if row.is_for(self.vcpu)]
        for row in objects:
            self.rules.row("object", row.name)
            if "at" in row.keys:
                continue
            kind = self.layout.named(str(row.keys["type"])) if "type" in row.keys else VOID
            size = int(row.keys["size"]) if kind is VOID else self.layout.size_of(kind)
            self.objects[row.name] = self.program.space.allocate(row.name, size, self.vcpu).address, kind
        run = self.prepare(KernelRun(self.program))
        places = Places(self.layout, self.root)
        steps = [row for row in self.rules.table("initial") if row.is_for(self.vcpu)]
        for row in steps:
            self.rules.row("initial", row.name)
            self._look_for_needs(row)
        for row in steps:
            control = self.rules.global_("debug_before_launch", "") if row.name == LAUNCH else 0
            if isinstance(control, int) and control:
                launch_debugged(self, run, row, places, control)
            else:
                build(run, [row], self.layout, places)
        if self.snp_features:
            self._make_snp(run, places)
        for row in objects:
            if "at" in row.keys:
                spot = places.find(run, str(row.keys["at"]))
                if spot is None or not isinstance(spot.type, Ptr):
                    raise InputError(f"{row.where}: this tree has no pointer {row.keys['at']}")
                self.objects[row.name] = load(run, spot.address, spot.bit, 64), spot.type.to
        return run, places

    def _make_snp(self, run: KernelRun, places: Places) -> None:
        """sev_snp_guest() says yes from here on, and the guest has registered its GHCB, as SNP guests must."""
        names = ("kvm.sev_info.vmsa_features", "svm.vmcb->control.ghcb_gpa", "svm.sev_es.ghcb_registered_gpa")
        features, ghcb, registered = (places.find(run, name) for name in names)
        if features is None or ghcb is None or registered is None:
            raise NothingInScope("this KVM has no SNP guests")
        known = load(run, features.address, features.bit, features.width)
        store(run, features.address, features.bit, features.width, known | SVM_SEV_FEAT_SNP_ACTIVE)
        announced = load(run, ghcb.address, ghcb.bit, ghcb.width)
        store(run, registered.address, registered.bit, registered.width, announced)

    def _look_for_needs(self, row: Row) -> None:
        """What a step needs of the host CPU and of module parameters; without, KVM has no such vCPU."""
        for needed in row.keys.get("needs", ()):
            is_feature = ("feature", needed) in self.rules.rows
            if not (self.feature_named(needed) if is_feature else self.rules.global_(needed, "")):
                raise NothingInScope(f"{row.keys['refused']}: {needed} is off")

    def words(self, table: str) -> dict[int, int]:
        """Word address -> bits of all that the rows of a table name, as far as this tree has them."""
        found: dict[int, int] = {}
        for row in self.rules.table(table):
            for word, mask in self._words(row):
                found[word] = found.get(word, 0) | mask
        return found

    def _words(self, row: Row) -> list[tuple[int, int]]:
        if "size" in row.keys:
            start = self.address(row.name) + int(row.keys["offset"])
            return [(word, (1 << 64) - 1) for word in range(start, start + int(row.keys["size"]), 8)]
        if row.name.endswith("()"):
            return []
        try:
            return member_words(self.layout, self.objects, row.name)
        except Unmodelled as error:
            if "has no member" not in error.what:
                raise
            return []
