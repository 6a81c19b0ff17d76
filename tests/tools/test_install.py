"""`pipx install .` and `uv tool install .`, as a user would; both programs come from PyPI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with pipx and uv."""
    target = tmp_path_factory.mktemp("tools")
    done = run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "pipx", "uv"], {})
    if done.returncode:
        pytest.skip(f"pipx and uv cannot be had from PyPI: {done.stderr.strip().splitlines()[-1]}")
    return target


def says_that_it_works(bin_directory: Path, tmp_path: Path) -> None:
    """The installed command runs a test, with its corpus, rules and list of known bugs."""
    done = run(
        [str(bin_directory / "iretrace"), "check", "--revision", "v6.1", "--test", "nmi-complete-then-spin"],
        {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": ""},
    )
    assert done.returncode == 1, done.stderr
    assert "known: nmi-complete-defers-unmasking" in done.stdout


def test_pipx_installs_it(tools: Path, tmp_path: Path) -> None:
    bin_directory = tmp_path / "bin"
    places = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(bin_directory), "PYTHONPATH": str(tools)}
    places["PIPX_MAN_DIR"] = str(tmp_path / "man")
    done = run([sys.executable, "-m", "pipx", "install", str(ROOT)], places)
    assert done.returncode == 0, done.stderr
    says_that_it_works(bin_directory, tmp_path)
    assert (tmp_path / "man" / "man1" / "iretrace.1").is_file()


def test_uv_installs_it(tools: Path, tmp_path: Path) -> None:
    bin_directory = tmp_path / "bin"
    places = {"UV_TOOL_DIR": str(tmp_path / "uv"), "UV_TOOL_BIN_DIR": str(bin_directory)}
    places["UV_CACHE_DIR"] = str(tmp_path / "uv-cache")
    places["UV_PYTHON"] = sys.executable
    done = run([str(tools / "bin" / "uv"), "tool", "install", str(ROOT)], places)
    assert done.returncode == 0, done.stderr
    says_that_it_works(bin_directory, tmp_path)
