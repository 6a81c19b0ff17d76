"""Random C, run by gcc and by the program from the same text. IRETRACE_SEED=N tries other programs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.linux.gcc import compare

SEED = int(os.environ.get("IRETRACE_SEED", "6012"))
BATCHES = 10
BATCH = 10_000
"""Statements and full expressions in a batch: 100,000 in all."""


@pytest.mark.parametrize("optimize", ["-O0", "-O1"])
def test_a_few_random_functions_compute_what_gcc_computes(tmp_path: Path, optimize: str) -> None:
    assert compare(tmp_path, SEED, 600, optimize) >= 600


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_functions_compute_what_gcc_computes(tmp_path: Path, batch: int) -> None:
    assert compare(tmp_path, SEED + 1 + batch, BATCH, "-O0" if batch % 2 else "-O1") >= BATCH
