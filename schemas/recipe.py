"""The recipe: one YAML file that says what every stage does."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, PrivateAttr, ValidationError, model_validator

from .errors import RecipeError
from .evaluate_settings import EvaluateSettings
from .export_settings import ExportSettings
from .judge_settings import JudgeSettings
from .registry import did_you_mean
from .settings import (
    INTERNLM2,
    ConvertSettings,
    DedupSettings,
    FilterSettings,
    HoldoutSettings,
    MineSettings,
    ScoreSettings,
    Settings,
    SourcePrompts,
    setting,
)
from .source_settings import EvaluationSet, Source, own_prompts
from .training_settings import BootstrapSettings, FinetuneSettings, PretrainSettings


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2 where PyYAML reads 1.1 (`on` is a key, not true), and refuses a key that appears twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "expected a key, found braces or brackets; `${name}` is a variable", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` appears twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|false|False)$"), list("tTfF"))


RENAMED_KEYS = {
    "pretrain": {
        "dimension": "projection_dim",
        "dimensions": "matryoshka_dims",
        "by_source": "homogeneous_batches",
        "chunk_tokens": "gradcache_tokens",
        "tensorboard": "track: [tensorboard]",
    },
    "finetune": {
        "dimensions": "matryoshka_dims",
        "sts_by_source": "homogeneous_batches",
        "in_turn": "alternate_tasks",
        "layout": "cbb_partition: mixed (was fused) or per_task (was paper)",
        "chunk_tokens": "gradcache_tokens",
        "tensorboard": "track: [tensorboard]",
    },
    "evaluate": {"dimensions": "matryoshka_dims"},
    "llm": {"key_variable": "key_env"},
}
RENAMED_KEYS["training"] = RENAMED_KEYS["pretrain"]  # the section bootstrap.training
"""Keys of earlier recipes by section, each with its new name."""


class Recipe(Settings):
    """A recipe: the settings of all stages, with defaults filled in."""

    corpus: str | None = setting(None, "The corpus folder, unless `conan run` is given one.")
    plugins: list[str] = setting(
        [],
        "Python modules to import in every process; they register readers, filter rules, mining methods, loss terms,"
        " metrics or trackers.",
    )
    variables: dict[str, str] = setting(
        {},
        "Values for `${name}` anywhere in the recipe; a name that is not defined here is looked up in the environment.",
    )
    sources: list[Source] = setting([], "The data sets to read.")
    evaluation: list[EvaluationSet] = setting([], "The data sets to evaluate on.")
    holdout: HoldoutSettings | None = setting(
        None,
        "Questions of the sources to evaluate on; without this section none are kept apart. `holdout: {}` takes the"
        " defaults.",
    )
    filter: FilterSettings = setting(FilterSettings(), "Quality rules and personal data.", origin="paper §2.1.1")
    dedup: DedupSettings = setting(DedupSettings(), "Duplicates and evaluation texts.", origin=INTERNLM2)
    bootstrap: BootstrapSettings | None = setting(
        None,
        "A small encoder, trained from random weights, for when there is no pretrained one. `bootstrap: {}` takes the"
        " defaults.",
    )
    score: ScoreSettings = setting(ScoreSettings(), "Cosine of query and positive.", origin="paper §2.1.1")
    convert: ConvertSettings = setting(ConvertSettings(), "Training records.", origin="paper §3.2")
    mine: MineSettings = setting(MineSettings(), "Negative pools.", origin="paper §2.2")
    judge: JudgeSettings | None = setting(
        None,
        "Judgements of the pools; skipped by `conan run` if the section is missing. `judge: {}` takes the defaults.",
    )
    pretrain: PretrainSettings | None = setting(
        None, "Pre-training; skipped by `conan run` if the section is missing. `pretrain: {}` takes the defaults."
    )
    finetune: FinetuneSettings | None = setting(
        None,
        "Fine-tuning; skipped by `conan run`, with mining and export, if the section is missing. `finetune: {}` takes"
        " the defaults.",
    )
    export: ExportSettings = setting(ExportSettings(), "The folder of the trained model.")
    evaluate: EvaluateSettings = setting(EvaluateSettings(), "Models to compare on the evaluation sets.")

    _file: str = PrivateAttr("recipe")
    _lines: dict[tuple[str, ...], int] = PrivateAttr({})
    _overrides: tuple[str, ...] = PrivateAttr(())

    def __eq__(self, other: object) -> bool:
        """Whether two recipes have the same settings, whichever files they were read from."""
        return isinstance(other, Recipe) and self.__dict__ == other.__dict__

    def locate(self, *location: str | int) -> str:
        """Name the place of a key for messages, `recipe.yaml:12: mine.method`, or the override that set it."""
        return _locate(self._file, self._lines, self._overrides, location)

    @property
    def set_prompts(self) -> dict[str, SourcePrompts]:
        """The prompts of evaluation sets that have any of their own; a set held out of a source has the source's."""
        return own_prompts([*(self.sources if self.holdout else ()), *self.evaluation])

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Recipe":
        for kind, entries in (("sources", self.sources), ("evaluation", self.evaluation)):
            names = [entry.name for entry in entries]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind}: the name {twice[0]} appears twice; names must differ")
        return self

    @model_validator(mode="after")
    def _passages_come_from_files(self) -> "Recipe":
        if self.sources and all(source.synthesize for source in self.sources):
            raise ValueError("sources: all have `synthesize:`; expected one with `files:`, which gives the passages")
        return self

    @model_validator(mode="after")
    def _holdout_is_possible(self) -> "Recipe":
        if self.holdout is None or not self.sources:
            return self
        names = [source.name for source in self.sources if source.gives_questions]
        if not names:
            raise ValueError("holdout: no source has questions to hold out; remove `holdout:`")
        if same := sorted({one.name for one in self.evaluation} & set(names)):
            raise ValueError(
                f"evaluation: {same[0]} is also a source, whose held-out questions are a set of this name; rename one"
            )
        for name, stage in self._pretraining_stages():
            if stage.on in ("ingest", "filter"):
                raise ValueError(
                    f"{name}.on is {stage.on}, whose pairs include what `holdout` keeps apart; expected dedup or later"
                )
        return self

    @model_validator(mode="after")
    def _pretraining_has_negatives(self) -> "Recipe":
        for name, stage in self._pretraining_stages():
            tasks = ("pretrain",) if stage.on == "convert" else ("pretrain", "retrieval")
            for source in self.sources:
                is_drawn = source.task in tasks and stage.mixing.sources.get(source.name) != 0
                if source.query_only_negatives and is_drawn:
                    raise ValueError(
                        f"{name}: the source {source.name} has `query_only_negatives`, but the only negatives here are"
                        f" the positives of other queries; leave it out: `{name}.mixing.sources: {{{source.name}: 0}}`"
                    )
        return self

    def _pretraining_stages(self) -> Iterator[tuple[str, PretrainSettings]]:
        if self.bootstrap:
            yield "bootstrap.training", self.bootstrap.training
        if self.pretrain:
            yield "pretrain", self.pretrain


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file, apply `key.key=value` overrides and replace `${variables}`.

    A variable is looked up in `variables:` first and then in the environment.

    Raises:
        RecipeError: the file can't be read or is not YAML, a key is unknown (the message suggests the nearest one), a
            value is out of range, or a variable is not defined.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: the recipe can't be read: {error}") from error
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        document = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: expected a mapping of stages, found a {type(document).__name__}")
    for override in overrides:
        _override(document, override)
    variables = dict(os.environ)
    if isinstance(document.get("variables"), dict):
        document["variables"] = {
            name: str(value) if isinstance(value, int | float | date) else value
            for name, value in document["variables"].items()
        }
        variables |= {name: value for name, value in document["variables"].items() if isinstance(value, str)}
    lines = dict(_lines_of(root))
    try:
        recipe = Recipe.model_validate(_substitute(document, variables, str(path)))
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(error, str(path), lines, overrides))) from error
    recipe._file, recipe._lines, recipe._overrides = str(path), lines, tuple(overrides)
    return recipe


