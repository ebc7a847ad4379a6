"""Hold questions of the sources out of training, to evaluate on, with whatever resembles them.

A question is held out together with its near-duplicates: the unit is a cluster of queries. Every other pair that shares
a text or a cluster with a held-out pair, on either side and in any source, is contaminated, as is a pair that resembles
a held-out text in another way (see decontamination.py): it is neither asked nor trained on.

Hashes of texts decide which questions these are, not files, rows or chance; questions of earlier runs come first. They
are listed in holdout/questions, so that a corpus that grows keeps its old questions.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ...schemas.errors import CorpusError, RecipeError
from ...schemas.recipe import Recipe
from ...schemas.settings import MOST_HELD_OUT, HoldoutSettings
from ..corpus.atomic import replacing
from ..corpus.folder import HELD_OUT, fingerprint
from ..engine.calls import Engine
from ..text.match_key import match_keys
from .clusters import Clusters, Pairs
from .decontamination import collect_held_out, find_contaminated
from .holdout_sets import SEARCHED, read_pairs
from .minhash import text_hashes
from .signatures import SIDES, Side

POPULAR = 10
"""Chosen here: a question that shares its query or an answer with more pairs than this is taken only if others don't
suffice, since all these pairs are lost for training."""
FEWEST_TEXTS = 10
"""The fewest texts of a classification set, as in trainer/evaluation/evaluation_sets.py."""

_KEY = b"conan"
_QUESTION = ["source", "task", "query"]
_IS_QUESTION = pl.col("task") != "passage"
_HAS_TEXT = {"query": _IS_QUESTION, "positive": pl.col("task") != "classification"}
"""By side, whether a pair has a text there: passages have no query, and a class name is not a text."""


class Holdout(NamedTuple):
    """The sources (name → task) to hold questions out of, and the questions that were held out until now.

    earlier: `source, task, query` of pairs. is_fixed: whether all of these stay, since the settings are the same.
    fingerprint: of all that decides the choice; `decided_by` leaves out what was held out before.
    """

    settings: HoldoutSettings
    sources: Mapping[str, str]
    earlier: pl.DataFrame
    is_fixed: bool
    decided_by: str
    fingerprint: str


def plan_holdout(corpus: Path, recipe: Recipe, decided_by: str) -> Holdout | None:
    """Plan what to hold out, given a fingerprint of what else decides dedup; None without `holdout:`.

    Once a choice is made it is itself the earlier one, from which the same choice follows: so its fingerprint stays.

    Raises:
        CorpusError: what was held out until now can't be read.
    """
    settings = recipe.holdout
    if settings is None:
        return None
    sources = {source.name: source.task for source in recipe.sources if source.gives_questions}
    earlier, before = _read_earlier(corpus)
    decided_by = fingerprint(decided_by, settings.model_dump(), sources)
    made = before.get("decided_by") == decided_by
    chosen = str(before["fingerprint"]) if made else fingerprint(decided_by, before.get("fingerprint"))
    excluded = [source.name for source in recipe.sources if not source.gives_questions]
    earlier = earlier.filter(~pl.col("source").is_in(excluded))
    return Holdout(settings, sources, earlier, before.get("settings") == settings.model_dump(), decided_by, chosen)


def _read_earlier(corpus: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Read what was held out until now, and what decided it; nothing before the first choice."""
    file = corpus / HELD_OUT
    if not file.exists():
        return pl.DataFrame(schema=dict.fromkeys(_QUESTION, pl.String)), {}
    try:
        table = pq.read_table(file, columns=_QUESTION)
        return pl.DataFrame(table), json.loads(table.schema.metadata[_KEY])
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise CorpusError(
            f"{file}: can't be read as the questions that are held out ({error}); restore the file, or delete it to "
            "choose questions afresh"
        ) from error


def _write_chosen(corpus: Path, questions: pl.DataFrame, holdout: Holdout) -> None:
    """Write the questions that the next run begins with; after a kill, the file is the old one or the new one."""
    file = corpus / HELD_OUT
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "decided_by": holdout.decided_by,
        "fingerprint": holdout.fingerprint,
        "settings": holdout.settings.model_dump(),
    }
    with replacing(file) as temporary:
        pq.write_table(questions.to_arrow().replace_schema_metadata({_KEY: json.dumps(about)}), temporary)


