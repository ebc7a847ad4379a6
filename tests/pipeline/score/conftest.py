"""Fixtures that count what is encoded, and forbid to load a model."""

from typing import Any

import pytest
from conan_embedding.pipeline.encoder import encoder as encoders
from conan_embedding.pipeline.score import pair_scores as module


@pytest.fixture
def count_texts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many texts each call of the encoder gets: the queries, the positives, and so on."""
    counts: list[int] = []
    whole = module.encode_after

    def encode(encoder: Any, prompts: Any, texts: Any) -> Any:
        counts.append(len(texts))
        return whole(encoder, prompts, texts)

    monkeypatch.setattr(module, "encode_after", encode)
    return counts


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function after whose call the test fails if a model is loaded."""

    def forbid() -> None:
        encoders._load.cache_clear()
        monkeypatch.setattr(encoders, "load_encoder", lambda _: pytest.fail("a model was loaded"))

    return forbid
