"""A small untrained BERT, for machines without a pretrained encoder at hand."""

import string
import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from ...pipeline.corpus.atomic import write_text
from ...pipeline.corpus.folder import fingerprint, read_footer
from ...schemas.training_settings import BootstrapSettings
from .embedding_model import load
from .export import export

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ASCII = list(string.ascii_lowercase + string.digits)


def build_vocabulary(texts: pa.ChunkedArray, size: int) -> list[str]:
    """Build a WordPiece vocabulary of at most `size` entries: single characters, and words of ASCII letters and digits.

    Special tokens come first, then all ASCII letters and digits, each also as a continuation (##), so that any word of
    them can be spelt. Then characters and words follow by frequency, ties by code point. Letters of scripts that BERT
    does not split into characters are also added as continuations. Texts are normalised as BERT does it: lower case,
    accents removed.
    """
    spelling = _ASCII + [f"##{character}" for character in _ASCII]
    fixed = SPECIAL + spelling
    piece = pl.col("piece")
    unsplit = piece.str.contains(r"^[\p{L}\p{N}]$") & ~piece.str.contains(r"\p{Han}")
    counted = (
        pl.LazyFrame({"text": pl.Series(texts, dtype=pl.String)})
        .select(pl.col("text").str.to_lowercase().str.normalize("NFD").str.replace_all(r"\p{Mn}", ""))
        .select(pl.col("text").str.extract_all(r"[a-z0-9]+|[^\sa-z0-9]").alias("piece"))
        .explode("piece")
        .group_by("piece")
        .len("count")
        .collect(engine="streaming")
    )
    continuations = counted.filter(unsplit).with_columns(pl.concat_str(pl.lit("##"), piece).alias("piece"))
    ranked = (
        pl.concat([counted, continuations])
        .filter(piece.is_not_null() & ~piece.is_in(fixed))
        .sort("count", "piece", descending=[True, False])
    )
    return (fixed + ranked["piece"].head(max(size - len(fixed), 0)).to_list())[:size]


def tiny_bert(
    folder: str | Path,
    vocab_file: str | Path | None = None,
    texts: pa.ChunkedArray | None = None,
    *,
    vocabulary_size: int = 8000,
    layers: int = 2,
    hidden: int = 128,
    heads: int = 2,
    intermediate: int = 512,
    max_length: int = 512,
    seed: int = 0,
) -> Path:
    """Write an untrained BERT and its tokenizer (lower case, one token per Han character) as a Hugging Face folder.

    The vocabulary is read from `vocab_file`, one token per line, or built from `texts`. The same arguments give the
    same weights; torch's global random state is not changed. Raises ValueError if neither is given.
    """
    folder = Path(folder)
    if vocab_file is not None:
        vocabulary = Path(vocab_file).read_text(encoding="utf-8").splitlines()
    elif texts is not None:
        vocabulary = build_vocabulary(texts, vocabulary_size)
    else:
        raise ValueError("pass a vocab_file, or texts to build a vocabulary from")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=max_length,
        hidden_dropout_prob=0.0,  # a small model on few epochs underfits; dropout would take a sixth of the time
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    tokens = {token: index for index, token in enumerate(vocabulary)}
    BertTokenizerFast(vocab=tokens, do_lower_case=True, model_max_length=max_length).save_pretrained(folder)
    return folder


def make_untrained(folder: Path, settings: BootstrapSettings, shards: Sequence[Path]) -> None:
    """Write the untrained model that bootstrapping starts from, unless the same one exists already."""
    mark = folder.parent / "made-of.json"
    made_of = fingerprint(
        settings.model_dump(exclude={"training"}),
        settings.training.model_dump(include={"projection_dim", "pooling", "seed"}),
        Path(settings.vocabulary).read_text("utf-8") if settings.vocabulary else None,
        [read_footer(shard).content for shard in shards],
    )
    if folder.is_dir() and mark.exists() and mark.read_text("utf-8") == made_of:
        return
    texts = pl.concat([pl.read_parquet(shard, columns=["query", "positive"]) for shard in shards])
    with tempfile.TemporaryDirectory() as plain:
        tiny_bert(
            plain,
            settings.vocabulary,
            None if settings.vocabulary else pl.concat([texts["query"], texts["positive"]]).to_arrow(),
            vocabulary_size=settings.vocabulary_size,
            layers=settings.layers,
            hidden=settings.hidden,
            heads=settings.heads,
            intermediate=settings.intermediate,
            max_length=settings.max_length,
            seed=settings.training.seed,
        )
        torch.manual_seed(settings.training.seed)
        export(*load(plain, settings.training.projection_dim, settings.training.pooling), folder)
    write_text(mark, made_of)
