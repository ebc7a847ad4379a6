"""The round trip against brute force, and the stage that follows it."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline.encoder.encoder import encode, load_encoder
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.synthesize.round_trip import KEPT_ABOVE, find_ranks, plan_round_trip
from conan_embedding.schemas.settings import DedupSettings, PromptSettings, SourcePrompts
from conan_embedding.schemas.synthesize_settings import RoundTripSettings

PASSAGES = [f"{chr(0x4E00 + 7 * number)}{chr(0x4F00 + number)}{chr(0x5000 + 3 * number)}" for number in range(40)]
QUERIES = [f"{text[0]}{chr(0x5100 + number)}" for number, text in enumerate(PASSAGES[::3])]


@pytest.fixture
def searched() -> pl.DataFrame:
    """Passages of which each even one is a near-duplicate of the next."""
    found = pl.DataFrame({"text": PASSAGES, "pair_id": [f"id {number}" for number in range(40)]})
    return found.with_columns(source=pl.lit("files"), clusters=pl.concat_list(pl.int_range(40) // 2)).sort("text")


def test_ranks_are_those_of_brute_force(tiny_model: Path, tmp_path: Path, searched: pl.DataFrame) -> None:
    prompts = PromptSettings(query="问", passage="文")
    settings = RoundTripSettings(model=str(tiny_model), pooling="mean", max_length=32, prompts=prompts)
    more = pl.DataFrame({"text": ["另选的"], "query": [None], "pair_id": ["id of another"], "hash": ["h"]})
    trip = plan_round_trip(settings, {"written": SourcePrompts(query="写")}, searched, more, DedupSettings())
    written = pl.DataFrame(
        {
            "request": [f"request {number}" for number in range(len(QUERIES) + 1)],
            "query": [*QUERIES, "另"],
            "passage": [*PASSAGES[::3], "另选的"],
        }
    )
    found = find_ranks(tmp_path, trip, "written", written, Engine(workers=1))
    encoder = load_encoder(settings, device="cpu")
    passages = encode(encoder, [*PASSAGES, "另选的"], "文").astype(np.float64)
    queries = encode(encoder, written["query"].to_list(), "写").astype(np.float64)
    scores = queries @ passages.T
    clusters = np.append(np.arange(40) // 2, 99)
    for row, own in enumerate([*range(0, 40, 3), 40]):
        others = np.flatnonzero((scores[row] > scores[row, own]) & (clusters != clusters[own]))
        best = others[np.argsort(-scores[row, others])][:KEPT_ABOVE]
        names = [f"id {number}" if number < 40 else "id of another" for number in best]
        assert found.row(row) == (f"request {row}", written["passage"][row], 1 + len(others), names)
    assert found["rank"].n_unique() > 5


def test_what_ranks_depend_on(tiny_model: Path, searched: pl.DataFrame) -> None:
    def fingerprint(passages: pl.DataFrame = searched, threshold: float = 0.7, **more: Any) -> str:
        settings = RoundTripSettings(model=str(tiny_model), pooling="mean", **more)
        none = pl.DataFrame(schema=dict.fromkeys(("text", "query", "pair_id"), pl.String))
        return plan_round_trip(settings, {}, passages, none, DedupSettings(threshold=threshold)).fingerprint

    assert fingerprint() == fingerprint(within=3) == fingerprint(batch_tokens=99)
    others = [
        fingerprint(searched[1:]),
        fingerprint(max_length=16),
        fingerprint(threshold=0.8),
        fingerprint(prompts=PromptSettings(query="问")),
    ]
    assert len({fingerprint(), *others}) == 5


def test_a_model_that_is_not_there(tmp_path: Path, searched: pl.DataFrame) -> None:
    with pytest.raises(ModelError):
        plan_round_trip(RoundTripSettings(model=str(tmp_path / "none")), {}, searched, searched, DedupSettings())
