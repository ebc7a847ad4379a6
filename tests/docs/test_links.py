"""Links of README.md and docs lead to files and headings that exist, and the site's navigation has every page.

The site's strict build checks links between pages; it does not see README.md, images and other files.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[2]
DOCS = PACKAGE / "docs"
PAGES = sorted([*PACKAGE.glob("*.md"), *DOCS.rglob("*.md")])


def without_code(file: Path) -> str:
    text = re.sub(r"^ *```.*?^ *```", "", file.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("](", "] ("), text)


def anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(file), flags=re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PACKAGE).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", without_code(page)):
        target = next(filter(None, link))
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        outside = page.is_relative_to(DOCS) and not file.is_relative_to(DOCS)  # the site has no such file
        if outside or not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert not wrong


def test_the_navigation_has_every_page() -> None:
    def pages(entries: Any) -> Iterator[str]:
        for entry in entries:
            for target in entry.values():
                yield from [target] if isinstance(target, str) else pages(target)

    configuration = tomllib.loads((PACKAGE / "zensical.toml").read_text("utf-8"))
    assert sorted(pages(configuration["project"]["nav"])) == sorted(
        file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md")
    )
