"""Fine-tuning with the trainers that benchmarks/versus.py compares Conan with; runs without Conan, in their own Python.

Run by benchmarks/versus.py as `python finetune.py mine TOOL PLACE`, then `python finetune.py train TOOL PLACE`. PLACE
contains a SentenceTransformer folder `start`, `pairs.jsonl` (query, positive), `sentences.jsonl` (sentence1, sentence2,
score from 0 to 1) and `settings.json`. The tool mines its own negatives with that model to PLACE/mined.jsonl, and
trains from there to PLACE/model. What the settings don't say is the tool's default.
"""

import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

PASSAGES_OF_A_QUERY, NEGATIVES, RANKS = 8, 15, (10, 210)
"""FlagEmbedding's defaults: train_group_size; negative_number and range_for_sampling of its scripts/hn_mine.py."""


def mine_with_sentence_transformers(place: Path, given: dict[str, Any]) -> None:
    """Make triplets with mine_hard_negatives."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    triplets = mine_hard_negatives(
        Dataset.from_json(str(place / "pairs.jsonl")),
        load_start(place, given),
        relative_margin=given["relative_margin"],
        query_prompt_name="query",
        corpus_prompt_name="document",
        verbose=False,
    )
    triplets.to_json(place / "mined.jsonl", force_ascii=False)


def train_with_sentence_transformers(place: Path, given: dict[str, Any]) -> None:
    """Run SentenceTransformerTrainer on the triplets and on the sentence pairs, in batches of 32."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss

    model = load_start(place, given)
    triplets, sentences = (Dataset.from_json(str(place / name)) for name in ("mined.jsonl", "sentences.jsonl"))
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
    model.save_pretrained(str(place / "model"))


def mine_with_flag_embedding(place: Path, given: dict[str, Any]) -> None:
    """Draw negatives by the rule of FlagEmbedding's scripts/hn_mine.py."""
    import numpy as np

    model = load_start(place, given)
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text("utf-8").splitlines()]
    passages = list(dict.fromkeys(row["positive"] for row in rows))
    vectors = model.encode(passages, prompt_name="document", normalize_embeddings=True)
    asked = model.encode([row["query"] for row in rows], prompt_name="query", normalize_embeddings=True)
    chance, depth = random.Random(given["seed"]), min(RANKS[1], len(passages))
    with (place / "mined.jsonl").open("w", encoding="utf-8") as file:
        for row, vector in zip(rows, asked, strict=True):
            ranked = np.argsort(-(vectors @ vector), kind="stable")[min(RANKS[0], depth // 2) : depth]
            others = [passages[i] for i in ranked if passages[i] not in (row["positive"], row["query"])]
            chosen = chance.sample(others, min(NEGATIVES, len(others)))
            file.write(json.dumps({"query": row["query"], "pos": [row["positive"]], "neg": chosen}) + "\n")


def train_with_flag_embedding(place: Path, given: dict[str, Any]) -> None:
    """Run FlagEmbedding's finetune; it has no loss for sentence pairs, and knows no Dense layer."""
    from FlagEmbedding.finetune.embedder.encoder_only.base import trainer
    from FlagEmbedding.finetune.embedder.encoder_only.base.__main__ import main as finetune

    prompts = load_start(place, given).prompts
    arguments = {
        "model_name_or_path": place / "start",
        "train_data": place / "mined.jsonl",
        "output_dir": place / "flag",
        "train_group_size": PASSAGES_OF_A_QUERY,
        "query_max_len": given["max_length"],
        "passage_max_len": given["max_length"],
        "query_instruction_for_retrieval": prompts["query"],
        "passage_instruction_for_retrieval": prompts["document"],
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
    shutil.copytree(place / "start", place / "model", dirs_exist_ok=True, ignore=shutil.ignore_patterns("2_Dense"))
    shutil.copy(place / "flag" / "model.safetensors", place / "model")
    modules = json.loads((place / "model" / "modules.json").read_text())
    (place / "model" / "modules.json").write_text(json.dumps(modules[:2]))


def load_start(place: Path, given: dict[str, Any]) -> Any:
    """Load the model that training starts from."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(place / "start"), device="cpu")
    model.max_seq_length = given["max_length"]
    return model


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    step, tool, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    mines = (mine_with_sentence_transformers, mine_with_flag_embedding)
    trains = (train_with_sentence_transformers, train_with_flag_embedding)
    functions = {each.__name__: each for each in (*mines, *trains)}
    functions[f"{step}_with_{tool}"](folder, json.loads((folder / "settings.json").read_text("utf-8")))
