"""Runs the example programs, each in a process of its own."""

from pathlib import Path

import forks
import pytest

pytestmark = pytest.mark.xdist_group("training")

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: object) -> str:
    """Run a program; return what it prints."""
    ended = forks.call(forks.program, EXAMPLES / name, *arguments, environment={"POLARS_FMT_STR_LEN": "200"})
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_corpus_from_python() -> None:
    printed = run("corpus.py")
    assert "'advert': 1" in printed and "'exact_duplicate': 1" in printed
    assert "擦干净，再滴一遍链条油" in printed


def test_sql_and_polars_over_a_corpus(training_corpus: Path) -> None:
    printed = run("sql_and_polars.py", training_corpus)
    assert "negative" in printed and "candidates" in printed


def test_cbb_is_a_loss_of_sentence_transformers(tiny: Path, tmp_path: Path) -> None:
    printed = run("sentence_transformers_loss.py", tiny, tmp_path / "model")
    assert float(printed.rsplit("loss ", 1)[1]) > 0
    assert (tmp_path / "model" / "model.safetensors").exists()
