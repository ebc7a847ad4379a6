"""Look at training data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from conan_embedding.trainer.data.mapped_table import MappedTable
from conan_embedding.trainer.data.training_tables import FinetuneData

Shards = Callable[[Path, str], list[Path]]
Read = Callable[..., FinetuneData]


def column(records: MappedTable, name: str) -> list[Any]:
    return [value for batch in records for value in batch[name].to_pylist()]