def hold_out(
    corpus: Path,
    pairs: Pairs,
    found: Mapping[Side, Clusters],
    holdout: Holdout,
    threshold: float,
    banding: tuple[int, int],
    engine: Engine,
) -> None:
    """Hold questions out of the pairs that survive dedup, as the rejects in `pairs.work` say.

    Adds rejects of its own there, with the reasons holdout and contaminated; writes SEARCHED, of which the sets are
    made; and keeps the questions for the next run.

    Raises:
        RecipeError: no question can be held out, or too few texts to classify; or most other pairs would go with them.
    """
    rows = _read_rows(pairs, found)
    gone = pl.scan_parquet(pairs.work / "rejected-*.parquet").select("row").collect()["row"]
    survivors = rows.filter(~pl.col("row").is_in(gone.implode()))
    questions = survivors.filter(_IS_QUESTION)
    wanted = _count_wanted(questions, holdout)
    chosen = choose_clusters(questions, wanted, _find_known(rows, holdout), holdout.is_fixed)
    is_chosen = _IS_QUESTION & pl.col("query_id").is_in(chosen.implode())
    is_held = is_chosen & pl.col("source").is_in(list(wanted))
    held, rest = survivors.filter(is_held), survivors.filter(~is_held)
    _check_held(held, questions, holdout)
    texts = pairs.work / f"holdout-{holdout.fingerprint}.parquet"  # a name of its own: workers keep what they read
    _read_texts(pairs, held).write_parquet(texts)
    resembling = find_contaminated(pairs, texts, banding, threshold, engine)
    contaminated = _add_linked(held, rest, is_chosen, resembling)
    _check_rest(held, rest, contaminated)
    left_out = contaminated["row"].implode()
    searched = survivors.with_columns(held=is_held).filter(~pl.col("row").is_in(left_out))
    searched.write_parquet(pairs.work / SEARCHED)
    rejected = held.select("row", reason=pl.lit("holdout"), detail=pl.format("set {}", "source"))
    pl.concat([rejected, contaminated]).write_parquet(pairs.work / "rejected-holdout.parquet")
    texts_chosen = read_pairs(pairs, rows.filter(is_chosen)["row"].to_numpy(), _QUESTION).select(_QUESTION)
    kept = pl.concat([holdout.earlier, texts_chosen]) if holdout.is_fixed else texts_chosen
    _write_chosen(corpus, kept.unique().sort(pl.all()), holdout)


def _read_rows(pairs: Pairs, found: Mapping[Side, Clusters]) -> pl.DataFrame:
    """Read `row, source, task` of all pairs, each side's hash and cluster id, and what counts as one `question`."""
    names = [pl.read_parquet(shard, columns=["source", "task"]) for shard in pairs.filtered]
    sides = {f"{side}_hash": pairs.column(f"{side}_hash") for side in SIDES}
    sides |= {f"{side}_id": np.load(found[side].ids) for side in SIDES}
    frame = pl.concat(one.with_columns(pl.col("source", "task").cast(pl.String)) for one in names)
    columns = {name: pl.Series(values, dtype=pl.Int64) for name, values in sides.items()}
    question = pl.when(pl.col("task") == "sts").then("row").otherwise("query_hash")
    return frame.with_columns(row=pl.int_range(pl.len()), **columns).with_columns(question=question)


def _find_known(rows: pl.DataFrame, holdout: Holdout) -> pl.Series:
    """Find the clusters with a query that was held out before; sentences have clusters of their own (see `decide`)."""
    is_sts = pl.col("task") == "sts"
    hashes = pl.Series(text_hashes(match_keys(holdout.earlier["query"].to_arrow())))
    asked = holdout.earlier.select(is_sts.alias("sts"), query_hash=hashes)
    questions = rows.filter(_IS_QUESTION).with_columns(sts=is_sts)
    return questions.join(asked, on=["query_hash", "sts"], how="semi")["query_id"].unique()


def _count_wanted(questions: pl.DataFrame, holdout: Holdout) -> dict[str, int]:
    """Count how many questions are wanted of each source that has enough of them."""
    counts = dict(questions.group_by("source").agg(pl.col("question").n_unique()).iter_rows())
    wanted = {
        source: count_wanted(counts.get(source, 0), task, holdout.settings) for source, task in holdout.sources.items()
    }
    return {source: number for source, number in wanted.items() if number}


