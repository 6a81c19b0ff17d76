"""The manual page and the completions: made from the parser, understood by the programs that read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from iretrace.cli.main import main
from iretrace.cli.manual import COMPLETIONS, commands, manual, words

PAGE = Path(__file__).resolve().parents[2] / "docs" / "iretrace.1"

CALL = """\
source "$1"
COMP_WORDS=("${@:2}")
COMP_CWORD=$(($# - 2))
_iretrace
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(tmp_path: Path, *line: str) -> list[str]:
    (tmp_path / "completion").write_text(COMPLETIONS["bash"]())
    command = ["bash", "-c", CALL, "bash", str(tmp_path / "completion"), *line]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()


def test_the_page_in_docs_is_current() -> None:
    assert PAGE.read_text() == manual(), "run: python -m iretrace manual > docs/iretrace.1"


def test_every_command_and_option_is_in_the_page() -> None:
    page = manual().replace("\\-", "-")
    for name, (_, parser) in commands().items():
        assert f".SS {name}\n" in page
        assert all(f"\\fB{option}\\fR" in page for word in words(parser) for option in word.names)


def test_man_reads_the_page_without_a_complaint() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff not found")
    done = subprocess.run(["groff", "-man", "-Tascii", "-ww", str(PAGE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (["iretrace", "ch"], ["check"]),
        (["iretrace", "check", "--new"], ["--new-only"]),
        (["iretrace", "check", "--format", "sa"], ["sarif"]),
        (["iretrace", "check", "--test", "nmi-complete-then-s"], ["nmi-complete-then-spin"]),
        (["iretrace", "show", "clgi-is"], ["clgi-is-ud"]),
        (["iretrace", "completion", ""], ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completes(line: list[str], found: list[str], tmp_path: Path) -> None:
    assert complete(tmp_path, *line) == found


def test_bash_completes_files(tmp_path: Path) -> None:
    (tmp_path / "a.patch").write_text("")
    assert complete(tmp_path, "iretrace", "check", "--patch", "a.") == ["a.patch"]


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_a_completion_is_what_its_shell_reads(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in commands())
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} not found")
    (tmp_path / "file").write_text(text)
    assert subprocess.run([shell, "-n", str(tmp_path / "file")], check=False).returncode == 0
