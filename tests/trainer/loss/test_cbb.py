"""A parameter update with any number of ranks and any partition, against the paper's equation 3 pair by pair.

SGD without clipping shows what Adam hides: a gradient that is wrong by a constant factor.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from cbb_updates import (
    BOTH,
    CASES,
    DEEPSPEED_CASE,
    LEARNING_RATE,
    PARTITIONS,
    TEMPERATURE,
    Case,
    Encoder,
    Texts,
    flat,
    one_update,
    parameters_after,
    reference_loss,
    run,
    share_of,
)
from conan_embedding.trainer.loss.cbb import build_batch, cbb_loss, partition_texts, pretrain_loss, sts_only_mask
from torch import Tensor


@cache
def reference_steps() -> list[tuple[Tensor, Tensor, float]]:
    """For each case: the parameters before the update, the update, and the loss."""
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


def test_one_process_makes_the_reference_update() -> None:
    for partition, cached in PARTITIONS:
        assert_equal_the_reference([one_update(case, partition, cached, 0, 1) for case in CASES])


@pytest.mark.xdist_group("training")
@pytest.mark.parametrize("world_size", [2, 4, 5])
def test_neither_ranks_nor_partition_nor_gradcache_change_the_update(tmp_path: Path, world_size: int) -> None:
    for rank in run("plain_updates", world_size, tmp_path):
        for outcome in rank:
            assert_equal_the_reference(outcome)


@pytest.mark.xdist_group("training")
def test_deepspeed_makes_the_reference_updates(tmp_path: Path) -> None:
    """With its averaging, ZeRO and loss scale, two updates each; half precision keeps two or three digits of them."""
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
    update = build_batch(**vars(BOTH))
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
        update = build_batch(["q"], ["p"], left=sentences[0], right=sentences[1], labels=labels)
        losses = cbb_loss(embeddings, update, **Case("").options)
        (gradient,) = torch.autograd.grad(losses.terms["sts"], embeddings)
        assert losses.single_label == unordered
        assert bool(losses.terms["sts"] > 0) == bool(gradient.any()) == (len(set(labels)) == 2)
        assert gradient.isfinite().all()


def test_scores_are_cosines_at_full_width() -> None:
    update, encoder = build_batch(**vars(BOTH)), Encoder()
    losses = cbb_loss(encoder(update.texts), update, **Case("both", (4,)).options)

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
    update, encoder = build_batch(**vars(BOTH)), Encoder()
    losses = cbb_loss(encoder(update.texts), update, **Case("both").options)
    assert losses.terms["retrieval"] > 0 and losses.terms["sts"] > 0
    assert losses.total.item() == pytest.approx(losses.terms["retrieval"].item() + 0.8 * losses.terms["sts"].item())


@pytest.mark.parametrize(
    ("batch", "masked"),
    [
        (Texts(["q", "r"], ["p", "s"]), set()),
        (Texts(["q", "r"], ["p", "p"]), {(0, 1), (1, 0)}),  # the same positive
        (Texts(["q", "q"], ["p", "s"]), {(0, 1), (1, 0)}),  # the same query: both are its positives
        (Texts(["q", "p"], ["p", "s"]), {(0, 1), (1, 0)}),  # one pair's positive is the other's query
        (Texts(["q", "r", "t"], ["p", "s", "u"], positive_clusters=[5, 6, 5]), {(0, 2), (2, 0)}),
        (Texts(["q", "r"], ["p", "s"], positive_clusters=[-1, -1]), set()),  # -1 means no cluster
    ],
)
def test_pretraining_masks_what_is_no_negative(batch: Texts, masked: set[tuple[int, int]]) -> None:
    update, encoder = build_batch(**vars(batch)), Encoder()
    losses = pretrain_loss(encoder(update.texts), update, temperature=TEMPERATURE)
    queries, positives = encoder(batch.queries), encoder(batch.positives)
    expected = 0.0
    for i, query in enumerate(queries):
        scores = torch.exp(torch.cosine_similarity(query[None], positives) / TEMPERATURE)
        kept = [j for j in range(len(positives)) if (i, j) not in masked]
        expected -= torch.log(scores[i] / scores[kept].sum()).item() / len(queries)
    assert losses.terms["retrieval"].item() == pytest.approx(expected, abs=1e-12)
    assert losses.total.item() == losses.terms["retrieval"].item()


def test_a_symmetric_loss_is_the_mean_of_both_directions() -> None:
    encoder = Encoder()
    there, back = build_batch(["q", "r", "q"], ["p", "s", "t"]), build_batch(["p", "s", "t"], ["q", "r", "q"])
    options = {"temperature": TEMPERATURE, "matryoshka_dims": [4, 12]}
    losses = pretrain_loss(encoder(there.texts), there, **options, symmetric=True)
    directions = [pretrain_loss(encoder(each.texts), each, **options).total.item() for each in (there, back)]
    assert directions[0] != pytest.approx(directions[1])
    assert losses.total.item() == losses.terms["retrieval"].item() == pytest.approx(sum(directions) / 2)


def test_a_negative_that_is_the_query_itself_is_left_out() -> None:
    update = build_batch(["q"], ["p"], [["q", "p"]])
    losses = cbb_loss(Encoder()(update.texts), update, **Case("").options)
    assert losses.total.item() == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries": ["q"], "positives": []},
        {"queries": ["q"], "positives": ["p"], "negatives": [[], []]},
        {"queries": ["q"], "positives": ["p"], "positive_clusters": [1, 2]},
        {"queries": ["q"], "positives": ["p"], "negatives": [["n"]], "negative_clusters": [[1, 2]]},
        {"left": ["a"], "right": ["b"], "labels": []},
        {"queries": ["q"], "positives": ["p"], "query_only": [True, False]},
    ],
)
def test_sequences_that_differ_in_length_are_refused(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        build_batch(**wrong)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("texts", [0, 1, 5, 100])
def test_slices_cover_every_text_once_and_are_balanced(world_size: int, texts: int) -> None:
    lengths = np.random.default_rng(texts).integers(1, 512, texts)
    slices = [partition_texts(rank, world_size, lengths) for rank in range(world_size)]
    gathered = np.concatenate([own for own, _ in slices])
    for own, restore in slices:
        assert np.array_equal(gathered[restore], np.arange(texts))
        assert np.all(np.diff(lengths[own]) <= 0)
    counts = [len(own) for own, _ in slices]
    sums = [lengths[own].sum() for own, _ in slices]
    assert max(counts) - min(counts) <= 1
    assert max(sums) - min(sums) <= lengths.max(initial=0)


def test_a_partition_per_task_has_ranks_of_their_own_for_sts() -> None:
    update = build_batch(**vars(BOTH))
    only_sts = sts_only_mask(update, "per_task")
    assert only_sts is not None and sts_only_mask(update, "mixed") is None
    retrieval = {*BOTH.queries, *BOTH.positives, *(text for texts in BOTH.negatives for text in texts)}
    assert [text for text, alone in zip(update.texts, only_sts, strict=True) if alone] == [
        text for text in update.texts if text not in retrieval
    ]
    lengths = np.where(only_sts, 1, 9)  # few tokens: one rank
    shares = [set(partition_texts(rank, 5, lengths, only_sts)[0]) for rank in range(5)]
    assert shares[4] == set(np.flatnonzero(only_sts))
    counts = [len(share) for share in shares[:4]]
    assert sum(counts) == np.sum(~only_sts) and max(counts) - min(counts) <= 1
    lengths = np.where(only_sts, 100, 1)  # nearly all tokens: all ranks but one
    assert set(partition_texts(0, 5, lengths, only_sts)[0]) == set(np.flatnonzero(~only_sts))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("marked", [0.0, 0.3, 1.0])
def test_ranks_of_their_own_cover_every_text_once(world_size: int, marked: float) -> None:
    random = np.random.default_rng(world_size)
    lengths, apart = random.integers(0, 512, 40), random.random(40) < marked
    slices = [partition_texts(rank, world_size, lengths, apart) for rank in range(world_size)]
    gathered = np.concatenate([own for own, _ in slices])
    for own, restore in slices:
        assert np.array_equal(gathered[restore], np.arange(40))
        assert len(own) and np.all(np.diff(lengths[own]) <= 0)
        assert apart[own].all() or not apart[own].any() or world_size == 1


def test_masked_negatives_are_not_counted() -> None:
    """One of the three negatives in this batch is in the second query's own class."""
    texts = Texts(
        ["q", "r"], ["p", "s"], [["n", "m"], ["o"]], positive_clusters=[5, 6], negative_clusters=[[6, -1], [-1]]
    )
    update = build_batch(**vars(texts))
    embeddings = torch.eye(len(update.texts))
    assert cbb_loss(embeddings, update, temperature=0.05, beta=0).mean_negatives == 2.5
    assert cbb_loss(embeddings, update, temperature=0.05, beta=0, query_only_negatives=True).mean_negatives == 1.5
    assert cbb_loss(embeddings, update, temperature=0.05, beta=0, in_batch_positives=True).mean_negatives == 3.5


