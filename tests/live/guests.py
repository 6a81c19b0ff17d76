"""Small tests and their guests."""

from __future__ import annotations

from iretrace.litmus.parse import parse
from iretrace.litmus.test import Test
from iretrace.live.guests import Guest, make_guests

TWO_NMIS = """\
test two-nmis
about Two NMIs come while main spins.
vcpu  plain
outside nmi, nmi

main:
    spin
nmi:
    mark    n
    or  qword [rsp+16], TF
    iretq
db:
    mark    s
    and qword [rsp+16], ~TF
    iretq
"""


def make_test(text: str) -> Test:
    """The test of a litmus file."""
    return parse(text, "small.litmus")


def first_guest(text: str = TWO_NMIS) -> Guest:
    """The guest that runs a test at random moments."""
    return make_guests(make_test(text), 10, 0)[0]
