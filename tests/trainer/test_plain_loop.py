"""The example's plain PyTorch loop gives the losses of `conan train`, with two processes."""

from pathlib import Path

import forks
import pytest

pytestmark = pytest.mark.xdist_group("training")

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_loop.py"
STEPS = 12


def be_rank(rank: int, corpus: Path, model: Path, job_file: Path, folder: Path) -> None:
    """Run one of two ranks: the example's loop over the batches of the job."""
    import torch
    import torch.distributed as dist
    from conan_embedding import Corpus
    from conan_embedding.trainer.data.sampler import Sampler
    from conan_embedding.trainer.data.training_tables import read_finetune, write_finetune
    from conan_embedding.trainer.job import Job

    job = Job.model_validate_json(job_file.read_text())
    settings = job.settings
    data = folder / f"data-{rank}"
    data.mkdir()
    write_finetune(data, corpus, {"retrieval": job.shards["retrieval"]}, job.shards["sts"])
    found = read_finetune(data)
    queries = Sampler(found.sources, settings.mixing, settings.seed)
    pairs = Sampler(found.sentence_sources, settings.mixing, settings.seed + 1, run=settings.sts_batch)

    def draw(step: int) -> tuple[list[int], list[int]]:
        size, sentences = settings.retrieval_batch, settings.sts_batch
        rows, _ = queries.draw((step - 1) * size, step * size)
        chosen, _ = pairs.draw((step - 1) * sentences, step * sentences)
        return rows.tolist(), chosen.tolist()

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    example = forks.load_file(str(EXAMPLE))
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
    losses = example.train(Corpus(corpus), str(model), draw, options, rank, 2)
    torch.save(losses, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_the_plain_loop_has_the_losses_of_conan_train(
    training_corpus: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from conan_embedding.schemas.training_settings import FinetuneSettings
    from conan_embedding.trainer.launch.launcher import run_job
    from training_runs import EASILY, FINETUNE, job_of, losses_of, replacements

    settings = FinetuneSettings(
        **FINETUNE, steps=STEPS, hard_negative_mining=EASILY.model_copy(update={"factor": 0.98})
    )
    job = job_of(training_corpus, tiny, settings)
    monkeypatch.setattr("conan_embedding.trainer.launch.hosts.start", forks.Rank)
    assert run_job(job, 2)
    assert [row[0] for row in replacements(job)] and {row[0] for row in replacements(job)} <= {
        4,
        8,
        12,
    }  # DHNM moved some windows
    output = tmp_path / "output"
    ranks = [forks.start(be_rank, rank, training_corpus, tiny, job.file, tmp_path, output=output) for rank in range(2)]
    assert forks.exit_codes(ranks) == [0, 0], output.read_text("utf-8")
    expected = losses_of(job)
    assert len(expected) == STEPS
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, rel=1e-6)
