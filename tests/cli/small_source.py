"""The small hypervisor as what a command line names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

from iretrace.cli.moved import Moves
from iretrace.cli.sources import AboutPatches, WithoutSteps
from iretrace.cli.stored import Patches, Stored, Used
from iretrace.world.protocol import Hypervisor
from tests.world.small import Small

TEST = "nmi-complete-then-spin"
"""The test that most commands run."""


class SmallSource(WithoutSteps):
    """iretrace.cli.sources.Source of the small hypervisor with a mistake. reads: what it says that it has read."""

    name = "small"

    def __init__(self, mistake: str, reads: Mapping[str, str] | None = None) -> None:
        self.mistake = mistake
        self.reads = dict(reads or {"a.c": "1"})
        self.about = AboutPatches(True)
        self.patches: Patches = ()
        self.after: SmallSource | None = None
        self.opened: list[str] = []
        self.without: list[str] = []

    def identity(self) -> Any:
        """The mistake."""
        return ["small", self.mistake]

    def command(self) -> list[str]:
        """None that works."""
        return ["iretrace", "check", "small"]

    def read(self) -> None:
        """Noted."""
        self.opened.append("read")

    def lacks(self, vcpu: str) -> str:
        """As it was told."""
        return "it is too small" if vcpu in self.without else ""

    def open(self, vcpu: str) -> Hypervisor:
        """A fresh one."""
        return Small(self.mistake)

    def read_so_far(self) -> dict[str, str]:
        """As it was told."""
        return self.reads

    def still_reads(self, digests: Mapping[str, str]) -> bool:
        """As it was told."""
        return digests == self.reads

    @property
    def result_name(self) -> str:
        """Of Small."""
        return "small"

    def patched(self, patches: Sequence[tuple[str, str]]) -> SmallSource:
        """The one that was put here."""
        after = copy(self.after or self)
        after.patches = patches
        return after

    def about_patches(
        self, progress: Callable[[str], None], since: int = 0, stored: Stored | None = None
    ) -> AboutPatches:
        """As it was told."""
        return self.about

    def is_quick(self, stored: Stored | None) -> bool:
        """No: another process says it."""
        return False

    def look_ahead(self, stored: Stored) -> None:
        """At nothing."""

    def unanswered(self) -> str:
        """None."""
        return ""

    def used(self) -> Used:
        """As it was told."""
        return {f"file {name}": (digest, "", ()) for name, digest in self.reads.items()}

    def used_by(self, hypervisor: Hypervisor) -> Sequence[Used]:
        """As it was told."""
        return (self.used(),)

    def read_before(self, digests: Mapping[str, str]) -> bool:
        """Nobody knows."""
        return False

    def still_uses(self, used: Used, before: bool = False) -> Moves | None:
        """As it was told."""
        return {} if used == self.used() else None
