"""`conan check`: find what is wrong with a recipe, its files, models and extras, without working on data.

This module is at the root because it asks the pipeline and the trainer, as workflow.py does. The checks themselves are
those that the stages make before they begin.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .pipeline.corpus.uris import find_folder
from .pipeline.needed_extras import missing_packages, needed_extras
from .pipeline.plugins import load_plugins
from .recipe_names import list_name_checks
from .schemas.errors import ConanError, MissingExtraError, RecipeError
from .schemas.outcomes import Finding
from .schemas.recipe import Recipe, load
from .schemas.settings import ClassifierSettings, EncoderSettings
from .schemas.source_settings import EvaluationSet, Source
from .schemas.stage_fit import find_misfits, list_models, list_trainings
from .workflow import STAGE_MODELS, find_trained_model, is_trained, steps

if TYPE_CHECKING:
    from .pipeline.ingest.preview import SourcePreview

Value = TypeVar("Value")

MOST_FILES = 50
"""Chosen here: how many files of a source are opened, spread evenly over all of them."""
SAMPLE_BYTES = 1 << 20
"""Chosen here: bytes of a source's records that are tried; a few hundred rows of most."""
_SHOWN = 3  # files in a message


def check_recipe(file: Path, overrides: Sequence[str] = (), corpus: Path | None = None) -> list[Finding]:
    """Find what is wrong with a recipe and with what it names. Nothing is written or downloaded.

    Only the beginnings of files are read, and of models all but the weights. `corpus` is the folder in which models of
    earlier runs are looked for; it defaults to the recipe's.
    """
    try:
        recipe = load(file, overrides)
    except RecipeError as error:  # it may explain several keys, a line each
        return [_place(file, line) for line in re.split(rf"\n(?={re.escape(str(file))}:|--set )", str(error))]
    corpus = corpus or (find_folder(recipe.corpus) if recipe.corpus else None)
    found = [
        finding for name in recipe.plugins for finding in _try(recipe.locate("plugins"), partial(load_plugins, [name]))
    ]
    found += [_place(file, told.found) for check in list_name_checks(recipe) for told in _try("", check)]
    found += [
        *_check_filter(recipe),
        *_check_named_sets(recipe),
        *_check_extras(recipe),
        *_check_stages(recipe, corpus),
        *_check_models(recipe, corpus),
        *_check_sources(recipe),
    ]
    if not any(finding.level == "error" for finding in found):
        found.append(Finding(str(file), "ok", f"{', '.join(steps(recipe))} can begin"))
    return found


def _try(place: str, check: Callable[[], object]) -> list[Finding]:
    """Run a check, and return the error that it raises as a finding."""
    return _run(place, check)[1]


def _run(place: str, check: Callable[[], Value]) -> tuple[Value | None, list[Finding]]:
    """Run a check, and return its result, or the error that it raises as a finding."""
    try:
        return check(), []
    except Exception as error:  # file systems, configurations and plugins raise errors of their own
        is_foreseen = isinstance(error, ConanError | OSError)
        message = str(error) if is_foreseen else f"{type(error).__name__}: {error}"
        key = place.rpartition(": ")[2]
        message = message.removeprefix(f"{place}: ").removeprefix(f"{key}: ")
        return None, [Finding(place, "error", " ".join(message.split()))]


def _place(file: Path, message: str) -> Finding:
    """Return an error whose message begins with its place, as those of a recipe's reader do."""
    place = re.match(rf"({re.escape(str(file))}(:\d+)?(: [\w.-]+)?|--set .*?: [\w.-]+): ", message)
    text = " ".join(message[place.end() :].split()) if place else message
    return Finding(place[1] if place else str(file), "error", text)


def _check_filter(recipe: Recipe) -> Iterator[Finding]:
    from .pipeline.filter.stage import check_rule_names, read_list
    from .schemas.registry import check_names

    settings, names = recipe.filter, [source.name for source in recipe.sources]
    yield from _try(recipe.locate("filter"), partial(check_rule_names, settings))
    yield from _try(
        recipe.locate("filter", "sources"), partial(check_names, "source", settings.sources, names, "filter.sources")
    )
    yield from _try(recipe.locate("filter", "blocked_words"), partial(read_list, settings, "blocked_words"))
    yield from _try(recipe.locate("filter", "blocked_domains"), partial(read_list, settings, "blocked_domains"))


