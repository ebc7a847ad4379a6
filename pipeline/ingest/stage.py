"""conan ingest: turn files of any shape into pairs, and give a reason for everything that did not become one."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import duckdb
import polars as pl
import pyarrow as pa

from ...schemas.errors import RecipeError
from ...schemas.outcomes import Summary
from ...schemas.pairs import PAIR, REJECTED_AT_INGEST
from ...schemas.recipe import Recipe
from ...schemas.source_settings import EvaluationSet, Source
from ..corpus.folder import fingerprint, read_footer
from ..corpus.saved_recipe import load_saved, save_recipe
from ..corpus.shard_writer import ShardWriter
from ..corpus.synthesis import META, list_answers
from ..engine.calls import Engine
from ..engine.stage import Task, find_finished, run_stage
from ..text.normalise import normalise, simplify
from .columns import Decided, decide_columns, find_kept
from .files import FileSplit, SourceFile
from .listing import Listing, list_files
from .projector import Projector
from .readers import check_readers, open_sandbox, read_batches
from .shown_records import mask_problems
from .splits import list_source_files, plan_splits

VERSION = 6

_LATER = {"priority", "licence", "holdout", "label_range", "prompts", "instruction", "synthesize"}
"""Settings of a source that only other stages use."""


def ingest(corpus: Path, recipe: Recipe, engine: Engine) -> Summary:
    """Read the sources of the recipe into `corpus/ingest`, and its evaluation sets into `corpus/evaluation`.

    The recipe is saved in the corpus. A source with `synthesize:` has the pairs written so far.

    Raises:
        RecipeError: a reader is unknown or refuses a source's options; no source matches any file.
        StageError: a shard could not be written.
    """
    if not recipe.sources:
        raise RecipeError("the recipe has no `sources:`; nothing to ingest")
    check_readers(recipe)
    recipe = _keep_raw_rejects(recipe)
    listings = {
        source.name: _list_written(corpus, source) if source.synthesize else list_source_files(source, source.files)
        for source in recipe.sources
    }
    files = {name: listing.files for name, listing in listings.items()}
    of_files = [source for source in recipe.sources if not source.synthesize]
    empty = [source for source in of_files if not files[source.name]]
    if len(empty) == len(of_files):
        skipped = "; ".join(_describe_left_out(listings)["skipped_files"])
        raise RecipeError(
            f"no source matches any file; {empty[0].name} looks for {', '.join(empty[0].files)}. Check the paths and "
            f"`variables:`{skipped and f'. Skipped: {skipped}'}"
        )
    plans = {source.name: list(plan_splits(source, files[source.name])) for source in recipe.sources}
    saved = load_saved(corpus)
    decided = [
        Decided(source)
        if source.synthesize
        else decide_columns(source, list(chain.from_iterable(plans[source.name])), find_kept(source, saved.sources))
        for source in recipe.sources
    ]
    sets = [_plan_set(one, find_kept(one, saved.evaluation)) for one in recipe.evaluation]
    recipe = recipe.model_copy(
        update={"sources": [each.source for each in decided], "evaluation": [each.decided.source for each in sets]}
    )
    tasks = [
        Task((source, splits), _fingerprint(source, splits, files[source.name]))
        for source in recipe.sources
        for splits in plans[source.name]
    ]
    save_recipe(corpus, recipe)  # before the shards: an interrupted run is resumed with it
    summary = run_stage(corpus, "ingest", ingest_shard, tasks, engine)
    summary.empty_sources = [
        f"{source.name}: no file{' but skipped ones' * bool(listings[source.name].skipped)} matches "
        f"{', '.join(source.files)}"
        for source in empty
    ]
    summary.empty_sources += _find_barren(
        corpus, "ingest", [task for task in tasks if not task.arguments[0].synthesize]
    )
    summary.empty_sources += _ingest_evaluation(corpus, sets, engine)
    summary.notes["kept_types"] = [change for each in decided for change in each.changes]
    summary.notes["kept_types"] += [change for each in sets for change in each.decided.changes]
    for each in sets:
        listings[f"{each.decided.source.name} (evaluation)"] = each.files.join(each.passages)
    summary.notes |= _describe_left_out(listings)
    summary.notes["absent_columns"] = _find_absent(corpus, tasks)
    summary.notes["left_out_by_where"] = _count_left_out(corpus, tasks)
    summary.bad_input = bool(summary.rejected or summary.empty_sources)
    return summary


def _list_written(corpus: Path, source: Source) -> Listing:
    """List the shards of what a language model has written; they are the same files if their content is the same."""
    shards = list_answers(corpus, source.name)
    return Listing([SourceFile(str(shard), shard.stat().st_size, read_footer(shard).content) for shard in shards])


def _describe_left_out(listings: Mapping[str, Listing]) -> dict[str, list[str]]:
    """Return the globs that match nothing, if others of their source match something, and counts of skipped files."""
    unmatched = [f"{name}: {glob}" for name, one in listings.items() if one.files for glob in one.unmatched]
    skipped = [
        f"{name}: {len(paths):,} {why}, such as {paths[0]}"
        for name, one in listings.items()
        for why in sorted(set(one.skipped.values()))
        if (paths := [path for path, reason in one.skipped.items() if reason == why])
    ]
    return {"globs_without_files": unmatched, "skipped_files": skipped}


def _keep_raw_rejects(recipe: Recipe) -> Recipe:
    """Set `rejects: raw` for all sources if the filter does not mask personal data either."""
    if recipe.filter.mask:
        return recipe
    raw = {"rejects": "raw"}
    return recipe.model_copy(
        update={
            "sources": [source.model_copy(update=raw) for source in recipe.sources],
            "evaluation": [one.model_copy(update=raw) for one in recipe.evaluation],
        }
    )


class _PlannedSet(NamedTuple):
    """An evaluation set: what is known of it before any work."""

    decided: Decided[EvaluationSet]
    files: Listing
    passages: Listing


def _plan_set(one: EvaluationSet, kept: Mapping[str, str]) -> _PlannedSet:
    files, passages = (list_source_files(one, globs) for globs in (one.files, one.passages))
    return _PlannedSet(decide_columns(one, _list_whole([*files.files, *passages.files]), kept), files, passages)


def _list_whole(files: Sequence[SourceFile]) -> list[FileSplit]:
    return [FileSplit(file.path) for file in files]


def _ingest_evaluation(corpus: Path, sets: Sequence[_PlannedSet], engine: Engine) -> list[str]:
    """Write a shard for each evaluation set: its own pairs, then `passages:` as pairs of the task passage.

    Returns messages about globs that match no file, and about sets whose files contain no pair.
    """
    tasks, empty = [], []
    for each in sets:
        one, files, passages = each.decided.source, each.files.files, each.passages.files
        for globs, found in ((one.files, files), (one.passages, passages)):
            if globs and not found:
                empty.append(f"{one.name} (evaluation): no file matches {', '.join(globs)}")
        if files:
            both = [*files, *passages]
            decided_by = _fingerprint(one, _list_whole(both), both)
            tasks.append(Task((one, _list_whole(files), _list_whole(passages)), decided_by))
    if tasks or (corpus / "evaluation").exists():
        run_stage(corpus, "evaluation", ingest_evaluation_set, tasks, engine)
    return empty + _find_barren(corpus, "evaluation", tasks)


def _find_barren(corpus: Path, folder: str, tasks: Sequence[Task]) -> list[str]:
    """Return a message for each source whose files contain no pair."""
    place = find_finished(corpus, folder, tasks)
    pairs: Counter[str] = Counter()
    for task in tasks:
        footer = read_footer(place[task.fingerprint])
        pairs[task.arguments[0].name] += footer.rows_out - footer.notes.get("passages", 0)
    return [f"{name}: no pair in its files; {folder}/rejected says why" for name, rows in pairs.items() if not rows]


def _find_absent(corpus: Path, tasks: Sequence[Task]) -> list[str]:
    """Return a message for each column in a source's SQL that no row has: it is NULL everywhere, perhaps misspelt."""
    place = find_finished(corpus, "ingest", tasks)
    rows: Counter[str] = Counter()
    absent: Counter[tuple[str, str]] = Counter()
    for task in tasks:
        name, footer = task.arguments[0].name, read_footer(place[task.fingerprint])
        rows[name] += footer.rows_in
        absent.update({(name, column): lacking for column, lacking in footer.notes.get("absent_columns", {}).items()})
    return [f"{name}: no file has {column}" for (name, column), lacking in absent.items() if lacking == rows[name]]


