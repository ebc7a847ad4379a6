"""conan score: compute the cosine of query and positive and the positive's rank, reject the pairs that a cut drops.

No text is encoded twice, even if runs are killed or cuts change: the scores of a row group are written to a file as
soon as they are computed, and the scores of finished shards are read back if only a cut changed.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import polars.selectors as cs
import pyarrow.parquet as pq

from ...schemas.errors import CorpusError
from ...schemas.outcomes import Summary
from ...schemas.pairs import SCORED, rejected
from ...schemas.prompts import Prompts
from ...schemas.settings import ScoreSettings, SourcePrompts
from ..corpus.atomic import replacing
from ..corpus.folder import committed, fingerprint, read_batches, read_footer, rejects, shards
from ..corpus.shard_writer import ShardWriter
from ..encoder.encoder import loaded
from ..encoder.model_folder import find_model, weights_fingerprint
from ..encoder.prompts import list_prompts, read_prompts
from ..encoder.vector_cache import store
from ..engine.calls import Engine
from ..engine.stage import StageError, Task, find_finished, run_calls, run_stage
from .cuts import judge, list_cutoffs, warn
from .pair_scores import as_unit, compute_scores
from .ranks import draw_sample, read_passages, read_sample, write_sample

VERSION = 3
BINS = 64
"""Chosen here: bins of equal width over [-1, 1] in the histograms in a shard's notes."""
QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}
_PARTS = ".parts"
_KNOWN = {
    "pair_id": pl.String,
    "source": pl.String,
    "score": pl.Float32,
    "mismatched": pl.Float32,
    "rank": pl.Int32,
    "detail": pl.String,
}
"""The columns of known scores: a pair's score and rank, or a `detail` that says which side has no tokens."""


class Scoring(NamedTuple):
    """The inputs of a shard's scores, and the files where they are found or kept.

    `scores` is the fingerprint of all that cosines depend on, `sample` that of the passages that positives are ranked
    among. `earlier` is a finished shard with these scores but other cuts, or None. `parts` is the folder of scores that
    are set aside until their shard is written; `whole` is the file there with all of this shard's, `sample_file` that
    with the sample and its vectors, which is written only if scores are missing.
    """

    dedup_shard: Path
    earlier: Path | None
    settings: ScoreSettings
    prompts: Prompts
    weights: str
    scores: str
    sample: str
    parts: Path
    whole: Path
    sample_file: Path

    def part(self, name: str) -> Path:
        """Return a file of scores; "*" matches all of this shard's."""
        return self.parts / f"{self.scores}-{self.sample}-{name}.parquet"


def score(corpus: Path, settings: ScoreSettings, engine: Engine, sources: Mapping[str, SourcePrompts] = {}) -> Summary:
    """Score the pairs that dedup kept. If only cuts changed, existing scores are read instead of computed.

    `sources` are the prompts of the sources that have their own.

    The summary's notes are the number of pairs `scored`, the number of texts `truncated` to the model's length,
    quantiles of the scores and of `mismatched` pairs, and `warnings` of cuts that reject nothing or most pairs.

    Raises:
        ModelError: the model can't be read.
        StageError: a shard failed.
    """
    folder = find_model(settings.model, settings.trust_remote_code)
    weights = weights_fingerprint(folder)
    prompts = read_prompts(folder, settings, sources, retrieves=False)
    encoding = settings.model_dump(include={"pooling", "max_length", "trust_remote_code"})
    encoding |= {"prompts": [prompts.of_side("query"), prompts.of_side("passage")]}
    engine = replace(engine, one_a_device=True)
    inputs = shards(corpus, "dedup")
    drawn = draw_sample(inputs, settings.among)
    sample = fingerprint("sample", drawn["pair_id"].to_list())
    earlier = {_read_notes(shard).get("scores"): shard for shard in committed(corpus, "score")}
    scorings, parts = [], corpus / "score" / _PARTS
    for shard in inputs:
        scores = fingerprint("score", VERSION, weights, encoding, shard.name, read_footer(shard).content)
        files = (parts, parts / f"{scores}-{sample}-whole.parquet", parts / f"sample-{sample}.parquet")
        scorings.append(Scoring(shard, earlier.get(scores), settings, prompts, weights, scores, sample, *files))
    tasks = _list_tasks(scorings, settings, {}, len(drawn))
    there = find_finished(corpus, "score", tasks)
    pending = [one for one, task in zip(scorings, tasks, strict=True) if task.fingerprint not in there]
    if drawn.height and not all(_has_all_scores(one) for one in pending):
        loaded(settings, weights, "cpu")  # so that an unreadable model is reported once, not by every shard
        passages = read_passages(inputs, drawn)
        before = list_prompts(prompts, "passage", passages["source"])
        vectors = store(corpus, weights, settings, before, passages["text"].to_arrow(), engine)
        vectors_of_all = as_unit(vectors.take(np.arange(len(vectors))))
        write_sample(scorings[0].sample_file, drawn, passages["text"], vectors_of_all)
    if settings.quantile is not None and pending:
        tasks = _list_tasks(scorings, settings, _find_thresholds(scorings, settings.quantile, engine), len(drawn))
    summary = run_stage(corpus, "score", score_shard, tasks, engine)
    shutil.rmtree(parts, ignore_errors=True)
    summary.notes |= _add_up_notes(read_footer(shard).notes for shard in committed(corpus, "score"))
    if warnings := warn(settings, summary.rejected, summary.notes["scored"]):
        summary.notes["warnings"] = warnings
    return summary