def dump(recipe: Recipe) -> str:
    """Write a recipe as YAML, with defaults filled in."""
    return yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), allow_unicode=True, sort_keys=False)


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override}: expected key.key=value")
    *parents, last = key.split(".")
    for parent in parents:
        if document.get(parent) is None:
            document[parent] = {}
        document = document[parent]
        if not isinstance(document, dict):
            raise RecipeError(f"--set {override}: {parent} is a {type(document).__name__} and has no keys to set")
    try:
        document[last] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override}: {value} is not a YAML value: {error}") from error


def _substitute(value: Any, variables: Mapping[str, str], path: str) -> Any:
    if isinstance(value, str):

        def lookup(match: re.Match[str]) -> str:
            name = match.group(1)
            if name not in variables:
                near = did_you_mean(name, variables, "${{{}}}".format, list_others=False)  # the environment may be long
                raise RecipeError(
                    f"{path}: ${{{name}}} is not defined{near or '.'} Define it under `variables:`, with "
                    f"--set variables.{name}=… or in the environment"
                )
            # A variable may refer to others, but not to itself.
            others = {other: value for other, value in variables.items() if other != name}
            return str(_substitute(variables[name], others, path))

        return re.sub(r"\$\{(\w+)\}", lookup, value)
    if isinstance(value, dict):
        return {key: _substitute(item, variables, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, variables, path) for item in value]
    return value


