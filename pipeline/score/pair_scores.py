"""The cosines of pairs under an embedding model, and which pairs have none."""

import numpy as np
import polars as pl

from ...schemas.settings import EncoderSettings
from ..encoder.encoder import Encoder, encode, loaded

SIDES = ("query", "positive")


def measure(texts: pl.DataFrame, settings: EncoderSettings, weights: str) -> tuple[pl.DataFrame, int]:
    """Scores of pairs (`pair_id, query, positive`): `pair_id, score, detail`; and how many texts the model cut short.

    `score` is the cosine of query and positive, Float32; the query stands after the model's prompt. A pair of which the
    tokenizer leaves nothing on one side has none, but a `detail` that says so: its vector would be the empty text's.

    Raises:
        ModelError: the model can't be read.
    """
    encoder = loaded(settings, weights)
    bare = pl.DataFrame([without_tokens(encoder, texts[side]) for side in SIDES])
    named = (pl.when(side).then(pl.lit(side)) for side in SIDES)
    empty = bare.select(pl.concat_str(named, separator=" and ", ignore_nulls=True)).to_series()
    places = (empty == "").arg_true()
    queries, positives = (texts[side].gather(places).to_arrow() for side in SIDES)
    before = encoder.truncated
    vectors = encode(encoder, queries, encoder.query_prompt), encode(encoder, positives)
    cosines = pl.repeat(None, texts.height, dtype=pl.Float32, eager=True)
    found = texts.select(
        "pair_id",
        score=cosines.scatter(places, np.einsum("nd,nd->n", *vectors)),
        detail=pl.when(empty != "").then(pl.format("the tokenizer leaves nothing of the {}", empty)),
    )
    return found, encoder.truncated - before


def without_tokens(encoder: Encoder, texts: pl.Series) -> pl.Series:
    """Which texts are as the empty one to the tokenizer: it drops all of their characters, such as U+FE0F or U+200B.

    Few characters begin all texts, so those are tried first, then the texts that begin with one that is dropped.
    """
    firsts = texts.str.head(1)
    distinct = firsts.unique()
    places = firsts.is_in(distinct.filter(_is_nothing(encoder, distinct)).implode()).arg_true()
    bare = pl.repeat(False, len(texts), dtype=pl.Boolean, eager=True)
    return bare.scatter(places, _is_nothing(encoder, texts.gather(places))).alias(texts.name)


def _is_nothing(encoder: Encoder, texts: pl.Series) -> pl.Series:
    ids = encoder.tokenizer(["", *texts], truncation=True, max_length=encoder.max_length)["input_ids"]
    return pl.Series([each == ids[0] for each in ids[1:]], dtype=pl.Boolean)
