"""Makes docs/the-mail.md: python tools/mail.py TREE..., the kernel sources of 6.1, 6.12 and 7.3 in this order."""

from __future__ import annotations

import sys
from pathlib import Path

from iretrace.cli.mail import builtin_subject, tree_subject
from iretrace.cli.mail_page import page, run_lines
from iretrace.mail import ask

TARGET = Path(__file__).resolve().parents[1] / "docs" / "the-mail.md"


def note(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr)


def series(name: str) -> str:
    """Linux 6.1 of Linux 6.1.192: a point release changes lines, not answers."""
    return ".".join(name.split(".")[:2])


def main() -> int:
    """Command line entry."""
    builtin = builtin_subject("v6.1")
    answers = ask(builtin, note)
    subjects = [tree_subject(Path(tree), note) for tree in sys.argv[1:]]
    columns = [(series(subject.name), ask(subject, note)) for subject in subjects]
    runs = [(claim.name, run_lines(answer)) for claim, answer in reversed(answers) if answer.loop]
    TARGET.write_text(page([*columns, (builtin.name, answers)], runs), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
