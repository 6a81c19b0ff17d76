"""Makes docs/rules.md from the code. With --check it only compares: exit status 1 if rules.md is not current."""

from __future__ import annotations

import sys
from pathlib import Path

from iretrace.cli.rules import rules_page

TARGET = Path(__file__).resolve().parents[1] / "docs" / "rules.md"


def main() -> int:
    """Command line entry."""
    page = rules_page()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(page, encoding="utf-8")
        return 0
    if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != page:
        print("docs/rules.md is not what the code says; run python tools/rules.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
