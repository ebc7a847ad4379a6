"""The loop: one update after another, whatever the number of processes."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conan_embedding.schemas.settings import PretrainSettings
from conan_embedding.trainer.data.batches import pretrain_update, read_pairs, write_pairs
from conan_embedding.trainer.data.sampler import Order
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.loss.cbb import build_update, pretrain_loss
from conan_embedding.trainer.model.embedding_model import load
from training_runs import log_of, losses_of, replacements


def test_no_operation_is_compiled(runs: dict[str, Job]) -> None:
    assert list((runs["plain"].corpus.parent / "extensions").iterdir()) == []


@pytest.mark.parametrize(("clipping", "scale"), [(0.5, 0.1), (0.0, 1.0), (9.0, 1.0)])
def test_zero_0_clips_and_makes_no_step_without_gradients(clipping: float, scale: float) -> None:
    from conan_embedding.trainer.train import WatchfulAdamW

    gradient = torch.tensor([3.0, 4.0])
    expected, found = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    plain = torch.optim.AdamW([expected], lr=0.1, eps=1.0)
    watchful = WatchfulAdamW([found], lr=0.1, eps=1.0, clipping=clipping)
    for _ in range(2):
        expected.grad, found.grad = gradient * scale, gradient.clone()
        plain.step()
        watchful.step()
        assert torch.allclose(found, expected, rtol=1e-5)
        assert (watchful._global_grad_norm, watchful.overflow) == (5.0, False)
        for lost in (float("nan"), float("inf")):
            found.grad = torch.tensor([0.0, lost])
            watchful.step()
            assert torch.allclose(found, expected, rtol=1e-5)
            assert watchful.overflow
    assert watchful.state[found]["step"] == 2


def test_a_run_is_adamw_with_warm_up_decay_and_clipping(runs: dict[str, Job], tiny: Path, tmp_path: Path) -> None:
    """The same steps, written out: every text in one padded batch, the rate as a formula, decay by hand."""
    job = runs["plain"]
    settings = job.settings
    assert isinstance(settings, PretrainSettings)
    torch.manual_seed(settings.seed)
    model, tokenizer = load(tiny, settings.dimension, settings.pooling, settings.max_length)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = [torch.zeros_like(parameter) for parameter in trained]
    second = [torch.zeros_like(parameter) for parameter in trained]
    assert not (job.folder / "data").exists()  # of no use after the run
    write_pairs(tmp_path, job.shards["pairs"])
    data = read_pairs(tmp_path)
    drawn, _ = Order(data.sources, settings.mixing, settings.seed).stretch(0, 64)
    rates = [0.5, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    expected, norms = [], []
    for step in range(1, 9):
        update = pretrain_update(data, drawn[(step - 1) * 8 : step * 8])
        batch = tokenizer(update.texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        loss = pretrain_loss(model(batch["input_ids"], batch["attention_mask"]), update, settings).total
        expected.append(loss.item())
        gradients = torch.autograd.grad(loss, trained)
        norm = torch.sqrt(sum((each**2).sum() for each in gradients))
        norms.append(norm.item())
        rate = settings.learning_rate * rates[step - 1]
        with torch.no_grad():
            for parameter, gradient, m, v in zip(trained, gradients, first, second, strict=True):
                gradient = gradient * min(1.0, 0.7 / (norm.item() + 1e-6))
                m.mul_(0.9).add_(0.1 * gradient)
                v.mul_(0.999).add_(0.001 * gradient**2)
                if parameter.ndim > 1:
                    parameter.mul_(1 - rate * 0.5)
                step_size = rate / (1 - 0.9**step)
                parameter.sub_(step_size * m / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
    log = log_of(job)
    assert min(norms) > 0.7  # so clipping is in the result
    assert [line["loss"] for line in log] == pytest.approx(expected, abs=1e-5)
    assert [line["learning_rate"] for line in log] == pytest.approx([1e-3 * rate for rate in rates])
    assert [line["gradient_norm"] for line in log] == pytest.approx(norms, rel=1e-3)
    final, _ = load(job.model_folder)
    for (name, parameter), found in zip(model.named_parameters(), final.parameters(), strict=True):
        assert torch.allclose(parameter, found, atol=2e-5), name


def test_recomputed_activations_change_nothing(runs: dict[str, Job]) -> None:
    assert losses_of(runs["recomputed"]) == pytest.approx(losses_of(runs["plain"]), abs=1e-6)


def test_the_number_of_processes_changes_nothing(runs: dict[str, Job]) -> None:
    one, two = runs["finetune"], runs["finetune on two"]
    assert losses_of(two)[:8] == pytest.approx(losses_of(one)[:8], abs=1e-5)
    assert replacements(one)  # and later on they differ by what Adam makes of the last bit
    assert [row for row in replacements(one) if row[0] == 4] == pytest.approx(
        [row for row in replacements(two) if row[0] == 4]
    )


def test_the_loss_falls(runs: dict[str, Job]) -> None:
    for name in ("pretrain", "finetune"):
        losses = losses_of(runs[name])
        assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


class Words:
    """A tokenizer that makes one token a character."""

    model_max_length = 8

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(character) for character in text] for text in texts]}


def scripted(steps: int, checks_every: int, fails_at: int = 0) -> tuple[Any, list[str]]:
    """A task that writes down what is made and, as its negatives would show, when."""
    from conan_embedding.trainer.train import Task

    made: list[str] = []

    def update(step: int) -> Any:
        if step == fails_at:
            raise RuntimeError(f"step {step} has no text")
        made.append(f"made {step}")
        return build_update([f"q{step}"], [f"p{step}"])

    mining = SimpleNamespace(checks=lambda step: step % checks_every == 0)
    return Task(steps, update, lambda embeddings, update: None, mining), made  # type: ignore[arg-type, return-value]


def test_a_batch_is_made_while_another_trains_but_not_across_a_check() -> None:
    from conan_embedding.trainer.train import _batches

    task, made = scripted(steps=7, checks_every=3)
    for step, batch in _batches(task, Words(), done=1, rank=0, world_size=1):
        time.sleep(0.05)  # the next one is made meanwhile
        made.append(f"trained {step}")
        assert batch.update.texts == [f"q{step}", f"p{step}"]
        assert sorted(batch.ids) == [[ord("p"), ord(str(step))], [ord("q"), ord(str(step))]]
    expected = "made 2, made 3, trained 2, trained 3, made 4, made 5, trained 4, made 6, trained 5, trained 6, made 7"
    assert made == [*expected.split(", "), "trained 7"]


def test_a_batch_that_cannot_be_made_stops_the_run() -> None:
    from conan_embedding.trainer.train import _batches

    seen = []
    with pytest.raises(RuntimeError, match="step 3 has no text"):
        for step, _ in _batches(scripted(9, 100, fails_at=3)[0], Words(), 0, 0, 1):
            seen.append(step)
    assert seen == [1, 2]


def test_ranks_share_the_texts_of_a_batch() -> None:
    from conan_embedding.trainer.train import _batches

    parts = [next(_batches(scripted(1, 9)[0], Words(), 0, rank, 2))[1] for rank in range(2)]
    assert sorted(ids for part in parts for ids in part.ids) == [[ord("p"), ord("1")], [ord("q"), ord("1")]]
    assert [len(part.ids) for part in parts] == [1, 1]
