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
from .registry import did_you_mean
from .settings import (
    ConvertSettings,
    DedupSettings,
    EvaluationSet,
    FilterSettings,
    MineSettings,
    ScoreSettings,
    Settings,
    Source,
    setting,
)
from .training_settings import BootstrapSettings, EvaluateSettings, ExportSettings, FinetuneSettings, PretrainSettings


class _Loader(yaml.SafeLoader):
    """YAML 1.2 in two points: `on` is a key of recipes, not a way to write true, and no key stands twice."""

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
                    None, None, f"the key `{key.value}` stands twice", key.start_mark
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
    },
    "finetune": {
        "dimensions": "matryoshka_dims",
        "sts_by_source": "homogeneous_batches",
        "in_turn": "alternate_tasks",
        "layout": "cbb_partition: mixed (was fused) or per_task (was paper)",
        "chunk_tokens": "gradcache_tokens",
    },
    "evaluate": {"dimensions": "matryoshka_dims"},
}
RENAMED_KEYS["training"] = RENAMED_KEYS["pretrain"]  # of bootstrap
"""Keys of earlier recipes, by section: what each is called now."""


class Recipe(Settings):
    """All stages, defaults filled in."""

    corpus: str | None = setting(None, "chosen here: the folder to work in; `conan run` needs it or is given one")
    plugins: list[str] = setting([], "chosen here: modules that register readers, rules, methods, losses or metrics")
    variables: dict[str, str] = setting({}, "chosen here: ${name} anywhere in the recipe")
    sources: list[Source] = setting([], "chosen here")
    evaluation: list[EvaluationSet] = setting([], "chosen here")
    filter: FilterSettings = setting(FilterSettings(), "paper §2.1.1")
    dedup: DedupSettings = setting(DedupSettings(), "InternLM2 (arXiv 2403.17297) §3.1.1")
    bootstrap: BootstrapSettings | None = setting(None, "chosen here: only where no pretrained encoder is at hand")
    score: ScoreSettings = setting(ScoreSettings(), "paper §2.1.1")
    convert: ConvertSettings = setting(ConvertSettings(), "paper §3.2")
    mine: MineSettings = setting(MineSettings(), "paper §2.2")
    pretrain: PretrainSettings | None = setting(None, "chosen here: `conan run` skips the stage where it is not named")
    finetune: FinetuneSettings | None = setting(None, "chosen here: `conan run` skips the stage where it is not named")
    export: ExportSettings = setting(ExportSettings(), "chosen here")
    evaluate: EvaluateSettings = setting(EvaluateSettings(), "chosen here")

    _file: str = PrivateAttr("recipe")
    _lines: dict[tuple[str, ...], int] = PrivateAttr({})
    _overrides: tuple[str, ...] = PrivateAttr(())

    def __eq__(self, other: object) -> bool:
        """Whether two recipes say the same, wherever each was read from."""
        return isinstance(other, Recipe) and self.__dict__ == other.__dict__

    def locate(self, *location: str | int) -> str:
        """Where a key stands, for messages: `recipe.yaml:12: mine.method`, or the override that gave it."""
        return _locate(self._file, self._lines, self._overrides, location)

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Recipe":
        for kind, entries in (("sources", self.sources), ("evaluation", self.evaluation)):
            names = [entry.name for entry in entries]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind}: the name {twice[0]} stands twice; names must differ")
        return self


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, `key.key=value` overrides applied, `${variables}` replaced.

    A variable is looked up in `variables:` and then in the environment.

    Raises:
        RecipeError: unreadable file, broken YAML, unknown key (the nearest valid one is named), value out of range,
            unknown variable.
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
    """The recipe as YAML, defaults filled in."""
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
                near = did_you_mean(name, variables, "${{{}}}".format, list_others=False)  # not the whole environment
                raise RecipeError(
                    f"{path}: ${{{name}}} is not defined{near or '.'} Define it under `variables:`, with "
                    f"--set variables.{name}=… or in the environment"
                )
            # A variable may be made of others; of itself it is not defined.
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
    """What an unknown key may have been meant for: its new name, or the nearest valid one."""
    if key in RENAMED_KEYS.get(parents[-1] if parents else "", {}):
        return f"; it is called `{RENAMED_KEYS[parents[-1]][key]}` now"
    return did_you_mean(key, _valid_keys(Recipe, location[:-1]), "`{}`".format)


def _locate(
    file: str, lines: Mapping[tuple[str, ...], int], overrides: Sequence[str], location: Sequence[int | str]
) -> str:
    """Where a key stands: the last override that gave it, else its line, or that of what it stands in; then the key."""
    name = ".".join(str(part) for part in location)
    given = (override for override in reversed(overrides) if f"{name}.".startswith(f"{override.partition('=')[0]}."))
    if override := next(given, None):
        return f"--set {override}: {name or 'recipe'}"
    parts = tuple(map(str, location))
    known = (lines[parts[:length]] for length in range(len(parts), 0, -1) if parts[:length] in lines)
    line = next(known, None)
    return f"{file}:{line}: {name or 'recipe'}" if line else f"{file}: {name or 'recipe'}"


def _lines_of(node: yaml.Node | None, location: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """The line of every key and of every entry of a list."""
    inner: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        inner = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inner = [(str(number), value, value) for number, value in enumerate(node.value)]
    for name, marked, value in inner:
        yield (*location, name), marked.start_mark.line + 1
        yield from _lines_of(value, (*location, name))


def _valid_keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys that are valid at a place of the recipe."""
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
