"""The generated pages are those that docs/generate.py writes now."""

from pathlib import Path

import forks

DOCS = Path(__file__).parents[2] / "docs"


def test_generated_pages_are_up_to_date() -> None:
    pages = forks.load_file(str(DOCS / "generate.py")).pages()
    changed = [name for name, text in pages.items() if (DOCS / name).read_text("utf-8") != text]
    assert not changed, "run `make docs`"
