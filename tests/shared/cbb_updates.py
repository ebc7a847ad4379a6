"""Training updates with any number of ranks and any partition, and the paper's equation 3 written pair by pair."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import forks
import torch
import torch.distributed as dist
from conan_embedding.schemas.loss_settings import FalseNegativeMask
from conan_embedding.schemas.training_settings import CBBPartition
from conan_embedding.trainer.loss.cbb import Batch, Losses, build_batch, cbb_loss, partition_texts, sts_only_mask
from conan_embedding.trainer.loss.collectives import all_gather_with_grad
from conan_embedding.trainer.loss.distillation import DISTILLATION_LOSSES, distillation_loss
from conan_embedding.trainer.loss.gradcache import backward, cached_backward, chunks_of
from torch import Tensor, nn

TEMPERATURE, STS_TEMPERATURE, LEARNING_RATE = 0.1, 0.07, 0.5
MARGIN = 0.1


class Encoder(nn.Module):
    """The mean of character vectors, passed through two layers, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)  # the same weights on every rank
        self.characters = nn.Embedding(128, 16, dtype=torch.float64)
        self.head = nn.Linear(16, 12, dtype=torch.float64)

    def forward(self, texts: list[str]) -> Tensor:
        vectors = [self.characters(torch.tensor([ord(c) % 128 for c in text])).mean(dim=0) for text in texts]
        stacked = torch.stack(vectors) if vectors else self.characters.weight[:0]
        result: Tensor = self.head(torch.tanh(stacked))
        return result


