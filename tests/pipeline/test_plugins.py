"""Plugins: modules that a recipe names are imported wherever it is worked on; one that can't be is told."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from command_line import Conan
from conan_embedding.pipeline import plugins
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.ingest.readers import READERS
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.trainer.evaluation.evaluation_sets import read_sets
from reader_plugin import PAIRS, python_path, read_corpus, write_plugin, write_plugin_recipe

CONAN = "from conan_embedding.cli import main; main()"


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process import the plugin for one test."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_loaded", {})
    with patch.dict(READERS):
        yield
    sys.modules.pop("arrow_readers", None)


def test_a_plugins_reader_reads_in_worker_processes(conan: Conan, tmp_path: Path) -> None:
    write_plugin(tmp_path)
    command = ["ingest", tmp_path / "corpus", "--recipe", write_plugin_recipe(tmp_path), "--workers", "2"]
    with subprocess.Popen([sys.executable, "-c", CONAN, *command], env=python_path(tmp_path)) as driver:
        assert driver.wait() == 0
    assert len(folders.shards(tmp_path / "corpus", "ingest")) == 2
    pairs, rejects, processes = read_corpus(tmp_path / "corpus")
    assert pairs == PAIRS
    assert rejects == [(3, "no_positive")] * 2
    assert driver.pid not in processes

    # The corpus keeps the recipe, and its plugins with it.
    code, _, error = conan("filter", tmp_path / "corpus", "--workers", "1")
    assert code == 2
    assert "arrow_readers can't be imported" in " ".join(error.split())


def test_a_plugins_reader_reads_evaluation_sets_of_a_recipe(tmp_path: Path, importable: None) -> None:
    write_plugin(tmp_path)
    sets = read_sets([write_plugin_recipe(tmp_path, "evaluation")])
    assert [one.frame["query"].to_list() for one in sets] == [[question] for question, _ in PAIRS]


def test_a_module_that_is_not_there_is_told_before_any_work(conan: Conan, tmp_path: Path) -> None:
    recipe = write_plugin_recipe(tmp_path)
    for command in (["ingest", tmp_path / "corpus", "--recipe", recipe], ["run", recipe, tmp_path / "corpus"]):
        code, _, error = conan(*command)
        assert code == 2
        assert error.startswith("error: plugins: arrow_readers can't be imported (ModuleNotFoundError: ")
        assert "PYTHONPATH" in error
        assert not (tmp_path / "corpus").exists()


def test_a_reader_that_no_plugin_registers_is_told_before_any_work(conan: Conan, tmp_path: Path) -> None:
    recipe = write_plugin_recipe(tmp_path)
    recipe.write_text(recipe.read_text("utf-8").replace("plugins: [arrow_readers]", ""), "utf-8")
    code, _, error = conan("ingest", tmp_path / "corpus", "--recipe", recipe)
    assert code == 2
    assert error.startswith(f"error: {recipe}:5: sources.0.read: no reader is called 'arrows'; ")
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == [".lock"]


def test_plugins_are_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_once.py").write_text(f"with open({str(tmp_path / 'log')!r}, 'a') as log: log.write('once')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_loaded", {})
    plugins.load_plugins(["imported_once"])
    plugins.load_plugins(["json", "imported_once"])
    assert plugins.loaded_plugins() == ("imported_once", "json")
    assert (tmp_path / "log").read_text() == "once"
    with pytest.raises(RecipeError, match=r"plugins: imported_never can't be imported"):
        plugins.load_plugins(["imported_never"])
    assert plugins.loaded_plugins() == ("imported_once", "json")
