"""conan score: cosine of query and positive; pre-training pairs below the cutoff are rejected (paper §2.1.1)."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl

from ..schemas.pairs import SCORED, rejected
from ..schemas.settings import EncoderSettings, ScoreSettings
from .corpus import CorpusError, ShardWriter, committed, fingerprint, read_batches, read_footer, rejects, shards
from .encoder import Encoder, encode, find_model, load_encoder, weights_fingerprint
from .engine import Engine, Summary, Task, made, run_stage

VERSION = 1


def score(corpus: Path, settings: ScoreSettings, engine: Engine) -> Summary:
    """Score what dedup kept. Under another cutoff alone, the scores that are there are read, not computed again.

    Raises:
        ModelError: the model can't be read.
        StageError: a shard could not be made.
    """
    weights = weights_fingerprint(find_model(settings.model))
    encoding = settings.model_dump(exclude={"model", "batch_tokens", "cutoff"})
    earlier = {_scores_of(shard): shard for shard in committed(corpus, "score")}
    tasks = []
    for shard in shards(corpus, "dedup"):
        scores = fingerprint("score", VERSION, weights, encoding, shard.name, read_footer(shard).content)
        arguments = (shard, earlier.get(scores), settings, weights, scores)
        tasks.append(Task(arguments, fingerprint(scores, settings.cutoff)))
    there = made(corpus, "score", tasks)
    if any(task.fingerprint not in there and task.arguments[1] is None for task in tasks):
        _loaded(settings, weights)  # a model that can't be read is said once, not by every shard
    return run_stage(corpus, "score", score_shard, tasks, replace(engine, one_a_device=True))


def _scores_of(shard: Path) -> str | None:
    """What decided the scores in a shard, whatever its cutoff."""
    try:
        return read_footer(shard).notes.get("scores")
    except CorpusError:
        return None


def score_shard(
    dedup_shard: Path,
    earlier: Path | None,
    settings: ScoreSettings,
    weights: str,
    scores: str,
    fingerprint: str,
    shard: Path,
) -> None:
    """One shard: pre-training pairs with their score, at or above the cutoff; labelled pairs as they are.

    `earlier` is a shard with the same scores under another cutoff; `scores` says which scores these are.
    """
    known = _known_scores(earlier, scores)
    with ShardWriter(
        shard, SCORED, rejected(SCORED), stage="score", version=VERSION, fingerprint=fingerprint
    ) as writer:
        writer.notes = {"model": weights, "scores": scores}
        for table in read_batches(dedup_shard):
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            writer.received(frame.height)
            scored = frame.join(known, on="pair_id", how="left", maintain_order="left")
            missing = (pl.col("task").cast(pl.String) == "pretrain") & pl.col("score").is_null()
            places = scored.select(missing.arg_true()).to_series()
            if len(places):
                found = cosines(
                    _loaded(settings, weights), frame["query"].gather(places), frame["positive"].gather(places)
                )
                scored = scored.with_columns(scored["score"].scatter(places, found))
            bad = (pl.col("score") < settings.cutoff) | pl.col("score").is_nan()
            writer.keep(scored.filter(~bad.fill_null(False)).to_arrow())
            writer.reject(
                scored.filter(bad)
                .with_columns(
                    reason=pl.lit("score"),
                    detail=pl.format(f"{{}} < {settings.cutoff:g}", pl.col("score").round(3)),
                )
                .to_arrow()
            )


def _known_scores(earlier: Path | None, scores: str) -> pl.DataFrame:
    """Scores by pair_id from an earlier shard, if it is still the one it was: another shard may have its place."""
    known = [pl.DataFrame(schema={"pair_id": pl.String, "score": pl.Float32})]
    if earlier is not None and _scores_of(earlier) == scores:
        files = (file for file in (earlier, rejects(earlier)) if file.exists())
        known += [pl.read_parquet(file, columns=["pair_id", "score"]) for file in files]
    return pl.concat(known).drop_nulls().unique("pair_id")


def cosines(encoder: Encoder, queries: pl.Series, positives: pl.Series) -> pl.Series:
    """The cosine of each query and its positive, float32."""
    vectors = encode(encoder, pl.concat([queries, positives]).to_arrow())
    return pl.Series("score", np.einsum("nd,nd->n", vectors[: len(queries)], vectors[len(queries) :]))


def _loaded(settings: ScoreSettings, weights: str) -> Encoder:
    return _load(EncoderSettings(**settings.model_dump(exclude={"cutoff"})), weights)


@lru_cache(maxsize=1)
def _load(settings: EncoderSettings, weights: str) -> Encoder:
    """The model, kept between shards; `weights` is there so that another model of the same name is read anew."""
    return load_encoder(settings)
