"""Whole runs on a tiny model: against plain PyTorch, against each other, killed and resumed, and what they export.

DeepSpeed takes seconds to load, so this file is also the program that runs many jobs after loading it once.
"""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
import torch
from conan_embedding.pipeline.encoder import encode, load_encoder
from conan_embedding.schemas.settings import (
    EncoderSettings,
    FinetuneSettings,
    HardNegativeMining,
    OptimizerSettings,
    PretrainSettings,
)
from conan_embedding.trainer.batches import draws, pretrain_update, read_pairs
from conan_embedding.trainer.cbb import build_update, pretrain_loss
from conan_embedding.trainer.job import Job, TrainingError, make_job, run_job
from conan_embedding.trainer.model import EmbeddingModel, load
from safetensors.torch import load_file

SHARED = {"learning_rate": 1e-3, "temperature": 0.1, "log_every": 1, "max_length": 32}
PRETRAIN = {**SHARED, "batch_size": 8, "dimension": 24, "dimensions": [8, 24]}
FINETUNE = {**SHARED, "retrieval_batch": 8, "sts_batch": 6, "dimensions": [16, 32], "negatives": 4}
EASILY = HardNegativeMining(check_every=4, factor=1.0, ceiling=2.0)  # half the queries move at a check
PLAIN = {"steps": 8, "warmup": 0.25, "weight_decay": 0.5, "gradient_clipping": 0.7}
LONG = {"steps": 40, "checkpoint_every": 10}


def job_of(corpus: Path, tiny: Path, settings: OptimizerSettings) -> Job:
    """The job that `conan train` would make."""
    shards = {kind: sorted((corpus / "convert" / kind).glob("*.parquet")) for kind in ("pretrain", "retrieval", "sts")}
    if isinstance(settings, PretrainSettings):
        return make_job(corpus, "pretrain", str(tiny), settings, {"pairs": shards["pretrain"]})
    assert isinstance(settings, FinetuneSettings)
    found = {"retrieval": shards["retrieval"], "sts": shards["sts"] if settings.sts_batch else []}
    return make_job(corpus, "finetune", str(tiny), settings, found, pools="the pools")


def log_of(job: Job) -> list[dict[str, Any]]:
    """The steps in a run's log, without what depends on the clock."""
    lines = [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "tokens_per_second"} for line in lines if "loss" in line]


def losses_of(job: Job) -> list[float]:
    return [line["loss"] for line in log_of(job)]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("model.safetensors"))
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


RUNS: dict[str, tuple[OptimizerSettings, int]] = {
    "pretrain": (PretrainSettings(**PRETRAIN, **LONG), 1),
    "finetune": (FinetuneSettings(**FINETUNE, **LONG, hard_negative_mining=EASILY), 1),
    "finetune on two": (FinetuneSettings(**FINETUNE, **LONG, hard_negative_mining=EASILY), 2),
    "plain": (PretrainSettings(**PRETRAIN, **PLAIN), 1),
    "recomputed": (PretrainSettings(**PRETRAIN, **PLAIN, gradient_checkpointing=True), 1),
    "zero 1": (FinetuneSettings(**FINETUNE, steps=3, zero_stage=1), 2),
    "zero 2": (FinetuneSettings(**FINETUNE, steps=3, zero_stage=2), 2),
    "chunked": (FinetuneSettings(**FINETUNE, steps=3, chunk_tokens=64, layout="paper"), 2),
    "bf16": (PretrainSettings(**PRETRAIN, steps=3, precision="bf16"), 2),
    "no sentences": (FinetuneSettings(**{**FINETUNE, "sts_batch": 0}, steps=3), 1),
}


