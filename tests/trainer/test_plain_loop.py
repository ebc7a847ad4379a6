"""The plain PyTorch loop has the losses of `conan train`, on two processes: this file is also what each one runs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_loop.py"
STEPS = 12


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_loop", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["plain_loop"] = module
    spec.loader.exec_module(module)
    return module


def main(rank: int, corpus: str, model: str, job_file: str, folder: str) -> None:
    """One of two ranks: the draws of the job, the example's loop."""
    import torch
    import torch.distributed as dist
    from conan_embedding import Corpus
    from conan_embedding.trainer.data.sampler import Sampler
    from conan_embedding.trainer.data.training_tables import read_finetune, write_finetune
    from conan_embedding.trainer.job import Job

    job = Job.model_validate_json(Path(job_file).read_text())
    settings = job.settings
    data = Path(folder) / f"data-{rank}"
    data.mkdir()
    write_finetune(data, Path(corpus), {"retrieval": job.shards["retrieval"]}, job.shards["sts"])
    found = read_finetune(data)
    queries = Sampler(found.sources, settings.mixing, settings.seed)
    pairs = Sampler(found.sentence_sources, settings.mixing, settings.seed + 1, run=settings.sts_batch)

    def draw(step: int) -> tuple[list[int], list[int]]:
        size, sentences = settings.retrieval_batch, settings.sts_batch
        rows, _ = queries.draw((step - 1) * size, step * size)
        chosen, _ = pairs.draw((step - 1) * sentences, step * sentences)
        return rows.tolist(), chosen.tolist()

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    example = load_example()
    mining = settings.hard_negative_mining
    options = example.Settings(
        steps=STEPS,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        clipping=settings.gradient_clipping,
        temperature=settings.temperature,
        matryoshka_dims=tuple(settings.matryoshka_dims),
        max_length=settings.max_length,
        check_every=mining.check_every,
        factor=mining.factor,
        ceiling=mining.ceiling,
    )
    losses = example.train(Corpus(corpus), model, draw, options, rank, 2)
    torch.save(losses, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_the_plain_loop_has_the_losses_of_conan_train(training_corpus: Path, tiny: Path, tmp_path: Path) -> None:
    import torch
    from conan_embedding.schemas.training_settings import FinetuneSettings
    from conan_embedding.trainer.launch.launcher import run_job
    from training_runs import EASILY, FINETUNE, job_of, losses_of, replacements

    settings = FinetuneSettings(
        **FINETUNE, steps=STEPS, hard_negative_mining=EASILY.model_copy(update={"factor": 0.98})
    )
    job = job_of(training_corpus, tiny, settings)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        assert run_job(job, 2)
    assert [row[0] for row in replacements(job)] and {row[0] for row in replacements(job)} <= {
        4,
        8,
        12,
    }  # DHNM moved some
    arguments = [str(training_corpus), str(tiny), str(job.file), str(tmp_path)]
    command = [sys.executable, __file__]
    ranks = [subprocess.Popen([*command, str(rank), *arguments], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    expected = losses_of(job)
    assert len(expected) == STEPS
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, rel=1e-6)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
