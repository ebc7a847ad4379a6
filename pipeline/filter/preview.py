"""conan filter --explain and --dry-run: show how the filter judges one pair or a sample, without writing anything."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ...schemas.errors import CorpusError
from ...schemas.settings import FilterSettings
from ..corpus.folder import shards
from .rules import Bound, Rule, Side, find_first_failing, measure, select_rules
from .stage import (
    Rulebook,
    classify,
    group_by_rules,
    load_classifiers,
    prepare,
    read_groups,
    read_rulebook,
    select_group_rules,
)

SHORTEST_PREFIX = 6
"""Chosen here: the fewest characters of a pair_id by which a pair can be given."""

_EXAMPLES = 3
_EXCERPT = 100  # characters
_EXAMPLE = ["reason", "pair_id", "source", "query", "positive", "detail"]
_READ = ["pair_id", "source", "category", "format", "task", "query", "positive", "meta"]

Rows = npt.NDArray[np.int64]
Verdict = Literal["passes", "fails", "does not apply", "off"]


@dataclass(frozen=True)
class Finding:
    """One rule's verdict on one pair. `threshold` and `value` are None if the rule is off for the pair's source."""

    rule: str
    side: Side
    bound: Bound
    threshold: float | None
    value: float | None
    verdict: Verdict
    origin: str


@dataclass(frozen=True)
class Explanation:
    """One pair as it is judged (personal data masked, leaked title cut), the first rule that it fails, all findings.

    `reason` and `detail` are None if the pair passes.
    """

    pair: dict[str, Any]
    reason: str | None
    detail: str | None
    findings: list[Finding]


@dataclass(frozen=True)
class Example:
    """A pair that a rule would reject, with cut texts; `detail` has value and threshold, such as `0.07 < 0.1`."""

    pair_id: str
    source: str
    query: str
    positive: str
    detail: str


@dataclass(frozen=True)
class RuleLosses:
    """The pairs of a sample that one rule would reject.

    `first` counts the pairs that are rejected with this rule as the reason; `share` is their share of the sample.
    `fails` counts all pairs that fail the rule, including those that an earlier rule rejects.
    """

    rule: str
    first: int
    fails: int
    share: float
    examples: list[Example]


@dataclass(frozen=True)
class DryRun:
    """The filter's result for a sample of `rows` out of `corpus_rows`; `rules` in the order in which they are tried."""

    corpus_rows: int
    rows: int
    kept: int
    rejected: int
    rules: list[RuleLosses]


def explain(corpus: Path, pair_id: str, settings: FilterSettings) -> Explanation:
    """Compute every rule's value for one ingested pair, given by its pair_id or a prefix of it (see SHORTEST_PREFIX).

    Raises:
        CorpusError: no pair or several pairs match, or ingest has not run.
        RecipeError, ModelError: as in `filter_pairs`.
    """
    found = shards(corpus, "ingest")
    pair = _find_pair(found, pair_id)
    book = _read_rulebook(corpus, settings, found)
    frame, _ = prepare(pair, settings)
    rules = {rule.name: rule for rule in select_group_rules(book, (frame["source"].item(), frame["category"].item()))}
    values = _measure_all(frame, rules.values(), book)
    reason, detail = find_first_failing(values, rules.values()).row(0) if rules else (None, None)
    findings = [_report_finding(rules.get(rule.name, rule), rule.name in rules, values) for rule in _list_rules(book)]
    return Explanation(frame.row(0, named=True), reason, detail, findings)


def dry_run(corpus: Path, settings: FilterSettings, sample: int, seed: int = 0) -> DryRun:
    """Judge a random sample of ingest's rows, drawn from each shard in proportion to its rows; `seed` decides which.

    Memory holds one row group, and the rows drawn from one shard, at a time. Classifiers judge every row of the sample.

    Raises:
        CorpusError: ingest has not run.
        RecipeError, ModelError: as in `filter_pairs`.
    """
    found = shards(corpus, "ingest")
    book = _read_rulebook(corpus, settings, found)
    sizes = [pq.read_metadata(shard).num_rows for shard in found]
    rows = 0
    first: Counter[str] = Counter()
    fails: Counter[str] = Counter()
    dropped = pl.DataFrame(schema=dict.fromkeys(_EXAMPLE, pl.String))
    for frame in _draw_sample(found, sizes, sample, seed):
        rows += frame.height
        for rules, part in group_by_rules(prepare(frame, settings)[0], book):
            if not rules:
                continue
            values = _measure_all(part, rules, book)
            judged = pl.concat([part, find_first_failing(values, rules)], how="horizontal").drop_nulls("reason")
            first.update(dict(judged["reason"].value_counts().iter_rows()))
            fails.update(values.select(rule.fails.sum().alias(rule.name) for rule in rules).row(0, named=True))
            # Show the smallest pair_ids: they are hashes, so this is a random choice that needs no second seed.
            texts = pl.col("query", "positive").str.head(_EXCERPT)
            dropped = pl.concat([dropped, judged.with_columns(texts).select(_EXAMPLE)])
            dropped = dropped.sort("pair_id").group_by("reason", maintain_order=True).head(_EXAMPLES)
    losses = [
        RuleLosses(
            rule.name,
            first[rule.name],
            fails[rule.name],
            first[rule.name] / max(rows, 1),
            [Example(*example) for example in dropped.filter(reason=rule.name).drop("reason").iter_rows()],
        )
        for rule in _list_rules(book)
    ]
    return DryRun(sum(sizes), rows, rows - first.total(), first.total(), losses)