def choose_clusters(questions: pl.DataFrame, wanted: Mapping[str, int], known: pl.Series, is_fixed: bool) -> pl.Series:
    """Choose the clusters of queries to hold out, as many questions of each source as are wanted, known clusters first.

    If these are fixed, all of them are taken. The others follow in the order of a hash of their answers, so that
    questions with one answer are held out together. A cluster counts for every source that it is in.

    questions: `source, task, question, query_id, positive_id` of the pairs to choose from.
    """
    answer = pl.when(pl.col("task") == "classification").then("query_id").otherwise("positive_id")
    questions = questions.with_columns(answer=answer)
    questions = questions.with_columns(sharing=pl.max_horizontal(pl.len().over("query_id"), pl.len().over("answer")))
    clusters = questions.group_by("query_id").agg(pl.col("answer").min(), is_popular=pl.col("sharing").max() > POPULAR)
    clusters = clusters.with_columns(
        pl.Series("place", text_hashes(clusters["answer"].cast(pl.String).to_arrow())),
        is_known=pl.col("query_id").is_in(known.implode()),
    )
    sizes = questions.group_by("source", "query_id").agg(size=pl.col("question").n_unique())
    sizes = sizes.join(clusters, on="query_id").sort(~pl.col("is_known"), "is_popular", "place", "query_id")
    chosen = known.to_list() if is_fixed else []
    for source, room in wanted.items():
        own = sizes.filter(pl.col("source") == source)
        if is_fixed:
            room -= int(own.filter("is_known")["size"].sum())
            own = own.filter(~pl.col("is_known"))
        for cluster, size in own.select("query_id", "size").iter_rows():
            if room <= 0:
                break
            if size <= room:
                chosen.append(cluster)
                room -= size
    return pl.Series(chosen, dtype=pl.Int64).unique()


def count_wanted(questions: int, task: str, settings: HoldoutSettings) -> int:
    """Count how many of a source's questions are wanted: `share`, between `min` and `max`, but no more than a fifth."""
    wanted = max(math.ceil(questions * settings.share), settings.min)
    wanted = min(wanted, settings.max, int(questions * MOST_HELD_OUT))
    return 0 if task == "classification" and wanted < FEWEST_TEXTS else wanted


def _check_held(held: pl.DataFrame, questions: pl.DataFrame, holdout: Holdout) -> None:
    """Raise RecipeError if nothing is held out, or what is held out of a source can't be evaluated on."""
    if held.is_empty():
        counts = dict(questions.group_by("source").agg(pl.col("question").n_unique()).iter_rows())
        named = ", ".join(f"{source} {counts.get(source, 0):,}" for source in holdout.sources)
        raise RecipeError(
            "holdout: no question can be held out, as no more than a fifth of a source may be, near-duplicates stay "
            f"together, and a set to classify needs {FEWEST_TEXTS} texts. Questions after filter and dedup: {named}. "
            "Add data, or remove `holdout:`"
        )
    of_classes = (
        held.filter(pl.col("task") == "classification")
        .group_by("source")
        .agg(classes=pl.col("positive_hash").n_unique(), texts=pl.col("query_hash").n_unique())
    )
    for source, classes, texts in of_classes.sort("source").iter_rows():
        if classes < 2 or texts < FEWEST_TEXTS:
            raise RecipeError(
                f"holdout: {texts} texts of {source} in {classes} classes are too little to evaluate on; expected "
                f"{FEWEST_TEXTS} texts and two classes. Set `holdout: false` for this source"
            )


def _check_rest(held: pl.DataFrame, rest: pl.DataFrame, contaminated: pl.DataFrame) -> None:
    """Raise RecipeError if what is held out takes more than half of all other pairs with it."""
    if contaminated.height > rest.height / 2:
        named = ", ".join(held["source"].unique().sort())
        raise RecipeError(
            f"holdout: {held.height:,} pairs of {named} share an answer with, or resemble, {contaminated.height:,} of "
            f"the {rest.height:,} others, which could not be trained on. Set `holdout: false` for sources with few "
            "different answers, or remove `holdout:`"
        )


def _read_texts(pairs: Pairs, held: pl.DataFrame) -> pl.DataFrame:
    """Read the texts of held-out pairs as `read_held_out` reads those of evaluation sets."""
    texts = read_pairs(pairs, held["row"].to_numpy(), [*_QUESTION, "positive"])
    sides = (
        texts.filter(_HAS_TEXT[side]).select(text=side, set="source", asked=pl.lit(side == "query")) for side in SIDES
    )
    return collect_held_out(pl.concat(sides))


def _add_linked(held: pl.DataFrame, rest: pl.DataFrame, is_chosen: pl.Expr, resembling: pl.DataFrame) -> pl.DataFrame:
    """Return the rest's pairs that resemble a held-out one, or share a text or cluster with it: `row, reason, detail`.

    Both ids and hashes are compared: sentences have clusters apart from those of other texts, but the same hashes.
    """
    columns = [(side, f"{side}_{kind}") for side in SIDES for kind in ("id", "hash")]
    shared = pl.concat([held.filter(_HAS_TEXT[side])[column] for side, column in columns]).unique().implode()
    is_linked = pl.any_horizontal(
        is_chosen, *(_HAS_TEXT[side] & pl.col(column).is_in(shared) for side, column in columns)
    )
    found = rest.join(resembling, on="row", how="left").filter(is_linked | pl.col("detail").is_not_null()).sort("row")
    detail = pl.col("detail").fill_null("in a cluster with a held-out pair")
    return found.select("row", reason=pl.lit("contaminated"), detail=detail)
