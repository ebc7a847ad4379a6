"""The example programs run, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: object) -> str:
    """What a program prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "POLARS_FMT_STR_LEN": "200"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
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
