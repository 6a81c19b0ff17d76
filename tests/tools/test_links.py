"""A link in README and docs leads to a file that is there, and to a heading or an anchor in it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\((?!https?:)([^)\s#]*)#?([^)\s]*)\)")


def anchors(page: Path) -> set[str]:
    """What a link can name in a page: its headings as GitHub writes them, and its own ids."""
    text = page.read_text(encoding="utf-8")
    headings = (re.sub(r"[^\w -]", "", heading.lower()) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {heading.strip().replace(" ", "-") for heading in headings} | set(re.findall(r'id="([^"]+)"', text))


def test_every_link_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    links = [(page, *link) for page in pages for link in LINK.findall(page.read_text(encoding="utf-8"))]
    assert len(links) > 200
    lost = []
    for page, path, anchor in links:
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(f"{page.name}: {path}#{anchor}")
    assert lost == []
