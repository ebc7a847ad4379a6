"""Runs of the score stage: settings, what they wrote, and the cosines that sentence-transformers gives."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.settings import ScoreSettings
from safetensors.torch import load_file, save_file

ONE = Engine(workers=1)


def settings(folder: Path, cutoff: float, **more: Any) -> ScoreSettings:
    return ScoreSettings(**{"model": str(folder), "cutoff": cutoff, "max_length": 32} | more)


def scores(read, corpus: Path) -> dict[str, float | None]:
    frames = [read(corpus, folder).select("pair_id", "score") for folder in ("score", "score/rejected")]
    return dict(pl.concat(frames).iter_rows())


def notes(corpus: Path) -> list[dict[str, Any]]:
    return [folders.read_footer(shard).notes for shard in folders.committed(corpus, "score")]


def change_weights(folder: Path, factor: float) -> None:
    """Replace the model in a folder with another one."""
    weights = load_file(folder / "model.safetensors")
    weights = {name: (value * factor).flip(0).contiguous() for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reference(folder: Path, rows: list[dict], prompt: str = "") -> np.ndarray:
    """Compute cosines with sentence-transformers."""
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is missing")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 32
    left = model.encode([prompt + row["query"] for row in rows])
    right = model.encode([row["positive"] for row in rows])
    return np.sum(left * right, axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
