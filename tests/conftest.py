"""What tests of the command line share; the modules in shared/ are imported by name, by tests of any folder."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent / "shared"))

from command_line import Conan, write_recipe


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share a Ray cluster run in one process; all others where there is room."""
    from xdist.scheduler import LoadScopeScheduling

    class OneCluster(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if "test_ray_engine" in nodeid else nodeid

    return OneCluster(config, log)


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
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus after ingest and filter."""
    from conan_embedding.pipeline.engine import Engine
    from conan_embedding.run import data_stage
    from conan_embedding.schemas.recipe import load

    folder = tmp_path_factory.mktemp("filtered")
    settings = load(write_recipe(folder))
    for stage in ("ingest", "filter"):
        data_stage(stage, folder / "corpus", settings, Engine(workers=1))
    return folder / "corpus"


@pytest.fixture
def corpus(filtered: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test alone."""
    return Path(shutil.copytree(filtered, tmp_path / "corpus"))
