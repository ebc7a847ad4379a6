"""Compare Conan's encoder with `SentenceTransformer.encode` on the same texts, model and device.

Run: `python benchmarks/encode.py --pairs SHARDS [--number 20000] [--turns 3]`, where SHARDS is a folder of Parquet
shards with `query` and `positive` (such as a corpus's `dedup`). Both encode the queries and positives of the same
random pairs, with mean pooling and at most 512 tokens. Sentence-transformers uses the best of the batch sizes 32, 64
and 128, found on a tenth of the pairs. The two take turns; medians are given. On a CPU, the largest difference between
their vectors of 2,000 texts follows, in float32, for CLS and mean pooling, without and with a dense layer.

On a CPU the model is a BERT with 4 layers of width 312, in float32. On a GPU it has the shape of bge-large (24 layers
of width 1024), in bfloat16, and tokens per second and the share of the GPU's matrix rate are also printed; that rate is
measured on a product of 8,192 × 8,192 matrices. Weights are random, as speed does not depend on them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from conan_embedding.pipeline.encoder.encoder import Encoder, encode, load_encoder
from conan_embedding.schemas.settings import EncoderSettings
from conan_embedding.trainer.model.bootstrap import tiny_bert
from measures import LARGE, SMALL, forward_operations, matrix_rate
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

BATCH_SIZES = (32, 64, 128)
LENGTH = 512  # tokens


def main() -> None:
    """Draw the pairs, make the model, time both encoders in turn, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="a folder of shards")
    parser.add_argument("--number", type=int, default=20_000, help="pairs to encode")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    pairs = pl.read_parquet(options.pairs / "*.parquet", columns=["query", "positive"])
    pairs = pairs.sample(min(options.number, pairs.height), seed=0)
    texts = [*pairs["query"], *pairs["positive"]]
    gpu = torch.accelerator.is_available()
    with tempfile.TemporaryDirectory() as folder:
        tiny_bert(folder, texts=pl.Series(texts).to_arrow(), vocabulary_size=20_000, **(LARGE if gpu else SMALL))
        ours = load_encoder(EncoderSettings(model=folder, pooling="mean"))
        theirs = peer(folder, ours.model.dtype)
    print(f"{pairs.height:,} pairs, {sum(map(len, texts)):,} characters, {torch.get_num_threads()} threads")
    encode(ours, texts[:200])
    tenth = texts[:: max(1, len(texts) // (pairs.height // 5 + 1))]
    batch_size = min(BATCH_SIZES, key=lambda size: timed(lambda: encode_theirs(theirs, tenth, size)))
    took: dict[str, list[float]] = {"Conan": [], "sentence-transformers": []}
    for _ in range(options.turns):
        took["sentence-transformers"].append(timed(lambda: encode_theirs(theirs, texts, batch_size)))
        took["Conan"].append(timed(lambda: encode(ours, texts)))
    medians = {name: statistics.median(seconds) for name, seconds in took.items()}
    for name, seconds in medians.items():
        print(f"{name:22}{pairs.height / seconds:10,.1f} pairs/s   {seconds:.1f} s of {sorted(took[name])}")
    print(f"ratio {medians['sentence-transformers'] / medians['Conan']:.2f} (theirs with batches of {batch_size})")
    if gpu:
        print_share(ours, texts, medians)
    else:
        print_differences(texts[:2_000])


def peer(folder: str, dtype: torch.dtype) -> SentenceTransformer:
    """Load the same model in sentence-transformers."""
    transformer = Transformer(folder, max_seq_length=LENGTH, model_kwargs={"dtype": dtype})
    return SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")])


def encode_theirs(model: SentenceTransformer, texts: list[str], batch_size: int) -> np.ndarray:
    """Encode with sentence-transformers; return unit vectors, float32 [n, D]."""
    return model.encode(texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)


def timed(work: Callable[[], object]) -> float:
    """Return the wall time of `work` in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def print_differences(texts: list[str]) -> None:
    """Print the largest difference between the vectors of the two encoders on the CPU."""
    with tempfile.TemporaryDirectory() as place:
        tiny_bert(Path(place, "bert"), texts=pl.Series(texts).to_arrow(), vocabulary_size=20_000, **SMALL)
        for pooling in ("cls", "mean"):
            for dense in ([], [Dense(SMALL["hidden"], 1_792, activation_function=torch.nn.Identity())]):
                modules = [Transformer(str(Path(place, "bert"))), Pooling(SMALL["hidden"], pooling), *dense]
                theirs = SentenceTransformer(modules=modules, device="cpu")
                folder = str(Path(place, f"{pooling}-{len(dense)}"))
                theirs.save(folder)
                found = encode(load_encoder(EncoderSettings(model=folder)), texts)
                most = np.abs(found - encode_theirs(theirs, texts, 32)).max()
                print(f"largest difference, {pooling} pooling{', dense' if dense else '':7} {most:.1e}")


def print_share(encoder: Encoder, texts: list[str], medians: dict[str, float]) -> None:
    """Print tokens per second, and the share of the measured matrix rate that the model's matrix products reach."""
    lengths = [len(ids) for ids in encoder.tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]]
    products = forward_operations(LARGE, lengths)
    rate = matrix_rate(encoder.device, encoder.model.dtype)
    for name, seconds in medians.items():
        print(
            f"{name:22}{sum(lengths) / seconds:12,.0f} tokens/s   {products / seconds / 1e12:.0f} TFLOP/s, "
            f"{products / seconds / rate:.0%} of the {rate / 1e12:.0f} measured"
        )


if __name__ == "__main__":
    main()
