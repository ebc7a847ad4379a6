"""Which extras of this project a recipe needs, and which of their packages are missing."""

from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import PurePosixPath

from packaging.requirements import Requirement

from ..schemas.errors import ConanError
from ..schemas.recipe import Recipe
from ..schemas.source_settings import EvaluationSet, Source
from .ingest.file_kinds import PACKED
from .ingest.listing import list_files

PROJECT = "conan-embedding"

TRACKER_EXTRAS = ("wandb", "mlflow", "trackio", "tensorboard")
"""Extras for the trackers of `track`; each is called as its tracker."""

_WEB_READERS = ("html", "warc")
_DOCUMENTS = {".html": "web", ".htm": "web", ".docx": "documents", ".pptx": "documents", ".pdf": "documents"}
"""The extra that `read: documents` needs for a file, by its ending."""

_Need = tuple[str, tuple[str | int, ...]]
"""An extra, and the location of the key that needs it."""


def needed_extras(recipe: Recipe) -> dict[str, str]:
    """Return the extras that a recipe needs, each with the place of the first key that needs it.

    Lists the files of the sources with `read: documents`, whose kinds decide. Options of commands (`--cmteb`, `--engine
    ray`) need extras of their own.

    Raises:
        ConanError: the files of such a source can't be listed.
    """
    found: dict[str, str] = {}
    for extra, location in (*_needs_of_sources(recipe), *_needs_of_training(recipe)):
        found.setdefault(extra, recipe.locate(*location))
    return found


def missing_packages(extra: str = "", package: str = PROJECT) -> list[str]:
    """List the requirements of an extra that are not installed, or in another version: `["peft>=0.21"]`.

    Without an extra, those are listed that an installation needs in any case.
    """
    if extra and extra not in (metadata.metadata(package).get_all("Provides-Extra") or []):
        return [f"{package}[{extra}]"]  # the extra is younger than the installed version
    missing = []
    for requirement in map(Requirement, metadata.requires(package) or []):
        if not _belongs_to(requirement, extra):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = ""
        if not version or not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier}")
        else:
            missing += [
                each for inner in sorted(requirement.extras) for each in missing_packages(inner, requirement.name)
            ]
    return missing


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement is one of an extra; of an empty one, whether it holds without extras."""
    always = not requirement.marker or requirement.marker.evaluate({"extra": ""})
    if not extra:
        return always
    return not always and bool(requirement.marker and requirement.marker.evaluate({"extra": extra}))


def _needs_of_sources(recipe: Recipe) -> Iterator[_Need]:
    for section, sources in (("sources", recipe.sources), ("evaluation", recipe.evaluation)):
        for number, source in enumerate(sources):
            try:
                yield from ((extra, (section, number, key)) for extra, key in _needs_of(source))
            except Exception as error:  # file systems raise errors of their own
                place = recipe.locate(section, number, "files")
                raise ConanError(f"{place}: can't be listed: {type(error).__name__}: {error}") from error


def _needs_of(source: Source) -> Iterator[tuple[str, str]]:
    """Yield the extras that a source needs, each with its key."""
    globs = {"files": source.files, "join": list(source.join.values())}
    if isinstance(source, EvaluationSet):
        globs["passages"] = source.passages
    on_s3 = [key for key, each in globs.items() if any("s3://" in glob for glob in each)]
    yield from (("s3", key) for key in on_s3)
    if source.simplify:
        yield "zh", "simplify"
    if source.read in _WEB_READERS:
        yield "web", "read"
    if source.read == "documents" and not (on_s3 and find_spec("s3fs") is None):
        files = list_files([*source.files, *globs.get("passages", [])], source.exclude).files
        endings = sorted({_ending(file.path) for file in files})
        yield from ((_DOCUMENTS[ending], "read") for ending in endings if ending in _DOCUMENTS)


def _ending(path: str) -> str:
    """Return the ending of a file's name, or of the name of a member of an archive, without that of its compression."""
    name = PurePosixPath(path.partition("::")[0])
    return (PurePosixPath(name.stem) if name.suffix.lower() in PACKED else name).suffix.lower()


def _needs_of_training(recipe: Recipe) -> Iterator[_Need]:
    bootstrap = recipe.bootstrap.training if recipe.bootstrap else None
    sections = {("bootstrap", "training"): bootstrap, ("pretrain",): recipe.pretrain, ("finetune",): recipe.finetune}
    for location, settings in sections.items():
        if settings is None:
            continue
        if settings.lora is not None:
            yield "lora", (*location, "lora")
        yield from ((name, (*location, "track")) for name in settings.track if name in TRACKER_EXTRAS)
    if recipe.export.onnx:
        yield "onnx", ("export", "onnx")
