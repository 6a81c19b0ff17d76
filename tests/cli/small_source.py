"""The small hypervisor as what a command line names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from iretrace.cli.sources import NO_PATCHES, AboutPatches
from iretrace.world.protocol import Hypervisor
from tests.world.small import Small


class SmallSource:
    """iretrace.cli.sources.Source of the small hypervisor with a mistake. reads: what it says that it has read."""

    name = "small"

    def __init__(self, mistake: str, reads: Mapping[str, str] | None = None) -> None:
        self.mistake = mistake
        self.reads = dict(reads or {"a.c": "1"})
        self.patches = NO_PATCHES
        self.opened: list[str] = []

    def identity(self) -> Any:
        """The mistake."""
        return ["small", self.mistake]

    def read(self) -> None:
        """Noted."""
        self.opened.append("read")

    def open(self, vcpu: str) -> Hypervisor:
        """A fresh one."""
        return Small(self.mistake)

    def read_so_far(self) -> dict[str, str]:
        """As it was told."""
        return self.reads

    def still_reads(self, digests: Mapping[str, str]) -> bool:
        """As it was told."""
        return digests == self.reads

    def about_patches(self, progress: Callable[[str], None]) -> AboutPatches:
        """As it was told."""
        return self.patches

    def unanswered(self) -> str:
        """None."""
        return ""
