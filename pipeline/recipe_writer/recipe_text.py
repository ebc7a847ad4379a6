"""Write a recipe as YAML with comments."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .shapes import Shape

_WIDTH = 118
_SHOWN = 10  # files that no source reads, in the recipe's last comment


@dataclass(frozen=True)
class SourceText:
    """A source of the recipe.

    Attributes:
        files: Globs below the root, or chained URIs of members of an archive.
        count: How many files they match.
    """

    name: str
    category: str
    files: list[str]
    exclude: list[str]
    options: Mapping[str, Any]
    encoding: str | None
    shape: Shape
    count: int

    @property
    def read(self) -> str:
        """The reader."""
        return self.shape.read

    @property
    def task(self) -> str:
        """The task."""
        return self.shape.task

    def list_keys(self) -> dict[str, Any]:
        """Return the keys of the source in the order of the recipe's, without those that have their defaults."""
        shape = self.shape
        values: dict[str, Any] = {
            "name": self.name,
            "category": self.category,
            "format": shape.format,
            "task": None if shape.task == "pretrain" else shape.task,
            "files": [_below_root(glob) for glob in self.files],
            "exclude": [_below_root(glob) for glob in self.exclude] or None,
            "read": shape.read,
            "encoding": self.encoding,
            "options": dict(self.options) or None,
            "select": shape.select,
            "where": shape.where,
            "query": shape.query,
            "positive": shape.positive,
            "negatives": shape.negatives,
            "label": shape.label,
            "label_range": list(shape.label_range) if shape.label_range else None,
        }
        return {key: value for key, value in values.items() if value is not None}


def _below_root(glob: str) -> str:
    return glob if "::" in glob else f"${{root}}/{glob}"


def write_recipe(
    root: str,
    recipe: Path,
    corpus: str,
    sources: Sequence[SourceText],
    evaluation: Sequence[SourceText],
    unplaced: Mapping[str, str],
) -> str:
    """Return the text of a recipe with these sources and evaluation sets, for a corpus in this folder."""
    blocks = [
        "\n".join(
            [
                "# Written by `conan init`: guesses, to be read and corrected. This shows what they give:",
                f"#   conan ingest {corpus} --recipe {recipe} --dry-run",
                "# docs/recipe.md explains the keys; SQL is DuckDB's. The first of several sources keeps a duplicate.",
            ]
        ),
        "\n".join(["variables:", f"  root: {_scalar(root)}", *_training_variables(sources)]),
    ]
    for section, members in (("sources", sources), ("evaluation", evaluation)):
        if members:
            blocks.append(f"{section}:\n" + "\n\n".join("\n".join(_write_source(one)) for one in members))
    blocks += _training(sources, evaluation)
    if unplaced:
        blocks.append("\n".join(_list_unplaced(unplaced)))
    return "\n\n".join(blocks) + "\n"


def _write_source(source: SourceText) -> Iterator[str]:
    files = f"{source.count:,} files: " if source.count > 1 else ""
    yield from _comment(f"{files}{source.shape.why}.", "  ")
    yield from _comment(f"Else: {source.shape.otherwise}.", "  ")
    begin = "  - "
    for key, value in source.list_keys().items():
        is_globs = key in ("files", "exclude")
        if is_globs and len(value) > 1:
            yield f"{begin}{key}:"
            yield from (f"      - {_scalar(each)}" for each in value)
        else:
            yield f"{begin}{key}: {_scalar(value[0] if is_globs else value)}"
        begin = "    "


def _comment(text: str, indent: str = "") -> Iterator[str]:
    return (f"{indent}# {line}" for line in textwrap.wrap(" ".join(text.split()), _WIDTH - len(indent)))


def _scalar(value: Any) -> str:
    """Return a value as YAML on one line; quoted only where a plain text would be read as something else."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_scalar_inside(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_scalar_inside, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        is_plain = yaml.safe_load(f"key: {value}") == {"key": value} and value == value.strip()
    except yaml.YAMLError:
        is_plain = False
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _scalar_inside(value: Any) -> str:
    """Return a value as YAML inside brackets, where commas and brackets have to be quoted as well."""
    if isinstance(value, str) and not value.replace("_", "").isalnum():
        return json.dumps(value, ensure_ascii=False)
    return _scalar(value)


def _training_variables(sources: Sequence[SourceText]) -> list[str]:
    if not _list_trained(sources):
        return []
    return [
        "  # The encoder to start from: a name on the Hugging Face hub, or a folder. This one is small enough for a",
        "  # CPU; with a GPU take BAAI/bge-base-zh-v1.5, for other languages intfloat/multilingual-e5-small.",
        "  model: BAAI/bge-small-zh-v1.5",
        "  max_length: 128    # tokens of a text; the rest is cut off. 512 sees more and takes four times as long",
    ]


def _list_trained(sources: Sequence[SourceText]) -> list[str]:
    """Return the folders of convert/ from which queries are trained."""
    tasks = {source.task for source in sources}
    return [
        name
        for name, kinds in (("retrieval", {"retrieval", "classification"}), ("pretrain", {"pretrain"}))
        if tasks & kinds
    ]


def _training(sources: Sequence[SourceText], evaluation: Sequence[SourceText]) -> list[str]:
    """Return the sections of later stages, with what a first run should know."""
    trained = _list_trained(sources)
    if not trained:
        return [
            "\n".join(
                _comment(
                    "Nothing here can be trained on yet: mining needs queries. `conan synthesize` writes them for"
                    " passages (docs/synthesis.md); then add the sections `mine` and `finetune` (docs/recipe.md)."
                )
            )
        ]
    queries = ", ".join(trained)
    passages = ", ".join([*trained, *(["passages"] if any(source.task == "passage" for source in sources) else [])])
    encoder = 'model: "${model}", max_length: "${max_length}"'
    lines = [
        "# Training (docs/training.md). `conan run` does all of it; `conan train --dry-run` counts the steps.",
        f"score: {{{encoder}, cutoff: null}}    # cuts nothing: look at the scores first",
        f"mine: {{{encoder}, queries: [{queries}], passages: [{passages}]}}",
        "finetune:",
        "  model: ${model}",
        "  max_length: ${max_length}",
        f"  queries: [{queries}]",
        "  retrieval_batch: 32         # questions in a step; the more, the better, as far as memory and time allow",
        "  in_batch_positives: true    # the answers to a step's other questions are negatives, too",
        "  negatives: 1                # mined for each question; nobody has judged these pairs, so some may be right",
        "  learning_rate: 3.0e-5       # for a small encoder; 2.0e-5 for a base, 1.0e-5 for a large one (E5 did so)",
        "  matryoshka_dims: []         # vectors at their full width alone",
        "  hard_negative_mining: {enabled: false}    # acts on second visits; one epoch has none",
    ]
    if not evaluation:
        no_sets = "No file looks like an evaluation set, so some questions of each source are kept out of training"
        lines = [*_comment(f"{no_sets}: docs/evaluation.md."), "holdout: {}", "", *lines]
    lines.append('evaluate: {models: ["${model}", finetune], max_length: "${max_length}"}')
    return ["\n".join(lines)]


def _list_unplaced(unplaced: Mapping[str, str]) -> Iterator[str]:
    yield "# Not read:"
    for path, reason in sorted(unplaced.items())[:_SHOWN]:
        yield from _comment(f"{path}: {reason}", "")
    if len(unplaced) > _SHOWN:
        yield f"# and {len(unplaced) - _SHOWN:,} more; `conan init` lists them all."
