"""How often the host waits for the device in a step that neither logs nor checks nor saves."""

import json
import shutil
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import forks
import pytest
import torch
from conan_embedding.schemas.training_settings import FinetuneSettings
from training_runs import FINETUNE, job_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MORE = {"gradcache_tokens": 64, "learn_temperature": True, "mask_false_negatives": {"margin": 0.1}}
STOP_FLAG = "all_reduce_max"
"""The one thing that every step waits for with several ranks: whether one of them was asked to stop."""


@pytest.fixture
def host_syncs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import host_syncs

    return host_syncs


@pytest.mark.slow
@pytest.mark.xdist_group("training")
def test_a_step_waits_for_the_stop_flag_alone(shared_training_corpus: Path, tiny: Path, tmp_path: Path) -> None:
    """Only Conan's own waits count; DeepSpeed's gradient norm and overflow check wait too."""
    files = []
    for name, more in {"plain": {}, "chunks": MORE}.items():
        corpus = Path(shutil.copytree(shared_training_corpus, tmp_path / name))
        job = job_of(corpus, tiny, FinetuneSettings(**{**FINETUNE, "log_every": 100, "steps": 100, **more}))
        job.folder.mkdir(parents=True)
        job.file.write_text(job.model_dump_json())
        files.append(job.file)
    arguments = ["--jobs", *files, "--ranks", "1", "2", "--steps", "3"]
    without_gpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = forks.call(forks.program, BENCHMARKS / "host_syncs.py", *arguments, environment=without_gpu)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(files) * (1 + 2) * 3
    for line in lines:
        found = defaultdict(list)
        for wait in line["waits"]:
            found[wait["owner"]] += [wait["place"].split()[-1]] * wait["times"]
        assert found["Conan"] == ([STOP_FLAG] if line["ranks"] == 2 else []), line
        assert found["DeepSpeed"] and not found["other"], line


def test_what_waits_is_counted(host_syncs: ModuleType) -> None:
    """Reads of tensors on the device and copies to it are counted; work on the host alone is not."""
    device = torch.device("cpu")
    numbers = torch.arange(4)
    waits = {
        "item": lambda there: there[1].item(),
        "bool": lambda there: bool((there > 1).any()),
        "float": lambda there: float(there.sum()),
        "tolist": lambda there: (there + 1).tolist(),
        "cpu": lambda there: there.cpu().tolist(),
        "nonzero": lambda there: there.nonzero(),
        "mask": lambda there: there[there > 1],
        "to": lambda there: numbers.flip(0).to(device),
        "made": lambda there: torch.tensor([1.0], device=device),
        "copied": lambda there: there.copy_(numbers),
        "nothing": lambda there: there[numbers.to(device, non_blocking=True)] + torch.zeros(4, device=device),
        "host": lambda there: bool(numbers.any()) and numbers[numbers > 1].tolist(),
    }
    with host_syncs.device_syncs() as counts:
        there = numbers.clone().to(device, non_blocking=True)
        found = {}
        for name, work in waits.items():
            counts.clear()
            work(there)
            found[name] = counts.total()
    assert found == dict.fromkeys(waits, 1) | {"nothing": 0, "host": 0}


def test_gradients_and_hooks_are_on_the_device(host_syncs: ModuleType) -> None:
    with host_syncs.device_syncs() as counts:
        weight = torch.ones(3).to(torch.device("cpu"), non_blocking=True).requires_grad_()
        weight.register_hook(lambda gradient: print(gradient.to(torch.device("cpu")).sum().item()))  # where it is
        (weight * 2).sum().backward()
        assert counts.total() == 1
        assert weight.grad is not None and weight.grad.sum() == 6
        assert counts.total() == 2
