"""Training on a GPU gives the same results as on a CPU, and no step of Conan makes the host wait for it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conan_embedding.pipeline.encoder.encoder import encode, load_encoder
from conan_embedding.schemas.settings import EncoderSettings
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.loss.cbb import Batch, build_batch, cbb_loss
from conan_embedding.trainer.loss.distillation import DISTILLATION_LOSSES, distillation_loss
from conan_embedding.trainer.loss.gradcache import cached_backward
from conan_embedding.trainer.model.embedding_model import load
from training_runs import FINETUNE, job_of

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)


@pytest.fixture
def batch() -> Batch:
    names = iter(range(1_000))
    return build_batch(
        [f"q{next(names)}" for _ in range(4)],
        [f"p{next(names)}" for _ in range(4)],
        [[f"n{next(names)}" for _ in range(3)] for _ in range(4)],
        left=[f"l{next(names)}" for _ in range(6)],
        right=[f"r{next(names)}" for _ in range(6)],
        labels=[0.0, 0.2, 0.2, 0.4, 1.0, 1.0],
        query_only=[False, False, True, False],
        teacher_scores=[[3.0, 1.0, float("nan"), 0.0], [1.0, 2.0, 0.0, 1.0], [float("nan")] * 4, [2.0, 0.0, 0.0, 1.0]],
    )


def loss_and_gradient(batch: Batch, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = embeddings.clone().requires_grad_()
    distill = partial(distillation_loss, loss=DISTILLATION_LOSSES["kl"], temperature=0.05, teacher_temperature=1.0)
    options = {"matryoshka_dims": [8, 16], "ceiling": lambda positive: positive + 0.1}
    total = cbb_loss(leaf, batch, temperature=0.05, **options, terms={"distill": (1.0, distill)}).total
    total.backward()
    return total.detach(), leaf.grad


def test_the_loss_is_that_of_a_cpu_and_waits_for_nothing(batch: Batch) -> None:
    embeddings = torch.randn(len(batch.texts), 16, generator=torch.Generator().manual_seed(0))
    expected = loss_and_gradient(batch, embeddings)
    there = embeddings.to(GPU)
    loss_and_gradient(batch, there)  # the first call loads libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = loss_and_gradient(batch, there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.cpu(), other, atol=1e-5)


def test_gradcache_draws_the_same_dropout_twice(batch: Batch, tiny: Path) -> None:
    model, _ = load(tiny, 16)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model = model.train().to(GPU)
    ids = torch.randint(5, 50, (len(batch.texts), 6), generator=torch.Generator().manual_seed(0)).to(GPU)
    chunks = [(ids[:9], None), (ids[9:], None)]

    def gradients(cached: bool) -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        if cached:
            cached_backward(model, chunks, lambda own: cbb_loss(own, batch, temperature=0.05), torch.Tensor.backward)
        else:
            cbb_loss(torch.cat([model(*chunk) for chunk in chunks]), batch, temperature=0.05).total.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for one, other in zip(gradients(cached=True), gradients(cached=False), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_vectors_are_those_of_a_cpu(tiny: Path) -> None:
    texts = ["丁七万丈三上下", "一", "丐丑专且丕" * 5]
    settings = EncoderSettings(model=str(tiny))
    found, expected = encode(load_encoder(settings), texts), encode(load_encoder(settings, device="cpu"), texts)
    assert (found * expected).sum(axis=1) == pytest.approx(1, abs=1e-3)  # bf16 there


@pytest.mark.parametrize("gradcache_tokens", [None, 64])
def test_losses_are_those_of_a_cpu(
    shared_training_corpus: Path, tiny: Path, tmp_path: Path, gradcache_tokens: int | None
) -> None:
    settings = FinetuneSettings(**{**FINETUNE, "steps": 9, "precision": "fp32", "gradcache_tokens": gradcache_tokens})
    on_gpu = train(shared_training_corpus, tiny, settings, tmp_path / "gpu", {})
    on_cpu = train(shared_training_corpus, tiny, settings, tmp_path / "cpu", {"CUDA_VISIBLE_DEVICES": ""})
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


def train(
    shared_training_corpus: Path, tiny: Path, settings: FinetuneSettings, corpus: Path, environment: dict[str, str]
) -> Any:
    job = job_of(Path(shutil.copytree(shared_training_corpus, corpus)), tiny, settings)
    job.folder.mkdir(parents=True)
    job.file.write_text(job.model_dump_json())
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    command = [sys.executable, Path(__file__).parents[2] / "benchmarks" / "training_run.py", "--job", job.file]
    command += ["--steps", "8", "--timed", "1", "8"]
    done = subprocess.run(command, env=os.environ | rank | environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])["losses"]
