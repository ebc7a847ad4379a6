"""conan ingest --dry-run: show the columns of each source, and the pairs and rejects of a sample, and write nothing."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from ...schemas.errors import RecipeError
from ...schemas.recipe import Recipe
from ...schemas.source_settings import Source
from ..text.normalise import normalise
from . import readers
from .column_types import describe_type
from .columns import Keys, decide_columns, read_heads
from .files import FileSplit
from .problems import PLACE
from .projector import Projector
from .splits import list_source_files, plan_splits

_ROWS = 1_000  # of a source that are projected, spread evenly over its files
_PAIRS = 3


@dataclass(frozen=True)
class SourcePreview:
    """The columns, pairs and rejects of a sample of a source.

    Attributes:
        columns: Each column or key, and its type or what it is a mixture of.
        rows, kept, left_out: Rows of the sample, how many become pairs, and how many `where` excludes.
        pairs: The first pairs, as (query, positive).
        rejected: Rejects by reason: how many, and the place and detail of the first.
        unreadable: Files without a readable row at their beginning, each with what is wrong.
        error: Why nothing of the source can be ingested, or None.
    """

    name: str
    files: int
    columns: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    kept: int = 0
    left_out: int = 0
    pairs: list[tuple[str, str]] = field(default_factory=list)
    rejected: dict[str, tuple[int, str]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    error: str | None = None


def preview(recipe: Recipe) -> Iterator[SourcePreview]:
    """Yield what each source and evaluation set of a recipe holds, but for those that a language model writes.

    Raises:
        RecipeError: a reader is unknown or refuses a source's options.
    """
    readers.check_readers(recipe)
    of_files = [source for source in recipe.sources if not source.synthesize]
    for source in (*of_files, *recipe.evaluation):
        files = list_source_files(source, source.files).files
        splits = [split for splits in plan_splits(source, files) for split in splits]
        if splits:
            yield preview_source(source, len(files), splits)
        else:
            yield SourcePreview(source.name, 0, error=f"no file matches {', '.join(source.files)}")


def preview_source(source: Source, files: int, splits: Sequence[FileSplit], sample: int | None = None) -> SourcePreview:
    """Try a source on the beginnings of some splits of its files.

    Args:
        files: How many files the source has.
        splits: Those to read.
        sample: Bytes to read of all of them together. By default as `decide_columns` does.
    """
    with readers.open_sandbox() as connection:
        heads = list(read_heads(connection, source, splits, sample))
    columns = _describe_columns(source, [frame for frame, _ in heads])
    try:
        source = decide_columns(source, splits, sample=sample).source
    except RecipeError as error:
        return SourcePreview(source.name, files, columns, error=str(error))
    rejected: Counter[str] = Counter()
    first: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    unreadable: dict[str, str] = {}
    rows = kept = left_out = 0
    with Projector(source) as projector:
        for head, unread in heads:
            frame = head.head(max(1, _ROWS // len(heads))).with_row_index("_row")
            found = projector.project(frame)
            rows += frame.height + unread.height
            kept += found.pairs.height
            left_out += found.left_out
            if found.pairs.height and len(pairs) < _PAIRS:
                sides = found.pairs.select(normalise(pl.col("query")), normalise(pl.col("positive")))
                pairs += sides.head(_PAIRS - len(pairs)).rows()
            if head.is_empty() and unread.height:
                unreadable[unread["file"][0]] = unread["detail"][0]
            problems = pl.concat([unread, found.problems])
            for reason, file, line, detail in problems.select("reason", "file", "line", "detail").iter_rows():
                rejected[reason] += 1
                first.setdefault(reason, f"{file}{f', line {line}' if line else ''}: {detail}")
    counted = {reason: (number, first[reason]) for reason, number in rejected.most_common()}
    return SourcePreview(source.name, files, columns, rows, kept, left_out, pairs, counted, unreadable)


def _describe_columns(source: Source, frames: Sequence[pl.DataFrame]) -> dict[str, str]:
    reader = readers.find_reader(source)
    if reader.has_keys and not source.options.whole:
        keys = Keys(None)
        for frame in frames:
            keys.add(frame)
        return {next(iter(keys.spelled[name])): describe_type(seen, name) for name, seen in keys.seen.items()}
    columns: dict[str, dict[str, None]] = defaultdict(dict)
    with readers.open_sandbox() as connection:
        for frame in frames[:1] if reader.mixes_files else frames:
            readers.load_batch(connection, source, frame.head(_ROWS).with_row_index("_row"))
            batch = connection.sql("FROM batch")
            for name, kind in zip(batch.columns, map(str, batch.types), strict=True):
                if name not in PLACE:
                    columns[name][kind] = None
    return {name: ", ".join(kinds) for name, kinds in columns.items()}