def _count_left_out(corpus: Path, tasks: Sequence[Task]) -> dict[str, int]:
    """Count the rows of each source that `where` excludes; they are neither pairs nor rejects."""
    place = find_finished(corpus, "ingest", tasks)
    rows: Counter[str] = Counter()
    for task in tasks:
        rows[task.arguments[0].name] += read_footer(place[task.fingerprint]).notes.get("left_out", 0)
    return {name: left_out for name, left_out in rows.items() if left_out}


def _fingerprint(source: Source, splits: Sequence[FileSplit], files: Sequence[SourceFile]) -> str:
    if source.synthesize:  # wherever the corpus lies
        files = [replace(file, path=Path(file.path).name) for file in files]
        splits = [replace(split, path=Path(split.path).name) for split in splits]
    versions = {file.path: file.version for file in files}
    settings = source.model_dump(mode="json", exclude=_LATER)
    joined = [(file.path, file.version) for file in list_files(list(source.join.values())).files]
    read = [(split.path, split.start, split.end, versions[split.path]) for split in splits]
    return fingerprint("ingest", VERSION, settings, read, joined)


def ingest_shard(source: Source, splits: Sequence[FileSplit], fingerprint: str, shard: Path) -> None:
    """Write one shard: the pairs and rejects of some splits of a source."""
    with ShardWriter(
        shard, PAIR, REJECTED_AT_INGEST, stage="ingest", version=VERSION, fingerprint=fingerprint
    ) as writer:
        _ingest_splits(source, splits, writer)


