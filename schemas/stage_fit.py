"""Whether the stages of a recipe fit together: what each one needs must be made by an earlier one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .recipe import Recipe
from .training_settings import FinetuneSettings, PretrainSettings

Location = tuple[str | int, ...]
"""The place of a key in a recipe."""

_TASKS = {"retrieval": {"retrieval", "classification"}, "pretrain": {"pretrain"}}
"""The tasks of sources from which convert makes a folder."""


def list_trainings(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], PretrainSettings | FinetuneSettings]]:
    """Yield the settings of the training stages that a recipe has, each with its location."""
    if recipe.bootstrap:
        yield ("bootstrap", "training"), recipe.bootstrap.training
    if recipe.pretrain:
        yield ("pretrain",), recipe.pretrain
    if recipe.finetune:
        yield ("finetune",), recipe.finetune


def list_models(recipe: Recipe, order: Sequence[str]) -> Iterator[tuple[str, Location, Any]]:
    """Yield each stage in `order` that encodes, the location of its model, and its settings with the key `model`.

    `evaluate` comes once for each of its models, `synthesize` once for each round trip.
    """
    for stage in order:
        if stage == "bootstrap":
            continue  # makes its own
        if stage == "judge" and recipe.judge and recipe.judge.scores is not None:
            continue  # has a file in place of a model
        if stage == "synthesize":
            for number, source in enumerate(recipe.sources):
                if source.synthesize and source.synthesize.round_trip:
                    place = ("sources", number, "synthesize", "round_trip", "model")
                    yield stage, place, source.synthesize.round_trip
        elif stage == "evaluate":
            for number, name in enumerate(recipe.evaluate.models):
                yield stage, (stage, "models", number), recipe.evaluate.model_copy(update={"model": name})
        elif hasattr(settings := getattr(recipe, stage, None), "model"):
            yield stage, (stage, "model"), settings


def find_misfits(
    recipe: Recipe, order: Sequence[str], makers: Sequence[str], is_trained: Callable[[str], bool], is_judged: bool
) -> Iterator[tuple[Location, str]]:
    """Yield what makes a stage fail, whatever the data, each with the location of its key.

    Args:
        recipe: The recipe.
        order: The stages that it asks for, in order.
        makers: Names of models that training stages make.
        is_trained: Whether the model of this name is there from an earlier run.
        is_judged: Whether there are judgements from an earlier run.
    """
    for stage, location, settings in list_models(recipe, order):
        model = settings.model
        maker = "bootstrap" if model == "untrained" else model
        before = order[: order.index(stage)]
        if model in makers and maker not in before and not is_trained(model):
            trained = f"which is trained later than {stage}" if maker in order else f"but there is no `{maker}:`"
            yield location, f"names the model of {maker}, {trained}; name another stage, a folder or a hub name"
    tasks = {source.task for source in recipe.sources}
    for place, training in list_trainings(recipe):
        if not isinstance(training, PretrainSettings):
            continue
        if training.on not in order[: order.index(place[0])]:
            yield (*place, "on"), f"{training.on} comes after {place[0]}; name an earlier stage, such as dedup"
        elif training.on == "convert" and not tasks & _TASKS["pretrain"]:
            yield (*place, "on"), "no source has `task: pretrain`, so there is nothing to train on; set `on: dedup`"
    if recipe.finetune:
        for kind in recipe.finetune.queries:
            if kind not in recipe.mine.queries:
                yield ("finetune", "queries"), f"{kind} is not among `mine.queries`, so its queries get no negatives"
            if not tasks & _TASKS[kind]:
                expected = " or ".join(f"`task: {task}`" for task in sorted(_TASKS[kind]))
                yield ("finetune", "queries"), f"no source has {expected}, so convert/{kind} is empty"
        if recipe.finetune.distill and not recipe.judge and not is_judged:
            yield ("finetune", "distill"), "there are no judgements to learn from; add the section `judge:`"
    held_out = [source for source in recipe.sources if recipe.holdout and source.gives_questions]
    are_asked = any(one.task not in ("sts", "classification") for one in [*recipe.evaluation, *held_out])
    if "evaluate" in order and recipe.evaluate.quantize and not are_asked:
        yield ("evaluate", "quantize"), "no evaluation set has questions to search passages for; leave it out"
