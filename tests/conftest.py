"""Fixtures for tests of the command line. Tests of any folder import the modules in shared/ by name."""

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conan_embedding import collect_garbage_seldom

sys.path.append(str(Path(__file__).parent / "shared"))

from command_line import Conan, write_recipe
from properties import FUZZ, share_time, start_clock
from ray_nodes import Nodes, two_nodes


def pytest_configure(config: pytest.Config) -> None:
    """Processes that share the cores have a thread each: a fifth less time than where all have as many as cores.

    Numba's loops stay parallel, to be tested as such, but their threads sleep while they wait: where they spin, and
    others want the core, a test takes 19 s instead of one.
    """
    collect_garbage_seldom()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if config.getoption("numprocesses", None):
        for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS"):
            os.environ.setdefault(name, "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole groups and whole files: what a file imports and its fixtures make is made once."""
    from xdist.scheduler import LoadGroupScheduling

    class Scheduling(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return super()._split_scope(nodeid).partition("::")[0]

    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin the slow tests first, skip those that lack a GPU, and let all share the time of `make fuzz`."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="there is no GPU here"))
    if FUZZ:
        share_time(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def pytest_collection_finish() -> None:
    """Keep all that was imported out of garbage collections, which look at a million objects for a second each."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many blocks of the documentation ran, and which did not, with their reasons."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    found = [each for report in reports if report.when == "call" for each in report.user_properties]
    if ran := [value for name, value in found if name == "blocks run"]:
        marked = [value for name, value in found if name == "block not run"]
        terminalreporter.section(f"documentation: {sum(ran)} blocks ran, {len(marked)} are marked as not run")
        for line in marked:
            terminalreporter.line(line)


def pytest_runtest_setup() -> None:
    start_clock()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder with two layers of width 32, without dropout, so that runs can be compared."""
    import pyarrow as pa
    from conan_embedding.trainer.model.bootstrap import tiny_bert

    texts = pa.chunked_array([[chr(point) for point in range(0x4E00, 0x4E00 + 150)]], pa.string())
    shape = {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 64, "max_length": 64}
    return tiny_bert(tmp_path_factory.mktemp("tiny") / "model", texts=texts, **shape)


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes with one CPU each; their workers can import the tasks of the engine's tests."""
    with two_nodes(tmp_path_factory, Path(__file__).parent / "pipeline" / "engine") as nodes:
        yield nodes


@cache
def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def conan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Conan:
    """Run a command in this process; gives its exit code, standard output and standard error."""
    from conan_embedding.cli import main

    monkeypatch.setenv("CONAN_DEBUG", "")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["conan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


@pytest.fixture(scope="module")
def shared_filtered_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus after ingest and filter."""
    from conan_embedding.pipeline.engine.calls import Engine
    from conan_embedding.schemas.recipe import load
    from conan_embedding.workflow import run_data_stage

    folder = tmp_path_factory.mktemp("filtered")
    settings = load(write_recipe(folder))
    for stage in ("ingest", "filter"):
        run_data_stage(stage, folder / "corpus", settings, Engine(workers=1))
    return folder / "corpus"


@pytest.fixture
def filtered_corpus(shared_filtered_corpus: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test alone."""
    return Path(shutil.copytree(shared_filtered_corpus, tmp_path / "corpus"))
