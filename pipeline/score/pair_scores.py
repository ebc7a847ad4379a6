"""Compute the cosines of pairs under an embedding model, and find pairs that can't have one."""

import numpy as np
import polars as pl

from ...schemas.prompts import Prompts
from ...schemas.settings import EncoderSettings
from ..encoder.encoder import Encoder, Vectors, encode_after, loaded
from ..encoder.prompts import list_prompts
from .ranks import Sample, rank_positives

SIDES = ("query", "positive")


def compute_scores(
    pairs: pl.DataFrame, settings: EncoderSettings, prompts: Prompts, weights: str, sample: Sample
) -> tuple[pl.DataFrame, int]:
    """Score pairs (`pair_id, source, query, positive, cluster_id`) and rank their positives among sampled passages.

    Returns `pair_id, source, score, mismatched, rank, detail` and the number of truncated texts. `score` is the cosine
    of the query and the positive, each after its source's prompt, Float32; `mismatched` and `rank` are those of
    `rank_positives`. A text is truncated to the model's length. If the tokenizer drops all of one side, its vector
    would be that of an empty text: the pair has no score but a `detail` that says so.

    Raises:
        ModelError: the model can't be read.
    """
    encoder = loaded(settings, weights)
    bare = pl.DataFrame([find_without_tokens(encoder, pairs[side]) for side in SIDES])
    named = (pl.when(side).then(pl.lit(side)) for side in SIDES)
    empty = bare.select(pl.concat_str(named, separator=" and ", ignore_nulls=True)).to_series()
    whole = pairs.filter(empty == "")
    before = encoder.truncated
    of_queries, of_positives = (list_prompts(prompts, side, whole["source"]) for side in ("query", "passage"))
    queries = as_unit(encode_after(encoder, of_queries, whole["query"]))
    positives = as_unit(encode_after(encoder, of_positives, whole["positive"]))
    cosines = np.einsum("nd,nd->n", queries, positives)
    ranked = rank_positives(whole, queries, cosines, sample)
    scored = whole.select("pair_id", "source", score=pl.Series(cosines)).hstack(ranked)
    lacking = pairs.select("pair_id", "source", detail=pl.format("the tokenizer leaves nothing of the {}", empty))
    found = pl.concat([scored, lacking.filter(empty != "")], how="diagonal")
    return found, encoder.truncated - before


def as_unit(vectors: Vectors) -> Vectors:
    """Return vectors at length 1, [n, D]: cuts are cosines, whatever a model compares its vectors by."""
    found: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


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