def test_false_negatives_are_left_out_and_counted() -> None:
    """The first query's positive has cosine 0.6, its own negative 0.9, the other query's texts 0.65 and 0.8."""

    def at(cosine: float) -> list[float]:
        return [cosine, (1 - cosine**2) ** 0.5]

    update = build_batch(["q", "r"], ["p", "s"], [["n"], ["m"]])
    cosines = {"q": 1.0, "p": 0.6, "n": 0.9, "r": -1.0, "s": 0.65, "m": 0.8}
    embeddings = torch.tensor([at(cosines[text]) for text in update.texts], dtype=torch.float64)
    options = {"temperature": TEMPERATURE, "in_batch_positives": True}
    losses = cbb_loss(embeddings, update, **options, ceiling=lambda positive: positive + 0.1)
    assert (losses.mean_negatives, losses.mean_false_negatives) == (2.5, 0.5)  # "m" for "q"
    kept = [0.6, 0.9, 0.65], [-0.65, -0.8, -0.6, -0.9]
    first, second = (torch.tensor(cosines) / TEMPERATURE for cosines in kept)
    expected = sum(torch.logsumexp(each, 0) - each[0] for each in (first, second)) / 2
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    pairs = build_batch(["q", "r"], ["p", "s"])
    embeddings = torch.tensor([at(cosines[text]) for text in pairs.texts])
    masked = pretrain_loss(embeddings, pairs, temperature=TEMPERATURE, ceiling=lambda positive: positive + 0.04)
    assert (masked.mean_negatives, masked.mean_false_negatives) == (0.0, 1.0)  # "s" for "q", and "p" for "r"


