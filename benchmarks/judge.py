"""Compare the scores and the speed of Conan's cross-encoder with `CrossEncoder.predict` of sentence-transformers.

Run: `python benchmarks/judge.py --corpus CORPUS --model FOLDER [--queries 100] [--turns 3]`, where CORPUS has been
mined and FOLDER is a cross-encoder, such as `benchmarks/train_cross_encoder.py` makes. Both score the positives and the
first ten candidates of the same queries in float32 on a CPU, in the GPU's precision on a GPU. Sentence-transformers
uses the best of the batch sizes 8, 32 and 128, found on a tenth of the pairs. The two take turns; medians are given,
and the largest difference between their scores.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from conan_embedding.pipeline.corpus.pools import open_pools
from conan_embedding.pipeline.judge.cross_encoder import load_cross_encoder, score_pairs
from conan_embedding.schemas.judge_settings import JudgeSettings
from encode import timed
from sentence_transformers import CrossEncoder

BATCH_SIZES = (8, 32, 128)
_PAIRS = """
WITH asked AS (FROM queries ORDER BY hash(query_id) LIMIT $queries),
judged AS (
    SELECT query_id, passage_id FROM positives UNION ALL
    SELECT query_id, unnest(passage_ids[:10]) AS passage_id FROM candidates)
SELECT asked.text AS query, passages.text AS passage
FROM asked JOIN judged USING (query_id) JOIN passages USING (passage_id) ORDER BY hash(query_id, passage_id)
"""


def main() -> None:
    """Draw the pairs, time both in turn, print the ratio and the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus after `conan mine`")
    parser.add_argument("--model", type=Path, required=True, help="a cross-encoder's folder")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with open_pools(options.corpus) as pools:
        pairs = pools.sql(_PAIRS, params={"queries": options.queries}).pl()
    ours = load_cross_encoder(JudgeSettings(model=str(options.model)), options.model)
    theirs = CrossEncoder(str(options.model), max_length=ours.max_length, model_kwargs={"dtype": ours.model.dtype})
    texts = list(pairs.rows())
    print(f"{len(texts):,} pairs, {sum(map(len, map(''.join, texts))):,} characters, {torch.get_num_threads()} threads")

    def predict(some: list[tuple[str, str]], size: int) -> np.ndarray:
        return np.asarray(theirs.predict(some, batch_size=size, show_progress_bar=False))

    score_pairs(ours, pairs["query"][:50], pairs["passage"][:50])
    size = min(BATCH_SIZES, key=lambda size: timed(lambda: predict(texts[::10], size)))
    took: dict[str, list[float]] = {"Conan": [], "sentence-transformers": []}
    for _ in range(options.turns):
        took["sentence-transformers"].append(timed(lambda: predict(texts, size)))
        took["Conan"].append(timed(lambda: score_pairs(ours, pairs["query"], pairs["passage"])))
    medians = {name: statistics.median(seconds) for name, seconds in took.items()}
    for name, seconds in medians.items():
        print(f"{name:22}{len(texts) / seconds:10,.1f} pairs/s   {seconds:.1f} s of {sorted(took[name])}")
    print(f"ratio {medians['sentence-transformers'] / medians['Conan']:.2f} (theirs with batches of {size})")
    difference = np.abs(predict(texts, size) - score_pairs(ours, pairs["query"], pairs["passage"])).max()
    print(f"largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
