"""Use CBB as a loss in sentence-transformers' trainer: queries with negatives and scored sentence pairs in one batch.

Run: python examples/sentence_transformers_loss.py MODEL FOLDER

MODEL is a hub name or folder; the trained model is saved in FOLDER.
"""

import sys
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from conan_embedding.cbb import build_batch, cbb_loss
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from torch import Tensor, nn

ROWS = {
    "query": ["怎样泡一壶好绿茶？", "自行车链条多久上一次油？", "长城有多长？", "红烧肉要炖多久？"],
    "positive": [
        "水温八十度，二十秒出汤。",
        "每骑两百公里擦净再上油。",
        "总长超过两万公里。",
        "小火炖一小时。",
    ],
    "negative": ["红茶要用沸水冲泡。", "轮胎气压每周检查一次。", "故宫始建于明朝。", "糖醋排骨要先焯水。"],
    "left": ["今天天气好", "他在跑步", "猫睡着了", "股市大跌"],
    "right": ["今天天气不错", "他在慢跑", "狗在叫", "公园里花开了"],
    "label": [0.9, 0.8, 0.2, 0.0],
}


class CBBLoss(nn.Module):
    """The loss of `conan train` for batches with the columns query, positive, negative, left, right and a label."""

    def __init__(self, model: SentenceTransformer, temperature: float = 0.05) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, columns: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Compute the loss of a batch from the tokens of each column [n, L] and the labels of left and right [n]."""
        features = list(columns)
        embeddings = torch.cat([self.model(each)["sentence_embedding"] for each in features])
        # Texts with the same tokens count as one text, which is then never a negative of itself.
        texts = [_named(each) for each in features]
        query, positive, negative, left, right = texts
        batch = build_batch(
            query, positive, [[each] for each in negative], left=left, right=right, labels=labels.tolist()
        )
        row_of = {text: row for row, text in enumerate(chain.from_iterable(texts))}
        rows = [row_of[text] for text in batch.texts]
        losses = cbb_loss(embeddings[rows], batch, temperature=self.temperature, in_batch_positives=True)
        return losses.total


def _named(features: dict[str, Tensor]) -> list[str]:
    """Name each text of a column by its tokens, without padding."""
    rows = zip(features["input_ids"].tolist(), features["attention_mask"].tolist(), strict=True)
    return [" ".join(str(token) for token, kept in zip(*row, strict=True) if kept) for row in rows]


def main(model: str, folder: str, **options: Any) -> float:
    """Train for one epoch on a handful of rows, and return the mean loss."""
    encoder = SentenceTransformer(model)
    arguments = SentenceTransformerTrainingArguments(
        folder, num_train_epochs=1, per_device_train_batch_size=4, report_to=[], save_strategy="no", **options
    )
    trainer = SentenceTransformerTrainer(
        model=encoder, args=arguments, train_dataset=Dataset.from_dict(ROWS), loss=CBBLoss(encoder)
    )
    trained = trainer.train()
    encoder.save_pretrained(folder)
    return float(trained.training_loss)


if __name__ == "__main__":
    print(f"loss {main(sys.argv[1], sys.argv[2]):.4f}")
