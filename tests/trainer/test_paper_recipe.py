"""recipes/paper.yaml: its values are the paper's, and training accepts them."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Conan
from conan_embedding.schemas.pairs import CATEGORIES
from conan_embedding.schemas.recipe import load
from conan_embedding.trainer.model.embedding_model import load as load_model
from conan_embedding.trainer.model.export import export

PAPER = Path(__file__).parents[2] / "recipes" / "paper.yaml"
SHARED = {
    "learning_rate": 1e-5,
    "warmup": 0.05,
    "weight_decay": 0.001,
    "max_length": 512,
    "zero_stage": 1,
    "precision": "auto",
    "matryoshka_dims": [256, 512, 768, 1024, 1280, 1536, 1792],
}
PRETRAIN = SHARED | {"batch_size": 8, "projection_dim": 1792}
FINETUNE = SHARED | {"retrieval_batch": 4, "sts_batch": 32, "beta": 0.8}
DHNM = {"policy": "v1", "check_every": 100, "factor": 1.15, "ceiling": 0.8, "offset": 10, "refresh": "static"}


def test_the_recipe_has_the_papers_data_and_models() -> None:
    recipe = load(PAPER)
    assert [source.category for source in recipe.sources[:8]] == [*CATEGORIES]
    assert {source.task for source in recipe.sources[8:]} == {"retrieval", "classification", "sts"}
    assert (recipe.score.model, recipe.score.cutoff) == ("BAAI/bge-large-zh-v1.5", 0.4)
    assert recipe.pretrain and recipe.pretrain.mixing.categories == "paper"
    assert recipe.finetune and recipe.finetune.model == "pretrain"


@pytest.mark.parametrize(("stage", "expected", "texts"), [("pretrain", PRETRAIN, 1024), ("finetune", FINETUNE, 88)])
def test_a_dry_run_on_64_gpus_has_the_papers_values(
    stage: str,
    expected: dict[str, Any],
    texts: int,
    training_corpus: Path,
    tiny: Path,
    tmp_path: Path,
    conan: Conan,
) -> None:
    """With a tiny model, whose vectors have the paper's width."""
    export(*load_model(tiny, 1792, "mean", 512), tmp_path / "model")
    model = {"pretrain": tiny, "finetune": tmp_path / "model"}[stage]
    settings = ["--recipe", PAPER, "--set", f"{stage}.model={model}"]
    code, output, errors = conan(
        "train", training_corpus, "--stage", stage, *settings, "--nproc", 64, "--dry-run", "--json"
    )
    assert code == 0, errors
    plan = json.loads(output)
    assert {key: plan["settings"][key] for key in expected} == expected
    assert plan["texts_per_step"] == texts
    if stage == "finetune":
        assert DHNM.items() <= plan["settings"]["hard_negative_mining"].items()
