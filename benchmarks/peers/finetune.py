"""Fine-tuning with the trainers that benchmarks/versus.py compares Conan with; runs without Conan, in their own Python.

Run by benchmarks/versus.py as `python finetune.py TOOL PLACE`. PLACE contains a SentenceTransformer folder `start`,
`pairs.jsonl` (query, positive), `sentences.jsonl` (sentence1, sentence2, score from 0 to 1) and `settings.json`. The
tool mines its own negatives with that model, trains, and leaves PLACE/model. The answer is a line of JSON: seconds of
mining and of training. What the settings don't say is the tool's default.
"""

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

PASSAGES_OF_A_QUERY, NEGATIVES, RANKS = 8, 15, (10, 210)
"""FlagEmbedding's defaults: train_group_size; negative_number and range_for_sampling of its scripts/hn_mine.py."""


def sentence_transformers(place: Path, given: dict[str, Any]) -> dict[str, float]:
    """SentenceTransformerTrainer on triplets of its mine_hard_negatives and on the sentence pairs, in batches of 32."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
    from sentence_transformers.util import mine_hard_negatives

    model = SentenceTransformer(str(place / "start"), device="cpu")
    model.max_seq_length = given["max_length"]
    pairs, sentences = (Dataset.from_json(str(place / name)) for name in ("pairs.jsonl", "sentences.jsonl"))
    start = time.perf_counter()
    triplets = mine_hard_negatives(
        pairs,
        model,
        relative_margin=given["relative_margin"],
        query_prompt_name="query",
        corpus_prompt_name="document",
        verbose=False,
    )
    mined = time.perf_counter()
    query, passage = model.prompts["query"], model.prompts["document"]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(place / "trainer"),
        per_device_train_batch_size=given["texts"] // 3,
        max_steps=given["steps"],
        learning_rate=given["learning_rate"],
        seed=given["seed"],
        prompts={"retrieval": {"query": query, "positive": passage, "negative": passage}},
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset={"retrieval": triplets, "sts": sentences},
        loss={
            "retrieval": MultipleNegativesRankingLoss(model, scale=1 / given["temperature"]),
            "sts": CoSENTLoss(model),
        },
    ).train()
    trained = time.perf_counter()
    model.save_pretrained(str(place / "model"))
    return {"mining_seconds": mined - start, "training_seconds": trained - mined}


def flag_embedding(place: Path, given: dict[str, Any]) -> dict[str, float]:
    """FlagEmbedding's finetune, with negatives by the rule of its hn_mine.py; it has no loss for sentence pairs."""
    import numpy as np
    from FlagEmbedding.finetune.embedder.encoder_only.base import trainer
    from FlagEmbedding.finetune.embedder.encoder_only.base.__main__ import main as finetune
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(place / "start"), device="cpu")
    model.max_seq_length = given["max_length"]
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text("utf-8").splitlines()]
    passages = list(dict.fromkeys(row["positive"] for row in rows))
    start = time.perf_counter()
    vectors = model.encode(passages, prompt_name="document", normalize_embeddings=True)
    asked = model.encode([row["query"] for row in rows], prompt_name="query", normalize_embeddings=True)
    chance, depth = random.Random(given["seed"]), min(RANKS[1], len(passages))
    with (place / "flag.jsonl").open("w", encoding="utf-8") as file:
        for row, vector in zip(rows, asked, strict=True):
            ranked = np.argsort(-(vectors @ vector), kind="stable")[min(RANKS[0], depth // 2) : depth]
            others = [passages[i] for i in ranked if passages[i] not in (row["positive"], row["query"])]
            chosen = chance.sample(others, min(NEGATIVES, len(others)))
            file.write(json.dumps({"query": row["query"], "pos": [row["positive"]], "neg": chosen}) + "\n")
    mined = time.perf_counter()
    arguments = {
        "model_name_or_path": place / "start",
        "train_data": place / "flag.jsonl",
        "output_dir": place / "flag",
        "train_group_size": PASSAGES_OF_A_QUERY,
        "query_max_len": given["max_length"],
        "passage_max_len": given["max_length"],
        "query_instruction_for_retrieval": model.prompts["query"],
        "passage_instruction_for_retrieval": model.prompts["document"],
        "sentence_pooling_method": "mean",
        "temperature": given["temperature"],
        "learning_rate": given["learning_rate"],
        "max_steps": given["steps"],
        "per_device_train_batch_size": round(given["texts"] / (1 + PASSAGES_OF_A_QUERY)),
        "seed": given["seed"],
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
    }
    trainer.EncoderOnlyEmbedderTrainer.tokenizer = None  # read when FlagEmbedding 1.4 saves, absent in transformers 5
    sys.argv[1:] = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    finetune()
    trained = time.perf_counter()
    shutil.copytree(place / "start", place / "model", dirs_exist_ok=True)
    shutil.copy(place / "flag" / "model.safetensors", place / "model")
    return {"mining_seconds": mined - start, "training_seconds": trained - mined}


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tool, folder = sys.argv[1], Path(sys.argv[2])
    tools = {each.__name__: each for each in (sentence_transformers, flag_embedding)}
    print(json.dumps(tools[tool](folder, json.loads((folder / "settings.json").read_text("utf-8")))))
