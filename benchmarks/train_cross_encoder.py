"""Train a small cross-encoder on a corpus's positives and mined negatives, to judge pools with.

Run: `python benchmarks/train_cross_encoder.py CORPUS FOLDER [--model intfloat/multilingual-e5-small] [--queries 4000]`.
CORPUS has been mined. FOLDER gets a Hugging Face sequence classifier with one label, as `conan judge --model` takes it;
`benchmarks/false_negatives.py --judge FOLDER` says what it is worth.

The first EASY queries bring their positive and another query's; each later one its positive, NEGATIVES of its first
RANKS candidates and another query's positive. All are classified one by one. 3,000 queries take a model of 6 layers 20
minutes of one core of an AMD EPYC, in fp32.
"""

import argparse
import time
from pathlib import Path

import polars as pl
import torch
from conan_embedding.pipeline.corpus.pools import open_pools
from conan_embedding.pipeline.encoder.model_folder import find_model
from measures import PRECISION
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForSequenceClassification, AutoTokenizer

EASY, NEGATIVES, RANKS = 1200, 2, 20
"""Chosen here: from where `conan judge` looks and a little beyond. With hard negatives from the start, the loss stays
that of a constant for hundreds of steps; with easy ones it falls after 40."""
PAIRS_OF_A_STEP, LEARNING_RATE, WARMUP, MAX_LENGTH = 32, 2e-4, 0.05, 96
"""Chosen here: at 5e-5, nothing is learnt in the first 125 steps."""

_PAIRS = """
WITH positive AS (SELECT query_id, min(passage_id) AS passage_id FROM positives GROUP BY query_id),
asked AS (
    SELECT *, row_number() OVER (ORDER BY hash(query_id)) <= $easy AS is_easy FROM positive
    ORDER BY hash(query_id) LIMIT $queries),
candidate AS (
    SELECT query_id, unnest(passage_ids[:$ranks]) AS passage_id FROM candidates
    JOIN asked USING (query_id) WHERE NOT is_easy),
negative AS (
    FROM candidate QUALIFY row_number() OVER (PARTITION BY query_id ORDER BY hash(query_id, passage_id)) <= $negatives),
other AS (SELECT query_id, lead(passage_id) OVER (ORDER BY hash(query_id)) AS passage_id FROM asked)
SELECT queries.text AS query, passages.text AS passage, label
FROM (SELECT query_id, passage_id, 1.0 AS label FROM asked
      UNION ALL SELECT query_id, passage_id, 0.0 FROM negative UNION ALL SELECT query_id, passage_id, 0.0 FROM other)
JOIN queries USING (query_id) JOIN passages USING (passage_id) JOIN asked USING (query_id)
ORDER BY is_easy DESC, hash(queries.text, passages.text)
"""


def main() -> None:
    """Train the model and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a corpus after `conan mine`")
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--model", default="intfloat/multilingual-e5-small", help="an encoder: hub name or folder")
    parser.add_argument("--queries", type=int, default=4000, help="of how many queries")
    options = parser.parse_args()
    with open_pools(options.corpus) as pools:
        given = {"queries": options.queries, "easy": EASY, "ranks": RANKS, "negatives": NEGATIVES}
        pairs = pools.sql(_PAIRS, params=given).pl()
    torch.manual_seed(0)
    place = find_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=1)
    train(model, tokenizer, pairs)
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


def train(model: torch.nn.Module, tokenizer: AutoTokenizer, pairs: pl.DataFrame) -> None:
    """Take one pass over pairs of `query, passage, label`, and print the mean loss of every 25 steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    steps = pairs.height // PAIRS_OF_A_STEP
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    warmup = WARMUP * steps
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup)))
    start, losses = time.monotonic(), []
    for step, batch in enumerate(pairs.iter_slices(PAIRS_OF_A_STEP)):
        if step == steps:
            break
        tokens = tokenizer(
            batch["query"].to_list(),
            batch["passage"].to_list(),
            truncation=True,
            max_length=MAX_LENGTH,
            padding=True,
            return_tensors="pt",
        ).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=PRECISION == "bf16"):
            logits = model(**tokens).logits[:, 0]
        labels = batch["label"].cast(pl.Float32).to_torch().to(device)
        loss = binary_cross_entropy_with_logits(logits.float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) == 25 or step == steps - 1:
            mean, seconds = sum(losses) / len(losses), time.monotonic() - start
            print(f"{step + 1} of {steps}: loss {mean:.4f}, {seconds:,.0f} s", flush=True)
            losses.clear()


if __name__ == "__main__":
    main()
