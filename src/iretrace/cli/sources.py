"""Where hypervisors come from: a Linux tree, or the KVM that is built in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from iretrace.cli.stored import digest_of
from iretrace.verdict import InputError
from iretrace.world.protocol import Hypervisor

if TYPE_CHECKING:
    from iretrace.linux.machine import Machine

EVENT_FILES = ("arch/x86/kvm/svm", "arch/x86/kvm/x86.c", "arch/x86/kvm/lapic.c")
"""Trees that differ here have results of their own; one does not replace the other's."""


class AboutPatches(NamedTuple):
    """What is to be said of patches: whether they change anything that is modelled, and sentences, e.g. on what they
    change besides."""

    in_scope: bool
    remarks: tuple[str, ...] = ()


NO_PATCHES = AboutPatches(True)


class Source(Protocol):
    """Hypervisors of one kind of origin."""

    @property
    def name(self) -> str:
        """For progress."""
        ...

    def identity(self) -> Any:
        """What its verdicts depend on, beside what `read_so_far` tells; a JSON value."""
        ...

    def read(self) -> None:
        """Read what every vCPU kind needs; before `open`."""
        ...

    def open(self, vcpu: str) -> Hypervisor:
        """The hypervisor for a vCPU kind. InputError where that cannot be."""
        ...

    def read_so_far(self) -> dict[str, str]:
        """Digests of what was read of a tree, by name."""
        ...

    def still_reads(self, digests: Mapping[str, str]) -> bool:
        """Whether all this would be read again, just so."""
        ...

    def about_patches(self, progress: Callable[[str], None]) -> AboutPatches:
        """What to say of the patches that were given."""
        ...

    def unanswered(self) -> str:
        """The rule rows that are missing for every vCPU kind; empty if none is."""
        ...


class TreeSource:
    """A Linux tree, patched in memory. InputError: it is none, a patch does not apply, a rule file cannot be read."""

    def __init__(
        self,
        path: Path,
        patches: Sequence[tuple[str, str]] = (),
        rules: Sequence[Path] = (),
        options: Mapping[str, str] | None = None,
        progress: Callable[[str], None] = lambda _text: None,
    ) -> None:
        from iretrace.linux.tree import open_tree

        self._patches = patches
        self._rules = rules
        self._options = {name: integer(name, value) for name, value in (options or {}).items()}
        self.tree = open_tree(path, patches, progress)
        self._machine: Machine | None = None

    @property
    def name(self) -> str:
        """For progress."""
        return f"Linux {self.tree.version}"

    def identity(self) -> Any:
        """The version, the text of the event path, patches, rules and options."""
        svm, *files = EVENT_FILES
        texts = {path: self.tree.text(path) for path in (*self.tree.files(svm), *files)}
        rules = [(str(path), path.read_text("utf-8", errors="replace")) for path in self._rules if path.is_file()]
        return ["tree", self.tree.version, digest_of(texts), digest_of([*self._patches]), rules, self._options]

    def read(self) -> None:
        """Index the tree, once."""
        from iretrace.linux.machine import Machine

        if self._machine is None:
            with unreadable_is_input_error():
                self._machine = Machine(self.tree, self._rules, self._options)

    def about_patches(self, progress: Callable[[str], None]) -> AboutPatches:
        """Which hunks had moved, and which are not looked at."""
        from iretrace.linux.scope import Scope, not_looked_at

        progress(f"looking for what the patches change in {self.name}")
        self.read()
        assert self._machine is not None
        with unreadable_is_input_error():
            scope = Scope(self.tree, self._machine.closure())
        record = self.tree.record
        in_scope = any(scope.looks_at(touch) for touch in record.touches)
        return AboutPatches(in_scope, (*record.remarks, *not_looked_at(record.touches, scope)))

    def open(self, vcpu: str) -> Hypervisor:
        """Create a vCPU and run it to its first VMRUN."""
        from iretrace.linux.hypervisor import TreeHypervisor

        with unreadable_is_input_error():
            hypervisor = TreeHypervisor(self.tree, machine=self._machine, vcpu=vcpu)
        self.tree.read_so_far()  # so that those who inherit it need not work it out each
        return hypervisor

    def read_so_far(self) -> dict[str, str]:
        """What the tree has read."""
        return self.tree.read_so_far()

    def still_reads(self, digests: Mapping[str, str]) -> bool:
        """What the tree reads now."""
        return self.tree.still_reads(digests)

    def unanswered(self) -> str:
        """The rows that the event path needs and that neither tree nor rules have; empty if none is missing."""
        from iretrace.linux.hypervisor import dry_run

        with unreadable_is_input_error():
            rows = dry_run(self.tree, self._rules)
        return "".join(f"{row}\n" for row in rows)


class BuiltinSource:
    """A revision of the KVM that is built in; "" is the newest. InputError: there is no such revision."""

    def __init__(self, revision: str = "", options: Mapping[str, str] | None = None) -> None:
        from iretrace.kvm.revisions import NEWEST, find

        self._revision = find(revision or NEWEST)
        self._options = {name: integer(name, value) for name, value in (options or {}).items()}

    @property
    def name(self) -> str:
        """For progress."""
        return f"the built-in KVM {self._revision.name}"

    def identity(self) -> Any:
        """Revision and options; its code is part of Iretrace."""
        return ["built-in", self._revision.name, self._options]

    def read(self) -> None:
        """Nothing: it is Python."""

    def open(self, vcpu: str) -> Hypervisor:
        """Create a vCPU and run it to its first VMRUN."""
        from iretrace.kvm.hypervisor import BuiltinHypervisor

        return BuiltinHypervisor(self._revision, vcpu, self._options)

    def read_so_far(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def still_reads(self, digests: Mapping[str, str]) -> bool:
        """Only nothing is still the same nothing."""
        return not digests

    def about_patches(self, progress: Callable[[str], None]) -> AboutPatches:
        """It cannot be patched."""
        return NO_PATCHES

    def unanswered(self) -> str:
        """None: nothing is left open."""
        return ""


@contextmanager
def unreadable_is_input_error() -> Iterator[None]:
    """C that the reader does not know, in a function that every run needs, is for the user to hear of in one line."""
    from iretrace.linux.cursor import ParseError
    from iretrace.linux.hypervisor import describe
    from iretrace.linux.unmodelled import Unmodelled

    try:
        yield
    except Unmodelled as error:
        raise InputError(describe(error)) from error
    except ParseError as error:
        raise InputError(f"{error}; every run needs this function, and iretrace does not know this C yet") from error


def integer(name: str, value: str) -> int:
    """The value of an option: a number as in C, or y and n as in a kernel configuration."""
    if value in ("y", "n"):
        return int(value == "y")
    try:
        return int(value, 0)
    except ValueError:
        raise InputError(f"--option {name}={value}: write a number, y or n") from None
