"""conan judge: ask a judge about the positives and the best candidates of the pools, and keep what it says.

The store of judgements outlives the pools (see corpus/judgements.py), so no judge is asked twice about the same texts.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ...schemas.errors import CorpusError
from ...schemas.judge_settings import JudgeSettings
from ...schemas.outcomes import Summary
from ...schemas.prompts import Prompts, Side
from ...schemas.settings import SourcePrompts
from ..corpus.atomic import clear_temporaries
from ..corpus.folder import fingerprint
from ..corpus.judgements import FOLDER, add
from ..corpus.pools import open_pools, refresh_judgements
from ..encoder.finite import check_finite
from ..encoder.model_folder import find_model, weights_fingerprint
from ..encoder.prompts import list_prompts, read_prompts
from ..encoder.vector_cache import Vectors, store
from ..engine.calls import Engine
from ..engine.stage import StageError, run_calls
from .decisions import decide
from .scores_file import add_scores

PART = 16_384
"""Chosen here: pairs per file of the store, which is the most that a killed run loses."""

Sources = Mapping[str, SourcePrompts]
_TABLES: dict[Side, str] = {"query": "mined_queries", "passage": "passages"}


def judge(corpus: Path, settings: JudgeSettings, engine: Engine, sources: Mapping[str, SourcePrompts] = {}) -> Summary:
    """Judge the positives and the first candidates of each query, except the pairs that the judge has judged before.

    `sources` are the prompts of the sources that have their own, for a bi-encoder.

    Raises:
        CorpusError: there are no pools, or the file of scores has none of their pairs.
        RecipeError: the file of scores can't be read.
        ModelError: the model can't be read, or gives a score that is NaN or infinite.
        StageError: some pairs could not be judged; the others are in the store.
    """
    started = time.monotonic()
    clear_temporaries(corpus / FOLDER)
    refresh_judgements(corpus)
    if settings.scores is not None:
        name = add_scores(corpus, Path(settings.scores))
        asked = 0
    else:
        name, asked = _ask_model(corpus, settings, engine, sources)
    refresh_judgements(corpus)
    pairs, missing = _count(corpus, f"FROM ({_asked(settings)})"), find_missing(corpus, settings, name).height
    if settings.scores is None and missing:
        raise StageError(f"{missing} judgements were written on a node that does not share {corpus}")
    if pairs and missing == pairs:
        raise CorpusError(
            f"judge.scores: {settings.scores} has no pair of the pools; its texts must be those of pools.queries and "
            "pools.passages to the letter, as `conan sql` prints them"
        )
    decided = decide(corpus, settings, name)
    rejected = Counter({reason: decided[reason] for reason in ("ambiguous", "irrelevant") if decided[reason]})
    notes = {
        "judge": name,
        "asked": asked,
        "without_score": missing,
        "relabelled": decided["positive"],
        "near_duplicates": decided["near_duplicate"],
        "queries_set_aside": _count(corpus, "FROM mined_queries ANTI JOIN queries USING (query_id)"),
    }
    left = pairs - rejected.total()
    return Summary("judge", pairs, left, rejected, seconds=time.monotonic() - started, notes=notes)


def name_judge(kind: str, *decisive: object) -> str:
    """Name a judge by its kind and a hash of what decides its scores, so that a changed one has another name."""
    return f"{kind}-{fingerprint(*decisive)[:16]}"


def _count(corpus: Path, rows: str) -> int:
    """Count the rows of a FROM clause over the pools."""
    with open_pools(corpus) as pools:
        return int(pools.sql(f"SELECT count(*) {rows}").fetchall()[0][0])


def find_missing(corpus: Path, settings: JudgeSettings, judge: str) -> pl.DataFrame:
    """List the pairs that a judge has not judged: `query_id, passage_id`, in this order."""
    with open_pools(corpus) as pools:
        found: pl.DataFrame = pools.sql(
            f"SELECT query_id, passage_id FROM ({_asked(settings)}) "
            "ANTI JOIN (FROM judgements WHERE judge = ?) USING (query_id, passage_id) ORDER BY ALL",
            params=[judge],
        ).pl()
        return found


def _asked(settings: JudgeSettings) -> str:
    """Build the SQL for the pairs that are judged: the positives, and the first candidates of each query."""
    return (
        "SELECT query_id, passage_id FROM mined_positives "
        f"UNION SELECT query_id, unnest(passage_ids[:{settings.candidates}]) FROM mined_candidates"
    )


def _read_texts(corpus: Path, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return the texts of pairs, in their order: `query, passage`."""
    with open_pools(corpus) as pools:
        pools.register("pairs", pairs.with_row_index("place").to_arrow())
        texts: pl.DataFrame = pools.sql(
            "SELECT queries.text AS query, passages.text AS passage FROM pairs "
            "JOIN mined_queries AS queries USING (query_id) JOIN passages USING (passage_id) ORDER BY place"
        ).pl()
        return texts


