"""Training data, as read from the shards of a corpus."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pytest
from conan_embedding.trainer.data.training_tables import (
    FinetuneData,
    PairData,
    read_finetune,
    read_pairs,
    write_finetune,
    write_pairs,
)
from training_data import Read, Shards


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[], Path]:
    """A function that returns a new empty folder at each call."""
    numbers = count()

    def make() -> Path:
        made = tmp_path / f"data {next(numbers)}'s"
        made.mkdir()
        return made

    return make


@pytest.fixture
def read(folder: Callable[[], Path], shards: Shards) -> Read:
    """A function that reads the fine-tuning data of a corpus, with the given kinds of queries."""

    def written(corpus: Path, *kinds: str, query_only: Sequence[str] = ()) -> FinetuneData:
        place = folder()
        retrieval = {kind: shards(corpus, kind) for kind in kinds}
        write_finetune(place, corpus, retrieval, shards(corpus, "sts"), query_only)
        return read_finetune(place)

    return written


@pytest.fixture
def pairs_of(folder: Callable[[], Path]) -> Callable[..., PairData]:
    """A function that reads the pre-training data of shards."""

    def written(*shards: Path) -> PairData:
        place = folder()
        write_pairs(place, shards)
        return read_pairs(place)

    return written