def _read_rulebook(corpus: Path, settings: FilterSettings, found: Sequence[Path]) -> Rulebook:
    book = read_rulebook(corpus, settings, map(read_groups, found))
    load_classifiers(book)
    return book


def _list_rules(book: Rulebook) -> tuple[Rule, ...]:
    """List all rules with their default thresholds, so that none is off."""
    return select_rules({}, book.words, book.domains, book.settings.classifiers)


def _measure_all(frame: pl.DataFrame, rules: Collection[Rule], book: Rulebook) -> pl.DataFrame:
    """Compute every rule's value for every pair. Classifiers also judge pairs that another rule rejects."""
    values = measure(frame, [rule for rule in rules if rule.name not in book.models])
    models = [rule for rule in rules if rule.name in book.models]
    return values.with_columns(classify(frame, rule, book, pl.lit(True)) for rule in models)


def _report_finding(rule: Rule, in_force: bool, values: pl.DataFrame) -> Finding:
    if not in_force:
        return Finding(rule.name, rule.side, rule.bound, None, None, "off", rule.origin)
    value = values[rule.name].item()
    fails = values.select(rule.fails).item()
    verdict: Verdict = "does not apply" if value is None else "fails" if fails else "passes"
    return Finding(rule.name, rule.side, rule.bound, rule.threshold, value, verdict, rule.origin)


def _find_pair(found: list[Path], pair_id: str) -> pl.DataFrame:
    """Find the one pair whose pair_id starts with `pair_id`; a pair that was ingested twice counts once."""
    if len(pair_id) < SHORTEST_PREFIX:
        raise CorpusError(f"pair_id {pair_id!r} is too short: give {SHORTEST_PREFIX} characters or more")
    pairs = pl.scan_parquet(found).filter(pl.col("pair_id").str.starts_with(pair_id.lower()))
    matching = pairs.collect(engine="streaming").unique("pair_id", keep="first", maintain_order=True)
    if matching.height == 0:
        raise CorpusError(f"{found[0].parent}: no pair_id begins with {pair_id!r}; see `SELECT pair_id FROM ingest`")
    if matching.height > 1:
        some = ", ".join(matching["pair_id"].head(5))
        raise CorpusError(f"{matching.height} pair_ids begin with {pair_id!r}; give more characters: {some}")
    return matching


def _draw_sample(found: Sequence[Path], sizes: Sequence[int], sample: int, seed: int) -> Iterator[pl.DataFrame]:
    """Cut the corpus into `sample` runs of about equally many rows, draw one row from each; yield them by shard."""
    sample = min(sample, sum(sizes))
    edges = np.arange(sample + 1) * sum(sizes) // max(sample, 1)
    drawn = edges[:-1] + np.random.default_rng(seed).integers(0, np.diff(edges))
    for shard, rows in zip(found, _split_places(drawn, sizes), strict=True):
        if len(rows):
            yield _read_rows(shard, rows)


def _read_rows(shard: Path, rows: Rows) -> pl.DataFrame:
    """Read the given rows of a shard (ascending places), skipping row groups without any of them."""
    with pq.ParquetFile(shard) as file:
        sizes = [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)]
        tables = [
            file.read_row_group(place, columns=_READ).take(inside)
            for place, inside in enumerate(_split_places(rows, sizes))
            if len(inside)
        ]
    frame = pl.from_arrow(pa.concat_tables(tables))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _split_places(places: Rows, sizes: Sequence[int]) -> list[Rows]:
    """Convert ascending places in a whole to places in its parts, which have the given sizes."""
    ends = np.cumsum(sizes)
    parts = np.split(places, np.searchsorted(places, ends[:-1]))
    return [part - (end - size) for part, end, size in zip(parts, ends, sizes, strict=True)]
