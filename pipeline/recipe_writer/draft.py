"""conan init: look at a folder and write a recipe for it."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ...schemas.errors import ConanError, RecipeError
from ...schemas.recipe import Recipe
from ..ingest.preview import SourcePreview, preview
from .found_files import FoundFiles, find_files
from .groups import Group, escape_glob, find_globs, find_groups
from .names import find_category, find_split
from .recipe_text import SourceText, write_recipe
from .shapes import Shape

_GENERIC = frozenset(
    [
        "data",
        "datas",
        "dataset",
        "datasets",
        "raw",
        "example",
        "examples",
        "sample",
        "samples",
        "file",
        "files",
        "asset",
        "assets",
        "corpus",
        "corpora",
        "benchmark",
        "source",
        "sources",
        "src",
        "train",
        "public",
        "main",
        "master",
        "download",
        "downloads",
        "export",
        "exports",
        "json",
        "jsonl",
        "csv",
        "tsv",
        "txt",
        "parquet",
    ]
)
"""Chosen here: names of folders and files that say nothing about what is in them."""
_LONGEST_NAME = 40  # characters
_TRIED = 20  # files of a source whose pairs are tried
_SHOWN = 5  # files in the message that says that there is nothing


@dataclass(frozen=True)
class DraftedSource:
    """A source or an evaluation set of a drafted recipe.

    Attributes:
        paths: Its files, below the recipe's root.
        why, otherwise: What was seen in them, and what else they could be.
        pairs: The first pairs, as (query, positive).
        rejected: Rejects in a sample by reason: how many, and the place and detail of the first.
    """

    name: str
    section: str
    read: str
    task: str
    format: str
    files: list[str]
    paths: list[str]
    why: str
    otherwise: str
    pairs: list[tuple[str, str]]
    rejected: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Draft:
    """A recipe that was written for a folder.

    Attributes:
        recipe: The file.
        corpus: A folder for the corpus, after what the data is called.
        sources: In the order of the recipe, evaluation sets last.
        unplaced: Why each file, or folder, that no source reads is not read, by its path below the folder.
        can_train: Whether there are pairs to train on.
    """

    recipe: str
    corpus: str
    sources: list[DraftedSource]
    unplaced: dict[str, str]
    can_train: bool


def draft_recipe(place: str, recipe: Path) -> Draft:
    """Look at the files of a place, and write a recipe with a source for each group of like files.

    Args:
        place: A folder, a file, a glob or an fsspec URI.

    Raises:
        RecipeError: the recipe exists, or nothing was found that could be its source.
    """
    if recipe.exists():
        raise RecipeError(f"{recipe} exists and is left as it is; name another file with -o")
    found = find_files(place)
    groups, unplaced = find_groups(found)
    unplaced |= found.skipped | found.no_data
    training, evaluation = _part_by_split(groups)
    names = _name([*training, *evaluation], PurePosixPath(found.root).name)
    paths = [*(file.path for file in found.files), *map(PurePosixPath, found.no_data)]
    texts: dict[str, list[SourceText]] = {"sources": [], "evaluation": []}
    drafted: list[DraftedSource] = []
    sections = ["sources"] * len(training) + ["evaluation"] * len(evaluation)
    for group, name, section in zip([*training, *evaluation], names, sections, strict=True):
        text = _describe(name, group, found, paths)
        tried = _try(text, section, group)
        if tried.pairs:
            texts[section].append(text)
            drafted.append(_summarise(text, section, group, tried))
        else:
            reason = tried.error or next((first for _, first in tried.rejected.values()), "no record in it")
            reason = f"looked like {text.read}, but gives no pair: {reason}"
            unplaced |= {str(file.path): reason for file in group.files}
    if not drafted:
        reasons: dict[str, list[str]] = defaultdict(list)
        for path, reason in sorted(unplaced.items()):
            reasons[reason].append(path)
        first = "\n".join(
            f"  {', '.join(paths[:_SHOWN])}: {reason}" for reason, paths in list(reasons.items())[:_SHOWN]
        )
        raise RecipeError(
            f"{place}: nothing to embed in {len(unplaced):,} files:\n{first}\n"
            "A source with `select:`, `query:` and `positive:` can read other shapes with SQL: docs/ingest.md"
        )
    corpus = f"corpora/{_as_name(PurePosixPath(found.root).name) or recipe.stem}"
    with recipe.open("x", encoding="utf-8") as file:
        file.write(write_recipe(found.root, recipe, corpus, texts["sources"], texts["evaluation"], unplaced))
    can_train = any(source.task in ("pretrain", "retrieval", "classification") for source in texts["sources"])
    return Draft(str(recipe), corpus, drafted, dict(sorted(unplaced.items())), can_train)


def _try(text: SourceText, section: str, group: Group) -> SourcePreview:
    """Read a sample of a source, as `conan ingest --dry-run` does, from some of its files."""
    some = group.files[:: -(-len(group.files) // _TRIED)]
    keys = text.list_keys() | {"files": [escape_glob(file.uri) for file in some]}
    keys.pop("exclude", None)
    try:
        return next(preview(Recipe.model_validate({section: [keys]})))
    except ConanError as error:
        return SourcePreview(text.name, len(group.files), error=str(error))


def _summarise(text: SourceText, section: str, group: Group, tried: SourcePreview) -> DraftedSource:
    shape = text.shape
    return DraftedSource(
        text.name,
        section,
        shape.read,
        shape.task,
        shape.format,
        text.files,
        [str(file.path) for file in group.files],
        shape.why,
        shape.otherwise,
        tried.pairs,
        tried.rejected,
    )


def _part_by_split(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """Part groups into those to train on and those to evaluate on.

    Files named test, and files named dev where others are named train, are evaluation sets, unless there
    would be nothing else to train on. Passages have no questions, so they are never a set of their own.
    """
    splits: dict[object, set[str]] = defaultdict(set)
    for group in groups:
        splits[group.family].add(group.split)
    training: list[Group] = []
    evaluation: list[Group] = []
    for group in groups:
        has_others = bool(splits[group.family] & {"train", ""})
        is_kept_apart = group.split == "test" or (group.split == "dev" and has_others)
        (evaluation if is_kept_apart and group.shape.task != "passage" else training).append(group)
    if not training:
        training, evaluation = evaluation, []
    for group in evaluation:
        if group.shape.task == "pretrain":
            group.shape = replace(
                group.shape, task="retrieval", otherwise="`passages:` names more texts to search among"
            )
    return training, evaluation


def _describe(name: str, group: Group, found: FoundFiles, paths: Sequence[PurePosixPath]) -> SourceText:
    shape = group.shape
    words = [PurePosixPath(found.root).name, *group.folder.parts, *(file.path.stem for file in group.files[:3])]
    keys = [key for record in group.sample.records[:1] for key in record]
    category = find_category(*words) or find_category(*keys) or _usual_category(shape)
    files, exclude = find_globs(group, found.root, paths)
    return SourceText(
        name=name,
        category=category,
        files=files,
        exclude=exclude,
        options=group.sample.options,
        encoding=group.sample.encoding,
        shape=shape,
        count=len(group.files),
    )


def _usual_category(shape: Shape) -> str:
    """Return the category that most data of a shape belongs to."""
    if shape.format == "prompt_response":
        return "instruction"
    if shape.read in ("documents", "squad"):
        return "knowledge_base"
    return "community_qa" if shape.format == "question_answer" else "web_page"


def _name(groups: Sequence[Group], root: str) -> list[str]:
    """Name groups after their folders, or after their files if several groups share a folder."""
    shared = Counter(group.folder for group in groups)
    taken = Counter[str]()
    names: list[str] = []
    family_names: dict[object, str] = {}
    for group in groups:
        words = _list_words(group, shared[group.folder] > 1, root)
        name = "_".join(words)[:_LONGEST_NAME].strip("_") or group.shape.read
        name = family_names.setdefault(group.family or name, name)  # the splits of a set share its name
        name += f"_{group.split}" if group.split in ("dev", "test") else ""
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name}_{taken[name]}")
    return names


def _list_words(group: Group, is_shared: bool, root: str) -> list[str]:
    """Return the parts of a name: of the two last folders that say something, and of the file."""
    words = [_as_name(_strip_split(part)) for part in group.folder.parts]
    words = [word for word in words if word and word not in _GENERIC and not word.isdecimal()]
    stems = {_as_name(_strip_split(file.path.name.split(".")[0])) for file in group.files}
    stems = stems if len(stems) == 1 else {stem.rstrip("0123456789_") for stem in stems}
    stem = "".join(stems) if len(stems) == 1 else ""
    stem = f"{_as_name(root)}_{stem}" if stem.isdecimal() else stem  # a name in Chinese, of which a year is left
    if stem and stem not in _GENERIC and (not words or (is_shared and len(group.files) == 1)):
        words = [*(word for word in words if not stem.startswith(word)), stem]
    return words[-2:] or [_as_name(root)]


def _strip_split(name: str) -> str:
    found = find_split(name)
    return found[1] if found else name


def _as_name(text: str) -> str:
    return "_".join(re.findall(r"[a-z0-9]+", text.lower()))
