"""One update, by any number of ranks and in any layout, against the paper's equation 3 written out pair by pair.

SGD without clipping shows what Adam hides: a gradient that is too large or too small by a factor. This file is also
the program that makes the updates of one process group; it forks its ranks after loading everything once.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conan_embedding.schemas.settings import FinetuneSettings, Layout, PretrainSettings
from conan_embedding.trainer.cbb import Losses, build_update, pretrain_loss, slice_for, texts_apart, update_loss
from conan_embedding.trainer.distributed import gather
from conan_embedding.trainer.gradcache import backward, cached_backward, chunks_of
from torch import Tensor, nn

TEMPERATURE, STS_TEMPERATURE, LEARNING_RATE = 0.1, 0.07, 0.5


class Encoder(nn.Module):
    """Mean of character vectors through two layers, in float64."""

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
LAYOUTS: list[tuple[Layout, bool]] = [(layout, cached) for layout in ("fused", "paper") for cached in (False, True)]
CHUNK = 16  # characters: one to four texts


@dataclass(frozen=True)
class Case:
    """One update: its batch and what is not as by default."""

    batch: str
    dimensions: tuple[int, ...] = ()
    in_batch_positives: bool = False
    query_only_negatives: bool = False

    @property
    def settings(self) -> FinetuneSettings:
        return FinetuneSettings(
            temperature=TEMPERATURE,
            sts_temperature=STS_TEMPERATURE,
            beta=0.8,
            dimensions=list(self.dimensions),
            in_batch_positives=self.in_batch_positives,
            query_only_negatives=self.query_only_negatives,
        )


WIDTHS: list[tuple[int, ...]] = [(), (4, 8, 12)]
CASES = [Case(batch, dimensions) for batch in BATCHES for dimensions in WIDTHS]
CASES += [Case("both", dimensions, in_batch_positives=True) for dimensions in WIDTHS]
CASES += [Case("both", dimensions, query_only_negatives=True) for dimensions in WIDTHS]
DEEPSPEED_CASE = Case("both", (4, 8, 12))


def reference_loss(encoder: Encoder, case: Case) -> Tensor:
    """Eq. 3 text by text: every occurrence encoded by itself, no batching, no masks."""
    batch = BATCHES[case.batch]

    def similarity(one: str, other: str, dim: int) -> Tensor:
        return torch.cosine_similarity(encoder([one])[0, :dim], encoder([other])[0, :dim], dim=0)

    total = torch.zeros((), dtype=torch.float64)
    for dim in case.dimensions or [12]:
        for i, (query, positive) in enumerate(zip(batch.queries, batch.positives, strict=True)):
            cluster = batch.positive_clusters[i]
            denominator = top = torch.exp(similarity(query, positive, dim) / TEMPERATURE)
            candidates = [
                (text, its_cluster)
                for j, texts in enumerate(batch.negatives)
                for text, its_cluster in zip(texts, batch.negative_clusters[j], strict=True)
                if j == i or not case.query_only_negatives
            ]
            if case.in_batch_positives:
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
    return total / len(case.dimensions or [12])


def parameters_after(encoder: Encoder, world_size: int = 1) -> Tensor:
    """All parameters after one SGD step on gradients averaged over ranks, as DeepSpeed averages them."""
    parameters = list(encoder.parameters())
    gradients = flat([each.grad if each.grad is not None else torch.zeros_like(each) for each in parameters])
    if world_size > 1:
        dist.all_reduce(gradients)
    return flat(parameters) - LEARNING_RATE * gradients / world_size


def flat(parameters: list[Tensor]) -> Tensor:
    return torch.cat([each.detach().flatten() for each in parameters])


def share_of(case: Case, layout: Layout, rank: int, world_size: int) -> tuple[list[list[str]], Callable[..., Losses]]:
    """The texts of a rank, in chunks, and the loss of the whole update from their embeddings."""
    update = build_update(**vars(BATCHES[case.batch]))
    lengths = [len(text) for text in update.texts]
    own, restore = slice_for(rank, world_size, lengths, texts_apart(update, layout))
    texts = [update.texts[row] for row in own]

    def loss(embeddings: Tensor) -> Losses:
        return update_loss(gather(embeddings)[torch.from_numpy(restore)], update, case.settings)

    return [texts[chunk] for chunk in chunks_of([len(text) for text in texts], CHUNK)], loss


def one_update(case: Case, layout: Layout, cached: bool, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    """Parameters after the update of a case, and its loss, as a training loop would do it without DeepSpeed."""
    encoder = Encoder()
    chunks, loss = share_of(case, layout, rank, world_size)
    if cached:
        total = cached_backward(encoder, [(chunk,) for chunk in chunks], loss, Tensor.backward).total
    else:
        total = loss(torch.cat([encoder(chunk) for chunk in chunks])).total
        total.backward()
    return parameters_after(encoder, world_size), total.detach()


@cache
def reference_steps() -> list[tuple[Tensor, Tensor, float]]:
    """For each case the parameters before the update, its step, and the loss."""
    steps = []
    for case in CASES:
        encoder = Encoder()
        before = flat(list(encoder.parameters()))
        loss = reference_loss(encoder, case)
        if loss.requires_grad:
            loss.backward()
        steps.append((before, parameters_after(encoder) - before, loss.item()))
    return steps


def assert_equal_the_reference(outcome: list[tuple[Tensor, Tensor]]) -> None:
    for case, (after, loss), (before, step, expected) in zip(CASES, outcome, reference_steps(), strict=True):
        assert loss.item() == pytest.approx(expected, rel=1e-9), case
        assert torch.norm(after - before - step) <= 1e-6 * torch.norm(step), case
        assert (torch.norm(step) > 0) == (case.batch != "nothing")


def run(make_updates: str, world_size: int, folder: Path) -> list[Any]:
    """What each rank of a process group has saved."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, __file__, make_updates, str(world_size), str(folder)]
    assert subprocess.run(program, env=environment, timeout=240, check=False).returncode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def test_one_process_makes_the_reference_update() -> None:
    for layout, cached in LAYOUTS:
        assert_equal_the_reference([one_update(case, layout, cached, 0, 1) for case in CASES])


