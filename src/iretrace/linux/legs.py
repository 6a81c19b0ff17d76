"""A passage is a sequence of legs, from one milestone to the next: from there a run can go on, again and again.

At a milestone the vCPU thread stands between two statements of functions that can be resumed, and all that decides how
it goes on is in its frames, its memory and some attributes of the run. A sender that lands in a leg needs no more
executed than that leg, from its milestone on; and a run that comes to a milestone where another one has been goes on
as that did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from iretrace.linux.notes import Uses
from iretrace.linux.registers import Hidden
from iretrace.linux.run import Frame
from iretrace.linux.sender import Changed, Masks
from iretrace.world.protocol import Debug, Landing, Packed, SenderState


@dataclass(frozen=True, slots=True, eq=False)
class Milestone:
    """Where a run stands. at: how many shared accesses it has made. key: a digest of all else. words, values: of its
    memory. frames: the paused C frames. own: attributes of the run that count. physical: the CPU's debug registers."""

    at: int
    key: bytes
    words: tuple[int, ...]
    values: tuple[int, ...]
    frames: tuple[Frame, ...]
    own: Mapping[str, Any]
    physical: Debug
    findings: tuple[Any, ...]
    ipi: bool

    def later(self, by: int) -> Milestone:
        """The same behind so many more accesses."""
        return replace(self, at=self.at + by) if by else self

    def memory(self, hidden: Hidden, vmcb: Packed) -> dict[int, int]:
        """Its memory with the registers of a VMCB, hidden as at the start of a step."""
        return dict(zip(self.words, hidden.all_again(self.values, vmcb), strict=True))

    def stack(self, hidden: Hidden, vmcb: Packed) -> tuple[Frame, ...]:
        """Its frames, likewise."""
        return tuple((name, at, hidden.all_again(kept, vmcb)) for name, at, kept in self.frames)


class Passed(NamedTuple):
    """An access of a shared word, before which senders may land. at: its number. words: the shared words, in order of
    their addresses. deaf: an IPI would not be taken now. place: all else that decides how the step goes on, as a
    digest. changed: see Senders. rest: it is the last one of a thread that goes in a circle, and stands for what
    senders do then."""

    at: int
    address: int
    mask: int
    write: bool
    words: tuple[int, ...] = ()
    ipi: bool = False
    deaf: bool = False
    place: bytes = b""
    changed: Mapping[str, Changed] = MappingProxyType({})
    rest: bool = False


class Leg(NamedTuple):
    """What is executed up to a milestone, or up to the hand-over. passed: the accesses that could conflict with those
    of senders that are around; quiet: the others. uses: on what it rests."""

    passed: tuple[Passed, ...]
    quiet: Mapping[int, Masks]
    uses: Uses

    def later(self, by: int) -> Leg:
        """The same behind so many more accesses."""
        if not by:
            return self
        return self._replace(passed=tuple([here._replace(at=here.at + by) for here in self.passed]))


class Base(NamedTuple):
    """From where the landings of a step can be executed: a milestone, how far its count of accesses is behind that of
    the step, the senders and what has happened then, and the landings since."""

    milestone: Milestone
    shift: int
    senders: tuple[SenderState, ...]
    log: tuple[tuple[str, int], ...]
    since: tuple[Landing, ...]
