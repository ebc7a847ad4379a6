"""A mining method, a loss term, a metric and a tracker from a module outside the package, named only in the recipe."""

import json
import subprocess
from pathlib import Path

import forks
import pytest

pytestmark = pytest.mark.xdist_group("training")

PLUGIN = """\
import numpy as np
from conan_embedding.losses import LOSS_TERMS
from conan_embedding.pipeline.mine.methods import METHODS, Method
from conan_embedding.trainer.evaluation.metrics import METRICS, Metric, reciprocal_rank
from conan_embedding.trainer.trackers import TRACKERS

METHODS.register("topk-half", Method(0.5, lambda lowest, margin: margin * lowest, "margin * lowest_positive"))
LOSS_TERMS.register("small", lambda embeddings, batch: embeddings.square().mean())


class Lines:
    def start(self, name, settings, folder, run_id):
        self.file = (folder / "lines").open("a")
        print(name, settings["steps"], settings["world_size"], file=self.file)
        return "lines"

    def log(self, metrics, step):
        print(step, metrics["small"], file=self.file)

    def finish(self, succeeded):
        print(succeeded, file=self.file, flush=True)


TRACKERS.register("lines", Lines)
METRICS.register("mrr@3", Metric("retrieval", lambda ranking: reciprocal_rank(ranking.gains, 3)))
"""
RECIPE = """\
plugins: [house_rules]
mine: {{model: {model}, method: topk-half, top_k: 20}}
finetune:
  model: {model}
  steps: 3
  retrieval_batch: 8
  sts_batch: 6
  matryoshka_dims: [16, 32]
  max_length: 32
  log_every: 1
  loss_terms: {{small: 0.25}}
  track: [lines]
"""


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Path:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "house_rules.py").write_text(PLUGIN)
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(model=tiny))
    return file


def conan(recipe: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that can import the plugin, which is outside the package."""
    environment = {"PYTHONPATH": str(recipe.parent / "plugins")}
    return forks.call(forks.conan, *arguments, "--recipe", recipe, environment=environment)


def test_what_a_plugin_registers_works_from_the_command_line(training_corpus: Path, recipe: Path) -> None:
    mined = conan(recipe, "mine", training_corpus, "--json")
    assert mined.returncode == 0, mined.stderr
    sql = "SELECT count(*) AS pools, count(ceiling) AS held FROM pools.short_pools"
    found = json.loads(forks.call(forks.conan, "sql", training_corpus, sql, "--json").stdout)
    assert found["pools"] == found["held"] > 0  # the view applies the method's ceiling
    assert conan(recipe, "mine", training_corpus, "--show", "0").returncode == 0

    trained = conan(recipe, "train", training_corpus, "--nproc", 2)
    assert trained.returncode == 0, trained.stderr
    log = (training_corpus / "train" / "finetune" / "log.jsonl").read_text().splitlines()
    steps = [entry for line in log if "loss" in (entry := json.loads(line))]
    assert len(steps) == 3
    for entry in steps:
        assert entry["small"] > 0
        whole = entry["retrieval"] + 0.8 * entry["sts"] + 0.25 * entry["small"]
        assert entry["loss"] == pytest.approx(whole, rel=1e-5)
    tracked = (training_corpus / "train" / "finetune" / "lines").read_text().splitlines()
    assert tracked == [
        f"{training_corpus.name} finetune 3 2",  # once, though there are two processes
        *(f"{entry['step']} {entry['small']}" for entry in steps),
        "True",
    ]

    evaluated = conan(recipe, "evaluate", training_corpus, "finetune", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = {row["metric"] for row in json.loads(evaluated.stdout)["metrics"]}
    assert {"mrr@3", "mrr@10", "spearman"} <= metrics


@pytest.mark.parametrize(
    ("command", "change", "message"),
    [
        ("mine", "mine.method=topk-halve", "no mining method is called 'topk-halve'; did you mean 'topk-half'?"),
        ("train", "finetune.loss_terms={smal: 1}", "no loss term is called 'smal'; did you mean 'small'?"),
        ("train", "finetune.track=[line]", "finetune.track: no tracker is called 'line'; did you mean 'lines'?"),
        ("mine", "plugins=[no_such_module]", "plugins: no_such_module can't be imported"),
    ],
)
def test_what_is_not_registered_is_refused(
    training_corpus: Path, recipe: Path, command: str, change: str, message: str
) -> None:
    before = sorted(training_corpus.rglob("*"))
    ended = conan(recipe, command, training_corpus, "--set", change)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert [file for file in sorted(training_corpus.rglob("*")) if file not in before] in (
        [],
        [training_corpus / ".lock"],
    )
