"""conan convert: turn curated pairs into training records, in one folder per kind of record."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path

import polars as pl

from ...schemas.outcomes import Summary
from ...schemas.pairs import SCORED, rejected
from ...schemas.recipe import Recipe
from ...schemas.settings import ConvertSettings
from ...schemas.training import TRAINING
from ..corpus.folder import fingerprint, read_batches, read_footer, shards
from ..corpus.shard_writer import ShardWriter
from ..engine.calls import Engine
from ..engine.stage import Task, run_stage
from .class_records import build_class_records, judge_classes
from .query_records import build_query_records, count_parts
from .response_rules import find_broken_rule

VERSION = 7


def convert(corpus: Path, recipe: Recipe, engine: Engine) -> Summary:
    """Write convert/pretrain, convert/retrieval, convert/sts and convert/passages.

    Raises:
        StageError: a shard failed.
    """
    settings = recipe.convert
    inputs = shards(corpus, "score")
    names = pl.concat(
        pl.read_parquet(shard, columns=["source", "task"])
        .unique()
        .select(pl.col("source", "task").cast(pl.String), shard=pl.lit(str(shard)))
        for shard in inputs
    )
    content = {str(shard): (shard.name, read_footer(shard).content) for shard in inputs}
    ranges = {source.name: source.label_range for source in recipe.sources}

    def task(paths: Sequence[str], *arguments: object, decided_by: Set[str] = frozenset()) -> Task:
        decisive = settings.model_dump(include=set(decided_by)), [content[path] for path in paths], arguments
        return Task(([Path(path) for path in paths], *arguments, settings), fingerprint("convert", VERSION, decisive))

    pretrain, passages = (sorted(set(names.filter(task=name)["shard"])) for name in ("pretrain", "passage"))
    sts = names.filter(pl.col("task") == "sts").sort("shard", "source")
    grouped = (
        names.filter(pl.col("task").is_in(["retrieval", "classification"]))
        .sort("shard")
        .group_by("source", "task", maintain_order=True)
        .agg("shard")
    )
    by_class = {"class_positives", "class_negatives", "seed"}
    tasks: dict[str, tuple[Callable[..., None], list[Task]]] = {
        # First, as mine takes a corpus without this folder for one without passages.
        "passages": (write_passage_shard, [task([path]) for path in passages]),
        "pretrain": (
            write_pretrain_shard,
            [task([path], decided_by={"max_prompt_chars", "min_response_chars"}) for path in pretrain],
        ),
        "retrieval": (
            write_retrieval_shard,
            [
                task(paths, source, kind, decided_by=by_class if kind == "classification" else set())
                for source, kind, paths in grouped.select("source", "task", "shard").iter_rows()
            ],
        ),
        "sts": (
            write_sts_shard,
            [
                task([path], source, tuple(ranges.get(source, (0.0, 1.0))))
                for source, path in sts.select("source", "shard").iter_rows()
            ],
        ),
    }
    return _add_up(
        run_stage(corpus, f"convert/{kind}", function, listed, engine) for kind, (function, listed) in tasks.items()
    )


def _add_up(parts: Iterable[Summary]) -> Summary:
    """Add up the summaries of the folders; the notes have each folder's number of rows."""
    whole = Summary("convert")
    for part in parts:
        whole.rows_in += part.rows_in
        whole.rows_out += part.rows_out
        whole.rejected += part.rejected
        whole.shards += part.shards
        whole.skipped += part.skipped
        whole.seconds += part.seconds
        whole.notes[part.stage] = part.rows_out
    return whole


def _open_writer(shard: Path, kind: str, fingerprint: str) -> ShardWriter:
    return ShardWriter(
        shard, TRAINING[kind], rejected(SCORED), stage="convert", version=VERSION, fingerprint=fingerprint
    )


def _read_frames(paths: Iterable[Path], wanted: pl.Expr) -> Iterator[pl.DataFrame]:
    """Yield the wanted rows of shards, one row group at a time, with dictionary columns as strings."""
    for path in paths:
        for table in read_batches(path):
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            yield frame.with_columns(pl.col("source", "category", "format", "task").cast(pl.String)).filter(wanted)


