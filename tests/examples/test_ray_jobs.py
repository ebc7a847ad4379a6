"""The commands in the files for Kubernetes and Slurm are ones that Conan has, and get their arguments."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from conan_embedding.cli import app

EXAMPLES = Path(__file__).parents[2] / "examples"


def parse(arguments: list[str]) -> dict[str, object]:
    """Return the options of `conan run`. Raises click's UsageError for what it does not take."""
    program, name, *rest = arguments
    assert (program, name) == ("conan", "run")
    return typer.main.get_command(app).commands["run"].make_context("run", rest).params  # type: ignore[attr-defined]


def test_the_job_of_kuberay_runs_a_recipe_on_ray() -> None:
    spec = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text("utf-8"))["spec"]
    options = parse(shlex.split(spec["entrypoint"].removeprefix("cd /work && ")))
    assert (str(options["recipe"]), str(options["corpus"]), options["engine"]) == ("recipe.yaml", "corpora/zh", "ray")
    nodes = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    mounts = [node["template"]["spec"]["containers"][0]["volumeMounts"] for node in nodes]
    assert mounts[0] == mounts[1]


def test_the_script_for_slurm_starts_ray_on_all_nodes_and_the_command_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins = {
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "scontrol": "printf 'worker-%d\\n' {1..20000}",  # more than a pipe holds
        "hostname": "echo 10.0.0.1 192.168.0.1",
        "ray": 'printf "%s\\n" "$@"',
        "activate": "",
    }
    monkeypatch.chdir(tmp_path)
    place = Path(".venv/bin")
    place.mkdir(parents=True)
    for name, script in stand_ins.items():
        (place / name).write_text(f"#!/bin/bash\n{script}\n")
        (place / name).chmod(0o755)
    environment = {
        "PATH": f"{place.resolve()}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "worker-[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
    }
    command = ["bash", EXAMPLES / "ray.sbatch", "recipe.yaml", "corpora/zh"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    ray, _, conan = said.partition("--\n")
    assert ray.split() == ["symmetric-run", "--address", "10.0.0.1:6379", "--min-nodes", "2"]
    assert parse(conan.split())["address"] == "10.0.0.1:6379"
