"""The manual page and the completions: made from the parser, understood by the programs that read them."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
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


ZSH = """\
PS1=; PS2=; unsetopt prompt_cr prompt_sp beep
fpath=({directory} $fpath); autoload -Uz compinit && compinit -u -D
report() {{ print -r -- "<<$BUFFER>>" }}; zle -N report; bindkey '^X' report
print -r ready
"""
"""What a user has in .zshrc, and a key that shows the line as it is."""

SECONDS = 60


def complete_in_zsh(tmp_path: Path, line: str) -> str:
    """The line behind the tabulator key, in an interactive zsh with the completion where zsh looks for it."""
    (tmp_path / "_iretrace").write_text(COMPLETIONS["zsh"]())
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "vt100"
        os.execvp("zsh", ["zsh", "-f", "-i"])
    try:
        os.write(terminal, ZSH.format(directory=tmp_path).encode())
        read_until(terminal, b"\nready")
        os.write(terminal, f"{line}\t\x18".encode())
        return read_until(terminal, b">>").rpartition(b"<<")[2].partition(b">>")[0].decode()
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def read_until(terminal: int, mark: bytes) -> bytes:
    output = b""
    end = time.monotonic() + SECONDS
    while mark not in output:
        assert time.monotonic() < end, output
        if select.select([terminal], [], [], 1)[0]:
            output += os.read(terminal, 4096)
    return output


def complete_in_fish(tmp_path: Path, line: str) -> list[str]:
    """What fish offers."""
    (tmp_path / "iretrace.fish").write_text(COMPLETIONS["fish"]())
    command = ["fish", "-N", "-c", 'source $argv[1]; complete -C "$argv[2]"', str(tmp_path / "iretrace.fish"), line]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert not done.stderr
    return [offer.split("\t")[0] for offer in done.stdout.splitlines()]


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
        options = {option for word in words(parser) for option in word.names} - {"-h", "--help"}
        assert all(f"\\fB{option}\\fR" in page for option in options)


def test_every_command_says_what_it_is_for() -> None:
    for name, (about, parser) in commands().items():
        assert about and parser.description, name


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
        (["iretrace", "diff", "--vcpu", "vn"], ["vnmi"]),
        (["iretrace", "check", "--revision", "v7"], ["v7.3"]),
    ],
)
def test_bash_completes(line: list[str], found: list[str], tmp_path: Path) -> None:
    assert complete(tmp_path, *line) == found


LINES = [
    ("iretrace ch", "check"),
    ("iretrace check --verb", "--verbose"),
    ("iretrace check --format sa", "sarif"),
    ("iretrace check --test nmi-complete-then-s", "nmi-complete-then-spin"),
    ("iretrace show clgi-is", "clgi-is-ud"),
    ("iretrace completion fi", "fish"),
    ("iretrace check --patch a.", "a.patch"),
]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh not found")
@pytest.mark.parametrize(("line", "found"), LINES)
def test_zsh_completes(line: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.patch").write_text("")
    assert complete_in_zsh(tmp_path, line) == f"{line.rpartition(' ')[0]} {found} "


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish not found")
@pytest.mark.parametrize(("line", "found"), LINES)
def test_fish_completes(line: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "a.patch").write_text("")
    assert complete_in_fish(tmp_path, line) == [found]


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