@pytest.mark.parametrize("world_size", [2, 4, 5])
def test_neither_ranks_nor_layout_nor_gradcache_change_the_update(tmp_path: Path, world_size: int) -> None:
    for rank in run("plain_updates", world_size, tmp_path):
        for outcome in rank:
            assert_equal_the_reference(outcome)


def test_deepspeed_makes_the_reference_updates(tmp_path: Path) -> None:
    """Its own averaging, ZeRO and loss scale, two updates each; half precision keeps two or three digits of them."""
    encoder = Encoder()
    before = flat(list(encoder.parameters()))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=LEARNING_RATE)
    for _ in range(2):
        optimizer.zero_grad()
        reference_loss(encoder, DEEPSPEED_CASE).backward()
        optimizer.step()
    step = flat(list(encoder.parameters())) - before
    assert len({len(share_of(DEEPSPEED_CASE, "paper", rank, 2)[0]) for rank in range(2)}) == 2  # numbers of chunks
    for rank in run("deepspeed_updates", 2, tmp_path):
        for (precision, zero, cached), after in rank.items():
            error = torch.norm(after - before - step) / torch.norm(step)
            assert error <= {"fp32": 1e-6, "bf16": 0.02, "fp16": 0.005}[precision], (precision, zero, cached, error)


def test_no_text_is_encoded_twice() -> None:
    update = build_update(**vars(BOTH))
    assert len(set(update.texts)) == len(update.texts)
    assert [update.texts[row] for row in update.query_rows] == BOTH.queries
    assert [update.texts[row] for row in update.positive_rows] == BOTH.positives
    assert [[update.texts[row] for row in each if row >= 0] for each in update.negative_rows] == BOTH.negatives
    assert [update.texts[row] for row in update.left_rows] == BOTH.left
    assert [update.texts[row] for row in update.right_rows] == BOTH.right


def test_without_two_labels_an_update_is_counted_as_unordered() -> None:
    embeddings = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    for labels, unordered in ([0.5, 0.5], True), ([0.5, 0.6], False), ([], False):
        sentences = ["a", "b"][: len(labels)], ["c", "d"][: len(labels)]
        update = build_update(["q"], ["p"], left=sentences[0], right=sentences[1], labels=labels)
        losses = update_loss(embeddings, update, Case("").settings)
        (gradient,) = torch.autograd.grad(losses.sts, embeddings)
        assert losses.unordered == unordered
        assert bool(losses.sts > 0) == bool(gradient.any()) == (len(set(labels)) == 2)
        assert gradient.isfinite().all()


def test_scores_are_cosines_at_full_width() -> None:
    update, encoder = build_update(**vars(BOTH)), Encoder()
    losses = update_loss(encoder(update.texts), update, Case("both", (4,)).settings)

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
    losses = update_loss(encoder(update.texts), update, Case("both").settings)
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


