"""conan score: compute the cosine of query and positive, reject pre-training pairs below the cutoff (paper §2.1.1).

No text is encoded twice, even if runs are killed or cutoffs change: the scores of a row group are written to a file as
soon as they are computed, and the scores of finished shards are read back if only a cutoff changed.
"""

import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from ...schemas.errors import CorpusError
from ...schemas.outcomes import Summary
from ...schemas.pairs import FORMATS, SCORED, rejected
from ...schemas.settings import PromptSettings, ScoreSettings
from ..corpus.atomic import replacing
from ..corpus.folder import committed, fingerprint, read_batches, read_footer, rejects, shards
from ..corpus.shard_writer import ShardWriter
from ..encoder.encoder import loaded
from ..encoder.model_folder import find_model, weights_fingerprint
from ..encoder.prompts import read_prompts
from ..engine.calls import Engine
from ..engine.stage import Task, find_finished, run_stage
from .pair_scores import compute_scores

VERSION = 2
BINS = 64
"""Chosen here: bins of equal width over [-1, 1] in the histogram in a shard's notes."""
QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}
_PARTS = ".parts"
_KNOWN = {"pair_id": pl.String, "score": pl.Float32, "detail": pl.String}
"""The columns of known scores: a pair's score, or a `detail` that says which side has no tokens."""


def score(corpus: Path, settings: ScoreSettings, engine: Engine) -> Summary:
    """Score the pairs that dedup kept. If only cutoffs changed, existing scores are read instead of computed.

    The summary's notes are the number of pairs `scored`, the number of texts `truncated` to the model's length, and
    quantiles of the scores.

    Raises:
        ModelError: the model can't be read.
        StageError: a shard failed.
    """
    folder = find_model(settings.model, settings.trust_remote_code)
    weights = weights_fingerprint(folder)
    prompts = read_prompts(folder, settings, retrieves=False)
    settings = settings.model_copy(update={"prompts": PromptSettings(**asdict(prompts))})
    encoding = settings.model_dump(include={"pooling", "max_length", "trust_remote_code", "prompts"})
    earlier = {_read_scores_fingerprint(shard): shard for shard in committed(corpus, "score")}
    tasks = []
    for shard in shards(corpus, "dedup"):
        scores = fingerprint("score", VERSION, weights, encoding, shard.name, read_footer(shard).content)
        arguments = (shard, earlier.get(scores), settings, weights, scores)
        tasks.append(Task(arguments, fingerprint(scores, _list_cutoffs(settings))))
    there = find_finished(corpus, "score", tasks)
    if any(task.fingerprint not in there and task.arguments[1] is None for task in tasks):
        loaded(settings, weights, "cpu")  # so that an unreadable model is reported once, not by every shard
    summary = run_stage(corpus, "score", score_shard, tasks, replace(engine, one_a_device=True))
    shutil.rmtree(corpus / "score" / _PARTS, ignore_errors=True)
    summary.notes |= _add_up_notes(read_footer(shard).notes for shard in committed(corpus, "score"))
    return summary


def _list_cutoffs(settings: ScoreSettings) -> dict[str, float]:
    """Return the cutoff of each format."""
    own: dict[Any, float] = settings.cutoffs
    return {name: own.get(name, settings.cutoff) for name in FORMATS}


def _read_scores_fingerprint(shard: Path) -> str | None:
    """Read the fingerprint of everything that a shard's scores depend on, without cutoffs; None if unreadable."""
    try:
        return read_footer(shard).notes.get("scores")
    except CorpusError:
        return None