@pytest.fixture(scope="session")
def runs(made_corpus: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """The runs above, each in a corpus of its own, all from one program; workers of pytest-xdist share them."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with (base / "runs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "runs").exists():
            _train_all(base / "runs", made_corpus, tiny)
    files = {name: next((base / "runs" / name).glob("train/*/job.json")) for name in RUNS}
    return {name: Job.model_validate_json(file.read_text()) for name, file in files.items()}


def _train_all(base: Path, made_corpus: Path, tiny: Path) -> None:
    arguments = []
    for name, (settings, processes) in RUNS.items():
        job = job_of(Path(shutil.copytree(made_corpus, base / name)), tiny, settings)
        job.folder.mkdir(parents=True)
        job.file.write_text(job.model_dump_json())
        arguments.append(f"{job.file}@{processes}")
    (base / "extensions").mkdir()
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(base / "extensions"), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, __file__, *arguments]
    assert subprocess.run(program, env=environment, check=False).returncode == 0


def test_no_operation_is_compiled(runs: dict[str, Job]) -> None:
    assert list((runs["plain"].corpus.parent / "extensions").iterdir()) == []


def test_a_run_is_adamw_with_warm_up_decay_and_clipping(runs: dict[str, Job], tiny: Path) -> None:
    """The same steps, written out: every text in one padded batch, the rate as a formula, decay by hand."""
    job = runs["plain"]
    settings = job.settings
    assert isinstance(settings, PretrainSettings)
    torch.manual_seed(settings.seed)
    model, tokenizer = load(tiny, settings.dimension, settings.pooling, settings.max_length)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = [torch.zeros_like(parameter) for parameter in trained]
    second = [torch.zeros_like(parameter) for parameter in trained]
    data = read_pairs(job.shards["pairs"])
    drawn = draws(data.sources, 64, settings.mixing, settings.seed)
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


def test_stages_of_zero_share_memory_and_nothing_else(runs: dict[str, Job]) -> None:
    assert losses_of(runs["zero 2"]) == pytest.approx(losses_of(runs["zero 1"]), abs=1e-6)
    one, two = weights_of(runs["zero 1"].model_folder), weights_of(runs["zero 2"].model_folder)
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_layout_and_chunks_change_no_update(runs: dict[str, Job]) -> None:
    """Where there is no dropout, which each rank draws for its own texts."""
    assert losses_of(runs["chunked"]) == pytest.approx(losses_of(runs["zero 1"]), abs=1e-5)


def test_mixed_precision_exports_the_optimizers_weights(runs: dict[str, Job], tiny: Path) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    last = runs["bf16"].checkpoints[-1]
    optimizers = get_fp32_state_dict_from_zero_checkpoint(str(last.parent), last.name)
    exported = dict(load(runs["bf16"].model_folder)[0].named_parameters())
    assert len(optimizers) == len(exported) - 2  # without BERT's pooler, which is not trained
    for name, weights in optimizers.items():
        assert torch.equal(exported[name], weights), name
    trained = optimizers["encoder.encoder.layer.0.output.dense.weight"]
    assert not torch.equal(trained, trained.bfloat16().float())
    assert losses_of(runs["bf16"]) != losses_of(runs["pretrain"])[:3]


def test_without_sentence_pairs_their_loss_is_zero(runs: dict[str, Job]) -> None:
    for line in log_of(runs["no sentences"]):
        assert line["sts"] == 0
        assert line["loss"] == line["retrieval"] > 0


def test_what_is_exported_gives_the_trainers_vectors(runs: dict[str, Job], tiny: Path, made_corpus: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    scored = pl.read_parquet(made_corpus / "convert" / "sts" / "part-00000.parquet")
    texts = pl.concat([scored["text_a"], scored["text_b"]]).to_list()[:50]
    for name, dimension in (("pretrain", 24), ("finetune", None)):
        model, tokenizer = load(tiny, dimension, "mean", 32)
        saved = torch.load(runs[name].checkpoints[-1] / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        model.load_state_dict(saved)
        expected = vectors(model, tokenizer, texts)
        folder = runs[name].model_folder
        loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        assert np.abs(loaded.encode(texts) - expected).max() < 1e-5
        units = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        encoder = load_encoder(EncoderSettings(model=str(folder)))
        assert np.abs(encode(encoder, texts) - units).max() < 1e-5


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
        assert batch.tokens == 4
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
    assert [part.tokens for part in parts] == [4, 4]


def vectors(model: EmbeddingModel, tokenizer: Any, texts: list[str]) -> np.ndarray:
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(batch["input_ids"], batch["attention_mask"]).numpy()


def replacements(job: Job) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(job.corpus / "pools.duckdb"), read_only=True) as connection:
        return connection.execute("FROM replacements ORDER BY ALL").fetchall()


def windows(job: Job) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(job.corpus / "pools.duckdb"), read_only=True) as connection:
        return connection.execute("FROM windows ORDER BY ALL").fetchall()


@pytest.mark.parametrize("name", ["pretrain", "finetune on two"])
def test_a_killed_run_that_resumes_is_as_one_that_was_not_killed(
    runs: dict[str, Job], corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings, processes = RUNS[name]
    job = job_of(corpus, tiny, settings)
    assert job.fingerprint == runs[name].fingerprint
    killed = start(job, processes)
    # Beyond its second checkpoint, so that steps, and checks of DHNM, are done twice.
    wait_until(lambda: len(job.checkpoints) >= 2 and losses_logged(job) >= 24)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.join()
    assert not job.done.exists()
    (job.folder / "checkpoints" / ".step-00000099.tmp").mkdir()  # half a checkpoint, of a kill while saving
    reached = int(job.checkpoints[-1].name.removeprefix("step-"))
    assert 20 <= reached < 40

    assert run_job(job, processes) is True
    assert log_of(job) == log_of(runs[name])
    steps = [line["step"] for line in log_of(job)]
    assert steps == list(range(1, 41))
    found, expected = weights_of(job.model_folder), weights_of(runs[name].model_folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert replacements(job) == replacements(runs[name])
    assert windows(job) == windows(runs[name])
    assert bool(replacements(job)) == name.startswith("finetune")
    assert [each.name for each in (job.folder / "checkpoints").iterdir() if each.is_dir()] == [
        each.name for each in job.checkpoints
    ]
    assert len(job.checkpoints) == 2
    assert run_job(job, processes) is False


def test_a_run_that_is_asked_to_stop_saves_its_step(
    runs: dict[str, Job], corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two checkpoints, by a signal to the process that started the others."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings, processes = RUNS["finetune on two"]
    job = job_of(corpus, tiny, settings)
    asked = start(job, processes)
    wait_until(lambda: (job.folder / "log.jsonl").exists() and losses_logged(job) >= 5)
    assert asked.pid is not None
    os.kill(asked.pid, signal.SIGTERM)
    asked.join(60)
    assert asked.exitcode == 1
    reached = int(job.checkpoints[-1].name.removeprefix("step-"))
    assert reached == log_of(job)[-1]["step"] < 40 and not job.done.exists()
    assert run_job(job, processes) is True
    assert log_of(job) == log_of(runs["finetune on two"])


def test_a_run_without_gradients_ends_and_keeps_its_update(corpus: Path, tiny: Path) -> None:
    """The first step makes weights of 1e30; the next three have no loss and are not taken."""
    wild = {**FINETUNE, "learning_rate": 1e30, "warmup": 0.0, "gradient_clipping": 0.0}
    job = job_of(corpus, tiny, FinetuneSettings(**wild, steps=9))
    with pytest.raises(TrainingError, match="ended with exit code 1"):
        run_job(job, 2)
    steps = log_of(job)
    assert [(line["step"], line.get("skipped", 0)) for line in steps] == [(1, 0), (2, 1), (3, 2)]
    assert steps[0]["loss"] > 0 and [line["loss"] for line in steps[1:]] == [None, None]
    lost = json.loads((job.folder / "lost_update.json").read_text("utf-8"))
    assert lost["step"] == 4 and len(lost["query_rows"]) == 8 and max(lost["positive_rows"]) < len(lost["texts"])


def start(job: Job, processes: int) -> multiprocessing.Process:
    """Run a job in a process group of its own."""

    def lead() -> None:
        os.setpgid(0, 0)
        run_job(job, processes)

    process = multiprocessing.get_context("fork").Process(target=lead)
    process.start()
    return process


def losses_logged(job: Job) -> int:
    return (job.folder / "log.jsonl").read_text().count('"loss"')


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def run_here(job: Job, processes: int) -> None:
    """The ranks of a job as forks of this process, which has loaded everything."""
    from conan_embedding.trainer.train import main

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = []
    for rank in range(processes):
        if pid := os.fork():
            ranks.append(pid)
            continue
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        try:
            main(job)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    codes = [os.waitpid(pid, 0)[1] for pid in ranks]
    if any(codes):
        sys.exit(f"{job.folder}: a process failed")


if __name__ == "__main__":
    import torch._inductor.compile_fx  # DeepSpeed loads it: once for all here

    for argument in sys.argv[1:]:
        file, _, count = argument.rpartition("@")
        run_here(Job.model_validate_json(Path(file).read_text()), int(count))
