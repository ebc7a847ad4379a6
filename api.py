"""The Python API: what the commands do, as functions, and a corpus as tables. Imported lazily by the package."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from .pipeline.corpus import catalog
from .pipeline.corpus.lock import locked
from .pipeline.corpus.pools import read_candidates
from .pipeline.corpus.saved_recipe import load_recipe as load_saved_recipe
from .pipeline.encoder.encoder import Encoder, encode
from .pipeline.encoder.encoder import load_encoder as load_with
from .pipeline.engine.calls import Engine
from .pipeline.engine.local import close_workers
from .pipeline.plugins import load_plugins
from .schemas.errors import RecipeError
from .schemas.outcomes import Outcome
from .schemas.recipe import Recipe, load
from .schemas.registry import did_you_mean
from .schemas.settings import EncoderSettings
from .workflow import DATA_STAGES, TRAINING_STAGES, run_data_stage, train
from .workflow import evaluate as evaluate_models
from .workflow import export as export_model
from .workflow import run as run_stages

__all__ = ["Corpus", "encode", "load_encoder", "load_recipe", "run", "run_stage"]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and import its plugins. `overrides` are `key.key=value`, as --set takes them.

    Raises:
        RecipeError: the recipe can't be used; names file, line and key.
    """
    recipe = load(Path(path), overrides)
    load_plugins(recipe.plugins)
    return recipe


def run(
    recipe: Recipe, corpus: str | Path, *, workers: int = 0, processes: int = 1, address: str | None = None
) -> Iterator[tuple[str, Outcome]]:
    """Run every stage of a recipe, as `conan run`; yields each stage's name and outcome as it ends.

    `workers` are processes at a time (0: one for each core), `processes` those that train, `address` a Ray cluster.
    What is done already is skipped.

    Raises:
        ConanError: what is wrong, where, and what to do.
    """
    with _engine(Path(corpus), workers, address) as engine:
        yield from run_stages(Path(corpus), recipe, engine, processes)


def run_stage(
    stage: str,
    corpus: str | Path,
    recipe: Recipe | None = None,
    *,
    workers: int = 0,
    processes: int = 1,
    address: str | None = None,
) -> Outcome:
    """Run one stage, as `conan STAGE`: ingest, filter, dedup, score, convert, mine, bootstrap, pretrain, finetune,
    evaluate or export. Without a recipe, by the one that the corpus keeps.

    Raises:
        ConanError: what is wrong, where, and what to do.
    """
    folder = Path(corpus)
    if recipe is None:
        recipe = load_saved_recipe(folder)
        load_plugins(recipe.plugins)
    with _engine(folder, workers, address) as engine:
        if stage in DATA_STAGES:
            return run_data_stage(stage, folder, recipe, engine)
        if stage in TRAINING_STAGES:
            return train(stage, folder, recipe, processes)
        if stage == "evaluate":
            return evaluate_models(folder, recipe, list(recipe.evaluate.models), [])
        if stage == "export":
            return export_model(folder, recipe)
    known = [*DATA_STAGES, *TRAINING_STAGES, "evaluate", "export"]
    raise RecipeError(f"no stage is called {stage!r}{did_you_mean(stage, known)}")


class Corpus:
    """A corpus folder as tables: the pairs of each stage, what was rejected, the negative pools, and SQL over them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def read(self, stage: str) -> pl.DataFrame:
        """The rows of a stage: ingest, filter, dedup, score, or pretrain, retrieval, sts of convert.

        Raises:
            CorpusError: no corpus there, or a file in it that is not a shard of Conan.
            QueryError: no such stage.
        """
        return self.sql(f'FROM "{stage}"')

    def rejected(self) -> pl.DataFrame:
        """Every rejected row of all stages, with `stage`, `reason` and `detail`. Raises as `read`."""
        return self.sql("FROM rejected")

    def pools(self) -> pl.DataFrame:
        """Every mined query with its pool: `query_id, query, passage_ids, scores`, best first.

        Raises:
            CorpusError: nothing has been mined.
        """
        return read_candidates(self.folder)

    def sql(self, query: str) -> pl.DataFrame:
        """The result of DuckDB SQL over the views of `conan sql`; negative pools are `pools.…`. Raises as `read`."""
        frame = pl.from_arrow(catalog.query(self.folder, query))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def __repr__(self) -> str:
        return f"Corpus({str(self.folder)!r})"


def load_encoder(model: str | Path, **options: Any) -> Encoder:
    """Load an embedding model: a hub name or a folder. Options are those of a recipe: `max_length`, `pooling`, ….

    `encode(encoder, texts, prompt)` gives unit vectors, float32 [n, D].

    Raises:
        ModelError: no embedding model can be read there.
    """
    return load_with(EncoderSettings(model=str(model), **options))


@contextmanager
def _engine(corpus: Path, workers: int, address: str | None) -> Iterator[Engine]:
    """The corpus locked, and an engine whose workers end with the block."""
    with locked(corpus):
        try:
            yield Engine(workers, address=address)
        finally:
            close_workers()
