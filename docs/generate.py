"""Write the generated pages: docs/settings.md from the models in schemas/, docs/api.md from the public modules.

    python docs/generate.py

Both pages are committed, so that they can be read without building the site. A test fails when they are out of date.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from conan_embedding.schemas.pairs import Category, Format, Task
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.server_settings import ServerSettings
from conan_embedding.schemas.settings import EncoderSettings, PromptSettings
from conan_embedding.schemas.training_settings import OptimizerSettings
from pydantic import BaseModel
from pydantic.fields import FieldInfo

HERE = Path(__file__).parent

SETTINGS = """# Settings

<!-- Written by docs/generate.py from the models in schemas/: change those. -->

Every key of a recipe, section by section. A key without a default is optional unless it says *required*. Where a
default has a source, it follows the description; *paper* is [Conan-embedding](https://arxiv.org/abs/2408.15710). All
other defaults were chosen for this project.

An unknown key is an error that suggests the nearest one. `--set section.key=value` overrides a key in every command.

"""
API = """# Python API

<!-- Written by docs/generate.py from the docstrings of the public modules: change those. -->

Everything public, by module. `import conan_embedding` loads neither torch nor Polars; a name is imported when it is
first used. The programs in `examples/` show all four modules at work.

"""
MODULES = ("conan_embedding", "conan_embedding.losses", "conan_embedding.cbb", "conan_embedding.dhnm")


def pages() -> dict[str, str]:
    """Build the text of every generated page, by file name."""
    settings, api = "\n".join(document_settings()), "\n\n".join(document_api())
    return {"settings.md": f"{SETTINGS}{settings.rstrip()}\n", "api.md": f"{API}{api}\n"}


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────

SHARED = {EncoderSettings: "Encoder keys", OptimizerSettings: "Training keys", ServerSettings: "Language model keys"}
"""Models whose keys several sections have; they are not sections themselves."""

WORDS = {str: "text", int: "integer", float: "number", bool: "boolean"}
ALIASES = {Category: "category", Format: "format", Task: "task"}
"""Types that are named instead of spelt out, except where they are the whole type of a key."""


def document_settings() -> Iterator[str]:
    """Document the recipe's own keys, then each section, followed by the sections inside it."""
    titles: dict[type[BaseModel], str] = {**SHARED, PromptSettings: "prompts", Recipe: "The recipe"}
    titles |= {model: key for key, field in Recipe.model_fields.items() if (model := _model_in(field.annotation))}
    done = set()

    def document(model: type[BaseModel], path: str) -> Iterator[str]:
        done.add(model)
        base = next((base for base in model.__mro__[1:] if base in titles), None)
        if base in SHARED and base not in done:
            yield from document(base, "")
        own = inspect.get_annotations(model)
        fields = {key: field for key, field in model.model_fields.items() if key in own}
        inner = {
            each: f"{path}.{key}".lstrip(".") for key, field in fields.items() if (each := _model_in(field.annotation))
        }
        titles.update({each: title for each, title in inner.items() if each not in titles})
        level = "###" if "." in titles[model] else "##"
        yield f"{level} {titles[model]}\n\n{' '.join((inspect.getdoc(model) or '').split())}\n"
        if base:
            yield (
                f"All {_link(titles[base])}, and:\n" if base in SHARED else f"All keys of {_link(titles[base])}, and:\n"
            )
        yield from (_describe_field(key, field, titles) for key, field in fields.items())
        yield ""
        for each, title in inner.items():
            if each not in done:
                yield from document(each, title)

    return document(Recipe, "")


def _describe_field(key: str, field: FieldInfo, titles: dict[type[BaseModel], str]) -> str:
    """Put a key, its type, its default and its description into one item of a list."""
    kind = _describe_type(field.annotation, field.metadata, titles, whole=True)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    origin = str(extra.get("origin", "chosen here"))
    source = "" if origin == "chosen here" else f" (default: {origin.removeprefix('chosen here: ')})"
    described = f" — {field.description}" if field.description else ""
    return f"- **`{field.alias or key}`**: {kind}{_describe_default(field)}{described}{source}"


def _describe_type(annotation: Any, limits: Any, titles: dict[type[BaseModel], str], whole: bool = False) -> str:
    """Say a type in words."""

    def describe(each: Any, limits: Any = ()) -> str:
        return _describe_type(each, limits, titles)

    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in ALIASES and not whole:
        return ALIASES[annotation]
    if origin is Annotated:
        return describe(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return _join([describe(each, limits) for each in arguments if each is not NoneType])
    if origin is Literal:
        return _join([f"`{value}`" for value in arguments])
    if origin is list:
        return f"list of {describe(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} × {describe(arguments[0])}"
    if origin is dict:
        name = "name" if arguments[0] is str else describe(arguments[0])
        return f"mapping of {name} to {describe(arguments[1])}"
    if issubclass(annotation, BaseModel):
        return _link(titles[annotation])
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [f"{signs[name]} {getattr(each, name):g}" for each in limits for name in signs if hasattr(each, name)]
    return f"{WORDS[annotation]} {' and '.join(bounds)}".strip()


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return ", *required*"
    if field.default is None or field.default in ([], {}) or isinstance(field.default, BaseModel):
        return ""
    shown = yaml.safe_dump(field.default, default_flow_style=True, allow_unicode=True).splitlines()[0]
    return f", default `{shown}`"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the model in a type such as `list[Source]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for each in get_args(annotation) if (model := _model_in(each))), None)


def _join(words: list[str]) -> str:
    """Join alternatives with commas and `or`."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _link(title: str) -> str:
    """Link to a section of the page, by the anchor that the site and GitHub give its heading."""
    return f"[{title}](#{re.sub(r'[^a-z0-9_ -]', '', title.lower()).replace(' ', '-')})"


# ── API ─────────────────────────────────────────────────────────────────────────────────────────────────


def document_api() -> Iterator[str]:
    """Document every name in `__all__` of the public modules."""
    for name in MODULES:
        module = importlib.import_module(name)
        yield f"## {name}\n\n{_as_markdown(module)}"
        for public in sorted(module.__all__, key=str.lower):
            yield from _document_object(public, getattr(module, public))


def _document_object(name: str, value: Any) -> Iterator[str]:
    """Document a function, a class with its fields and public methods, or a registry."""
    if inspect.isfunction(value):
        yield f"### {name}\n\n{_code(_signature(value))}\n\n{_as_markdown(value)}"
    elif inspect.isclass(value):
        head = [f"class {name}:", *_fields(value)]
        if "__init__" in vars(value) and len(head) == 1:
            head.append(textwrap.indent(_signature(value.__init__), "    "))
        yield f"### {name}\n\n{_code(chr(10).join(head))}\n\n{_as_markdown(value)}"
        for method, function in vars(value).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                yield f"#### {name}.{method}\n\n{_code(_signature(function))}\n\n{_as_markdown(function)}"
    else:
        names = ", ".join(f"`{each}`" for each in value) or "none yet; plugins add them"
        yield f"### {name}\n\nThe registry of {value.kind}s: {names}."
        register = type(value).register
        yield f"#### {name}.register\n\n{_code(_signature(register))}\n\n{_as_markdown(register)}"


def _signature(function: Any) -> str:
    """Copy a function's signature from its source, formatted as it is there."""
    lines, tree = _source(function)
    return "\n".join(lines[tree.lineno - 1 : tree.body[0].lineno - 1]).removesuffix(":")


def _fields(class_: type) -> list[str]:
    """Copy the fields of a class from its source, with their comments."""
    lines, tree = _source(class_)
    return [lines[field.lineno - 1] for field in tree.body if isinstance(field, ast.AnnAssign)]


def _source(value: Any) -> tuple[list[str], Any]:
    source = textwrap.dedent(inspect.getsource(value))
    return source.splitlines(), ast.parse(source).body[0]


def _code(text: str) -> str:
    """Fence declarations, as those of a stub file: they are no program that a test could run."""
    return f"```pyi\n{text}\n```"


def _as_markdown(value: Any) -> str:
    """Take a docstring as Markdown, with `Args:`, `Returns:` and `Raises:` as lists."""
    text, *sections = re.split(r"^(Args|Returns|Raises):\n", inspect.getdoc(value) or "", flags=re.MULTILINE)
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        items = re.sub(r"^(\w+): ", r"- `\1`: ", textwrap.dedent(body), flags=re.MULTILINE)
        text += f"{title}:\n\n{items}"
    return text.strip()


if __name__ == "__main__":
    for file, text in pages().items():
        (HERE / file).write_text(text, "utf-8")
