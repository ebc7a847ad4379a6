"""A rule from a plugin: once the recipe names its module, every process of the filter knows the rule."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import polars as pl
import pytest
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.filter.rules import RULES, select_rules
from conan_embedding.pipeline.filter.stage import filter_pairs
from conan_embedding.schemas.settings import FilterSettings
from rule_plugin import AUTUMN, write_rule_plugin, write_rule_recipe

ONE = Engine(workers=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two sources, a plugin, and a recipe that names it."""
    (tmp_path / "plugins").mkdir()
    write_rule_plugin(tmp_path / "plugins")
    write_rule_recipe(tmp_path)
    return tmp_path


def conan(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run a command in a process of its own; return its output, or its errors if it is expected to fail."""
    ran = forks.call(conan_in, folder, *arguments, environment={"PYTHONPATH": str(folder / "plugins")})
    assert ran.returncode == code, ran.stderr
    return ran.stderr if code else ran.stdout


def conan_in(folder: Path, *arguments: str) -> None:
    os.chdir(folder)
    forks.conan(*arguments)


def test_a_plugin_rule_filters_in_all_workers(folder: Path) -> None:
    conan(folder, "ingest", "corpus", "--recipe", "recipe.yaml", "--workers", "1")
    processes = folder / "plugins" / "processes"
    for process in processes.iterdir():
        process.unlink()

    told = json.loads(conan(folder, "filter", "corpus", "--workers", "2", "--json"))
    assert (told["rows_in"], told["rejected"]) == (4, {"red_leaves": 2})
    assert len(list(processes.iterdir())) == 3  # the command and both workers
    rejects = pl.read_parquet(folder / "corpus/filter/rejected/*.parquet")
    assert sorted(rejects["source"].cast(pl.String)) == ["one", "two"]
    assert set(rejects["detail"]) == {"0.7 > 0.5"} and rejects["positive"].str.contains("红叶").all()

    explained: dict[str, Any] = json.loads(
        conan(folder, "filter", "corpus", "--explain", rejects["pair_id"][0], "--json")
    )
    assert explained["reason"] == "red_leaves"
    assert explained["findings"][-1] == {
        "rule": "red_leaves", "side": "positive", "bound": "max", "threshold": 0.5, "value": 0.7, "verdict": "fails",
        "origin": "chosen here",
    }  # fmt: skip
    tried = json.loads(conan(folder, "filter", "corpus", "--dry-run", "--json"))
    assert (tried["rules"][-1]["rule"], tried["rules"][-1]["first"]) == ("red_leaves", 2)


def test_another_version_of_a_plugin_rule_filters_again(folder: Path) -> None:
    conan(folder, "ingest", "corpus", "--recipe", "recipe.yaml", "--workers", "1")
    done = ["filter", "corpus", "--workers", "1", "--json"]
    assert [json.loads(conan(folder, *done))["skipped"] for _ in range(2)] == [0, 2]
    write_rule_plugin(folder / "plugins", version=2)
    assert json.loads(conan(folder, *done))["skipped"] == 0


def test_a_rule_without_its_plugin_is_unknown(folder: Path) -> None:
    conan(folder, "ingest", "corpus", "--recipe", "recipe.yaml", "--workers", "1")
    error = conan(folder, "filter", "corpus", "--set", "plugins=[]", "--workers", "1", code=2)
    assert error.startswith("error: filter.rules: no filter rule is called 'red_leaves'; ")
    error = conan(folder, "filter", "corpus", "--set", "plugins=[nowhere]", "--workers", "1", code=2)
    assert "plugins: nowhere can't be imported" in error


def test_the_version_decides_with_the_threshold(
    tmp_path: Path, pair, write_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, "ingest", [pair("北京的秋天为什么适合旅行？", AUTUMN)])
    settings = FilterSettings()
    assert [filter_pairs(tmp_path, settings, ONE).skipped for _ in range(2)] == [0, 1]
    monkeypatch.setitem(RULES, "han_ratio", replace(RULES["han_ratio"], version=2))
    assert [filter_pairs(tmp_path, settings, ONE).skipped for _ in range(2)] == [0, 1]


def test_registered_rules_come_after_ours_and_before_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "mine", replace(RULES["han_ratio"], name="mine"))
    names = [rule.name for rule in select_rules({"mine": 0.3}, words=["赌场"])]
    assert names[-3:] == ["boilerplate", "mine", "blocked_words"]
    assert "mine" not in [rule.name for rule in select_rules({"mine": False})]
