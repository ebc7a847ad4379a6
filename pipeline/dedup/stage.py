"""conan dedup: reject contaminated pairs, and all but the best pair of each cluster of exact and near-duplicates."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...schemas.outcomes import Summary
from ...schemas.pairs import CLUSTERED, PAIR, TASKS, rejected
from ...schemas.recipe import Recipe
from ...schemas.settings import DedupSettings
from ..corpus.folder import HOLDOUT, begin, fingerprint, is_begun, read_batches, read_footer, shards
from ..corpus.shard_writer import ShardWriter
from ..corpus.uris import is_mirror
from ..engine.calls import Engine
from ..engine.stage import Task, find_finished, run_stage
from . import signatures
from .chains import find_further_survivors
from .clusters import Clusters, Pairs, find_clusters, find_row_starts
from .decontamination import find_contaminated, find_evaluation_files, fingerprint_set, read_held_out
from .holdout import hold_out, plan_holdout
from .holdout_sets import describe_sets, plan_sets, write_set
from .lsh import choose_bands, collision_probability
from .signatures import SIDES, Side
from .survivors import choose_duplicates, describe_rejected, find_duplicates

VERSION = 4
_WORK = ".work"
_IDS = "positive_ids.npy"
_GROUP = 1 << 14
"""Chosen here: rejects that are read together."""


def dedup(corpus: Path, recipe: Recipe, engine: Engine) -> Summary:
    """Sign filtered shards that are not signed yet, decide over the whole corpus, write each shard without duplicates.

    With `holdout:`, questions are held out of the shards and written as evaluation sets.

    Raises:
        RecipeError: an evaluation set that `decontaminate` names doesn't exist or has no texts, or no question can be
            held out.
        CorpusError: filter, or the ingestion of evaluation sets, was interrupted.
        StageError: a shard failed.
    """
    started = time.monotonic()
    settings = recipe.dedup
    inputs = shards(corpus, "filter")
    evaluation = find_evaluation_files(corpus, settings.decontaminate)
    priorities = rank_sources(recipe)
    decided_by = fingerprint(
        "dedup",
        VERSION,
        signatures.VERSION,
        settings.model_dump(),
        priorities,
        [(shard.name, read_footer(shard).content) for shard in inputs],
        [fingerprint_set(file) for file in evaluation],
    )
    holdout = plan_holdout(corpus, recipe, decided_by)
    decided_by = holdout.fingerprint if holdout else decided_by
    work = corpus / "dedup" / _WORK
    starts = find_row_starts(inputs)
    tasks = [Task((), fingerprint(decided_by, shard.name)) for shard in inputs]
    sets = plan_sets(recipe, Pairs(tuple(inputs), (), starts, work), decided_by)
    bands, rows = choose_bands(settings.recall, settings.threshold)
    try:
        if sets or is_begun(corpus, HOLDOUT):
            begin(corpus, HOLDOUT)  # until both folders are written, nobody may evaluate or train
        if len(find_finished(corpus, "dedup", tasks) | find_finished(corpus, HOLDOUT, sets)) < len(tasks) + len(sets):
            kinds = np.concatenate([_read_task_numbers(shard) for shard in inputs])
            has_classes = (kinds == TASKS.index("classification")).any()
            both = settings.on != "positive" or evaluation or holdout or has_classes
            sides: Sequence[Side] = SIDES if both else ("positive",)
            signed = sign(corpus, inputs, sides, bands, rows, engine)
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            known = work / f"evaluation-{decided_by}.parquet" if evaluation else None
            if known:
                read_held_out(evaluation).write_parquet(known)
            pairs = Pairs(tuple(inputs), signed, starts, work)
            clusters = decide(pairs, kinds, sides, known, priorities, settings, (bands, rows), engine)
            if holdout:
                hold_out(corpus, pairs, clusters, holdout, settings.threshold, (bands, rows), engine)
        decided = work / _IDS, sorted(work.glob("rejected-*.parquet"))
        tasks = [
            replace(task, arguments=(shard, start, *decided))
            for task, shard, start in zip(tasks, inputs, starts, strict=False)
        ]
        summary = run_stage(corpus, "dedup", dedup_shard, tasks, engine)
        if sets or is_begun(corpus, HOLDOUT):
            # A set is made from shards here and there; of a corpus at a URI, only this machine has all of them.
            here = replace(engine, address=None) if is_mirror(corpus) else engine
            run_stage(corpus, HOLDOUT, write_set, sets, here)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    summary.seconds = time.monotonic() - started  # including the decision, which takes most of the time
    found = collision_probability(settings.threshold, bands, rows)
    if sets:
        summary.notes["held_out"] = describe_sets(corpus)
    summary.notes["bands"] = f"{bands} × {rows} find {found:.1%} of pairs at Jaccard {settings.threshold:g}"
    return summary


def rank_sources(recipe: Recipe) -> dict[str, int]:
    """Return the priority of each source: as in the recipe, else its place there.

    What language models write comes last. It must not change which of the other pairs survive, for the passages that it
    is written for are theirs.
    """
    ranked = {
        source.name: place if source.priority is None else source.priority
        for place, source in enumerate(recipe.sources)
    }
    last = max(ranked.values(), default=0) + 1
    return ranked | {source.name: last + ranked[source.name] for source in recipe.sources if source.synthesize}


def sign(
    corpus: Path, inputs: Sequence[Path], sides: Sequence[Side], bands: int, rows: int, engine: Engine
) -> tuple[Path, ...]:
    """Sign the filtered shards that are not signed yet; return the signature shards in the order of `inputs`."""
    signing = signatures.plan_signing(inputs, sides, bands, rows)
    run_stage(corpus, signatures.FOLDER, signatures.sign_shard, signing, engine)
    place = find_finished(corpus, signatures.FOLDER, signing)
    return tuple(place[task.fingerprint] for task in signing)


def decide(
    pairs: Pairs,
    kinds: NDArray[np.uint8],
    sides: Sequence[Side],
    held_out: Path | None,
    priorities: dict[str, int],
    settings: DedupSettings,
    banding: tuple[int, int],
    engine: Engine,
) -> dict[Side, Clusters]:
    """Decide which rows to reject; write these with reasons, and the positives' cluster ids, to `pairs.work`.

    Returns the clusters by side. kinds: uint8[n], each row's place in TASKS. held_out: a file with the texts of the
    evaluation sets. banding: (bands, rows).

    Two pairs are duplicates if they have the same task and both their queries and their positives are duplicates: the
    same passage with another question is another pair. With `on: query` or `on: positive` that side alone decides,
    except for pairs with a label or a class, for which one side says too little, and for passages, which have one side.
    Labelled sentence pairs are duplicates only if texts and label are equal, as one word may change the label.
    """
    similar: dict[Side, NDArray[np.bool_]] = {
        "query": kinds != TASKS.index("sts"),
        "positive": np.isin(kinds, [TASKS.index(task) for task in ("pretrain", "retrieval", "passage")]),
    }
    found: dict[Side, Clusters] = {
        side: find_clusters(pairs, side, similar[side], banding[0], settings.threshold, engine) for side in sides
    }
    contaminated = find_contaminated(pairs, held_out, banding, settings.threshold, engine)
    _write_by_row(pairs.work / "rejected-0.parquet", contaminated.with_columns(reason=pl.lit("contaminated")))
    choices = []
    for frame in find_duplicates(pairs, found, priorities, contaminated["row"], settings.on, engine):
        rejected, far, copies = choose_duplicates(pairs, found, frame, settings, engine)
        choices.append((far, copies))
        _write_rejected(pairs.work / f"rejected-{len(choices)}.parquet", rejected)
    far, copies = (pl.concat(frames) for frames in zip(*choices, strict=True))
    near = find_further_survivors(pairs, found, far, settings.on, banding[0], settings.threshold)
    _write_rejected(pairs.work / f"rejected-{len(choices) + 1}.parquet", describe_rejected(copies, near, far))
    return found


def _write_rejected(file: Path, rejected: pl.DataFrame) -> None:
    detail = pl.format("{}: {}", "survivor", pl.col("similarity").round(3))
    _write_by_row(file, rejected.select("row", "reason", detail=detail))


def _write_by_row(file: Path, rejected: pl.DataFrame) -> None:
    """Write rejects in the order of rows, in small groups, so that a call for one shard reads few of them."""
    rejected.sort("row").write_parquet(file, row_group_size=_GROUP)


def _read_task_numbers(shard: Path) -> NDArray[np.uint8]:
    tasks = pl.read_parquet(shard, columns=["task"])["task"].cast(pl.String)
    return tasks.replace_strict(TASKS, range(len(TASKS)), return_dtype=pl.UInt8).to_numpy()


def dedup_shard(
    filtered: Path, start: int, ids_file: Path, rejected_files: list[Path], fingerprint: str, shard: Path
) -> None:
    """Write a shard's kept rows and its rejected ones with reasons; the shard's first row has the number `start`.

    The files, which `decide` has written, have the positives' cluster ids and the rejected rows of all shards.
    """
    rows = pq.read_metadata(filtered).num_rows
    ids = np.load(ids_file, mmap_mode="r")[start : start + rows]
    is_here = pl.col("row").is_between(start, start + rows, closed="left")
    all_rejected = pl.scan_parquet(rejected_files).filter(is_here).sort("row").collect()
    all_rejected = all_rejected.with_columns(pl.col("row") - start)
    at = 0
    with ShardWriter(
        shard, CLUSTERED, rejected(PAIR), stage="dedup", version=VERSION, fingerprint=fingerprint
    ) as writer:
        for table in read_batches(filtered):
            stop = at + table.num_rows
            here = all_rejected.filter(pl.col("row").is_between(at, stop, closed="left"))
            kept = np.ones(table.num_rows, np.bool_)
            kept[here["row"].to_numpy() - at] = False
            clustered = table.append_column("cluster_id", pa.array(ids[at:stop]))
            reasons = here.select("reason", "detail").to_arrow()
            rejects = table.filter(pa.array(~kept))
            for name in reasons.column_names:
                rejects = rejects.append_column(name, reasons.column(name))
            writer.received(table.num_rows)
            writer.keep(clustered.filter(pa.array(kept)))
            writer.reject(rejects)
            at = stop