def _list_tasks(
    scorings: Sequence[Scoring], settings: ScoreSettings, thresholds: Mapping[str, float], among: int
) -> list[Task]:
    """List the tasks; their fingerprints hold what decides the cuts, which for a quantile is all scores."""
    cuts: list[Any] = [list_cutoffs(settings)]
    if settings.quantile is not None:
        cuts += ["quantile", settings.quantile, [one.scores for one in scorings]]
    if settings.rank is not None:
        cuts += ["rank", settings.rank, [one.sample for one in scorings[:1]]]
    return [Task((one, thresholds, among), fingerprint(one.scores, cuts)) for one in scorings]


def _find_thresholds(scorings: Sequence[Scoring], share: float, engine: Engine) -> dict[str, float]:
    """Compute the scores of all shards that are missing, and from all of them the quantile of each source."""
    calls = [(str(one.whole), (one,)) for one in scorings]
    engine.progress("score", 0, len(calls), 0)
    for done, (name, error) in enumerate(run_calls(set_whole_aside, calls, engine), start=1):
        if error or not Path(name).exists():
            raise StageError(f"{name}: {error or 'written on a node that does not share this folder'}")
        engine.progress("score", done, len(calls), 0)
    scored = pl.concat(pl.scan_parquet(one.whole).select("source", "score") for one in scorings)
    finite = scored.filter(pl.col("score").is_finite())
    found = finite.group_by("source").agg(pl.col("score").cast(pl.Float64).quantile(share, "linear")).collect()
    return {str(source): float(threshold) for source, threshold in found.iter_rows()}


def set_whole_aside(scoring: Scoring) -> None:
    """Compute the scores of a shard that are missing, and set all of them aside in one file."""
    _set_aside(scoring.whole, *_complete_scores(scoring))


def _read_notes(shard: Path) -> dict[str, Any]:
    """Read the notes of a shard: `scores` and `sample` are fingerprints, as in Scoring. Empty if it is unreadable."""
    try:
        return read_footer(shard).notes
    except CorpusError:
        return {}


def _has_all_scores(scoring: Scoring) -> bool:
    """Whether the earlier shard has all scores, and ranks among the same sample if pairs are cut by rank."""
    if scoring.earlier is None:
        return False
    footer, thrown = read_footer(scoring.earlier), rejects(scoring.earlier)
    count = pq.read_metadata(thrown).num_rows if thrown.exists() else 0
    ranked = scoring.settings.rank is None or footer.notes["sample"] == scoring.sample
    return count == sum(footer.rejected.values()) and ranked