def _check_named_sets(recipe: Recipe) -> Iterator[Finding]:
    """Check the names of sources and evaluation sets in the settings of dedup and of training."""
    from .pipeline.dedup.decontamination import check_set_names
    from .schemas.registry import check_names

    sources, sets = [source.name for source in recipe.sources], [one.name for one in recipe.evaluation]
    if isinstance(recipe.dedup.decontaminate, list):
        place = recipe.locate("dedup", "decontaminate")
        yield from _try(place, partial(check_set_names, recipe.dedup.decontaminate, sets))
    if recipe.holdout:
        sets += [source.name for source in recipe.sources if source.gives_questions]
    for location, training in list_trainings(recipe):
        place = recipe.locate(*location, "mixing", "sources")
        yield from _try(place, partial(check_names, "source", training.mixing.sources, sources, place))
        place = recipe.locate(*location, "validation", "sets")
        named = [name for name in training.validation.sets if not Path(name).exists()]
        yield from _try(place, partial(check_names, "file or evaluation set", named, sets, place))


def _check_extras(recipe: Recipe) -> Iterator[Finding]:
    try:
        extras = needed_extras(recipe)
    except ConanError:
        return  # files that can't be listed are told by `_check_sources`
    for extra, place in extras.items():
        if missing := missing_packages(extra):
            command = MissingExtraError(place, extra).command
            yield Finding(place, "error", f"needs the extra {extra}; missing: {', '.join(missing)}", command)


def _check_stages(recipe: Recipe, corpus: Path | None) -> Iterator[Finding]:
    def is_there(model: str) -> bool:
        return corpus is not None and is_trained(corpus, model)

    if not recipe.sources:
        yield Finding(recipe.locate(), "error", "there are no `sources:`; nothing to ingest")
    from .pipeline.corpus.judgements import list_parts

    is_judged = corpus is not None and bool(list_parts(corpus))
    for location, problem in find_misfits(recipe, steps(recipe), STAGE_MODELS, is_there, is_judged):
        yield Finding(recipe.locate(*location), "error", problem)


def _check_models(recipe: Recipe, corpus: Path | None) -> Iterator[Finding]:
    """Check the models that are there, and the widths to which vectors are cut, of models still to be trained, too."""
    from .trainer.job import check_dimensions

    for name, classifier in recipe.filter.classifiers.items():
        place = recipe.locate("filter", "classifiers", name)
        told, found = _run(place, partial(_check_classifier, place, classifier))
        yield from (*found, *(told or ()))
    widths: dict[str, int | None] = {}  # of the models that stages make
    if recipe.bootstrap:
        training = recipe.bootstrap.training
        widths = dict.fromkeys(("untrained", "bootstrap"), training.projection_dim)
        place = recipe.locate("bootstrap", "training", "matryoshka_dims")
        check = partial(check_dimensions, "bootstrap.training", "bootstrap", training.matryoshka_dims)
        yield from _try(place, partial(check, training.projection_dim))
        if (vocabulary := recipe.bootstrap.vocabulary) and not Path(vocabulary).is_file():
            yield Finding(recipe.locate("bootstrap", "vocabulary"), "error", f"there is no file {vocabulary}")
    for stage, location, settings in list_models(recipe, steps(recipe)):
        place, width = recipe.locate(*location), widths.get(settings.model)
        if settings.model not in widths:
            checked, found = _run(place, partial(_check_model, stage, settings, place, corpus))
            width, told = checked or (None, [])
            yield from (*found, *told)
        elif stage == "pretrain" and width != settings.projection_dim:
            message = f"the linear layer of {settings.model} has width {width}, not {settings.projection_dim}"
            yield Finding(recipe.locate(stage, "projection_dim"), "error", f"{message}; take the same for both")
        if stage in STAGE_MODELS:
            widths[stage] = getattr(settings, "projection_dim", width)
        if width is not None and (dims := getattr(settings, "matryoshka_dims", [])):
            dims_place = recipe.locate(stage, "matryoshka_dims")
            yield from _try(dims_place, partial(check_dimensions, stage, settings.model, dims, width))


def _check_classifier(place: str, settings: ClassifierSettings) -> list[Finding]:
    from .pipeline.encoder.model_folder import find_local_model
    from .pipeline.filter.classifiers import check_classifier

    folder = find_local_model(settings.model)
    if folder is None:
        return [_is_not_here(place, settings.model)]
    check_classifier(settings, folder)
    return []


