"""conan score: cosine of query and positive; pre-training pairs below the cutoff are rejected (paper §2.1.1)."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl

from ..schemas.pairs import SCORED, rejected
from ..schemas.settings import EncoderSettings, ScoreSettings
from .corpus import ShardWriter, fingerprint, read_batches, read_footer, shards
from .encoder import Encoder, encode, find_model, load_encoder, weights_fingerprint
from .engine import Engine, Summary, Task, run_stage

VERSION = 1


def score(corpus: Path, settings: ScoreSettings, engine: Engine) -> Summary:
    """Score what dedup kept.

    Raises:
        ModelError: the model can't be read.
        StageError: a shard could not be made.
    """
    weights = weights_fingerprint(find_model(settings.model))
    decisive = settings.model_dump(exclude={"model", "batch_tokens"})
    tasks = [
        Task(
            (shard, settings),
            fingerprint("score", VERSION, weights, decisive, shard.name, read_footer(shard).content),
        )
        for shard in shards(corpus, "dedup")
    ]
    # The model uses all cores, so the shards take turns.
    return run_stage(corpus, "score", score_shard, tasks, Engine(workers=1, progress=engine.progress))


def score_shard(dedup_shard: Path, settings: ScoreSettings, fingerprint: str, shard: Path) -> None:
    """One shard: pre-training pairs with their score, at or above the cutoff; labelled pairs as they are."""
    encoder = _loaded(EncoderSettings(**settings.model_dump(exclude={"cutoff"})))
    with ShardWriter(
        shard, SCORED, rejected(SCORED), stage="score", version=VERSION, fingerprint=fingerprint
    ) as writer:
        writer.notes["model"] = encoder.fingerprint
        for table in read_batches(dedup_shard):
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            writer.received(frame.height)
            scored = _with_scores(frame, encoder)
            low = (pl.col("score") < settings.cutoff) | pl.col("score").is_nan()
            bad = pl.col("score").is_not_null() & low
            writer.keep(scored.filter(~bad).to_arrow())
            writer.reject(
                scored.filter(bad)
                .with_columns(
                    reason=pl.lit("score"),
                    detail=pl.format(f"{{}} < {settings.cutoff:g}", pl.col("score").round(3)),
                )
                .to_arrow()
            )


@lru_cache(maxsize=1)
def _loaded(settings: EncoderSettings) -> Encoder:
    return load_encoder(settings)


def _with_scores(frame: pl.DataFrame, encoder: Encoder) -> pl.DataFrame:
    """Add `score`, null where the task is not scored."""
    scored = frame["task"].cast(pl.String) == "pretrain"
    pairs = frame.filter(scored)
    texts = pl.concat([pairs["query"], pairs["positive"]]).to_arrow()
    vectors = encode(encoder, texts)
    queries, positives = vectors[: pairs.height], vectors[pairs.height :]
    column = np.full(frame.height, np.nan, np.float32)
    column[scored.to_numpy()] = np.einsum("nd,nd->n", queries, positives)
    return frame.with_columns(score=pl.when(scored).then(pl.Series(column)))