def ingest_evaluation_set(
    source: EvaluationSet, splits: Sequence[FileSplit], passages: Sequence[FileSplit], fingerprint: str, shard: Path
) -> None:
    """Write the shard of an evaluation set: the pairs of its files, and all its passages, whatever `where` says."""
    with ShardWriter(
        shard, PAIR, REJECTED_AT_INGEST, stage="evaluation", version=VERSION, fingerprint=fingerprint
    ) as writer:
        _ingest_splits(source, splits, writer)
        pairs = writer.rows_out
        if passages:
            _ingest_splits(source.model_copy(update={"task": "passage", "where": None}), passages, writer)
        writer.notes["passages"] = writer.rows_out - pairs


def _ingest_splits(source: Source, splits: Sequence[FileSplit], writer: ShardWriter) -> None:
    if source.synthesize:
        source = source.model_copy(update={"meta": META})
    absent: Counter[str] = Counter(writer.notes.get("absent_columns", {}))
    left_out = writer.notes.get("left_out", 0)
    with open_sandbox() as connection, Projector(source) as projector:
        for frame, unread in read_batches(connection, source, splits):
            found = projector.project(frame)
            problems = pl.concat([unread, found.problems])
            absent.update(dict.fromkeys(found.missing, found.pairs.height + found.problems.height))
            left_out += found.left_out
            if not found.pairs.is_empty():
                writer.received(found.pairs.height)
                writer.keep(_make_pairs(connection, source, found.pairs))
            if not problems.is_empty():
                writer.received(problems.height)
                writer.reject(_make_rejects(source, problems if source.rejects == "raw" else mask_problems(problems)))
    writer.notes |= {"absent_columns": dict(absent)} if absent else {}
    writer.notes |= {"left_out": left_out} if left_out else {}


def _make_pairs(connection: duckdb.DuckDBPyConnection, source: Source, frame: pl.DataFrame) -> pa.Table:
    clean = _choose_cleaning(source)
    named = frame.select(
        source=pl.lit(source.name),
        category=pl.lit(source.category),
        format=pl.lit(source.format),
        task=pl.lit(source.task),
        query=clean(pl.col("query")),
        positive=clean(pl.col("positive")),
        negatives=_clean_lists(frame["negatives"], clean),
        label=pl.col("label").cast(pl.Float32),
        meta=pl.col("meta").fill_null("{}"),
    )
    texts = named.select("source", "task", "query", "positive")
    connection.register("frame", texts.to_arrow(compat_level=pl.CompatLevel.newest()))
    # Normalised text contains no unit separator (31), so different pairs hash different strings.
    ids = connection.sql("SELECT md5(concat_ws(chr(31), source, task, query, positive)) FROM frame").to_arrow_table()
    connection.unregister("frame")
    return named.to_arrow().add_column(0, "pair_id", ids.column(0))


def _choose_cleaning(source: Source) -> Callable[[pl.Expr], pl.Expr]:
    return (lambda column: simplify(normalise(column))) if source.simplify else normalise


def _clean_lists(lists: pl.Series, clean: Callable[[pl.Expr], pl.Expr]) -> pl.Series:
    """Clean the texts in lists, and drop empty ones and nulls."""
    lists = lists.cast(pl.List(pl.String))
    if not lists.list.len().sum():
        return lists.fill_null([])
    frame = pl.DataFrame({"row": pl.arange(len(lists), eager=True), "text": lists})
    texts = (
        frame.explode("text")
        .with_columns(clean(pl.col("text")))
        .filter(pl.col("text").is_not_null() & (pl.col("text") != ""))
        .group_by("row", maintain_order=True)
        .agg("text")
    )
    joined = frame.select("row").join(texts, on="row", how="left", maintain_order="left")
    return joined["text"].fill_null([])


def _make_rejects(source: Source, problems: pl.DataFrame) -> pa.Table:
    table = problems.with_columns(
        source=pl.lit(source.name),
        category=pl.lit(source.category),
        format=pl.lit(source.format),
        task=pl.lit(source.task),
    ).to_arrow()
    for field in REJECTED_AT_INGEST:
        if field.name not in table.column_names:
            table = table.append_column(field.name, pa.nulls(table.num_rows, field.type))
    return table
