"""Definitions that were looked up for somebody else are found faster, and noted all the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from iretrace.check import check
from iretrace.cli.sources import TreeSource
from iretrace.litmus.corpus import select

pytestmark = [pytest.mark.trees, pytest.mark.slow]


def verdict(root: Path, prepared: Iterable[str]) -> tuple[Any, ...]:
    """A verdict with its ledger, and what it read and used of the tree."""
    source = TreeSource(root)
    source.read()
    hypervisor = source.open("sev-es")
    source.prepare(prepared)
    (test,) = select(["nmi-at-hlt"])
    result = check(test, "sev-es", "tickless", hypervisor)
    return result.verdict, result.ledger, source.read_so_far(), source.used_so_far()


def test_what_was_prepared_is_noted_as_if_it_was_not(tree_6_12: Path) -> None:
    alone = verdict(tree_6_12, ())
    more = [*alone[-1], "function\tdb_interception\t", "function\tkvm_inject_nmi\t"]
    assert verdict(tree_6_12, more) == alone
