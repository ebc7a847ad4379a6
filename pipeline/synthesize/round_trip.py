"""The round trip: search a query's own passage among all passages of the corpus."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from ...schemas.prompts import Prompts
from ...schemas.settings import DedupSettings, SourcePrompts
from ...schemas.synthesize_settings import DEEPEST, RoundTripSettings
from ..corpus.folder import fingerprint
from ..encoder.finite import check_finite
from ..encoder.model_folder import find_model, weights_fingerprint
from ..encoder.prompts import list_prompts, read_prompts
from ..encoder.vector_cache import store
from ..engine.calls import Engine

KEPT_ABOVE = 10
"""Chosen here: how many of the passages that rank higher are kept, as many candidates as `conan judge` looks at."""

PAIR = ["request", "passage"]
"""The key of a row. One request may have rows with several passages, as the translation of their query has."""
RANKS = pl.Schema({**dict.fromkeys(PAIR, pl.String()), "rank": pl.Int32(), "above": pl.List(pl.String)})
"""The columns of ranks: `above` are the pair_ids of the passages that rank higher, best first."""


class RoundTrip(NamedTuple):
    """The model, and the passages that are searched (`text, pair_id, source, clusters`).

    `fingerprint` is of all that the rank of a query depends on.
    """

    settings: RoundTripSettings
    prompts: Prompts
    weights: str
    searched: pl.DataFrame
    fingerprint: str


def plan_round_trip(
    settings: RoundTripSettings,
    sources: Mapping[str, SourcePrompts],
    searched: pl.DataFrame,
    chosen: pl.DataFrame,
    clustering: DedupSettings,
) -> RoundTrip:
    """Plan the round trip of a source. Passages that SQL has `chosen` need not be among those of the corpus.

    `clustering` decides which passages are near-duplicates.

    Raises:
        ModelError: the model can't be read.
    """
    folder = find_model(settings.model, settings.trust_remote_code)
    weights = weights_fingerprint(folder)
    prompts = read_prompts(folder, settings, sources)
    more = chosen.select("text", "pair_id").unique("text", keep="first", maintain_order=True)
    more = more.join(searched, on="text", how="anti", maintain_order="left")
    both = pl.concat([searched, more], how="diagonal").sort("text")
    # Such a passage is a cluster of its own. Numbers from -2 on are free: ids of clusters begin with 0.
    alone = pl.concat_list(-2 - pl.int_range(pl.len(), dtype=pl.Int64))
    both = both.with_columns(pl.col("clusters").fill_null(alone), pl.col("source").fill_null(""))
    decisive = [
        settings.model_dump(include={"max_length", "pooling", "trust_remote_code"}),
        clustering.model_dump(include={"threshold", "recall"}),
        [prompts.of_side("query"), prompts.of_side("passage")],
        _hash_rows(both.select("text", "source")),
        *([_hash_rows(chosen.select("query", "text"))] if chosen["query"].count() else []),
    ]
    return RoundTrip(settings, prompts, weights, both, fingerprint("round trip", weights, *decisive))


def _hash_rows(frame: pl.DataFrame) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in frame.iter_rows():
        digest.update("\0".join((*row, "")).encode())
    return digest.hexdigest()


def find_ranks(corpus: Path, trip: RoundTrip, source: str, written: pl.DataFrame, engine: Engine) -> pl.DataFrame:
    """Rank the passage of each query, columns of RANKS; `written` has `request, query, passage`, each pair once.

    The rank is one more than the number of passages that are nearer to the query. Near-duplicates of its passage, those
    in the same cluster, don't count, nor do the other passages of the same request. Whatever is further down than
    DEEPEST has the rank after it.

    Raises:
        ModelError: the model can't be read, or gives vectors with NaN or infinite numbers.
    """
    from ..mine.search import Rules, pair_cosines  # imports FAISS, which known ranks don't need
    from ..mine.search_stored import search_stored

    if written.is_empty():
        return pl.DataFrame(schema=RANKS)
    searched, settings = trip.searched, trip.settings
    of_passages = list_prompts(trip.prompts, "passage", searched["source"])
    of_queries = list_prompts(trip.prompts, "query", pl.repeat(source, written.height, eager=True))
    passages = store(corpus, trip.weights, settings, of_passages, searched["text"].to_arrow(), engine)
    queries = store(corpus, trip.weights, settings, of_queries, written["query"].to_arrow(), engine)
    check_finite(settings.model, passages.take, searched["text"], "passages")
    check_finite(settings.model, queries.take, written["query"], "queries")
    numbered = searched.select("text", place=pl.int_range(pl.len(), dtype=pl.Int64))
    place = written.join(numbered, left_on="passage", right_on="text", maintain_order="left")["place"].to_numpy()
    clusters = searched["clusters"]
    own_clusters = written.select("request", clusters=clusters.gather(place)).select(
        pl.col("clusters").explode().unique().implode().over("request", mapping_strategy="join")
    )
    rules = Rules(
        np.full(written.height, np.inf, np.float32),
        *_as_starts(own_clusters.to_series()),
        *_as_starts(clusters),
    )

    own = pair_cosines(queries.take, np.arange(written.height), passages.take, place)
    deepest = min(DEEPEST, searched.height)
    found = list(search_stored(corpus, queries, passages, rules, deepest, engine, "round trip"))
    nearer = np.concatenate([best.scores for best in found]) > own[:, None]
    ranks = 1 + nearer.sum(axis=1)
    pair_ids = searched["pair_id"].to_numpy()
    first = np.concatenate([best.ids[:, :KEPT_ABOVE] for best in found])
    above = [pair_ids[ids[there]].tolist() for ids, there in zip(first, nearer[:, :KEPT_ABOVE], strict=True)]
    return pl.DataFrame({**written.select(PAIR).to_dict(), "rank": ranks, "above": above}, RANKS)


def _as_starts(lists: pl.Series) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where each list begins in the values of all, and these: int64 [n + 1] and int64 [values]."""
    starts = np.concatenate([[0], np.cumsum(lists.list.len().to_numpy())]).astype(np.int64)
    return starts, lists.explode().to_numpy().astype(np.int64)
