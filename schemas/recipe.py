"""The recipe: one YAML file that says what every stage does."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from .errors import RecipeError
from .settings import (
    BootstrapSettings,
    ConvertSettings,
    DedupSettings,
    EvaluateSettings,
    EvaluationSet,
    ExportSettings,
    FilterSettings,
    FinetuneSettings,
    MineSettings,
    PretrainSettings,
    ScoreSettings,
    Settings,
    Source,
    given,
)


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


class Recipe(Settings):
    """All stages, defaults filled in."""

    corpus: str | None = given(None, "ours: the folder to work in; `conan run` needs it or is given one")
    variables: dict[str, str] = given({}, "ours: ${name} anywhere in the recipe")
    sources: list[Source] = given([], "ours")
    evaluation: list[EvaluationSet] = given([], "ours")
    filter: FilterSettings = given(FilterSettings(), "paper §2.1.1")
    dedup: DedupSettings = given(DedupSettings(), "InternLM2 (arXiv 2403.17297) §3.1.1")
    bootstrap: BootstrapSettings | None = given(None, "ours: only where no pretrained encoder is at hand")
    score: ScoreSettings = given(ScoreSettings(), "paper §2.1.1")
    convert: ConvertSettings = given(ConvertSettings(), "paper §3.2")
    mine: MineSettings = given(MineSettings(), "paper §2.2")
    pretrain: PretrainSettings | None = given(None, "ours: `conan run` skips the stage where it is not named")
    finetune: FinetuneSettings | None = given(None, "ours: `conan run` skips the stage where it is not named")
    export: ExportSettings = given(ExportSettings(), "ours")
    evaluate: EvaluateSettings = given(EvaluateSettings(), "ours")

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
    try:
        return Recipe.model_validate(_substitute(document, variables, str(path)))
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(error, str(path), root, overrides))) from error


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
                near = difflib.get_close_matches(name, variables, 1)
                hint = f"; did you mean ${{{near[0]}}}?" if near else ""
                raise RecipeError(
                    f"{path}: ${{{name}}} is not defined{hint} Define it under `variables:`, with "
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


def _explain(error: ValidationError, path: str, root: yaml.Node | None, overrides: Sequence[str]) -> Iterator[str]:
    for problem in error.errors():
        location = problem["loc"]
        line = _line(root, location)
        name = ".".join(str(part) for part in location)
        place = _override_of(name, overrides) or (f"{path}:{line}" if line else path)
        if problem["type"] == "extra_forbidden":
            valid = _valid_keys(Recipe, location[:-1])
            near = difflib.get_close_matches(str(location[-1]), valid, 1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"valid keys: {', '.join(valid)}"
            yield f"{place}: unknown key `{name}`; {hint}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{place}: {name or 'recipe'}: {message}" + (
                "" if isinstance(problem["input"], dict) else f", found {problem['input']!r}"
            )


def _override_of(name: str, overrides: Sequence[str]) -> str | None:
    """The last override that gave a key, or what it stands in."""
    given = (override for override in reversed(overrides) if f"{name}.".startswith(f"{override.partition('=')[0]}."))
    return next((f"--set {override}" for override in given), None)


def _line(node: yaml.Node | None, location: Sequence[int | str]) -> int | None:
    """The line of a key, or of its nearest parent that stands in the file."""
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


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