def _add_up_notes(notes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Add up the notes of shards; quantiles are interpolated in the histograms."""
    each = list(notes)
    pairs, mismatched = (np.sum([note[name] for note in each], axis=0) for name in ("histogram", "mismatched"))
    results: dict[str, Any] = {"scored": int(pairs.sum()), "truncated": sum(note["truncated"] for note in each)}
    results |= _find_quantiles(pairs)
    return results | ({"mismatched": _find_quantiles(mismatched)} if mismatched.sum() else {})


def _find_quantiles(counts: Any) -> dict[str, float]:
    upto, edges = np.append(0, np.cumsum(counts)), np.linspace(-1, 1, BINS + 1)
    quantiles = {name: float(np.interp(share * upto[-1], upto, edges)) for name, share in QUANTILES.items()}
    return {name: round(value, 3) for name, value in quantiles.items() if upto[-1]}


def score_shard(scoring: Scoring, thresholds: Mapping[str, float], among: int, fingerprint: str, shard: Path) -> None:
    """Write a shard: the pre-training pairs that no cut rejects (see `judge`), and all labelled pairs."""
    known, truncated = _complete_scores(scoring)
    histograms = {"score": np.zeros(BINS, np.int64), "mismatched": np.zeros(BINS, np.int64)}
    with ShardWriter(
        shard, SCORED, rejected(SCORED), stage="score", version=VERSION, fingerprint=fingerprint
    ) as writer:
        for table in read_batches(scoring.dedup_shard):
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            writer.received(frame.height)
            scored = frame.join(known.drop("source"), on="pair_id", how="left", maintain_order="left")
            for name, histogram in histograms.items():
                cosines = scored[name].drop_nulls().drop_nans().clip(-1, 1)
                histogram += np.histogram(cosines, BINS, (-1, 1))[0]
            judged = judge(scored, scoring.settings, thresholds, among)
            writer.keep(judged.filter(pl.col("reason").is_null()).to_arrow())
            writer.reject(judged.filter(pl.col("reason").is_not_null()).to_arrow())
        writer.notes = {
            "model": scoring.weights,
            "scores": scoring.scores,
            "sample": scoring.sample,
            "truncated": truncated,
            "histogram": histograms["score"].tolist(),
            "mismatched": histograms["mismatched"].tolist(),
        }
    for part in scoring.parts.glob(scoring.part("*").name):
        part.unlink(missing_ok=True)


def _complete_scores(scoring: Scoring) -> tuple[pl.DataFrame, int]:
    """Return all scores of a shard and the number of truncated texts; those that are missing are computed.

    What is computed is set aside by row group.
    """
    earlier = None if scoring.whole.exists() else scoring.earlier
    if earlier is not None and _read_notes(earlier).get("scores") == scoring.scores:
        _set_aside(scoring.part("earlier"), *_read_shard(earlier, scoring.sample))  # another shard may take its place
    known, truncated = _read_parts(scoring)
    columns = ["pair_id", "source", "task", "query", "positive", "cluster_id"]
    for group, table in enumerate(read_batches(scoring.dedup_shard, columns)):
        frame = pl.DataFrame(table).filter(pl.col("task").cast(pl.String) == "pretrain")
        pairs = frame.drop("task").cast({"source": pl.String}).unique("pair_id", maintain_order=True)
        missing = pairs.join(known, on="pair_id", how="anti", maintain_order="left")
        if missing.height:
            sample = read_sample(scoring.sample_file)
            found, cut = compute_scores(missing, scoring.settings, scoring.prompts, scoring.weights, sample)
            _set_aside(scoring.part(f"{group:05d}"), found, cut)
            truncated += cut
            known = pl.concat([known, found.select(*_KNOWN)])
    return known, truncated


def _set_aside(part: Path, known: pl.DataFrame, truncated: int) -> None:
    """Save scores to a file atomically, to keep them until their shard is written."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with replacing(part) as temporary:
        known.write_parquet(temporary, metadata={"truncated": str(truncated)})


def _read_parts(scoring: Scoring) -> tuple[pl.DataFrame, int]:
    """Read the saved scores of a shard, each pair once, and the number of truncated texts.

    If pairs are cut by rank, those whose rank is missing are left out.
    """
    files = [scoring.whole] if scoring.whole.exists() else sorted(scoring.parts.glob(scoring.part("*").name))
    known = pl.concat([pl.DataFrame(schema=_KNOWN), *(pl.read_parquet(file).select(*_KNOWN) for file in files)])
    if scoring.settings.rank is not None:
        known = known.filter(pl.col("rank").is_not_null() | ~pl.col("score").is_finite().fill_null(False))
    return known.unique("pair_id"), sum(int(pl.read_parquet_metadata(file)["truncated"]) for file in files)


def _read_shard(shard: Path, sample: str) -> tuple[pl.DataFrame, int]:
    """Read the scores in a finished shard, without ranks among another sample, and the number of truncated texts."""
    files = [file for file in (shard, rejects(shard)) if file.exists()]
    columns = cs.by_name(*_KNOWN, "reason", require_all=False)
    blank = pl.LazyFrame(schema=_KNOWN | {"reason": pl.String})
    found = pl.concat(
        [
            blank,
            *(pl.scan_parquet(file).select(columns).with_columns(pl.col("source").cast(pl.String)) for file in files),
        ],
        how="diagonal",
    )
    notes = read_footer(shard).notes
    rank = pl.col("rank") if notes["sample"] == sample else pl.lit(None, pl.Int32).alias("rank")
    detail = pl.when(reason="no_tokens").then("detail").alias("detail")
    known = found.select("pair_id", "source", "score", "mismatched", rank, detail)
    known = known.filter(pl.any_horizontal(pl.col("score", "detail").is_not_null()))
    return known.collect(), notes["truncated"]
