"""One update on one and on several ranks against the paper's equation 3, written out pair by pair.

This file is also the program that each rank runs.
"""

import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conan_embedding.schemas.settings import FinetuneSettings, PretrainSettings
from conan_embedding.trainer.cbb import build_update, pretrain_loss, slice_for, update_loss
from conan_embedding.trainer.distributed import gather
from torch import Tensor, nn

TEMPERATURE, STS_TEMPERATURE, LEARNING_RATE = 0.1, 0.07, 0.5


class Encoder(nn.Module):
    """Mean of character vectors through two layers, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.characters = nn.Embedding(128, 16, dtype=torch.float64)
        self.head = nn.Linear(16, 12, dtype=torch.float64)

    def forward(self, texts: list[str]) -> Tensor:
        vectors = [self.characters(torch.tensor([ord(c) % 128 for c in text])).mean(dim=0) for text in texts]
        stacked = torch.stack(vectors) if vectors else self.characters.weight[:0]
        result: Tensor = self.head(torch.tanh(stacked))
        return result


@dataclass
class Batch:
    """The arguments of build_update, and what the reference needs to know beside them."""

    queries: list[str] = field(default_factory=list)
    positives: list[str] = field(default_factory=list)
    negatives: list[list[str]] = field(default_factory=list)
    positive_clusters: list[int] = field(default_factory=list)
    negative_clusters: list[list[int]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    right: list[str] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)


RETRIEVAL = Batch(
    queries=["上海天气", "红烧肉", "python sort", "高铁票"],
    positives=["上海今天多云转晴，最高气温二十度", "五花肉焯水切块", "use sorted(list)", "在十二三零六购买"],
    negatives=[
        ["北京今天有雨", "上海人口两千万", "五花肉焯水切块"],  # the last is another query's positive
        ["红烧鱼", "北京今天有雨"],  # one shared with the first query; one short of three
        ["list.append", "use sorted ( list )", "java sort"],  # the second: same cluster as the positive
        [],
    ],
    positive_clusters=[-1, 4, 7, -1],
    negative_clusters=[[-1, -1, 4], [5, -1], [-1, 7, 8], []],
)
STS = Batch(
    left=["今天天气好", "红烧肉", "he runs", "猫", "甲"],  # one text that retrieval has too
    right=["今天天气不错", "清蒸鱼", "he is running", "狗", "乙"],
    labels=[0.9, 0.2, 0.9, 0.2, 0.5],
)
BOTH = Batch(**{**vars(RETRIEVAL), "left": STS.left, "right": STS.right, "labels": STS.labels})
BATCHES = {"both": BOTH, "retrieval": RETRIEVAL, "sts": STS, "nothing": Batch()}
CASES = [
    (name, dimensions, in_batch) for name in BATCHES for dimensions in ([], [4, 8, 12]) for in_batch in (False, True)
]


def settings_of(case: tuple[str, list[int], bool]) -> FinetuneSettings:
    return FinetuneSettings(
        temperature=TEMPERATURE,
        sts_temperature=STS_TEMPERATURE,
        beta=0.8,
        dimensions=case[1],
        in_batch_positives=case[2],
    )


def reference_loss(encoder: Encoder, batch: Batch, dimensions: list[int], in_batch: bool) -> Tensor:
    """Eq. 3 text by text: every occurrence encoded by itself, no batching, no masks."""

    def similarity(one: str, other: str, dim: int) -> Tensor:
        return torch.cosine_similarity(encoder([one])[0, :dim], encoder([other])[0, :dim], dim=0)

    total = torch.zeros((), dtype=torch.float64)
    for dim in dimensions or [12]:
        for i, (query, positive) in enumerate(zip(batch.queries, batch.positives, strict=True)):
            cluster = batch.positive_clusters[i]
            denominator = top = torch.exp(similarity(query, positive, dim) / TEMPERATURE)
            candidates = [
                (text, its_cluster)
                for texts, clusters in zip(batch.negatives, batch.negative_clusters, strict=True)
                for text, its_cluster in zip(texts, clusters, strict=True)
            ]
            if in_batch:
                others = zip(batch.positives, batch.positive_clusters, strict=True)
                candidates += [each for j, each in enumerate(others) if j != i]
            for text, its_cluster in candidates:
                if text != positive and (its_cluster != cluster or cluster < 0):
                    denominator = denominator + torch.exp(similarity(query, text, dim) / TEMPERATURE)
            total = total - torch.log(top / denominator) / len(batch.queries)
        scores = [similarity(a, b, dim) for a, b in zip(batch.left, batch.right, strict=True)]
        ordered = torch.ones((), dtype=torch.float64)
        for i, high in enumerate(batch.labels):
            for j, low in enumerate(batch.labels):
                if high > low:
                    ordered = ordered + torch.exp((scores[j] - scores[i]) / STS_TEMPERATURE)
        total = total + 0.8 * torch.log(ordered)
    return total / len(dimensions or [12])


def parameters_after(encoder: Encoder, loss: Tensor, world_size: int = 1) -> Tensor:
    """All parameters after one SGD step on gradients averaged over ranks, as DeepSpeed averages them."""
    if loss.requires_grad:
        loss.backward()
    parameters = list(encoder.parameters())
    gradients = [each.grad if each.grad is not None else torch.zeros_like(each) for each in parameters]
    if world_size > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
    with torch.no_grad():
        return torch.cat(
            [
                (each - LEARNING_RATE * gradient / world_size).flatten()
                for each, gradient in zip(parameters, gradients, strict=True)
            ]
        )


def one_update(case: tuple[str, list[int], bool], rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    """Parameters after the update of a case, and its loss, as a training loop would do it."""
    update = build_update(**vars(BATCHES[case[0]]))
    encoder = Encoder()
    own, restore = slice_for(rank, world_size, [len(text) for text in update.texts])
    embeddings = gather(encoder([update.texts[row] for row in own]))[torch.from_numpy(restore)]
    loss = update_loss(embeddings, update, settings_of(case)).total
    return parameters_after(encoder, loss, world_size), loss.detach()


@cache
def reference_steps() -> list[tuple[Tensor, Tensor, float]]:
    """For each case the parameters before the update, its step, and the loss."""
    steps = []
    for name, dimensions, in_batch in CASES:
        encoder = Encoder()
        before = torch.cat([each.detach().flatten() for each in encoder.parameters()])
        loss = reference_loss(encoder, BATCHES[name], dimensions, in_batch)
        steps.append((before, parameters_after(encoder, loss) - before, loss.item()))
    return steps


def assert_equal_the_reference(outcome: list[tuple[Tensor, Tensor]]) -> None:
    for case, (after, loss), (before, step, expected) in zip(CASES, outcome, reference_steps(), strict=True):
        assert loss.item() == pytest.approx(expected, rel=1e-9), case
        assert torch.norm(after - before - step) <= 1e-6 * torch.norm(step), case
        assert (torch.norm(step) > 0) == (case[0] != "nothing")


def test_one_process_makes_the_reference_update() -> None:
    assert_equal_the_reference([one_update(case, 0, 1) for case in CASES])


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_makes_the_reference_update(tmp_path: Path, world_size: int) -> None:
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(world_size), str(tmp_path)])
        for rank in range(world_size)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * world_size
    for rank in range(world_size):
        assert_equal_the_reference(torch.load(tmp_path / f"{rank}.pt"))


def test_no_text_is_encoded_twice() -> None:
    update = build_update(**vars(BOTH))
    assert len(set(update.texts)) == len(update.texts)
    assert [update.texts[row] for row in update.query_rows] == BOTH.queries
    assert [update.texts[row] for row in update.positive_rows] == BOTH.positives
    assert [[update.texts[row] for row in each if row >= 0] for each in update.negative_rows] == BOTH.negatives
    assert [update.texts[row] for row in update.left_rows] == BOTH.left
    assert [update.texts[row] for row in update.right_rows] == BOTH.right


def test_scores_are_cosines_at_full_width() -> None:
    update, encoder = build_update(**vars(BOTH)), Encoder()
    losses = update_loss(encoder(update.texts), update, settings_of(("both", [4], False)))

    def score(one: str, other: str) -> float:
        return torch.cosine_similarity(encoder([one]), encoder([other])).item()

    expected = [score(*pair) for pair in zip(BOTH.queries, BOTH.positives, strict=True)]
    assert losses.positive_scores.tolist() == pytest.approx(expected)
    for query, negatives, scores in zip(BOTH.queries, BOTH.negatives, losses.negative_scores, strict=True):
        known = scores[~scores.isnan()]
        assert known.tolist() == pytest.approx([score(query, each) for each in negatives])
    assert not losses.positive_scores.requires_grad
    assert not losses.negative_scores.requires_grad


def test_the_tasks_add_up_with_beta() -> None:
    update, encoder = build_update(**vars(BOTH)), Encoder()
    losses = update_loss(encoder(update.texts), update, settings_of(("both", [], False)))
    assert losses.retrieval > 0 and losses.sts > 0
    assert losses.total.item() == pytest.approx(losses.retrieval.item() + 0.8 * losses.sts.item())


@pytest.mark.parametrize(
    ("batch", "masked"),
    [
        (Batch(["q", "r"], ["p", "s"]), set()),
        (Batch(["q", "r"], ["p", "p"]), {(0, 1), (1, 0)}),  # the same positive
        (Batch(["q", "q"], ["p", "s"]), {(0, 1), (1, 0)}),  # the same query: both are its positives
        (Batch(["q", "p"], ["p", "s"]), {(0, 1), (1, 0)}),  # one pair's positive is the other's query
        (Batch(["q", "r", "t"], ["p", "s", "u"], positive_clusters=[5, 6, 5]), {(0, 2), (2, 0)}),
        (Batch(["q", "r"], ["p", "s"], positive_clusters=[-1, -1]), set()),  # -1 is no cluster
    ],
)
def test_pretraining_masks_what_is_no_negative(batch: Batch, masked: set[tuple[int, int]]) -> None:
    update, encoder = build_update(**vars(batch)), Encoder()
    settings = PretrainSettings(temperature=TEMPERATURE, dimensions=[])
    losses = pretrain_loss(encoder(update.texts), update, settings)
    queries, positives = encoder(batch.queries), encoder(batch.positives)
    expected = 0.0
    for i, query in enumerate(queries):
        scores = torch.exp(torch.cosine_similarity(query[None], positives) / TEMPERATURE)
        kept = [j for j in range(len(positives)) if (i, j) not in masked]
        expected -= torch.log(scores[i] / scores[kept].sum()).item() / len(queries)
    assert losses.retrieval.item() == pytest.approx(expected, abs=1e-12)
    assert losses.total.item() == losses.retrieval.item()


def test_a_negative_that_is_the_query_itself_is_left_out() -> None:
    update = build_update(["q"], ["p"], [["q", "p"]])
    losses = update_loss(Encoder()(update.texts), update, settings_of(("", [], False)))
    assert losses.total.item() == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries": ["q"], "positives": []},
        {"queries": ["q"], "positives": ["p"], "negatives": [[], []]},
        {"queries": ["q"], "positives": ["p"], "positive_clusters": [1, 2]},
        {"queries": ["q"], "positives": ["p"], "negatives": [["n"]], "negative_clusters": [[1, 2]]},
        {"left": ["a"], "right": ["b"], "labels": []},
    ],
)
def test_sequences_that_differ_in_length_are_refused(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="differ in number"):
        build_update(**wrong)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("texts", [0, 1, 5, 100])
def test_slices_cover_every_text_once_and_are_balanced(world_size: int, texts: int) -> None:
    lengths = np.random.default_rng(texts).integers(1, 512, texts)
    slices = [slice_for(rank, world_size, lengths) for rank in range(world_size)]
    gathered = np.concatenate([own for own, _ in slices])
    for own, restore in slices:
        assert np.array_equal(gathered[restore], np.arange(texts))
        assert np.all(np.diff(lengths[own]) <= 0)
    counts = [len(own) for own, _ in slices]
    sums = [lengths[own].sum() for own, _ in slices]
    assert max(counts) - min(counts) <= 1
    assert max(sums) - min(sums) <= lengths.max(initial=0)


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    torch.save([one_update(case, rank, world_size) for case in CASES], folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
