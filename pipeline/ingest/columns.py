"""Decide the types of a source's columns, once for all its files, from a sample that covers every file.

One row of another type must not change what the recipe's SQL means for all other rows. So the types are decided before
the first row is read, belong to the fingerprint of the source's shards and are kept with them; rows that don't fit are
rejected. Only columns that the SQL names are looked at.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import duckdb
import polars as pl

from ...schemas.errors import RecipeError
from ...schemas.source_settings import Source
from . import readers
from .column_types import MixedColumnError, Seen, choose_type, merge_types, parse_type
from .files import FileSplit
from .problems import PLACE, Frames
from .projection import project
from .records import LINE
from .sql_names import compares, find_names

SAMPLE_BYTES = 8 << 20
"""Chosen here: bytes of records per source that decide its types, spread evenly over the splits of its files."""

_DECIDE_TYPES = ("read", "options", "select", "from_", "where", "query", "positive", "negatives", "label", "meta")
_NEVER_LACKING = {"negatives", "meta", "from", "rows"}  # optional columns, and words of SQL itself
_MOST_RECORDS = 1_000  # of the first frame that has a column which the sample lacks


SomeSource = TypeVar("SomeSource", bound=Source)


@dataclass(frozen=True)
class Decided(Generic[SomeSource]):
    """A source with `columns` filled in, and a message for each column whose kept type its files no longer suggest."""

    source: SomeSource
    changes: list[str] = field(default_factory=list)


def decide_columns(
    source: SomeSource,
    splits: Sequence[FileSplit],
    kept: Mapping[str, str] | None = None,
    sample: int | None = None,
) -> Decided[SomeSource]:
    """Fill in `columns` of a source: as declared in the recipe, else as kept from an earlier run, else by the sample.

    Args:
        sample: Bytes of records to decide by, and by no others. By default SAMPLE_BYTES, and where a column has no
            value in these, whatever comes after them.

    Raises:
        RecipeError: a declared type does not exist or the reader has its own; a column is mixed.
    """
    reader = readers.find_reader(source)
    _check_declared(source, reader)
    kept = kept or {}
    if reader.has_keys and not source.options.whole:
        decided = _decide_from_records(source, splits, kept, sample)
    elif not reader.mixes_files:
        decided = _decide_from_schemas(source, splits, sample)
    else:
        return Decided(source)
    columns = {**decided, **kept, **source.columns}
    changes = [
        f"{source.name}: the column {name} stays {kept[name]}, as in the shards that are there, though its files now "
        f'look like {kind}; to change it, declare `columns: {{{name}: "{kind}"}}`'
        for name, kind in decided.items()
        if name not in source.columns and kept.get(name, kind) != kind
    ]
    return Decided(source.model_copy(update={"columns": columns}), changes)


def find_kept(source: Source, saved: Sequence[Source]) -> Mapping[str, str]:
    """Return the types that an earlier run decided for a source, if its reader and its SQL are still the same."""
    for one in saved:
        if one.name == source.name and all(getattr(source, name) == getattr(one, name) for name in _DECIDE_TYPES):
            return one.columns
    return {}


def _check_declared(source: Source, reader: readers.Reader) -> None:
    if source.columns and (source.options.whole or (reader.select and not reader.has_keys)):
        raise RecipeError(f"source {source.name}: `columns:` does not apply to `read: {source.read}`; leave it out")
    for name, kind in source.columns.items():
        try:
            parse_type(kind)
        except duckdb.Error as error:
            raise RecipeError(
                f"source {source.name}: columns: {name}: {kind!r} is not a type of DuckDB; expected one such as "
                "VARCHAR, VARCHAR[], BIGINT, DOUBLE, BOOLEAN, JSON or STRUCT(title VARCHAR)[]"
            ) from error


def read_heads(
    connection: duckdb.DuckDBPyConnection, source: Source, splits: Sequence[FileSplit], sample: int | None = None
) -> Iterator[Frames]:
    """Yield the first rows or records of each split, at least one of each and about `sample` bytes in all.

    With them come the problems that were found on the way. `sample` defaults to SAMPLE_BYTES.
    """
    enough = (sample or SAMPLE_BYTES) / max(1, len(splits))
    for split in splits:
        for frame, problems in islice(readers.read_batches(connection, source, [split], enough), 1):
            row = max(1, frame.estimated_size() / max(1, frame.height))
            yield frame.drop("_row").head(max(1, int(enough / row))), problems


@dataclass
class Keys:
    """The top-level keys of records: what each holds, and how it is spelled, by its name in lower case."""

    names: set[str] | None  # lower-case names in the SQL; None for all
    seen: dict[str, Seen] = field(default_factory=lambda: defaultdict(Seen))
    spelled: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))

    def find_filled(self) -> set[str]:
        """Return the names of the keys that have a value."""
        return {name for name, seen in self.seen.items() if seen.kinds.keys() - {"null"}}

    def add(self, records: pl.DataFrame) -> None:
        """Look at the records of a frame with the columns of LINE."""
        for file, line, text in records.select("_file", "_line", "text").iter_rows():
            for key, value in json.loads(text).items():
                name = key.lower()
                if key and (self.names is None or name in self.names):
                    self.seen[name].add(value, f"{file}, line {line}")
                    self.spelled[name][key] = None


def _decide_from_records(
    source: Source, splits: Sequence[FileSplit], kept: Mapping[str, str], sample: int | None
) -> dict[str, str]:
    names = find_names(source)
    keys = Keys({name.lower() for name in names} if names else None)
    with readers.open_sandbox() as connection:
        for frame, _ in read_heads(connection, source, splits, sample):
            keys.add(frame)
    decided, lacking = _choose_types(source, keys, names, kept)
    if sample is None and (lacking or names is None):
        _look_further(source, splits, keys, lacking)
        decided, _ = _choose_types(source, keys, names, kept)
    return decided


def _choose_types(
    source: Source, keys: Keys, names: set[str] | None, kept: Mapping[str, str]
) -> tuple[dict[str, str], set[str]]:
    """Choose a type for each column; return them and the lower-case names of columns that the SQL names and none has.

    Decimals in lists and objects stay as they are written if the SQL takes texts there, else they are numbers.
    """
    parts = (source.select, source.from_, source.where, source.query, source.positive, source.negatives)
    numbers_first = any(compares(part) for part in parts if part)
    readings = [_choose_columns(source, keys, names, inner) for inner in ("VARCHAR", "DOUBLE")]
    if readings[0] == readings[1] and keys.names is not None and keys.names <= keys.find_filled() | _NEVER_LACKING:
        return readings[0], set()  # no need to try the SQL
    for columns in readings[::-1] if numbers_first else readings:
        lacking = _find_lacking(source.model_copy(update={"columns": {**columns, **kept, **source.columns}}))
        if lacking is not None:
            return columns, lacking
    return columns, set()  # the SQL fits neither: the same error will explain the rejects


def _choose_columns(source: Source, keys: Keys, names: set[str] | None, inner: str) -> dict[str, str]:
    outside_meta = find_names(source.model_copy(update={"meta": None}))
    declared = {name.lower(): kind for name, kind in source.columns.items()}
    columns: dict[str, str] = {}
    for name, seen in keys.seen.items():
        in_texts = outside_meta is None or name in {each.lower() for each in outside_meta}
        try:
            kind = declared.get(name) or choose_type(seen, name, keys.names, inner if in_texts else "DOUBLE")
        except MixedColumnError as error:
            if in_texts:
                most = choose_type(seen, name, keys.names, inner, others=1)
                raise _explain_mixture(source, name, error, str(most)) from error
            kind = "JSON"  # `meta` keeps whatever it is
        if kind:  # of keys that differ only in case, the one spelled as in the SQL comes first
            spelled = sorted(keys.spelled[name], key=lambda key: names is not None and key not in names)
            columns.update(dict.fromkeys(spelled, str(parse_type(kind))))
    return columns


def _explain_mixture(source: Source, name: str, error: MixedColumnError, most: str) -> RecipeError:
    declared = json.dumps(str(parse_type(most)), ensure_ascii=False)  # a string for YAML, too
    return RecipeError(
        f"source {source.name}: {error}. Declare its type in the recipe: `columns: {{{name}: {declared}}}` rejects "
        f"the other rows; with `columns: {{{name}: JSON}}` the SQL reads all of them, by `{name} ->> '$'`"
    )


def _find_lacking(source: Source) -> set[str] | None:
    """Try the SQL on no rows: return the lower-case names of the columns that it lacks, None if it fails."""
    nothing = pl.DataFrame(schema={"_row": pl.UInt32, **LINE})
    with readers.open_sandbox() as connection:
        try:
            readers.read_joined(connection, source)
            readers.load_batch(connection, source, nothing)
            return {name.lower() for name in project(connection, source, nothing).missing}
        except (duckdb.Error, readers.SourceError):
            return None


def _look_further(source: Source, splits: Sequence[FileSplit], keys: Keys, lacking: set[str]) -> None:
    """Read on until each lacking column has a value or the files end; to their end if the SQL uses all keys."""
    is_new = "list_contains($lacking, lower(key)) OR ($all AND NOT list_contains($known, lower(key)))"
    holding = f"""SELECT _file, _line, text FROM further
        WHERE len(list_filter(json_keys(CAST(text AS JSON)), lambda key: {is_new})) > 0 LIMIT {_MOST_RECORDS}"""
    with readers.open_sandbox() as connection:
        for frame in (frame for split in splits for frame, _ in readers.read_split(connection, source, split)):
            known = {"lacking": sorted(lacking), "known": sorted(keys.seen), "all": keys.names is None}
            connection.register("further", frame.to_arrow(compat_level=pl.CompatLevel.newest()))
            keys.add(connection.sql(holding, params=known).pl())
            lacking -= keys.find_filled()
            if not lacking and keys.names is not None:
                return


def _decide_from_schemas(source: Source, splits: Sequence[FileSplit], sample: int | None) -> dict[str, str]:
    """Decide by the types that the files declare for their columns."""
    names = find_names(source)
    wanted = {name.lower() for name in names} if names else None
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    with readers.open_sandbox() as connection:
        for frame, _ in read_heads(connection, source, splits, sample):
            relation = connection.from_arrow(frame.head(0).to_arrow())
            for name, kind in zip(relation.columns, map(str, relation.types), strict=True):
                is_named = name not in PLACE and (wanted is None or name.lower() in wanted)
                if is_named and kind != '"NULL"':
                    kinds[name]["VARCHAR" if kind.startswith("ENUM") else kind] += frame.height
    columns: dict[str, str] = {}
    for name, found in kinds.items():
        try:
            merged = merge_types(found, name)
        except MixedColumnError as error:
            raise _explain_mixture(source, name, error, found.most_common(1)[0][0]) from error
        columns |= {name: merged} if merged else {}
    return columns
