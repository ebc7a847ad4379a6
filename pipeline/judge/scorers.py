"""Judges that score pairs: cross-encoders, bi-encoders, files of scores."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ...schemas.judge_settings import JudgeSettings
from ...schemas.prompts import Prompts, Side
from ...schemas.settings import SourcePrompts
from ..corpus.folder import fingerprint
from ..corpus.judgements import add, name_part, write_part
from ..corpus.pools import FILE as POOLS
from ..corpus.pools import open_pools
from ..encoder.finite import check_finite
from ..encoder.model_folder import find_model, weights_fingerprint
from ..encoder.prompts import list_prompts, read_prompts
from ..encoder.vector_cache import Vectors, store
from ..engine.calls import Engine
from ..engine.stage import StageError, run_calls
from .pairs import read_texts
from .scores_file import add_scores, name_file

PART = 16_384
"""Chosen here: pairs per file of the store, which is the most that each process of a killed run loses."""

Ask = Callable[[Path, pl.DataFrame, Engine], None]
"""Asks a judge about pairs, `query_id, passage_id`, and adds what it says to the store."""

_TABLES: dict[Side, str] = {"query": "mined_queries", "passage": "passages"}


def find_scorer(settings: JudgeSettings, sources: Mapping[str, SourcePrompts]) -> tuple[str, Ask]:
    """Return the name of the judge that the settings name, by what decides its scores, and how it is asked.

    Raises:
        RecipeError: there is no such file of scores.
        ModelError: there is no such model.
    """
    if settings.scores is not None:
        file = Path(settings.scores)
        name = name_file(file)
        return name, lambda corpus, *_: add_scores(corpus, file, name)
    from .cross_encoder import is_cross_encoder  # imports transformers, which a file of scores doesn't need

    folder = find_model(settings.model, settings.trust_remote_code)
    weights = weights_fingerprint(folder)
    decisive = [weights, settings.max_length, settings.trust_remote_code]
    if is_cross_encoder(folder):
        name = f"cross-encoder-{fingerprint(*decisive)[:16]}"
        return name, partial(_ask_cross_encoder, name, settings, folder, weights)
    prompts = read_prompts(folder, settings, sources)
    sides = [prompts.of_side(side) for side in _TABLES]
    name = f"bi-encoder-{fingerprint(*decisive, settings.pooling, sides)[:16]}"
    return name, partial(_ask_bi_encoder, name, settings, weights, prompts)


def _ask_cross_encoder(
    name: str, settings: JudgeSettings, folder: Path, weights: str, corpus: Path, pairs: pl.DataFrame, engine: Engine
) -> None:
    """Score pairs with a cross-encoder, in one process for each GPU."""
    from .cross_encoder import loaded

    if pairs.height:
        loaded(settings, folder, weights, "cpu")  # fail once if the model can't be loaded, instead of in every part
    parts = enumerate(pairs.iter_slices(PART))
    calls = [
        (f"part {number}", (corpus / POOLS, part, name_part(corpus), name, settings, folder, weights))
        for number, part in parts
    ]
    engine.progress("judge", 0, len(calls), 0)
    for done, (part, error) in enumerate(run_calls(judge_part, calls, replace(engine, one_a_device=True)), start=1):
        if error:
            raise StageError(f"judge, {part} of {len(calls)}: {error}")
        engine.progress("judge", done, len(calls), min(done * PART, pairs.height))


def judge_part(
    pools: Path, pairs: pl.DataFrame, file: Path, name: str, settings: JudgeSettings, folder: Path, weights: str
) -> None:
    """Score some pairs of the pools with a cross-encoder, and write the scores to a file of the store."""
    from .cross_encoder import loaded, score_pairs

    texts = read_texts(pools.parent, pairs)
    scores = score_pairs(loaded(settings, folder, weights), texts["query"], texts["passage"])
    write_part(file, name, texts.with_columns(score=pl.Series(scores)))


def _ask_bi_encoder(
    name: str,
    settings: JudgeSettings,
    weights: str,
    prompts: Prompts,
    corpus: Path,
    pairs: pl.DataFrame,
    engine: Engine,
) -> None:
    """Score pairs with an embedding model, by the inner products of their vectors."""
    queries, passages = (
        _find_vectors(corpus, settings, weights, engine, prompts, side, pairs[f"{side}_id"]) for side in _TABLES
    )
    for start in range(0, pairs.height, PART):
        part = slice(start, start + PART)
        scores = np.einsum("nd,nd->n", queries(part), passages(part))
        add(corpus, name, read_texts(corpus, pairs[part]).with_columns(score=pl.Series(scores)))
        engine.progress("judge", start // PART + 1, -(-pairs.height // PART), min(start + PART, pairs.height))


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