def _add_up_notes(notes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Add up the notes of shards; quantiles are interpolated in the histogram."""
    each = list(notes)
    counts = np.sum([note["histogram"] for note in each], axis=0)
    results = {"scored": int(counts.sum()), "truncated": sum(note["truncated"] for note in each)}
    upto, edges = np.append(0, np.cumsum(counts)), np.linspace(-1, 1, BINS + 1)
    quantiles = {name: float(np.interp(share * upto[-1], upto, edges)) for name, share in QUANTILES.items()}
    return results | {name: round(value, 3) for name, value in quantiles.items() if results["scored"]}


def score_shard(
    dedup_shard: Path,
    earlier: Path | None,
    settings: ScoreSettings,
    weights: str,
    scores: str,
    fingerprint: str,
    shard: Path,
) -> None:
    """Write a shard: pre-training pairs with a score at or above the cutoff, and all labelled pairs.

    `earlier` is a shard with the same scores but other cutoffs; `scores` is the fingerprint of the scores.
    """
    parts = shard.parent / _PARTS
    if earlier is not None and _read_scores_fingerprint(earlier) == scores:  # another shard may have taken its place
        _set_aside(parts / f"{scores}-earlier.parquet", *_read_shard(earlier))
    known, truncated = _read_parts(parts, scores)
    histogram = np.zeros(BINS, np.int64)
    with ShardWriter(
        shard, SCORED, rejected(SCORED), stage="score", version=VERSION, fingerprint=fingerprint
    ) as writer:
        for group, table in enumerate(read_batches(dedup_shard)):
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            writer.received(frame.height)
            wanted = frame.lazy().filter(pl.col("task").cast(pl.String) == "pretrain")
            texts = wanted.select("pair_id", "query", "positive").unique("pair_id", maintain_order=True).collect()
            missing = texts.join(known, on="pair_id", how="anti", maintain_order="left")
            here = known
            if missing.height:
                found, cut = compute_scores(missing, settings, weights)
                _set_aside(parts / f"{scores}-{group:05d}.parquet", found, cut)
                truncated += cut
                here = pl.concat([known, found])
            scored = _judge(frame.join(here, on="pair_id", how="left", maintain_order="left"), settings)
            cosines = scored["score"].drop_nulls().drop_nans().clip(-1, 1)
            histogram += np.histogram(cosines, BINS, (-1, 1))[0]
            writer.keep(scored.filter(pl.col("reason").is_null()).to_arrow())
            writer.reject(scored.filter(pl.col("reason").is_not_null()).to_arrow())
        writer.notes = {"model": weights, "scores": scores, "truncated": truncated, "histogram": histogram.tolist()}
    for part in parts.glob(f"{scores}-*"):
        part.unlink(missing_ok=True)


def _judge(scored: pl.DataFrame, settings: ScoreSettings) -> pl.DataFrame:
    """Add `reason` and `detail`, null for pairs that are kept."""
    cutoffs = _list_cutoffs(settings)
    form, score = pl.col("format").cast(pl.String), pl.col("score")
    cutoff = form.replace_strict(cutoffs, return_dtype=pl.Float32)
    shown = form.replace_strict({name: f"{value:g}" for name, value in cutoffs.items()}, return_dtype=pl.String)
    reason = (
        pl.when(pl.col("detail").is_not_null())
        .then(pl.lit("no_tokens"))
        .when(score.is_nan())
        .then(pl.lit("score_nan"))
        .when(score < cutoff)
        .then(pl.lit("score"))
    )
    detail = (
        pl.when(reason == "score")
        .then(pl.format("{} < {}", score.round(3), shown))
        .when(reason == "score_nan")
        .then(pl.lit("the cosine is NaN"))
        .otherwise("detail")
    )
    return scored.with_columns(reason=reason, detail=detail)


def _set_aside(part: Path, known: pl.DataFrame, truncated: int) -> None:
    """Save scores to a file atomically, to keep them until their shard is written."""
    part.parent.mkdir(exist_ok=True)
    with replacing(part) as temporary:
        known.write_parquet(temporary, metadata={"truncated": str(truncated)})


def _read_parts(parts: Path, scores: str) -> tuple[pl.DataFrame, int]:
    """Read the saved scores of a shard, each pair once, and the number of truncated texts."""
    files = sorted(parts.glob(f"{scores}-*.parquet"))
    known = pl.concat([pl.DataFrame(schema=_KNOWN), *(pl.read_parquet(file) for file in files)]).unique("pair_id")
    return known, sum(int(pl.read_parquet_metadata(file)["truncated"]) for file in files)


def _read_shard(shard: Path) -> tuple[pl.DataFrame, int]:
    """Read the scores in a finished shard, and the number of truncated texts."""
    files = [file for file in (shard, rejects(shard)) if file.exists()]
    columns = cs.by_name(*_KNOWN, "reason", require_all=False)
    blank = pl.LazyFrame(schema=_KNOWN | {"reason": pl.String})
    found = pl.concat([blank, *(pl.scan_parquet(file).select(columns) for file in files)], how="diagonal")
    known = found.select("pair_id", "score", detail=pl.when(reason="no_tokens").then("detail"))
    known = known.filter(pl.any_horizontal(pl.col("score", "detail").is_not_null()))
    return known.collect(), read_footer(shard).notes["truncated"]
