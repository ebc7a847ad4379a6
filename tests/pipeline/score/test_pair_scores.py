"""Which texts the tokenizer leaves empty; test_stage.py has the scores themselves."""

from pathlib import Path

import polars as pl
from conan_embedding.pipeline.encoder.encoder import load_encoder
from conan_embedding.pipeline.score.pair_scores import find_without_tokens
from conan_embedding.schemas.settings import EncoderSettings


def test_what_the_tokenizer_empties(bge: Path) -> None:
    """The reference is the tokens of each whole text, without special tokens."""
    encoder = load_encoder(EncoderSettings(model=str(bge)))
    dropped = ["", "\u200b", "\ufe0f", "\u0301", "\ufffd", "\ue000", "\u2060", " ", "\u3000", "\U000e0100"]
    shown = ["一", "😀", "\u3164", "?", "!", "hello"]
    texts = [*dropped, *shown, *(first + second for first in dropped for second in dropped + shown), "x" * 500]
    found = find_without_tokens(encoder, pl.Series("query", texts))
    assert found.name == "query"
    assert found.to_list() == [not encoder.tokenizer.tokenize(text) for text in texts]
    assert find_without_tokens(encoder, pl.Series([], dtype=pl.String)).to_list() == []
