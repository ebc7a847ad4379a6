"""Decoders in training: the soft mask's schedule, adapters, and what is exported, against sentence-transformers."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.training_settings import LoRASettings, OptimizerSettings, PretrainSettings
from conan_embedding.trainer.data.batches import pretrain_batch
from conan_embedding.trainer.data.sampler import Sampler
from conan_embedding.trainer.data.training_tables import read_pairs, write_pairs
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.loss.cbb import pretrain_loss
from conan_embedding.trainer.model.attention import soft_mask
from conan_embedding.trainer.model.embedding_model import load
from safetensors.torch import load_file
from tiny_decoders import save_decoder
from training_runs import PRETRAIN, job_of, log_of, losses_of, run_ranks, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("training")]

CHARACTERS = "".join(chr(point) for point in range(0x4E00, 0x4E00 + 150))
SOFT = {**PRETRAIN, "pooling": "lasttoken", "attention": "soft"}
LORA = LoRASettings(rank=4, alpha=8, dropout=0.2)
TEXTS = ["丁七万丈三", "不", "世丙业丛东丝丞丢两严" * 3]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("decoder"), "gemma3_text", CHARACTERS)


def run(
    base: Path, corpus: Path, model: Path, settings: OptimizerSettings, processes: int, killed: bool = False
) -> Job:
    """Train in a copy of a corpus, killed halfway and resumed if so asked."""
    job = job_of(Path(shutil.copytree(corpus, base / "corpus")), model, settings)
    job.folder.mkdir(parents=True)
    job.file.write_text(job.model_dump_json())
    if killed:
        run_ranks(job, processes, signal.SIGKILL)
        assert job.checkpoints
    assert set(run_ranks(job, processes)) == {0}, (job.corpus / "output").read_text("utf-8")
    return job


def exported_as_trained(job: Job) -> bool:
    """Whether sentence-transformers gives the vectors of the trainer's own model."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model, tokenizer = load(job.model_folder)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        own = model.eval()(inputs["input_ids"], inputs["attention_mask"]).numpy()
    loaded = sentence_transformers.SentenceTransformer(str(job.model_folder), device="cpu", local_files_only=True)
    return np.allclose(loaded.encode(TEXTS), own, rtol=0, atol=1e-5)


def test_attention_opens_step_by_step(shared_training_corpus: Path, decoder: Path, tmp_path: Path) -> None:
    """With hardly any learning, a step's loss depends on its mask alone; two ranks and GradCache change nothing."""
    settings = PretrainSettings(**SOFT | {"learning_rate": 1e-12, "batch_size": 4}, steps=5, gradcache_tokens=64)
    job = run(tmp_path, shared_training_corpus, decoder, settings, 2)
    torch.manual_seed(settings.seed)
    model, tokenizer = load(decoder, settings.projection_dim, "lasttoken", settings.max_length)
    model.encoder.config.is_causal = False
    (tmp_path / "data").mkdir()
    write_pairs(tmp_path / "data", job.shards["pairs"])
    data = read_pairs(tmp_path / "data")
    drawn, _ = Sampler(data.sources, settings.mixing, settings.seed).draw(0, 40)
    for step, loss in enumerate(losses_of(job), start=1):
        batch = pretrain_batch(data, drawn[(step - 1) * 8 : step * 8], Prompts())
        inputs = tokenizer(batch.texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with torch.no_grad():
            states = model.encoder(input_ids=ids, attention_mask=soft_mask(model.encoder, ids, mask, step / 5))
            ends = states.last_hidden_state[torch.arange(len(ids)), mask.sum(dim=1) - 1]
            expected = pretrain_loss(
                model.head(ends), batch, temperature=settings.temperature, matryoshka_dims=settings.matryoshka_dims
            )
        assert loss == pytest.approx(expected.total.item(), abs=1e-5)
    config = json.loads((job.model_folder / "config.json").read_text())
    assert config["is_causal"] is False
    assert exported_as_trained(job)


def test_adapters_resume_as_if_never_killed(shared_training_corpus: Path, decoder: Path, tmp_path: Path) -> None:
    learning = {"learning_rate": 0.01, "steps": 14, "checkpoint_every": 5, "lora": LORA, "gradcache_tokens": 64}
    settings = PretrainSettings(**SOFT | learning)
    whole = run(tmp_path / "whole", shared_training_corpus, decoder, settings, 2)
    recomputing = settings.model_copy(update={"gradient_checkpointing": True})  # of layers whose inputs are frozen
    killed = run(tmp_path / "killed", shared_training_corpus, decoder, recomputing, 2, killed=True)
    assert log_of(killed) == log_of(whole)
    losses = losses_of(whole)
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    found, resumed = weights_of(whole.model_folder), weights_of(killed.model_folder)
    assert all(torch.equal(found[name], resumed[name]) for name in found)
    before, after = load_file(decoder / "model.safetensors"), load_file(whole.model_folder / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}
    assert exported_as_trained(whole)