def _check_model(stage: str, settings: Any, place: str, corpus: Path | None) -> tuple[int | None, list[Finding]]:
    """Return the width of a stage's vectors, if its model is there, and what is found besides errors."""
    from .pipeline.encoder.model_folder import find_local_model
    from .pipeline.encoder.model_shape import read_shape
    from .pipeline.judge.cross_encoder import is_cross_encoder, read_cross_encoder
    from .trainer.dry_run import count_parameters
    from .trainer.evaluation.bm25 import BM25
    from .trainer.model.attention import check_attention
    from .trainer.model.embedding_model import check_trainable

    name = settings.model
    if name == BM25:
        return None, []
    if name in STAGE_MODELS:
        if corpus is None or not is_trained(corpus, name):
            return None, []  # told by `_check_stages`
        name = find_trained_model(corpus, name)
    own = settings.model_dump(include=set(EncoderSettings.model_fields)) | {"model": name}
    encoder = EncoderSettings(**own)
    folder = find_local_model(name, encoder.trust_remote_code)
    if folder is None:
        return None, [_is_not_here(place, name)]
    if stage == "judge" and is_cross_encoder(folder):
        read_cross_encoder(folder, encoder.trust_remote_code)
        return None, []
    layout, config, width = read_shape(folder, encoder)
    if stage in STAGE_MODELS:
        width = check_trainable(folder, layout, getattr(settings, "projection_dim", None)) or width
        check_attention(config, getattr(settings, "attention", None))
        if settings.lora and not missing_packages("lora"):
            count_parameters(config, None, settings.lora, f"{stage}.lora.targets")
    return width, []


def _is_not_here(place: str, model: str) -> Finding:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    missing = f"{model} is neither a folder nor in the local cache of the Hugging Face hub"
    if HF_HUB_OFFLINE:
        return Finding(place, "error", f"{missing}, and HF_HUB_OFFLINE is set", "name a folder, or download it first")
    return Finding(place, "warning", f"{missing}, so it is not checked; it will be downloaded")


def _check_sources(recipe: Recipe) -> Iterator[Finding]:
    from .pipeline.ingest.readers import READERS, list_sources

    for section, number, source in list_sources(recipe):
        if source.read not in READERS or source.synthesize:
            continue  # told by the check of names; has no files
        for key in ("files", "passages") if isinstance(source, EvaluationSet) and source.passages else ("files",):
            place = recipe.locate(section, number, key)
            found, failed = _run(place, partial(_check_files, source, key, place))
            yield from (*(found or ()), *failed)


def _check_files(source: Source, key: str, place: str) -> list[Finding]:
    """Try a source on the beginnings of its files."""
    from .pipeline.ingest.files import FileSplit
    from .pipeline.ingest.preview import preview_source
    from .pipeline.ingest.splits import list_source_files

    globs = getattr(source, key)
    listing = list_source_files(source, globs)
    if not listing.files:
        skipped = "; skipped: " + ", ".join(f"{path} ({why})" for path, why in listing.skipped.items())
        message = f"{source.name}: no file matches {', '.join(globs)}{skipped if listing.skipped else ''}"
        return [Finding(place, "error", message, "check the path and `variables:`")]
    found = [Finding(place, "warning", f"{source.name}: no file matches {glob}") for glob in listing.unmatched]
    if key == "passages":
        source = source.model_copy(update={"task": "passage", "where": None})
    step = max(1, -(-len(listing.files) // MOST_FILES))
    splits = [FileSplit(file.path) for file in listing.files[::step]]
    return found + _judge_preview(preview_source(source, len(listing.files), splits, SAMPLE_BYTES), place)


def _judge_preview(tried: "SourcePreview", place: str) -> list[Finding]:
    """Say what of a source's sample gives no pairs."""
    if tried.error:
        return [Finding(place, "error", tried.error.removeprefix(f"{place}: "))]
    if not tried.rows:
        return [Finding(place, "error", f"{tried.name}: no row in its files")]
    reason, (rejects, first) = next(iter(tried.rejected.items()), ("", (0, "")))
    most = f"{rejects:,} as {reason}, such as {' '.join(first.split())}"
    if not tried.kept and not tried.left_out:
        return [Finding(place, "error", f"{tried.name}: none of the first {tried.rows:,} rows is a pair: {most}")]
    found = [
        Finding(place, "warning", f"{tried.name}: {file} has no readable row at its beginning: {why}")
        for file, why in list(tried.unreadable.items())[:_SHOWN]
    ]
    if not tried.kept:
        found.append(
            Finding(place, "warning", f"{tried.name}: `where` leaves no pair of the first {tried.rows:,} rows")
        )
    elif "projection" in tried.rejected or tried.kept < tried.rows - tried.left_out - tried.kept:
        lost = tried.rows - tried.left_out - tried.kept
        found.append(
            Finding(place, "warning", f"{tried.name}: {lost:,} of the first {tried.rows:,} rows are rejected: {most}")
        )
    return found
