"""The card of a stage's pairs as a data set of the Hugging Face hub: funnel, sources, rejects, how to load it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from ...schemas.source_settings import Source
from ..corpus.catalog import query
from ..corpus.folder import STAGES
from ..corpus.sql import quote
from .cards import choose_licence, show_licence, write_table

_TEXTS = {
    "convert": "SELECT query AS text FROM pretrain UNION ALL SELECT query FROM retrieval UNION ALL "
    "SELECT text_a FROM sts UNION ALL SELECT text FROM passages"
}
_CHINESE = r"regexp_matches(text, '\p{Han}') AND NOT regexp_matches(text, '\p{Hiragana}|\p{Katakana}')"


def dataset_card(
    corpus: Path, repository: str, stage: str, sources: Mapping[str, Source], configs: Sequence[str]
) -> str:
    """Return the card of a stage's shards: YAML front matter (https://huggingface.co/docs/hub/datasets-cards) and text.

    `sources` are the recipe's, by name. Each of `configs` is a folder of Parquet files, which loads under that name.

    Raises:
        CorpusError: the corpus holds a shard that Conan did not write.
    """
    until = ", ".join(map(quote, STAGES[: STAGES.index(stage) + 1]))
    texts = _TEXTS.get(stage, f"SELECT positive AS text FROM {stage}")
    ((chinese,),) = _rows(corpus, f"SELECT avg(({_CHINESE})::INT) FROM ({texts})")
    present = _rows(
        corpus,
        f"SELECT source, category, sum(rows)::BIGINT FROM funnel WHERE stage = '{stage}' GROUP BY ALL ORDER BY 1",
    )
    funnel = _rows(
        corpus,
        "SELECT stage, coalesce(kept.rows, 0), coalesce(lost.rows, 0) "
        "FROM (SELECT stage, sum(rows)::BIGINT AS rows FROM funnel GROUP BY ALL) AS kept "
        "FULL JOIN (SELECT stage, sum(rows)::BIGINT AS rows FROM rules GROUP BY ALL) AS lost USING (stage) "
        f"WHERE stage IN ({until}) ORDER BY list_position([{until}], stage)",
    )
    rules = _rows(
        corpus,
        "FROM (SELECT stage, reason, sum(rows)::BIGINT AS rows FROM rules GROUP BY ALL) "
        f"WHERE stage IN ({until}) ORDER BY list_position([{until}], stage), rows DESC, reason",
    )
    data = DatasetCardData(
        language="zh" if (chinese or 0) > 0.5 else None,
        license=choose_licence(sources.get(source) for source, *_ in present),
        task_categories=["sentence-similarity", "feature-extraction"],
        tags=["conan-embedding", "text-pairs"],
        configs=[{"config_name": name, "data_files": f"{name}/*.parquet"} for name in configs],
    )
    pairs = sum(rows for *_, rows in present)
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {repository.rpartition('/')[2]}",
        f"{pairs:,} pairs of texts for embedding models, as the stage `{stage}` of the conan-embedding toolkit, "
        f"version {version('conan-embedding')}, left them.",
        _show_loading(repository, configs),
        "## Funnel\n\nEvery row that a stage received was kept or rejected with a reason.\n\n"
        + write_table(["stage", "kept", "rejected"], [_cells(row) for row in funnel], numbers=2),
        "## Sources\n\nLicences are as declared in the recipe. Check them before you publish or use the data.\n\n"
        + write_table(
            ["source", "category", "licence", "pairs"],
            [[name, kind, show_licence(sources.get(name)), f"{rows:,}"] for name, kind, rows in present],
            numbers=1,
        ),
        "## Rejects\n\n" + write_table(["stage", "reason", "rows"], [_cells(row) for row in rules], numbers=1),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(corpus: Path, sql: str) -> list[tuple[Any, ...]]:
    table = query(corpus, sql)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _cells(row: Sequence[Any]) -> list[str]:
    return [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row]


def _show_loading(repository: str, configs: Sequence[str]) -> str:
    return (
        f'```python\nfrom datasets import load_dataset\n\npairs = load_dataset("{repository}", "{configs[0]}")\n```\n\n'
        f"```sql\n-- DuckDB\nFROM 'hf://datasets/{repository}/{configs[0]}/*.parquet'\n```"
    )
