"""Runs benchmarks/gpu.sh on the CPU at a tiny size, so that it works once there is a GPU."""

import json
from pathlib import Path

import pytest
from page_runs import open_shell

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


def run(place: Path, *parts: str) -> str:
    """Run parts of the script, whose processes are forks."""
    with open_shell(place) as shell:
        printed, errors, code = shell.call(
            f"PYTHON=python OUT={place / 'out'} WORK={place / 'work'} bash {SCRIPT} --small {' '.join(parts)}"
        )
    assert code == 0, errors
    return printed


def test_parts_are_skipped_once_done_and_a_failure_lets_the_others_go_on(tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    (out / "encode.json").write_text('[{"name": "x; y", "value": 3.0, "unit": "s", "peer": 2.0, "ratio": 1.5}]')
    (work / "prepare.json").write_text("[]")  # but none of the prepared files, so that `train` fails
    printed = run(tmp_path, "encode", "train", "gradcache")
    (done,) = json.loads((out / "gradcache.json").read_text())
    assert done["value"] > 0 and done["ratio"] == done["value"] / done["peer"]
    assert "updates.json" in (out / "train.error").read_text()
    table = (out / "table.md").read_text()
    assert printed.endswith(table)
    assert [line.split("|")[1].split(",")[0].strip() for line in table.splitlines()[2:]] == [
        "x; y",
        "train failed: FileNotFoundError: [Errno 2] No such file or directory: '" + f"{work / 'updates.json'}'",
        "peak memory",
    ]
    assert "| x; y | 3 | s | 2 | 1.5 |" in table
    assert [line.split(":")[0] for line in printed.splitlines()[:2]] == ["train", "gradcache"]
    assert "gradcache:" not in run(tmp_path, "gradcache")


@pytest.mark.slow
def test_texts_and_model_are_made_and_encoded(tmp_path: Path) -> None:
    run(tmp_path, "encode")
    rate, speed, share = json.loads((tmp_path / "out" / "encode.json").read_text())
    assert all(each["value"] > 0 for each in (rate, speed, share))
    assert speed["ratio"] == pytest.approx(share["ratio"])
    updates = json.loads((tmp_path / "work" / "updates.json").read_text())
    assert len(updates["lengths"]) == 12
    assert updates["loss"] > 0