def _explain(
    error: ValidationError, file: str, lines: Mapping[tuple[str, ...], int], overrides: Sequence[str]
) -> Iterator[str]:
    for problem in error.errors():
        location = problem["loc"]
        place = _locate(file, lines, overrides, location)
        if problem["type"] == "extra_forbidden":
            *parents, key = map(str, location)
            there, _, _ = place.rpartition(": ")
            yield f"{there}: unknown key `{'.'.join([*parents, key])}`{_hint(parents, key, location)}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{place}: {message}" + (
                "" if isinstance(problem["input"], dict) else f", found {problem['input']!r}"
            )


def _hint(parents: Sequence[str], key: str, location: Sequence[int | str]) -> str:
    """Suggest what an unknown key should be: its new name if it was renamed, else the nearest valid key."""
    if key in RENAMED_KEYS.get(parents[-1] if parents else "", {}):
        return f"; it is called `{RENAMED_KEYS[parents[-1]][key]}` now"
    return did_you_mean(key, _valid_keys(Recipe, location[:-1]), "`{}`".format)


def _locate(
    file: str, lines: Mapping[tuple[str, ...], int], overrides: Sequence[str], location: Sequence[int | str]
) -> str:
    """Name the place of a key, then the key: the last override that set it, else its line or that of its section."""
    name = ".".join(str(part) for part in location)
    setters = (each for each in reversed(overrides) if f"{name}.".startswith(f"{each.partition('=')[0]}."))
    if override := next(setters, None):
        return f"--set {override}: {name or 'recipe'}"
    parts = tuple(map(str, location))
    known = (lines[parts[:length]] for length in range(len(parts), 0, -1) if parts[:length] in lines)
    line = next(known, None)
    return f"{file}:{line}: {name or 'recipe'}" if line else f"{file}: {name or 'recipe'}"


def _lines_of(node: yaml.Node | None, location: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the location and line of every key and of every list entry."""
    inner: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        inner = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inner = [(str(number), value, value) for number, value in enumerate(node.value)]
    for name, marked, value in inner:
        yield (*location, name), marked.start_mark.line + 1
        yield from _lines_of(value, (*location, name))


def _valid_keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """List the keys that are valid at a place of the recipe."""
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