@dataclass
class Texts:
    """The arguments of build_batch, and further facts that the reference needs."""

    queries: list[str] = field(default_factory=list)
    positives: list[str] = field(default_factory=list)
    negatives: list[list[str]] = field(default_factory=list)
    positive_clusters: list[int] = field(default_factory=list)
    negative_clusters: list[list[int]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    right: list[str] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    query_only: list[bool] = field(default_factory=list)
    teacher_scores: list[list[float]] = field(default_factory=list)


RETRIEVAL = Texts(
    queries=["上海天气", "红烧肉", "python sort", "高铁票"],
    positives=["上海今天多云转晴，最高气温二十度", "五花肉焯水切块", "use sorted(list)", "在十二三零六购买"],
    negatives=[
        ["北京今天有雨", "上海人口两千万", "五花肉焯水切块"],  # the last is another query's positive
        ["红烧鱼", "北京今天有雨"],  # one shared with the first query; one short of three
        ["list.append", "use sorted ( list )", "java sort"],  # the second has the cluster of the positive
        [],
    ],
    positive_clusters=[-1, 4, 7, -1],
    negative_clusters=[[-1, -1, 4], [5, -1], [-1, 7, 8], []],
)
STS = Texts(
    left=["今天天气好", "红烧肉", "he runs", "猫", "甲"],  # one text is also in the retrieval batch
    right=["今天天气不错", "清蒸鱼", "he is running", "狗", "乙"],
    labels=[0.9, 0.2, 0.9, 0.2, 0.5],
)
BOTH = Texts(**{**vars(RETRIEVAL), "left": STS.left, "right": STS.right, "labels": STS.labels})
SOME_ALONE = Texts(**{**vars(BOTH), "query_only": [False, True, False, True]})
NO = float("nan")
JUDGED = Texts(
    **{
        **vars(BOTH),
        # The first query has all scores, the second lacks a negative's, the third its positive's; the fourth has no
        # negatives.
        "teacher_scores": [[3.0, 1.5, -2.0, 3.5], [0.5, NO, -1.0], [NO, 1.0, 2.0, 0.0], [4.0]],
    }
)
BATCHES = {"both": BOTH, "retrieval": RETRIEVAL, "sts": STS, "nothing": Texts()}
BATCHES |= {"some alone": SOME_ALONE, "judged": JUDGED}
TEACHER_TEMPERATURE, DISTILL_WEIGHT = 1.5, 0.3
PARTITIONS: list[tuple[CBBPartition, bool]] = [
    (partition, cached) for partition in ("mixed", "per_task") for cached in (False, True)
]
CHUNK = 16  # characters: one to four texts


@dataclass(frozen=True)
class Case:
    """One update: its batch, and the settings that differ from the defaults."""

    batch: str
    matryoshka_dims: tuple[int, ...] = ()
    in_batch_positives: bool = False
    query_only_negatives: bool = False
    mask: FalseNegativeMask | None = None
    distill: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Return the keywords of cbb_loss."""
        return {
            "temperature": TEMPERATURE,
            "sts_temperature": STS_TEMPERATURE,
            "beta": 0.8,
            "matryoshka_dims": self.matryoshka_dims,
            "in_batch_positives": self.in_batch_positives,
            "query_only_negatives": self.query_only_negatives,
            "ceiling": self.mask and self.mask.ceiling,
            "terms": {"distill": (DISTILL_WEIGHT, self.distillation)} if self.distill else {},
        }

    def distillation(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Return the term of distillation."""
        loss = DISTILLATION_LOSSES[str(self.distill)]
        temperatures = {"temperature": TEMPERATURE, "teacher_temperature": TEACHER_TEMPERATURE}
        return distillation_loss(embeddings, batch, loss=loss, **temperatures)


WIDTHS: list[tuple[int, ...]] = [(), (4, 8, 12)]
CASES = [Case(batch, dims) for batch in ("both", "retrieval", "sts", "nothing") for dims in WIDTHS]
CASES += [Case("both", dims, in_batch_positives=True) for dims in WIDTHS]
CASES += [Case("both", dims, query_only_negatives=True) for dims in WIDTHS]
CASES += [
    Case("some alone", in_batch_positives=True),
    Case("some alone", mask=FalseNegativeMask(share=0.9)),
    Case("both", (4, 8, 12), in_batch_positives=True, mask=FalseNegativeMask(margin=MARGIN)),
    Case("judged", (4, 8, 12), distill="kl"),
    Case("judged", distill="margin_mse"),
]
DEEPSPEED_CASE = Case("both", (4, 8, 12))


def reference_loss(encoder: Encoder, case: Case) -> Tensor:
    """Compute eq. 3 text by text: every occurrence encoded on its own, without batching or masks."""
    batch = BATCHES[case.batch]
    alone = [case.query_only_negatives or own for own in batch.query_only or [False] * len(batch.queries)]

    def similarity(one: str, other: str, dim: int) -> Tensor:
        return torch.cosine_similarity(encoder([one])[0, :dim], encoder([other])[0, :dim], dim=0)

    total = torch.zeros((), dtype=torch.float64)
    for dim in case.matryoshka_dims or [12]:
        for i, (query, positive) in enumerate(zip(batch.queries, batch.positives, strict=True)):
            cluster = batch.positive_clusters[i]
            with torch.no_grad():  # the mask is that of the full width
                highest = case.mask.ceiling(similarity(query, positive, 12)) if case.mask else 1.1
            denominator = top = torch.exp(similarity(query, positive, dim) / TEMPERATURE)
            candidates = [
                (text, its_cluster, j)
                for j, texts in enumerate(batch.negatives)
                for text, its_cluster in zip(texts, batch.negative_clusters[j], strict=True)
            ]
            if case.in_batch_positives:
                others = zip(batch.positives, batch.positive_clusters, strict=True)
                candidates += [(*each, j) for j, each in enumerate(others) if j != i]
            for text, its_cluster, j in candidates:
                if j != i and (alone[i] or alone[j] or similarity(query, text, 12).item() > highest):
                    continue
                if text != positive and (its_cluster != cluster or cluster < 0):
                    denominator = denominator + torch.exp(similarity(query, text, dim) / TEMPERATURE)
            total = total - torch.log(top / denominator) / len(batch.queries)
            if case.distill:
                passages = [positive, *batch.negatives[i]]
                judged = [
                    (similarity(query, text, dim) / TEMPERATURE, score / TEACHER_TEMPERATURE)
                    for text, score in zip(passages, batch.teacher_scores[i], strict=True)
                    if score == score
                ]
                if len(judged) > 1 and batch.teacher_scores[i][0] == batch.teacher_scores[i][0]:
                    total = total + DISTILL_WEIGHT * reference_distillation(case.distill, judged) / len(batch.queries)
        scores = [similarity(a, b, dim) for a, b in zip(batch.left, batch.right, strict=True)]
        ordered = torch.ones((), dtype=torch.float64)
        for i, high in enumerate(batch.labels):
            for j, low in enumerate(batch.labels):
                if high > low:
                    ordered = ordered + torch.exp((scores[j] - scores[i]) / STS_TEMPERATURE)
        total = total + 0.8 * torch.log(ordered)
    return total / len(case.matryoshka_dims or [12])


def reference_distillation(loss: str, judged: list[tuple[Tensor, float]]) -> Tensor:
    """Compute the term of one query from its logits of student and teacher, the positive's first."""
    if loss == "margin_mse":
        (best, best_teacher), *others = judged
        return sum(((best - one) - (best_teacher - teacher)) ** 2 for one, teacher in others) / len(others)
    of_student = sum(torch.exp(one) for one, _ in judged)
    of_teacher = sum(math.exp(teacher) for _, teacher in judged)
    divergence = torch.zeros((), dtype=torch.float64)
    for one, teacher in judged:
        probability = math.exp(teacher) / of_teacher
        divergence = divergence + probability * (math.log(probability) - torch.log(torch.exp(one) / of_student))
    return divergence


def parameters_after(encoder: Encoder, world_size: int = 1) -> Tensor:
    """Return all parameters after one SGD step on gradients averaged over ranks, as DeepSpeed averages them."""
    parameters = list(encoder.parameters())
    gradients = flat([each.grad if each.grad is not None else torch.zeros_like(each) for each in parameters])
    if world_size > 1:
        dist.all_reduce(gradients)
    return flat(parameters) - LEARNING_RATE * gradients / world_size


def flat(parameters: list[Tensor]) -> Tensor:
    return torch.cat([each.detach().flatten() for each in parameters])


def share_of(
    case: Case, partition: CBBPartition, rank: int, world_size: int
) -> tuple[list[list[str]], Callable[..., Losses]]:
    """Return the texts of a rank in chunks, and a function from their embeddings to the loss of the whole update."""
    batch = build_batch(**vars(BATCHES[case.batch]))
    lengths = [len(text) for text in batch.texts]
    own, restore = partition_texts(rank, world_size, lengths, sts_only_mask(batch, partition))
    texts = [batch.texts[row] for row in own]

    def loss(embeddings: Tensor) -> Losses:
        return cbb_loss(all_gather_with_grad(embeddings)[torch.from_numpy(restore)], batch, **case.options)

    return [texts[chunk] for chunk in chunks_of([len(text) for text in texts], CHUNK)], loss


def one_update(case: Case, partition: CBBPartition, cached: bool, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    """Return the parameters after an update, and its loss, as in a training loop without DeepSpeed."""
    encoder = Encoder()
    chunks, loss = share_of(case, partition, rank, world_size)
    if cached:
        total = cached_backward(encoder, [(chunk,) for chunk in chunks], loss, Tensor.backward).total
    else:
        total = loss(torch.cat([encoder(chunk) for chunk in chunks])).total
        total.backward()
    return parameters_after(encoder, world_size), total.detach()


def run(make_updates: str, world_size: int, folder: Path) -> list[Any]:
    """Call the function of that name in each rank of a process group; return their results."""
    ranks = [
        forks.start(save_updates, make_updates, rank, world_size, folder, output=folder / "output")
        for rank in range(world_size)
    ]
    assert set(forks.exit_codes(ranks)) == {0}, (folder / "output").read_text("utf-8")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def save_updates(make_updates: str, rank: int, world_size: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    place, patience = f"file://{folder}/store", timedelta(seconds=100)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world_size, timeout=patience)
    torch.save(globals()[make_updates](rank, world_size), folder / f"{rank}.pt")
    dist.destroy_process_group()


def plain_updates(rank: int, world_size: int) -> list[list[tuple[Tensor, Tensor]]]:
    return [
        [one_update(case, partition, cached, rank, world_size) for case in CASES] for partition, cached in PARTITIONS
    ]


def deepspeed_updates(rank: int, world_size: int) -> dict[tuple[str, int, bool], Tensor]:
    """Return the parameters after two updates, for each precision and ZeRO stage, with and without GradCache."""
    return {
        (precision, zero, cached): deepspeed_update(precision, zero, cached, rank, world_size)
        for precision in ("fp32", "bf16", "fp16")
        for zero in ((0, 1, 2) if precision == "fp32" else (1, 2))
        for cached in (False, True)
    }


def deepspeed_update(precision: str, zero: int, cached: bool, rank: int, world_size: int) -> Tensor:
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import safe_get_full_fp32_param

    get_accelerator().is_fp16_supported = lambda: True  # not offered on CPUs, but it works
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as in train.py: compiling it takes 40 s
    model = Encoder().float()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "managed_gradient_accumulation": zero > 0,  # as in train.py
            "zero_optimization": {"stage": zero},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": precision == "bf16"},
            "fp16": {"enabled": precision == "fp16", "initial_scale_power": 10},
        },
    )
    chunks, loss = share_of(DEEPSPEED_CASE, "per_task", rank, world_size)
    for _ in range(2):
        backward(engine, [(chunk,) for chunk in chunks], loss, cached)
        engine.step()
    return flat([each if zero == 0 else safe_get_full_fp32_param(each) for each in model.parameters()]).double()
