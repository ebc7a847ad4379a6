"""The corpora that a page is about: names that tell them apart, the settings they were made with, and their rows."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import yaml

from ...schemas.errors import CorpusError, RecipeError
from ..corpus.catalog import opened
from ..corpus.folder import FOLDERS, STAGES, committed
from ..corpus.uris import name_uris
from .elements import escape_text


class Subject(NamedTuple):
    """A corpus on the page."""

    name: str
    """Distinguishes it from the others."""
    tag: str
    """The name as HTML to put below the head of a column; empty if there are no others."""
    folder: Path
    stages: list[str]
    """The stages that have shards."""
    settings: dict[str, Any]
    """The saved recipe; a training stage has the settings of its run. Empty without a recipe."""
    query: Callable[[str], pa.Table]

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Run a query that returns few rows."""
        found: list[dict[str, Any]] = self.query(sql).to_pylist()
        return found


@contextmanager
def open_subjects(corpora: Sequence[Path]) -> Iterator[list[Subject]]:
    """Open the catalogs of the corpora.

    Raises:
        CorpusError: a folder holds no shards, or two of the folders are the same.
    """
    found = {corpus: _list_stages(corpus) for corpus in corpora}
    if len({corpus.resolve() for corpus in corpora}) < len(corpora):
        raise CorpusError("a corpus is compared with itself; name each corpus once")
    names = _name(corpora)
    with ExitStack() as stack:
        yield [
            Subject(
                name,
                f'<br><span class="aside">{escape_text(name)}</span>' if len(corpora) > 1 else "",
                corpus,
                found[corpus],
                _read_settings(corpus),
                stack.enter_context(opened(corpus)),
            )
            for name, corpus in zip(names, corpora, strict=True)
        ]


def _list_stages(corpus: Path) -> list[str]:
    stages = [stage for stage in STAGES if any(committed(corpus, f) for f in FOLDERS if f.partition("/")[0] == stage)]
    if not stages:
        raise CorpusError(f"{corpus}: no shards here to report on; run `conan ingest {corpus} --recipe FILE` first")
    return stages


def _name(corpora: Sequence[Path]) -> list[str]:
    """Name each corpus by the last parts of its path, as many as make the names differ."""
    paths = [Path(name_uris(str(corpus.resolve()))).parts for corpus in corpora]
    lengths = range(1, max(map(len, paths)) + 1)
    length = next(length for length in lengths if len({path[-length:] for path in paths}) == len(paths))
    return ["/".join(path[-length:]) for path in paths]


def _read_settings(corpus: Path) -> dict[str, Any]:
    """Read the saved recipe, unchecked so that earlier versions' can be shown, and the settings of training runs."""
    recipe = corpus / "recipe.yaml"
    try:
        settings: dict[str, Any] = (yaml.safe_load(recipe.read_text("utf-8")) if recipe.exists() else None) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"{recipe}: not valid YAML: {error}") from error
    for job in sorted(corpus.glob("train/*/job.json")):
        used = json.loads(job.read_text("utf-8"))["settings"]
        name = job.parent.name
        settings[name] = (settings.get(name) or {}) | {"training": used} if name == "bootstrap" else used
    return settings