def _ask_model(corpus: Path, settings: JudgeSettings, engine: Engine, sources: Sources) -> tuple[str, int]:
    """Ask the model of the settings about the missing pairs; return its name as a judge, and their number."""
    from .cross_encoder import is_cross_encoder, loaded  # imports transformers, which a file of scores doesn't need

    folder = find_model(settings.model, settings.trust_remote_code)
    weights = weights_fingerprint(folder)
    if not is_cross_encoder(folder):
        return _ask_bi_encoder(corpus, settings, folder, weights, engine, sources)
    name = name_judge("cross-encoder", weights, settings.max_length, settings.trust_remote_code)
    missing = find_missing(corpus, settings, name)
    if missing.height:
        loaded(settings, folder, weights, "cpu")  # fail once if the model can't be loaded, instead of in every part
    parts = missing.iter_slices(PART)
    calls = [(f"part {number}", (corpus, part, name, settings, folder, weights)) for number, part in enumerate(parts)]
    engine.progress("judge", 0, len(calls), 0)
    for done, (part, error) in enumerate(run_calls(judge_part, calls, replace(engine, one_a_device=True)), start=1):
        if error:
            raise StageError(f"judge, {part} of {len(calls)}: {error}")
        engine.progress("judge", done, len(calls), min(done * PART, missing.height))
    return name, missing.height


def judge_part(
    corpus: Path, pairs: pl.DataFrame, name: str, settings: JudgeSettings, folder: Path, weights: str
) -> None:
    """Score some pairs with a cross-encoder, and add the scores to the store."""
    from .cross_encoder import loaded, score_pairs

    texts = _read_texts(corpus, pairs)
    scores = score_pairs(loaded(settings, folder, weights), texts["query"], texts["passage"])
    add(corpus, name, texts.with_columns(score=pl.Series(scores)))


def _ask_bi_encoder(
    corpus: Path, settings: JudgeSettings, folder: Path, weights: str, engine: Engine, sources: Sources
) -> tuple[str, int]:
    """Ask an embedding model about the missing pairs: its scores are the inner products of their vectors."""
    prompts = read_prompts(folder, settings, sources)
    sides = [prompts.of_side("query"), prompts.of_side("passage")]
    name = name_judge("bi-encoder", weights, settings.max_length, settings.pooling, settings.trust_remote_code, sides)
    missing = find_missing(corpus, settings, name)
    queries, passages = (
        _find_vectors(corpus, settings, weights, engine, prompts, side, missing[f"{side}_id"]) for side in _TABLES
    )
    for start in range(0, missing.height, PART):
        part = slice(start, start + PART)
        scores = np.einsum("nd,nd->n", queries(part), passages(part))
        add(corpus, name, _read_texts(corpus, missing[part]).with_columns(score=pl.Series(scores)))
        engine.progress("judge", start // PART + 1, -(-missing.height // PART), min(start + PART, missing.height))
    return name, missing.height


def _find_vectors(
    corpus: Path,
    settings: JudgeSettings,
    weights: str,
    engine: Engine,
    prompts: Prompts,
    side: Side,
    ids: pl.Series,
) -> Callable[[slice], Vectors]:
    """Encode the queries or passages with these ids, which may repeat; return what reads the vectors of a slice."""
    distinct = ids.unique().sort()
    with open_pools(corpus) as pools:
        pools.register("wanted", pa.table({ids.name: distinct.to_arrow()}))
        texts = pools.sql(
            f"SELECT text, source FROM {_TABLES[side]} SEMI JOIN wanted USING ({ids.name}) ORDER BY {ids.name}"
        ).pl()
    before = list_prompts(prompts, side, texts["source"])
    vectors = store(corpus, weights, settings, before, texts["text"].to_arrow(), engine)
    check_finite(settings.model, vectors.take, texts["text"], _TABLES[side].removeprefix("mined_"))
    places = np.searchsorted(distinct.to_numpy(), ids.to_numpy())
    return lambda part: vectors.take(places[part])
