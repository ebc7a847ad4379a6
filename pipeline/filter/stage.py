"""conan filter: apply the rules of rules.py to every pair; the first rule that fails is the reason for a rejection."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from ...schemas.errors import RecipeError
from ...schemas.outcomes import Summary
from ...schemas.pairs import PAIR, rejected
from ...schemas.registry import check_names
from ...schemas.settings import ClassifierSettings, FilterSettings, Thresholds
from ..corpus.folder import fingerprint, read_batches, read_footer, shards
from ..corpus.saved_recipe import load_recipe
from ..corpus.shard_writer import ShardWriter
from ..engine.calls import Engine
from ..engine.stage import Task, find_finished, run_stage
from ..text.personal_data import mask_personal_data
from .rules import Rule, find_first_failing, judge, select_rules
from .titles import strip_title

VERSION = 9

Group = tuple[str, str]
"""A source and its category. The same thresholds apply to all pairs of a group."""


@dataclass(frozen=True)
class Rulebook:
    """The settings together with everything they refer to.

    `models` maps each classifier's name to its model's fingerprint.
    """

    settings: FilterSettings
    words: list[str]
    domains: list[str]
    models: dict[str, str]


def filter_pairs(corpus: Path, settings: FilterSettings, engine: Engine) -> Summary:
    """Filter the pairs that ingest wrote.

    Raises:
        RecipeError: a rule, source or label does not exist, or a list of blocked words or domains can't be read.
        ModelError: a classifier can't be read.
        StageError: a shard failed.
    """
    found = {shard: read_groups(shard) for shard in shards(corpus, "ingest")}
    book = read_rulebook(corpus, settings, found.values())
    tasks = [
        Task(
            (shard, book),
            fingerprint(
                "filter", VERSION, _collect_decisive(book, found[shard]), shard.name, read_footer(shard).content
            ),
        )
        for shard in found
    ]
    if settings.classifiers:
        engine = replace(engine, one_a_device=True)
        if len(find_finished(corpus, "filter", tasks)) < len(tasks):
            load_classifiers(book, "cpu")  # so that an unreadable model is reported once, not by every shard
    return run_stage(corpus, "filter", filter_shard, tasks, engine)


def read_groups(shard: Path) -> list[Group]:
    """List the groups in a shard; only two columns are read."""
    names = pl.scan_parquet(shard).select(pl.col("source", "category").cast(pl.String))
    return sorted(names.unique().collect(engine="streaming").iter_rows())


def read_rulebook(corpus: Path, settings: FilterSettings, found: Iterable[Collection[Group]]) -> Rulebook:
    """Read everything the settings refer to, and check their names against the rules and the shards' groups (`found`).

    Raises:
        RecipeError: a name is unknown, or a list can't be read.
        ModelError: a classifier can't be found.
    """
    check_rule_names(settings)
    _check_sources(corpus, settings, {source for shard in found for source, _ in shard})
    return Rulebook(
        settings,
        read_list(settings, "blocked_words"),
        read_list(settings, "blocked_domains"),
        {name: _fingerprint_model(classifier) for name, classifier in settings.classifiers.items()},
    )


def check_rule_names(settings: FilterSettings) -> None:
    """Check the names of rules, for all pairs and for those of some categories and sources. Raises RecipeError."""
    levels: dict[str, Thresholds] = {"rules": settings.rules}
    levels |= {f"categories.{category}": thresholds for category, thresholds in settings.categories.items()}
    levels |= {f"sources.{source}": thresholds for source, thresholds in settings.sources.items()}
    for place, thresholds in levels.items():
        select_rules(thresholds, classifiers=settings.classifiers, place=f"filter.{place}")


def _check_sources(corpus: Path, settings: FilterSettings, known: set[str]) -> None:
    """Check that each source with its own settings is in a shard, or in the recipe if ingest found nothing in it."""
    if not known.issuperset(settings.sources) and (corpus / "recipe.yaml").exists():
        known |= {source.name for source in load_recipe(corpus).sources}
    check_names("source", settings.sources, sorted(known), "filter.sources")


def read_list(settings: FilterSettings, name: Literal["blocked_words", "blocked_domains"]) -> list[str]:
    """Read the non-blank lines of a list that the recipe names, without a byte-order mark. Raises RecipeError."""
    path = getattr(settings, name)
    if path is None:
        return []
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"filter.{name}: {path} can't be read as UTF-8 text: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def select_group_rules(book: Rulebook, group: Group) -> tuple[Rule, ...]:
    """Select the rules that apply to a group."""
    return _apply_thresholds(book, merge_thresholds(book, group))


def merge_thresholds(book: Rulebook, group: Group) -> Thresholds:
    """Merge a group's thresholds: its source's override its category's, which override the recipe's `rules`."""
    source, category = group
    by_category: Mapping[Any, Thresholds] = book.settings.categories
    return book.settings.rules | by_category.get(category, {}) | book.settings.sources.get(source, {})


def _apply_thresholds(book: Rulebook, thresholds: Thresholds) -> tuple[Rule, ...]:
    return select_rules(thresholds, book.words, book.domains, book.settings.classifiers)


def _collect_decisive(book: Rulebook, found: Iterable[Group]) -> Any:
    """Collect exactly those settings that affect the result for these groups, for the shard's fingerprint."""
    rules = {group: select_group_rules(book, group) for group in found}
    thresholds = [
        (*group, [(rule.name, float(rule.threshold), rule.version) for rule in chosen])
        for group, chosen in rules.items()
    ]
    inputs: dict[str, Any] = {"blocked_words": book.words, "blocked_domains": book.domains}
    for name, classifier in book.settings.classifiers.items():
        inputs[name] = book.models[name], classifier.model_dump(exclude={"model", "min", "batch_tokens"})
    in_force = {rule.name for chosen in rules.values() for rule in chosen}
    return book.settings.mask, thresholds, {name: what for name, what in inputs.items() if name in in_force}


