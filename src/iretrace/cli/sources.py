"""Where hypervisors come from: a Linux tree, or the KVM that is built in."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from iretrace.cli.moved import Moves
from iretrace.cli.stored import NOT_OURS, Patches, Stored, Used, key
from iretrace.report.summary import WITH_PATCHES
from iretrace.verdict import InputError
from iretrace.world.protocol import Hypervisor

if TYPE_CHECKING:
    from iretrace.linux.bodies import Bodies
    from iretrace.linux.closure import Closure, Known
    from iretrace.linux.hypervisor import TreeHypervisor
    from iretrace.linux.lowerings import Lowerings
    from iretrace.linux.machine import Machine
    from iretrace.linux.tree import Tree


class AboutPatches(NamedTuple):
    """What is to be said of patches: whether they change anything that is modelled, sentences, e.g. on what they change
    besides, how many hunks they have, and the rule rows for what they use and nothing answers."""

    in_scope: bool
    remarks: tuple[str, ...] = ()
    hunks: int = 0
    rows: tuple[str, ...] = ()


class Recalled(NamedTuple):
    """What was told of a verdict that stands. moves: where the lines are now that it may name. as_shown: what its trace
    shows has not changed; if it has, the trace is to be told again."""

    told: str
    moves: Moves
    as_shown: bool = True


class Source(Protocol):
    """Hypervisors of one kind of origin."""

    @property
    def name(self) -> str:
        """For progress."""
        ...

    def identity(self) -> Any:
        """What its verdicts depend on, beside what `read_so_far` tells; a JSON value."""
        ...

    def command(self) -> list[str]:
        """The words of a command line that checks it."""
        ...

    @property
    def patches(self) -> Patches:
        """What was given to it with --patch; () to most."""
        ...

    def read(self) -> None:
        """Read what every vCPU kind needs; before `open`."""
        ...

    def lacks(self, vcpu: str) -> str:
        """Why there is no such vCPU kind here, in a sentence; "" if there is."""
        ...

    def open(self, vcpu: str) -> Hypervisor:
        """The hypervisor for a vCPU kind. InputError where that cannot be."""
        ...

    def lowered(self) -> bytes:
        """What functions of C have been lowered to here since `take_lowered`, for that of another one; empty if that is
        not kept."""
        ...

    def take_lowered(self, texts: Sequence[bytes]) -> None:
        """Take over what functions were lowered to, as far as it holds here, instead of what was taken before. After
        `read`, before `open`."""
        ...

    def steps_of(self, hypervisor: Hypervisor) -> bytes:
        """What the host steps of a hypervisor from here have come to, for `take_steps`; empty if that is not kept."""
        ...

    def take_steps(self, hypervisor: Hypervisor, text: bytes) -> None:
        """Let a hypervisor from here take over what such steps came to, as far as it holds for it."""
        ...

    def remember(self, hypervisor: Hypervisor, name: str, told: str) -> None:
        """Let `steps_of` tell of a verdict. All that it rests on: what a hypervisor from here was asked since its last
        new_ledger()."""
        ...

    def recall(self, hypervisor: Hypervisor, name: str) -> Recalled | None:
        """What was told of a verdict, if all that it rests on comes to the same for a hypervisor from here. The ledger
        is of that then."""
        ...

    def read_so_far(self) -> dict[str, str]:
        """Digests of what was read of a tree, by name."""
        ...

    def still_reads(self, digests: Mapping[str, str]) -> bool:
        """Whether all this would be read again, just so."""
        ...

    def used_by(self, hypervisor: Hypervisor) -> Sequence[Used]:
        """The definitions that a hypervisor from here has used since its last new_ledger(): in parts, which may have
        some in common; what others have used too may be in a part that is one object with theirs."""
        ...

    def read_before(self, digests: Mapping[str, str]) -> bool:
        """Whether what it was made of by patches would read all this just so."""
        ...

    def still_uses(self, used: Used, before: bool = False) -> Moves | None:
        """Where these definitions stand; None if one of them has changed. After `read`. before: they are so in what it
        was made of by patches."""
        ...

    def look_ahead(self, stored: Stored) -> None:
        """Keep what will be asked when there are patches for it. After `read`."""

    def unanswered(self) -> str:
        """The rule rows that are missing for every vCPU kind; empty if none is."""
        ...


class Patchable(Source, Protocol):
    """A source of which patches make others."""

    @property
    def result_name(self) -> str:
        """As results call it."""
        ...

    def patched(self, patches: Sequence[tuple[str, str]]) -> Patchable:
        """The same with patches (name, text). InputError: one does not apply."""
        ...

    def about_patches(
        self, progress: Callable[[str], None], since: int = 0, stored: Stored | None = None
    ) -> AboutPatches:
        """What to say of its patches; the first `since` hunks are left out. stored: where what is known of the tree
        without patches is."""
        ...

    def is_quick(self, stored: Stored | None) -> bool:
        """Whether `about_patches` takes no time. After `read`."""
        ...


class TreeSource:
    """A Linux tree, patched in memory. unpatched: the same without patches, if that is there already.
    rev: the revision, if it is a git repository.

    InputError: it is none, a patch does not apply, a rule file cannot be read."""

    def __init__(
        self,
        path: Path,
        patches: Sequence[tuple[str, str]] = (),
        rules: Sequence[Path] = (),
        options: Mapping[str, str] | None = None,
        progress: Callable[[str], None] = lambda _text: None,
        unpatched: TreeSource | None = None,
        rev: str = "",
    ) -> None:
        from iretrace.linux.revision import commit_of, open_revision
        from iretrace.linux.tree import open_tree, with_patches

        self._path = path
        self._rev = rev
        self.patches = patches
        self._unpatched = unpatched
        self._rules = rules
        self._options = {name: integer(name, value) for name, value in (options or {}).items()}
        if unpatched is not None:
            self.tree: Tree = unpatched.tree
        else:
            directory = open_revision(path, rev, progress) if rev else path
            self._rev = commit_of(directory) if rev else ""
            self.tree = open_tree(directory, (), progress)
        if patches:
            self.tree = with_patches(self.tree, patches, path)
        self._machine: Machine | None = None
        self._known: Known | None = None
        self._lowerings: Lowerings | None = None

    def patched(self, patches: Sequence[tuple[str, str]]) -> TreeSource:
        """The same tree with patches (name, text). InputError: one does not apply."""
        made = TreeSource(self._path, patches, self._rules, None, unpatched=self, rev=self._rev)
        made._options = self._options
        return made

    @property
    def name(self) -> str:
        """For progress."""
        return f"Linux {self.tree.version}{WITH_PATCHES if self.tree.patched else ''}"

    @property
    def result_name(self) -> str:
        """As results call it."""
        return f"Linux {self.tree.version}"

    def identity(self) -> Any:
        """The version, rules and options."""
        rules = [(str(path), path.read_text("utf-8", errors="replace")) for path in self._rules if path.is_file()]
        return ["tree", self.tree.version, rules, self._options]

    def command(self) -> list[str]:
        """Tree, revision (as a commit: a branch moves), patches (each file once, by its name), rules and options."""
        files = dict.fromkeys(_absolute(name.partition(": ")[0]) for name, _ in self.patches)
        words = ["iretrace", "check", str(self._path.absolute()), *(["--rev", self._rev] if self._rev else [])]
        for switch, values in (("--patch", files), ("--rules", [path.absolute() for path in self._rules])):
            words += [word for value in values for word in (switch, str(value))]
        return words + [word for name, value in self._options.items() for word in ("--option", f"{name}={value}")]

    def read(self) -> None:
        """Index the tree, once."""
        from iretrace.linux.machine import Machine

        if self._machine is None:
            with unreadable_is_input_error():
                self._machine = Machine(self.tree, self._rules, self._options)

    def about_patches(
        self, progress: Callable[[str], None], since: int = 0, stored: Stored | None = None
    ) -> AboutPatches:
        """Which hunks had moved, and which are not looked at. since: hunks of earlier patches, left out."""
        from iretrace.linux.scope import Scope, not_looked_at

        progress(f"looking for what the patches change in {self.name}")
        self.read()
        with unreadable_is_input_error():
            closure = self._closure(stored)
            scope = Scope(self.tree, closure)
        record = self.tree.record
        touches = record.touches[since:]
        in_scope = any(scope.looks_at(touch) for touch in touches)
        rows = {name: missing.row for name, missing in closure.missing.items()}
        if rows and self._unpatched is not None:
            rows = {name: row for name, row in rows.items() if name not in self._unpatched.missing()}
        remarks = [*record.remarks, *not_looked_at(touches, scope)]
        if rows:
            remarks.append(
                f"nothing answers for {', '.join(rows)}, which the patches use: give the patch that defines what is"
                " missing, or rule rows (--rules FILE; --dry prints them)"
            )
        return AboutPatches(in_scope, tuple(remarks), len(record.touches), tuple(rows.values()))

    def is_quick(self, stored: Stored | None) -> bool:
        """Whether what the event path reaches is known, but for what the patches change."""
        return stored is not None and self._kept_closure(stored) is not None

    def _closure(self, stored: Stored | None) -> Closure:
        """Where a tree without patches is known, only what these change is looked up, if they change functions only."""
        from iretrace.linux.bodies import left_alone

        assert self._machine is not None
        if stored is None or self._bodies is None:
            return self._machine.closure()
        kept = self._kept_closure(stored)
        if kept is None:
            closure = self._machine.closure()
            if not closure.missing:
                stored.remember(self._closure_name, left_alone(closure.known(), self._bodies))
            return closure
        closure = self._machine.closure(left_alone(kept, self._bodies))
        return self._machine.closure() if closure.missing else closure

    def _kept_closure(self, stored: Stored) -> Known | None:
        from iretrace.linux.closure import Known

        if self._known is None and self._bodies is not None:
            self._known = stored.recall(Known, self._closure_name)
        return self._known

    @cached_property
    def _closure_name(self) -> str:
        assert self._machine is not None
        before = self.tree.unpatched or self.tree
        return key("closure", self.identity(), [(path, before.digest(path)) for path in self._machine.index.paths])

    def missing(self) -> Collection[str]:
        """The names that the event path may need and that nothing answers."""
        self.read()
        assert self._machine is not None
        with unreadable_is_input_error():
            return self._machine.closure().missing

    def lacks(self, vcpu: str) -> str:
        """Asked of the rules."""
        from iretrace.linux.vm import lacks

        return lacks(self.tree.version, vcpu)

    def open(self, vcpu: str) -> Hypervisor:
        """Create a vCPU and run it to its first VMRUN."""
        from iretrace.linux.hypervisor import TreeHypervisor

        with unreadable_is_input_error():
            return TreeHypervisor(self.tree, machine=self._machine, vcpu=vcpu)

    def lowered(self) -> bytes:
        """Of a tree without patches, as steps_of()."""
        return b"" if self._lowerings is None else self._lowerings.text(self.tree.read_so_far())

    def take_lowered(self, texts: Sequence[bytes]) -> None:
        """See linux.lowerings."""
        from iretrace.linux.lowerings import KeptLowerings, Lowerings

        assert self._machine is not None, "nothing was read"
        if not self.patches and self._lowerings is None:
            self._lowerings = Lowerings(self._machine)
        self._machine.program.kept.clear()
        for text in texts:
            with suppress(*NOT_OURS):
                self._machine.program.kept.append(KeptLowerings(text, self._machine, self._bodies_since))

    def steps_of(self, hypervisor: Hypervisor) -> bytes:
        """Those of a tree without patches: of one with patches there is no more than one run."""
        return b"" if self.patches else _of_tree(hypervisor).told_steps(self.tree.read_so_far())

    def take_steps(self, hypervisor: Hypervisor, text: bytes) -> None:
        """See linux.kept."""
        with suppress(*NOT_OURS):
            _of_tree(hypervisor).take_steps(text, self._bodies_since)

    def remember(self, hypervisor: Hypervisor, name: str, told: str) -> None:
        """See linux.kept."""
        _of_tree(hypervisor).remember(name, told)

    def recall(self, hypervisor: Hypervisor, name: str) -> Recalled | None:
        """See linux.kept."""
        found = _of_tree(hypervisor).recall(name)
        return None if found is None else Recalled(str(found.told), found.moves, found.as_shown)

    def _bodies_since(self, digests: Mapping[str, str]) -> Bodies | None:
        """The functions that have changed since all this was read; None: perhaps more has."""
        from iretrace.linux.bodies import Bodies

        if self.still_reads(digests):
            return Bodies(frozenset(), frozenset())
        return self._bodies if self.read_before(digests) else None

    def read_so_far(self) -> dict[str, str]:
        """What the tree has read."""
        return self.tree.read_so_far()

    def still_reads(self, digests: Mapping[str, str]) -> bool:
        """What the tree reads now."""
        return self.tree.still_reads(digests)

    def used_by(self, hypervisor: Hypervisor) -> Sequence[Used]:
        """What was looked up in the index."""
        return [part for part in _of_tree(hypervisor).definitions() if part]

    def read_before(self, digests: Mapping[str, str]) -> bool:
        """What the tree without patches reads now."""
        return self._unpatched is not None and self._unpatched.still_reads(digests)

    @cached_property
    def _bodies(self) -> Bodies | None:
        from iretrace.linux.bodies import changed_bodies

        return changed_bodies(self.tree)

    def still_uses(self, used: Used, before: bool = False) -> Moves | None:
        """Looked up in the index, where patches may have changed them."""
        assert self._machine is not None, "nothing was read"
        return self._machine.definitions.moves(used, self._bodies if before else None)

    def look_ahead(self, stored: Stored) -> None:
        """Keep what the event path reaches, if it can be told."""
        with suppress(InputError), unreadable_is_input_error():
            self._closure(stored)

    def unanswered(self) -> str:
        """The rows that the event path needs and that neither tree nor rules have; empty if none is missing."""
        from iretrace.linux.machine import dry_run

        with unreadable_is_input_error():
            rows = dry_run(self.tree, self._rules)
        return "".join(f"{row}\n" for row in rows)


def _of_tree(hypervisor: Hypervisor) -> TreeHypervisor:
    """One that a TreeSource has opened."""
    from iretrace.linux.hypervisor import TreeHypervisor

    assert isinstance(hypervisor, TreeHypervisor)
    return hypervisor


class WithoutSteps:
    """The part of a source that keeps nothing of host steps and what they execute, as its hypervisors are fast."""

    def lowered(self) -> bytes:
        """Nothing."""
        return b""

    def take_lowered(self, texts: Sequence[bytes]) -> None:
        """Nothing."""

    def steps_of(self, hypervisor: Hypervisor) -> bytes:
        """Nothing."""
        return b""

    def take_steps(self, hypervisor: Hypervisor, text: bytes) -> None:
        """Nothing."""

    def remember(self, hypervisor: Hypervisor, name: str, told: str) -> None:
        """Nothing."""

    def recall(self, hypervisor: Hypervisor, name: str) -> Recalled | None:
        """Nothing."""
        return None


class BuiltinSource(WithoutSteps):
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

    patches: Patches = ()

    def command(self) -> list[str]:
        """Revision and options."""
        options = [word for name, value in self._options.items() for word in ("--option", f"{name}={value}")]
        return ["iretrace", "check", "--revision", self._revision.name, *options]

    def read(self) -> None:
        """Nothing: it is Python."""

    def lacks(self, vcpu: str) -> str:
        """Asked of the revision."""
        from iretrace.kvm.hypervisor import lacks

        return lacks(self._revision, vcpu)

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

    def used_by(self, hypervisor: Hypervisor) -> Sequence[Used]:
        """Nothing of a tree."""
        return ()

    def read_before(self, digests: Mapping[str, str]) -> bool:
        """No patches made it."""
        return False

    def still_uses(self, used: Used, before: bool = False) -> Moves | None:
        """Only nothing is still the same nothing."""
        return None if used else {}

    def look_ahead(self, stored: Stored) -> None:
        """There are no patches for it."""

    def unanswered(self) -> str:
        """None: nothing is left open."""
        return ""


def _absolute(name: str) -> str:
    """A patch's file from the root; - for standard input."""
    return "-" if name == "<stdin>" else os.path.abspath(name)


@contextmanager
def unreadable_is_input_error() -> Iterator[None]:
    """C that the reader does not know, in a function that every run needs, is for the user to hear of in one line."""
    from iretrace.linux.cursor import ParseError
    from iretrace.linux.unmodelled import Unmodelled, describe

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