def test_a_symmetric_loss_is_the_mean_of_both_directions() -> None:
    encoder = Encoder()
    there, back = build_update(["q", "r", "q"], ["p", "s", "t"]), build_update(["p", "s", "t"], ["q", "r", "q"])
    settings = PretrainSettings(temperature=TEMPERATURE, dimensions=[4, 12])
    losses = pretrain_loss(encoder(there.texts), there, settings.model_copy(update={"symmetric": True}))
    directions = [pretrain_loss(encoder(each.texts), each, settings).total.item() for each in (there, back)]
    assert directions[0] != pytest.approx(directions[1])
    assert losses.total.item() == losses.retrieval.item() == pytest.approx(sum(directions) / 2)


def test_a_negative_that_is_the_query_itself_is_left_out() -> None:
    update = build_update(["q"], ["p"], [["q", "p"]])
    losses = update_loss(Encoder()(update.texts), update, Case("").settings)
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


def test_the_papers_layout_has_ranks_of_their_own_for_sts() -> None:
    update = build_update(**vars(BOTH))
    only_sts = texts_apart(update, "paper")
    assert only_sts is not None and texts_apart(update, "fused") is None
    retrieval = {*BOTH.queries, *BOTH.positives, *(text for texts in BOTH.negatives for text in texts)}
    assert [text for text, alone in zip(update.texts, only_sts, strict=True) if alone] == [
        text for text in update.texts if text not in retrieval
    ]
    lengths = np.where(only_sts, 1, 9)  # few tokens: one rank
    shares = [set(slice_for(rank, 5, lengths, only_sts)[0]) for rank in range(5)]
    assert shares[4] == set(np.flatnonzero(only_sts))
    counts = [len(share) for share in shares[:4]]
    assert sum(counts) == np.sum(~only_sts) and max(counts) - min(counts) <= 1
    lengths = np.where(only_sts, 100, 1)  # nearly all tokens: all ranks but one
    assert set(slice_for(0, 5, lengths, only_sts)[0]) == set(np.flatnonzero(~only_sts))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("marked", [0.0, 0.3, 1.0])
def test_ranks_of_their_own_cover_every_text_once(world_size: int, marked: float) -> None:
    random = np.random.default_rng(world_size)
    lengths, apart = random.integers(0, 512, 40), random.random(40) < marked
    slices = [slice_for(rank, world_size, lengths, apart) for rank in range(world_size)]
    gathered = np.concatenate([own for own, _ in slices])
    for own, restore in slices:
        assert np.array_equal(gathered[restore], np.arange(40))
        assert len(own) and np.all(np.diff(lengths[own]) <= 0)
        assert apart[own].all() or not apart[own].any() or world_size == 1


def plain_updates(rank: int, world_size: int) -> list[list[tuple[Tensor, Tensor]]]:
    return [[one_update(case, layout, cached, rank, world_size) for case in CASES] for layout, cached in LAYOUTS]


def deepspeed_updates(rank: int, world_size: int) -> dict[tuple[str, int, bool], Tensor]:
    """Parameters after two updates by each of DeepSpeed's ways to hold them, with GradCache and without."""
    return {
        (precision, zero, cached): deepspeed_update(precision, zero, cached, rank, world_size)
        for precision in ("fp32", "bf16", "fp16")
        for zero in (1, 2)
        for cached in (False, True)
    }


def deepspeed_update(precision: str, zero: int, cached: bool, rank: int, world_size: int) -> Tensor:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    model = Encoder().float()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": zero},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": precision == "bf16"},
            "fp16": {"enabled": precision == "fp16", "initial_scale_power": 10},
        },
    )
    chunks, loss = share_of(DEEPSPEED_CASE, "paper", rank, world_size)
    for _ in range(2):
        backward(engine, [(chunk,) for chunk in chunks], loss, cached)
        engine.step()
    return flat([safe_get_full_fp32_param(each) for each in model.parameters()]).double()


def rank_main(make_updates: Callable[[int, int], Any], rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    place, patience = f"file://{folder}/store", timedelta(seconds=100)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world_size, timeout=patience)
    torch.save(make_updates(rank, world_size), folder / f"{rank}.pt")
    dist.destroy_process_group()


def main(make_updates: str, world_size: int, folder: Path) -> None:
    """Fork the ranks; the exit code says whether all got through."""
    if make_updates == "deepspeed_updates":
        import deepspeed
        import torch._inductor.compile_fx  # noqa: F401 (DeepSpeed loads it: once for all here)
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True  # not offered on CPUs, but it works
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as in train.py: compiling it takes 40 s
    ranks = []
    for rank in range(world_size):
        if pid := os.fork():
            ranks.append(pid)
            continue
        try:
            rank_main(globals()[make_updates], rank, world_size, folder)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    sys.exit(sum(os.waitpid(pid, 0)[1] for pid in ranks) > 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
