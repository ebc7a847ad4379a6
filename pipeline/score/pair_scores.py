"""Compute the cosines of pairs under an embedding model, and find pairs that can't have one."""

import numpy as np
import polars as pl

from ...schemas.settings import EncoderSettings
from ..encoder.encoder import Encoder, encode, loaded

SIDES = ("query", "positive")


def compute_scores(texts: pl.DataFrame, settings: EncoderSettings, weights: str) -> tuple[pl.DataFrame, int]:
    """Score pairs (`pair_id, query, positive`). Returns `pair_id, score, detail` and the number of truncated texts.

    `score` is the cosine of the query and the positive, each after its prompt, Float32. A text is truncated to the
    model's length. If the tokenizer drops all of one side, its vector would be that of an empty text: the pair has no
    score but a `detail` that says so.

    Raises:
        ModelError: the model can't be read.
    """
    encoder = loaded(settings, weights)
    bare = pl.DataFrame([find_without_tokens(encoder, texts[side]) for side in SIDES])
    named = (pl.when(side).then(pl.lit(side)) for side in SIDES)
    empty = bare.select(pl.concat_str(named, separator=" and ", ignore_nulls=True)).to_series()
    places = (empty == "").arg_true()
    queries, positives = (texts[side].gather(places).to_arrow() for side in SIDES)
    before = encoder.truncated
    prompts = encoder.prompts
    vectors = [encode(encoder, queries, prompts.query), encode(encoder, positives, prompts.passage)]
    if encoder.layout.similarity == "dot":  # cutoffs are cosines, whatever a model compares its vectors by
        vectors = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in vectors]
    cosines = pl.repeat(None, texts.height, dtype=pl.Float32, eager=True)
    found = texts.select(
        "pair_id",
        score=cosines.scatter(places, np.einsum("nd,nd->n", *vectors)),
        detail=pl.when(empty != "").then(pl.format("the tokenizer leaves nothing of the {}", empty)),
    )
    return found, encoder.truncated - before


def find_without_tokens(encoder: Encoder, texts: pl.Series) -> pl.Series:
    """Return, for each text, whether the tokenizer drops all its characters, such as U+FE0F or U+200B.

    The first characters of texts have few distinct values. These are tokenized first, then only the texts whose first
    character is dropped.
    """
    firsts = texts.str.head(1)
    distinct = firsts.unique()
    places = firsts.is_in(distinct.filter(_has_no_tokens(encoder, distinct)).implode()).arg_true()
    bare = pl.repeat(False, len(texts), dtype=pl.Boolean, eager=True)
    return bare.scatter(places, _has_no_tokens(encoder, texts.gather(places))).alias(texts.name)


def _has_no_tokens(encoder: Encoder, texts: pl.Series) -> pl.Series:
    ids = encoder.tokenizer(["", *texts], truncation=True, max_length=encoder.max_length)["input_ids"]
    return pl.Series([each == ids[0] for each in ids[1:]], dtype=pl.Boolean)
