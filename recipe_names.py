"""Check that what a recipe names is registered: readers, methods, loss terms, trackers.

This module is at the root because it asks the pipeline and the trainer, as workflow.py does. Each check is made by the
registry that knows the names, which is imported only if a recipe names something of it: FAISS and torch take seconds.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .schemas.recipe import Recipe
from .schemas.stage_fit import list_trainings
from .schemas.training_settings import FinetuneSettings, PretrainSettings


def check_names(recipe: Recipe) -> None:
    """Check what a recipe names: readers, methods, loss terms, trackers, by their registries; index; a judge's file.

    Filter rule names are checked later, by the filter stage, because classifiers add rules of their own.

    Raises:
        RecipeError: a name is not registered, FAISS can't read the index, or there is no file of scores.
        MissingExtraError: a tracker's library is not installed.
    """
    for check in list_name_checks(recipe):
        check()


def list_name_checks(recipe: Recipe) -> Iterator[Callable[[], object]]:
    """Yield the checks of `check_names`, each of which raises an error of its own."""
    from .pipeline.ingest.readers import check_reader, list_sources
    from .pipeline.mine.methods import METHODS

    yield from (partial(check_reader, recipe, *source) for source in list_sources(recipe))
    yield partial(METHODS.find, recipe.mine.method, recipe.locate("mine", "method"))
    if recipe.mine.index is not None:
        from .pipeline.mine.search import check_index_syntax

        yield partial(check_index_syntax, recipe.mine.index, recipe.locate("mine", "index"))
    if any(source.synthesize for source in recipe.sources):
        from .pipeline.synthesize.stage import list_checks

        yield from list_checks(recipe)
    if recipe.judge is not None and recipe.judge.scores is not None:
        from .pipeline.judge.scores_file import check_scores_file

        yield partial(check_scores_file, Path(recipe.judge.scores), recipe.locate("judge", "scores"))
    yield from (partial(check_training_names, recipe, *training) for training in list_trainings(recipe))


def check_training_names(
    recipe: Recipe, location: tuple[str, ...], settings: PretrainSettings | FinetuneSettings
) -> None:
    """Check the losses and trackers that a training names at this location. Raises as `check_names` does."""
    if settings.loss_terms:
        from .trainer.loss.terms import find_terms

        find_terms(settings.loss_terms, recipe.locate(*location, "loss_terms"))
    if isinstance(settings, FinetuneSettings) and settings.distill:
        from .trainer.loss.distillation import DISTILLATION_LOSSES

        DISTILLATION_LOSSES.find(settings.distill.loss, recipe.locate(*location, "distill", "loss"))
    if settings.track:
        from .trainer.trackers import check_trackers

        check_trackers(settings.track, recipe.locate(*location, "track"))
