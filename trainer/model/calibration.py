"""Ranges with which the vectors of an exported model are stored as int8."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import torch
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from ...pipeline.corpus import catalog
from ...pipeline.encoder.encoder import Vectors, best_device, encode
from ...pipeline.encoder.finite import check_finite
from ...pipeline.encoder.quantization import RANGES_FILE, calibrate, cut
from .embedding_model import EmbeddingModel, encoder_of


def sample_passages(corpus: Path, count: int) -> pl.Series:
    """Return at most `count` distinct passages of a corpus's training records, the same ones whatever their order.

    The result is empty before convert.
    """
    found = catalog.query(
        corpus,
        "SELECT DISTINCT text FROM (SELECT text FROM (SELECT positive AS text FROM pretrain UNION ALL "
        "SELECT unnest(positives) FROM retrieval UNION ALL SELECT text FROM passages) "
        # More than are wanted, as some are the same; they are then next to each other.
        f"ORDER BY md5(text) LIMIT {8 * count}) ORDER BY md5(text) LIMIT {count}",
    )
    return pl.Series(found["text"], dtype=pl.String)


@torch.no_grad()
def find_ranges(
    model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, passages: pl.Series, widths: Sequence[int]
) -> dict[int, Vectors]:
    """Return the ranges of the passages' unit vectors, float32 [2, width], for each width they are truncated to.

    The result is empty without passages. The model is left on the device that it is used on.

    Raises:
        ModelError: vectors have NaN or infinite numbers.
    """
    if passages.is_empty():
        return {}
    was_training = model.training
    encoder = encoder_of(model.eval().to(best_device()), tokenizer)
    vectors = encode(encoder, passages.to_arrow(), encoder.prompts.passage)
    check_finite("int8 ranges", vectors.__getitem__, passages, "passages")
    model.train(was_training)
    return {width: calibrate(cut(vectors, width)) for width in widths}


def write_ranges(folder: Path, ranges: Mapping[int, Vectors]) -> None:
    """Write ranges to RANGES_FILE in a folder, each under its width."""
    save_file({str(width): values for width, values in ranges.items()}, folder / RANGES_FILE)
