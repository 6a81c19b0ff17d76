"""Whether two senders get in each other's way: whoever goes first, and however far either goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from iretrace.world.protocol import NO_SENDER, Private, SenderState, Sent

Send = Callable[[Private, SenderState], Sent]
"""world.protocol.Hypervisor.send."""

Place = tuple[Private, SenderState, bool]
"""The hypervisor's state and a sender's after some of its steps, and whether one of these has sent the IPI."""


class NotModelled(Exception):
    """A step of a sender is not."""


def commute(send: Send, private: Private, one: SenderState, other: SenderState) -> bool:
    """Whether it comes to the same, from this state, if `one` takes its first i steps before the first j of `other` or
    behind them, for all i and j. False also where a step is not modelled."""
    try:
        first = {(i, j): (now, a, b, ipi) for (i, a), (j, b), now, ipi in _both(send, private, one, other)}
        behind = {(i, j): (now, a, b, ipi) for (j, b), (i, a), now, ipi in _both(send, private, other, one)}
    except NotModelled:
        return False
    return first == behind


def _both(
    send: Send, private: Private, first: SenderState, then: SenderState
) -> Iterator[tuple[tuple[int, SenderState], tuple[int, SenderState], Private, bool]]:
    """(steps of the first sender and where it is then, the same of the one that goes behind it, the hypervisor's state,
    whether an IPI was sent), for all numbers of steps."""
    for i, (before, a, sent) in enumerate(_way(send, private, first)):
        for j, (after, b, sent_too) in enumerate(_way(send, before, then)):
            yield (i, a), (j, b), after, sent or sent_too


def _way(send: Send, private: Private, sender: SenderState) -> Iterator[Place]:
    """A sender's places, from before its first step to behind its last one."""
    ipi = False
    yield private, sender, ipi
    while sender is not NO_SENDER:
        sent = send(private, sender)
        if sent.unmodelled:
            raise NotModelled
        private, sender, ipi = sent.private, sent.sender, ipi or sent.ipi
        yield private, sender, ipi
