"""What of the host's debug state a guest must not have changed."""

from __future__ import annotations

import pytest

from iretrace.world.host import changed_debug, debug_of, state_of
from iretrace.world.protocol import HOST_DEBUG, NO_HOST_DEBUG, Debug


def test_the_machine_and_a_hypervisor_have_the_same_registers() -> None:
    registers = HOST_DEBUG._replace(dr6=0xFFFF_0FF1, debugctl=2)
    assert debug_of(state_of(registers)) == registers


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("DR0", HOST_DEBUG._replace(dr=(1, 0x8002, 0x8003, 0x8004))),
        ("DR3_ADDR_MASK", HOST_DEBUG._replace(masks=(1, 2, 3, 0))),
        ("DR6", HOST_DEBUG._replace(dr6=0)),
        ("DR7", HOST_DEBUG._replace(dr7=0x4AB)),
        ("DEBUGCTL", HOST_DEBUG._replace(debugctl=2)),
    ],
)
def test_a_host_with_breakpoints_has_all_its_registers_again(name: str, changed: Debug) -> None:
    assert changed_debug(HOST_DEBUG, HOST_DEBUG) == ""
    assert f": {name} is " in changed_debug(HOST_DEBUG, changed)


def test_a_host_without_breakpoints_does_not_look_at_dr6() -> None:
    assert changed_debug(NO_HOST_DEBUG, NO_HOST_DEBUG._replace(dr=(1, 2, 3, 4), dr6=0xFFFF_4FF0)) == ""


def test_a_host_without_breakpoints_keeps_its_debugctl() -> None:
    said = changed_debug(NO_HOST_DEBUG._replace(debugctl=2), NO_HOST_DEBUG)
    assert said.endswith("DEBUGCTL is 0x0 and was 0x2")
