"""The training loop gives the same updates with any number of processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.training_settings import PretrainSettings
from conan_embedding.trainer.data.batches import pretrain_batch
from conan_embedding.trainer.data.sampler import Sampler
from conan_embedding.trainer.data.training_tables import read_pairs, write_pairs
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.loss.cbb import pretrain_loss
from conan_embedding.trainer.model.embedding_model import load
from conan_embedding.trainer.train import dropout_seed
from training_runs import log_of, losses_of, replacements

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("training")]


def test_no_operation_is_compiled(runs: dict[str, Job]) -> None:
    assert not list((runs["plain"].corpus / "extensions").glob("*"))


@pytest.mark.parametrize(("clipping", "scale"), [(0.5, 0.1), (0.0, 1.0), (9.0, 1.0)])
def test_zero_0_clips_and_makes_no_step_without_gradients(clipping: float, scale: float) -> None:
    from conan_embedding.trainer.optimizer import ClippedAdamW

    gradient = torch.tensor([3.0, 4.0])
    expected, found = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    plain = torch.optim.AdamW([expected], lr=0.1, eps=1.0)
    watchful = ClippedAdamW([found], lr=0.1, eps=1.0, clipping=clipping)
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
    """Against the same steps written out: all texts in one padded batch, learning rate as a formula, decay by hand."""
    job = runs["plain"]
    settings = job.settings
    assert isinstance(settings, PretrainSettings)
    torch.manual_seed(settings.seed)
    model, tokenizer = load(tiny, settings.projection_dim, settings.pooling, settings.max_length)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = [torch.zeros_like(parameter) for parameter in trained]
    second = [torch.zeros_like(parameter) for parameter in trained]
    assert not (job.folder / "data").exists()  # not needed after the run
    write_pairs(tmp_path, job.shards["pairs"])
    data = read_pairs(tmp_path)
    drawn, _ = Sampler(data.sources, settings.mixing, settings.seed).draw(0, 64)
    rates = [0.5, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    expected, norms = [], []
    for step in range(1, 9):
        batch = pretrain_batch(data, drawn[(step - 1) * 8 : step * 8], Prompts())
        inputs = tokenizer(batch.texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        loss = pretrain_loss(
            model(inputs["input_ids"], inputs["attention_mask"]),
            batch,
            temperature=settings.temperature,
            matryoshka_dims=settings.matryoshka_dims,
        ).total
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
    assert min(norms) > 0.7  # so clipping affects the result
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
    assert replacements(one)  # later losses differ, because Adam amplifies differences in the last bit
    assert [row for row in replacements(one) if row[0] == 4] == pytest.approx(
        [row for row in replacements(two) if row[0] == 4]
    )


def test_the_loss_falls(runs: dict[str, Job]) -> None:
    for name in ("pretrain", "finetune"):
        losses = losses_of(runs[name])
        assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_steps_and_ranks_drop_out_different_numbers() -> None:
    seeds = {dropout_seed(seed, step, rank) for seed in range(3) for step in range(900) for rank in range(64)}
    assert len(seeds) == 3 * 900 * 64
