"""How a request begins in two processes: one looks for what is kept, the other reads trees and opens hypervisors.

The processes that find verdicts are forked from the first one, so they have what it has read and opened.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from iretrace.cli.driver import Begun, LookedUp, Request, looked_up, open_kind, prepared, take_lowered
from iretrace.cli.sources import Source
from iretrace.cli.stored import Lookup, Stored
from iretrace.cli.workers import Aside
from iretrace.world.protocol import Hypervisor


def looking(prepared: Begun) -> Aside[LookedUp]:
    """Another process looks up what is kept for a request."""
    return Aside(lambda: looked_up(prepared, lambda _text: None))


def begun_and_opened(
    request: Request, source: Source, progress: Callable[[str], None], stored: Stored | None, anew: bool = False
) -> Begun:
    """As `begun`; while another process looks up what is kept, this one opens hypervisors, which stay in memory with
    the source. After `read`.

    None is opened where most results will be found or nothing is looked for."""
    one = prepared(request, source, stored, anew)
    if stored is None or anew or _is_known(one, stored):
        return replace(one, kept=looked_up(one, progress))
    progress(f"opening {source.name}")
    with looking(one) as aside:
        return replace(one, opened=_opened(one, aside.is_done), kept=aside.result())


def _is_known(begun: Begun, stored: Stored) -> bool:
    """Whether this very tree has been checked before."""
    lookup = Lookup(stored, begun.source.still_reads)
    return any(lookup.find(name) is not None for name in begun.names)


def _opened(begun: Begun, is_enough: Callable[[], bool]) -> dict[str, Hypervisor]:
    """A hypervisor of one kind after the other, those of most tasks first, until it is enough or one fails."""
    opened: dict[str, Hypervisor] = {}
    with _uncollected(), suppress(Exception):  # who needs it opens it again, and tells
        take_lowered(begun)
        for vcpu, _ in Counter(task.vcpu for task in begun.todo).most_common():
            if is_enough():
                break
            opened[vcpu] = open_kind(begun, vcpu)
    return opened


@contextmanager
def _uncollected() -> Iterator[None]:
    """What is opened stays: the garbage collector would look through it in vain, for a sixth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
