"""The trainers that benchmarks/train.py compares Conan with. Runs without Conan, in their environment.

Run by benchmarks/train.py as `python train.py TOOL PLACE`. PLACE contains a SentenceTransformer folder `model`, its
encoder alone in `bert`, and `updates.json`: settings, and the texts of each batch in columns. The answer is a line of
JSON: seconds per step after the warm-up and, from sentence_transformers, the loss of the first batch without dropout.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Update = dict[str, Any]


def sentence_transformers(place: Path, given: dict[str, Any]) -> dict[str, float]:
    """A plain loop over its losses, with both tasks in one step."""
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    model, retrieval = _model_and_loss(place, given)
    settings = given["settings"]
    sts = _matryoshka(model, CoSENTLoss(model, scale=1 / settings["sts_temperature"]), settings["matryoshka_dims"])

    def features(texts: list[str]) -> dict[str, Any]:
        found = model.preprocess(texts)
        return {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in found.items()}

    def loss(update: Update) -> torch.Tensor:
        columns = [update["query"], update["positive"], *update["negatives"]]
        total = retrieval([features(column) for column in columns], None)
        if update["labels"]:
            labels = torch.tensor(update["labels"], device=model.device)
            total = total + settings["beta"] * sts([features(update[side]) for side in ("left", "right")], labels)
        return total

    with torch.no_grad():
        first = float(loss(given["updates"][0]))
    return {"seconds": _train(model, loss, given), "loss": first}


def trainer(place: Path, given: dict[str, Any]) -> dict[str, float]:
    """SentenceTransformerTrainer, for retrieval only, because it takes one data set per step."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from transformers import TrainerCallback

    model, loss = _model_and_loss(place, given)
    settings, moments = given["settings"], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            _wait()
            moments.append(time.perf_counter())

    rows = []
    for update in given["updates"]:
        for query, positive, *negatives in zip(update["query"], update["positive"], *update["negatives"], strict=True):
            rows.append({"query": query, "positive": positive} | {f"negative_{i}": t for i, t in enumerate(negatives)})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(place / "trainer"),
        per_device_train_batch_size=settings["retrieval_batch"],
        max_steps=len(given["updates"]),
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["gradient_clipping"],
        bf16=settings["precision"] == "bf16",
        optim="adamw_torch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_list(rows)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[Clock()]).train()
    return {"seconds": (moments[-1] - moments[given["warm_up"] - 1]) / (len(moments) - given["warm_up"])}


def flag_embedding(place: Path, given: dict[str, Any]) -> dict[str, float]:
    """FlagEmbedding's model, which computes its loss itself; its Matryoshka widths are proportional to the others'."""
    from FlagEmbedding.finetune.embedder.encoder_only.base.modeling import BiEncoderOnlyEmbedderModel
    from transformers import AutoModel, AutoTokenizer

    settings = given["settings"]
    tokenizer, encoder = AutoTokenizer.from_pretrained(place / "bert"), AutoModel.from_pretrained(place / "bert")
    width, widest = encoder.config.hidden_size, max(settings["matryoshka_dims"])
    model = BiEncoderOnlyEmbedderModel(
        encoder.to(_device()),
        tokenizer=tokenizer,
        temperature=settings["temperature"],
        use_mrl=True,
        mrl_dims=[dim * width // widest for dim in settings["matryoshka_dims"]],
        sentence_pooling_method="mean",
        normalize_embeddings=True,
    )

    def features(texts: list[str]) -> Any:
        common = {"padding": True, "truncation": True, "max_length": settings["max_length"]}
        return tokenizer(texts, return_tensors="pt", **common).to(_device())

    def loss(update: Update) -> torch.Tensor:
        passages = [text for own in zip(update["positive"], *update["negatives"], strict=True) for text in own]
        return model(features(update["query"]), features(passages)).loss

    return {"seconds": _train(model, loss, given)}


def _model_and_loss(place: Path, given: dict[str, Any]) -> tuple[Any, Any]:
    """Return sentence-transformers' model, dropout still off, and InfoNCE within its Matryoshka loss."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    settings = given["settings"]
    model = SentenceTransformer(str(place / "model"), device=str(_device())).eval()
    loss = MultipleNegativesRankingLoss(model, scale=1 / settings["temperature"])
    return model, _matryoshka(model, loss, settings["matryoshka_dims"])


def _matryoshka(model: Any, loss: Any, dimensions: list[int]) -> Any:
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    return MatryoshkaLoss(model, loss, dimensions, matryoshka_weights=[1 / len(dimensions)] * len(dimensions))


def _train(model: Any, loss: Callable[[Update], torch.Tensor], given: dict[str, Any]) -> float:
    """Train in a plain loop; return seconds per step after the warm-up."""
    settings = given["settings"]
    decay = {"lr": settings["learning_rate"], "weight_decay": settings["weight_decay"]}
    optimizer = torch.optim.AdamW(model.parameters(), **decay)
    model.train()
    for step, update in enumerate(given["updates"]):
        if step == given["warm_up"]:
            _wait()
            started = time.perf_counter()
        with _precision(given):
            total = loss(update)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["gradient_clipping"])
        optimizer.step()
        optimizer.zero_grad()
    _wait()
    return (time.perf_counter() - started) / (len(given["updates"]) - given["warm_up"])


def _precision(given: dict[str, Any]) -> torch.autocast:
    return torch.autocast(_device().type, torch.bfloat16, enabled=given["settings"]["precision"] == "bf16")


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tool, folder = sys.argv[1], Path(sys.argv[2])
    tools = {each.__name__: each for each in (sentence_transformers, trainer, flag_embedding)}
    print(json.dumps(tools[tool](folder, json.loads((folder / "updates.json").read_text("utf-8")))))