@pytest.mark.parametrize("in_batch_positives", [False, True])
def test_queries_on_their_own_are_batches_of_their_own(in_batch_positives: bool) -> None:
    """The loss is that of the marked queries one by one and of the others together, weighted by their number."""

    def loss(*numbers: int) -> Tensor:
        texts = Texts(*([column[i] for i in numbers] for column in (queries, positives, negatives)))
        texts.query_only = [len(numbers) == 4 and i in (1, 3) for i in numbers]
        update = build_batch(**vars(texts))
        options = {"temperature": TEMPERATURE, "in_batch_positives": in_batch_positives}
        return len(numbers) * cbb_loss(encoder(update.texts), update, **options).total

    queries, positives, encoder = list("qrst"), list("abcd"), Encoder()
    negatives = [["k"], ["l", "m"], ["n"], ["o", "p"]]
    assert loss(*range(4)).item() == pytest.approx(sum(loss(*part) for part in [(0, 2), (1,), (3,)]).item())


def test_ranks_of_their_own_are_rounded() -> None:
    sts_only = np.array([False] * 65 + [True] * 35)
    sizes = [len(partition_texts(rank, 5, np.ones(100), sts_only)[0]) for rank in range(5)]
    assert sizes == [21, 22, 22, 17, 18]  # 0.35 · 5 = 1.75: two ranks
