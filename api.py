"""The Python API: the commands as functions, and a corpus as tables. The package imports this module on first use."""

from __future__ import annotations  # docs/api.md shows them as they are written here

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from .evaluation import evaluate as evaluate_models
from .pipeline.corpus import catalog
from .pipeline.corpus.lock import locked
from .pipeline.corpus.pools import read_candidates
from .pipeline.corpus.saved_recipe import load_recipe as load_saved_recipe
from .pipeline.corpus.uris import find_folder
from .pipeline.engine.calls import Engine
from .pipeline.engine.local import close_workers
from .pipeline.plugins import load_plugins
from .schemas.errors import RecipeError
from .schemas.outcomes import Outcome
from .schemas.recipe import Recipe, load
from .schemas.registry import did_you_mean
from .schemas.settings import EncoderSettings
from .trainer.launch.hosts import training_place
from .workflow import DATA_STAGES, TRAINING_STAGES, run_data_stage, train
from .workflow import export as export_model
from .workflow import run as run_stages

if TYPE_CHECKING:
    from .pipeline.encoder.encoder import Encoder

__all__ = ["Corpus", "load_encoder", "load_recipe", "run", "run_stage"]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and import its plugins. `overrides` are `key.key=value`, as for the option --set.

    Raises:
        RecipeError: the recipe has a mistake; the message names file, line and key.
    """
    recipe = load(Path(path), overrides)
    load_plugins(recipe.plugins)
    return recipe


def run(
    recipe: Recipe, corpus: str | Path, *, workers: int = 0, processes: int | None = None, address: str | None = None
) -> Iterator[tuple[str, Outcome]]:
    """Run every stage of a recipe, as `conan run` does, and yield each stage's name and outcome when it ends.

    Stages skip what is already done.

    Args:
        recipe: The recipe, from `load_recipe`.
        corpus: The corpus folder, created if it does not exist; or `s3://BUCKET/…`.
        workers: Processes of the data stages; 0 is one per core.
        processes: Training processes, one per device; by default 1, or one per GPU of the cluster.
        address: A Ray cluster for data stages and training: `HOST:PORT`, or `auto` for the one this machine is in.

    Raises:
        ConanError: something is wrong; the message says what, where, and what to do about it.
    """
    folder = find_folder(corpus)
    with _engine(folder, workers, address) as engine:
        yield from run_stages(folder, recipe, engine, processes)


def run_stage(
    stage: str,
    corpus: str | Path,
    recipe: Recipe | None = None,
    *,
    workers: int = 0,
    processes: int | None = None,
    address: str | None = None,
) -> Outcome:
    """Run one stage, as `conan STAGE` does.

    Args:
        stage: ingest, filter, dedup, score, convert, mine, bootstrap, pretrain, finetune, evaluate or export.
        corpus: The corpus folder, or `s3://BUCKET/…`.
        recipe: The recipe; by default the one that ingest saved in the corpus.
        workers: Processes of a data stage; 0 is one per core.
        processes: Training processes, one per device; by default 1, or one per GPU of the cluster.
        address: A Ray cluster, as for `run`.

    Raises:
        ConanError: something is wrong; the message says what, where, and what to do about it.
    """
    folder = find_folder(corpus)
    if recipe is None:
        recipe = load_saved_recipe(folder)
        load_plugins(recipe.plugins)
    with _engine(folder, workers, address) as engine:
        if stage in DATA_STAGES:
            return run_data_stage(stage, folder, recipe, engine)
        if stage in TRAINING_STAGES:
            return train(stage, folder, recipe, training_place(address, processes))
        if stage == "evaluate":
            return evaluate_models(folder, recipe, list(recipe.evaluate.models), [])
        if stage == "export":
            return export_model(folder, recipe)
    known = [*DATA_STAGES, *TRAINING_STAGES, "evaluate", "export"]
    raise RecipeError(f"no stage is called {stage!r}{did_you_mean(stage, known)}")


class Corpus:
    """A corpus as tables: the pairs of each stage, the rejects, the negative pools, and SQL over all of them."""

    def __init__(self, folder: str | Path) -> None:
        self.place = str(folder)

    @property
    def folder(self) -> Path:
        """The folder, for a corpus at a URI that of its copy on this machine, as the store is now."""
        return find_folder(self.place)

    def read(self, stage: str) -> pl.DataFrame:
        """Return the rows of a stage: ingest, filter, dedup, score, or convert's pretrain, retrieval, sts and passages.

        Raises:
            CorpusError: the folder is not a corpus, or a file in it is not a shard.
            QueryError: there is no such stage.
        """
        return self.sql(f'FROM "{stage}"')

    def rejected(self) -> pl.DataFrame:
        """Return the rejects of all stages, with `stage`, `reason` and `detail`. Raises the same errors as `read`."""
        return self.sql("FROM rejected")

    def pools(self) -> pl.DataFrame:
        """Return the pool of each mined query: `query_id, query, passage_ids, scores`, best candidate first.

        Raises:
            CorpusError: `conan mine` has not run.
        """
        return read_candidates(self.folder)

    def sql(self, query: str) -> pl.DataFrame:
        """Return the result of DuckDB SQL over the views of `conan sql` and the negative pools, `pools.…`.

        Raises the same errors as `read`.
        """
        frame = pl.from_arrow(catalog.query(self.folder, query))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def __repr__(self) -> str:
        return f"Corpus({self.place!r})"


def load_encoder(model: str | Path, **options: Any) -> Encoder:
    """Load an embedding model by hub name or folder. `options` are settings of EncoderSettings, such as `max_length`.

    `encode(encoder, texts, prompt)` then returns unit vectors, float32 [n, D].

    Raises:
        ModelError: the model can't be found or read.
    """
    from .pipeline.encoder.encoder import load_encoder as load_with  # torch and transformers, which take seconds

    return load_with(EncoderSettings(model=str(model), **options))


@contextmanager
def _engine(corpus: Path, workers: int, address: str | None) -> Iterator[Engine]:
    """Lock the corpus and give an engine; its workers end with the block."""
    with locked(corpus):
        try:
            yield Engine(workers, address=address)
        finally:
            close_workers()
