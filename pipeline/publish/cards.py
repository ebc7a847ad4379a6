"""Parts of the cards of models and data sets: licences as the Hugging Face hub spells them, tables."""

from collections.abc import Iterable, Sequence

from ...schemas.source_settings import Source

HUB_LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense"),
    *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-nd-4.0", "odc-by", "odbl", "wtfpl"),
}
"""The identifiers in https://huggingface.co/docs/hub/repositories-licenses that data is likely to have."""


def choose_licence(sources: Iterable[Source | None]) -> str:
    """Return the licence that all sources declare, spelt as on the hub (`CC BY-SA 4.0` is cc-by-sa-4.0), or `other`."""
    named = {(source.licence or "").lower().replace(" ", "-") if source else "" for source in sources}
    return named.pop() if len(named) == 1 and named <= HUB_LICENCES else "other"


def show_licence(source: Source | None) -> str:
    """Return the licence of a source as its recipe declares it."""
    return (source and source.licence) or "not declared"


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """Return a Markdown table whose last `numbers` columns are right-aligned."""
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, rule, *rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