def prepare(frame: pl.DataFrame, settings: FilterSettings) -> tuple[pl.DataFrame, dict[str, int]]:
    """Mask personal data and cut leaked titles before judging; return the frame and the number of masks per kind."""
    frame = frame.with_columns(pl.col("source", "category", "format", "task").cast(pl.String))
    counts: dict[str, int] = {}
    if settings.mask:
        texts = [name for name in ("query", "positive", "negatives") if name in frame.columns]
        frame, counts = mask_personal_data(frame, texts)
    return strip_title(frame), counts


def group_by_rules(frame: pl.DataFrame, book: Rulebook) -> Iterator[tuple[tuple[Rule, ...], pl.DataFrame]]:
    """Split a frame into parts that are judged by the same rules; `row` is a row's place in the whole frame."""
    parts: dict[tuple[tuple[str, float], ...], list[pl.DataFrame]] = {}
    groups = frame.with_row_index("row").partition_by("source", "category", as_dict=True)
    for (source, category), part in groups.items():
        thresholds = merge_thresholds(book, (source, category))
        parts.setdefault(tuple(sorted(thresholds.items())), []).append(part)
    for chosen, frames in parts.items():
        yield _apply_thresholds(book, dict(chosen)), pl.concat(frames)


def filter_shard(ingest_shard: Path, book: Rulebook, fingerprint: str, shard: Path) -> None:
    """Write a shard: mask personal data, cut leaked titles, then judge by every rule."""
    masked: Counter[str] = Counter()
    with ShardWriter(shard, PAIR, rejected(PAIR), stage="filter", version=VERSION, fingerprint=fingerprint) as writer:
        for table in read_batches(ingest_shard):
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            writer.received(frame.height)
            frame, counts = prepare(frame, book.settings)
            masked.update(counts)
            judged = pl.concat(_judge(part, book, rules) for rules, part in group_by_rules(frame, book)).sort("row")
            writer.keep(judged.filter(pl.col("reason").is_null()).to_arrow())
            writer.reject(judged.filter(pl.col("reason").is_not_null()).to_arrow())
        writer.notes["masked"] = dict(masked)


def _judge(frame: pl.DataFrame, book: Rulebook, rules: Sequence[Rule]) -> pl.DataFrame:
    """Add `reason` and `detail`. Classifiers are slow, so each judges only the pairs that all earlier rules keep."""
    judged = judge(frame, [rule for rule in rules if rule.name not in book.models])
    for rule in rules:
        if rule.name in book.models:
            values = classify(judged, rule, book, pl.col("reason").is_null())
            found = find_first_failing(values.to_frame(), [rule])
            judged = judged.with_columns(judged[name].fill_null(found[name]) for name in found.columns)
    return judged


def classify(frame: pl.DataFrame, rule: Rule, book: Rulebook, wanted: pl.Expr) -> pl.Series:
    """Compute a classifier's value for the `wanted` rows to which its rule applies; null for all others."""
    from .classifiers import predict  # imports torch

    rows = frame.select((wanted & rule.applies).arg_true()).to_series()
    texts = frame[rule.side].gather(rows)
    values = predict(texts, book.settings.classifiers[rule.name], book.models[rule.name])
    return pl.repeat(None, frame.height, dtype=pl.Float64, eager=True).scatter(rows, values).alias(rule.name)


def load_classifiers(book: Rulebook, device: str | None = None) -> None:
    """Load every classifier and check its label; `device` is as in `load_encoder`. Raises ModelError, RecipeError."""
    for name, classifier in book.settings.classifiers.items():
        from .classifiers import find_label, load_classifier

        try:
            find_label(classifier.label, load_classifier(classifier, book.models[name], device).labels)
        except RecipeError as error:
            raise RecipeError(f"filter.classifiers.{name}: {error}") from error


def _fingerprint_model(classifier: ClassifierSettings) -> str:
    from .classifiers import model_fingerprint

    return model_fingerprint(classifier)
