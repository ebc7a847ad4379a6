"""conan filter: the rules of rules.py over every pair; the first rule that fails is the reason."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from ..schemas.pairs import PAIR, rejected
from ..schemas.recipe import RecipeError
from ..schemas.settings import FilterSettings
from .corpus import ShardWriter, fingerprint, read_batches, read_footer, shards
from .engine import Engine, Summary, Task, run_stage
from .masks import mask_personal_data
from .rules import judge, rules_with, strip_title

VERSION = 1


def filter_pairs(corpus: Path, settings: FilterSettings, engine: Engine) -> Summary:
    """Filter what ingest found.

    Raises:
        RecipeError: a rule that does not exist (the nearest is named), a list of blocked words or domains that can't be
            read.
        StageError: a shard could not be made.
    """
    try:
        rules_with(settings.rules)
    except ValueError as error:
        raise RecipeError(f"filter.rules: {error}") from error
    words, domains = (_listed(settings, name) for name in ("blocked_words", "blocked_domains"))
    decisive = settings.model_dump(exclude={"blocked_words", "blocked_domains"}), words, domains
    tasks = [
        Task(
            (shard, settings, words, domains),
            fingerprint("filter", VERSION, decisive, shard.name, read_footer(shard).content),
        )
        for shard in shards(corpus, "ingest")
    ]
    return run_stage(corpus, "filter", filter_shard, tasks, engine)


def _listed(settings: FilterSettings, name: Literal["blocked_words", "blocked_domains"]) -> list[str]:
    """The lines of a list that the recipe names, without blank ones and without a byte-order mark."""
    path = getattr(settings, name)
    if path is None:
        return []
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"filter.{name}: {path} can't be read as UTF-8 text: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def filter_shard(
    ingest_shard: Path,
    settings: FilterSettings,
    words: Sequence[str],
    domains: Sequence[str],
    fingerprint: str,
    shard: Path,
) -> None:
    """One shard: personal data masked, leaked titles cut, then every rule."""
    rules = rules_with(settings.rules, words, domains)
    masked: Counter[str] = Counter()
    with ShardWriter(shard, PAIR, rejected(PAIR), stage="filter", version=VERSION, fingerprint=fingerprint) as writer:
        for table in read_batches(ingest_shard):
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            writer.received(frame.height)
            frame = frame.with_columns(pl.col("source", "category", "format", "task").cast(pl.String))
            if settings.mask:
                frame, counts = mask_personal_data(frame)
                masked.update(counts)
            judged = judge(strip_title(frame), rules)
            writer.keep(judged.filter(pl.col("reason").is_null()).to_arrow())
            writer.reject(judged.filter(pl.col("reason").is_not_null()).to_arrow())
        writer.notes["masked"] = dict(masked)
