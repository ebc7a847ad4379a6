"""The blocks of README.md and docs run, and show what comes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import forks
import pytest
from conan_embedding.pipeline.demo.generate import write_sample
from conan_embedding.pipeline.demo.language_model import serve
from conan_embedding.pipeline.demo.prepare import DEMO_ROWS
from filelock import FileLock
from page_blocks import RUN, read_blocks
from page_runs import run_page

PACKAGE = Path(__file__).parents[2]
PAGES = sorted(file.relative_to(PACKAGE).as_posix() for file in [PACKAGE / "README.md", *PACKAGE.glob("docs/**/*.md")])
SMALLER = [
    "bootstrap.layers=1",
    "bootstrap.hidden=64",
    "bootstrap.intermediate=128",
    "bootstrap.training.steps=60",
    "finetune.steps=10",
    "finetune.retrieval_batch=8",
    "finetune.sts_batch=8",
]
"""The demo's rows, but a quarter of its model and a few steps of training: other scores, the same pairs."""


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` leaves, with a smaller model; made once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pages"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            write_sample(folder / "demo" / "sources", DEMO_ROWS)
            recipe, corpus, log = PACKAGE / "recipes" / "demo.yaml", folder / "demo" / "corpus", folder / "log"
            with serve() as server:
                variables = [f"variables.root={folder / 'demo' / 'sources'}", f"variables.server={server}"]
                settings = [f"--set={each}" for each in [*variables, *SMALLER]]
                assert forks.run(["run", str(recipe), str(corpus), "--workers=1", *settings], log) == 0, log.read_text()
            for checkpoints in corpus.glob("train/*/checkpoints"):
                shutil.rmtree(checkpoints)  # most of the bytes of the copies
            (folder / "done").touch()
    return folder / "demo"


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(
    page: str, tmp_path: Path, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    blocks = [block for block in read_blocks((PACKAGE / page).read_text("utf-8"), page) if block.language in RUN]
    run = [block for block in blocks if block.reason is None]
    record_property("blocks run", len(run))
    for block in blocks:
        if block.reason is not None:
            record_property("block not run", f"{block.place}: {block.reason}")
    for name in ("recipes", "examples"):
        shutil.copytree(PACKAGE / name, tmp_path / name)
    if any(block.language != "yaml" for block in run):
        shutil.copytree(request.getfixturevalue("demo"), tmp_path / "demo")
    if wrong := run_page(run, tmp_path):
        pytest.fail("\n\n".join(wrong), pytrace=False)
    shutil.rmtree(tmp_path)