def write_pretrain_shard(paths: Sequence[Path], settings: ConvertSettings, fingerprint: str, shard: Path) -> None:
    """Write a shard of pre-training pairs; prompt-response pairs that break a rule are rejected."""
    with _open_writer(shard, "pretrain", fingerprint) as writer:
        for frame in _read_frames(paths, pl.col("task") == "pretrain"):
            writer.received(frame.height)
            is_response = frame["format"] == "prompt_response"
            judged = frame.filter(is_response).with_columns(
                reason=find_broken_rule(settings), detail=pl.col("positive").str.slice(0, 100)
            )
            writer.reject(judged.filter(pl.col("reason").is_not_null()).to_arrow())
            for kept in (frame.filter(~is_response), judged.filter(pl.col("reason").is_null())):
                writer.keep(kept.with_columns(pair_ids=pl.concat_list("pair_id")).to_arrow())


def write_sts_shard(
    paths: Sequence[Path],
    source: str,
    label_range: tuple[float, float],
    settings: ConvertSettings,
    fingerprint: str,
    shard: Path,
) -> None:
    """Write a shard of sentence pairs. Labels are scaled from the source's range to 0…1; the original label is kept."""
    low, high = label_range
    with _open_writer(shard, "sts", fingerprint) as writer:
        writer.notes["label_range"] = [low, high]
        for frame in _read_frames(paths, (pl.col("task") == "sts") & (pl.col("source") == source)):
            outside = ~pl.col("label").is_between(low, high).fill_null(False)
            writer.received(frame.height)
            writer.reject(
                frame.filter(outside)
                .with_columns(
                    reason=pl.lit("label_range"),
                    detail=pl.format(
                        f"{{}} is not in {low:g}…{high:g}; set label_range",
                        pl.col("label").cast(pl.String).fill_null("null"),
                    ),
                )
                .to_arrow()
            )
            writer.keep(
                frame.filter(~outside)
                .with_columns(
                    pair_ids=pl.concat_list("pair_id"),
                    text_a="query",
                    text_b="positive",
                    label=(pl.col("label") - low) / (high - low),
                    original_label="label",
                )
                .to_arrow()
            )


def write_passage_shard(paths: Sequence[Path], settings: ConvertSettings, fingerprint: str, shard: Path) -> None:
    """Write a shard of passages."""
    with _open_writer(shard, "passages", fingerprint) as writer:
        for frame in _read_frames(paths, pl.col("task") == "passage"):
            writer.received(frame.height)
            writer.keep(frame.with_columns(pair_ids=pl.concat_list("pair_id"), text="positive").to_arrow())


def write_retrieval_shard(
    paths: Sequence[Path], source: str, task: str, settings: ConvertSettings, fingerprint: str, shard: Path
) -> None:
    """Write a shard with a source's retrieval records: one per query, with its positives and negatives."""
    frames = _read_frames(paths, (pl.col("source") == source) & (pl.col("task") == task))
    with _open_writer(shard, "retrieval", fingerprint) as writer:
        if task == "classification":
            frame = pl.concat(frames).sort("pair_id")  # so that the order of shards does not matter
            writer.received(frame.height)
            judged = judge_classes(frame)
            writer.reject(judged.filter(pl.col("reason").is_not_null()).to_arrow())
            frame = judged.filter(pl.col("reason").is_null())
            writer.keep(build_class_records(frame, settings).to_arrow(), rows=frame.height)
        else:
            # A name that `begin` deletes if a killed run has left it.
            work = shard.with_name(f".{shard.name}.pairs.{os.getpid()}.tmp")
            work.mkdir()
            try:
                for records in build_query_records(_count(frames, writer), count_parts(paths), work):
                    writer.keep(records.to_arrow(), rows=records["pair_ids"].explode().len())
            finally:
                shutil.rmtree(work)


def _count(frames: Iterable[pl.DataFrame], writer: ShardWriter) -> Iterator[pl.DataFrame]:
    """Pass frames on, with what records are made of, and count their rows as received."""
    for frame in frames:
        writer.received(frame.height)
        yield frame.select("pair_id", "source", "category", "query", "positive", "negatives", "cluster_id")
