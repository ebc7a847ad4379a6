"""Select columns from JSON records: by the types of a source's columns, or by the SQL of a shape."""

import json
from collections.abc import Mapping, Sequence

from ...schemas.source_settings import Source
from ..corpus.sql import quote, quote_name
from .column_types import family
from .quoted_numbers import NUMBER_MARK
from .sql_names import find_names, find_names_in


def select_from_records(select: str) -> str:
    """Give a SELECT the table it reads, `records(_row, _file, _line, record JSON)`, made from `frame`.

    Numbers that DuckDB would round are texts in `record`; see quoted_numbers.
    """
    return f"WITH records AS (SELECT _row, _file, _line, CAST(quoted AS JSON) AS record FROM frame) FROM ({select})"


def select_objects(source: Source) -> str:
    """Return SQL for the columns in `source.columns`, or for one column `data` with option `whole`.

    Decimals are texts in columns of type DOUBLE. Keys that differ only in case give one column; where a record has
    several of them, the first one in `source.columns` counts. Lists, objects and JSON that `meta` names come a second
    time, with NUMBER_MARK after the name: as JSON, with all that is in them and with marked numbers.
    """
    if source.options.whole:
        return "SELECT _row, _file, _line, CAST(text AS JSON) AS data FROM frame"
    spelled: dict[str, list[str]] = {}
    for key in source.columns:
        spelled.setdefault(key.lower(), []).append(key)
    kinds = {keys[0]: source.columns[keys[0]] for keys in spelled.values()}
    typed = {key: "VARCHAR" if kind == "DOUBLE" else kind for key, kind in kinds.items()}
    kept = dict.fromkeys(_find_kept_whole(source, kinds), "JSON")
    columns = [f"{_select_key('typed', spelled[key.lower()], typed[key])} AS {quote_name(key)}" for key in typed]
    columns += [
        f"{_select_key('kept', spelled[key.lower()], 'JSON')} AS {quote_name(key + NUMBER_MARK)}" for key in kept
    ]
    structs = [
        f"from_json({record}, {quote(json.dumps(structure))}) AS {name}"
        for name, record, structure in (("typed", "quoted", typed), ("kept", "marked", kept))
        if structure
    ]
    records = f"SELECT {', '.join(['*', *structs])} FROM frame"
    return f"SELECT {', '.join(['_row, _file, _line', *columns])} FROM ({records})"


def _find_kept_whole(source: Source, kinds: Mapping[str, str]) -> list[str]:
    """Find the columns that hold more than a scalar and that `meta` names, unless the SQL sees whole rows."""
    in_meta = find_names_in(source.meta or "meta")
    if in_meta is None or find_names(source) is None:
        return []
    named = {name.lower() for name in in_meta}
    return [key for key, kind in kinds.items() if key.lower() in named and (kind == "JSON" or family(kind) != "scalar")]


def _select_key(struct: str, keys: Sequence[str], kind: str) -> str:
    """Return SQL for the value of the first of these keys that a record has; `struct` holds that of the first key."""
    record = {"typed": "quoted", "kept": "marked"}[struct]
    others = (f"from_json({record}, {quote(json.dumps({key: kind}))}).{quote_name(key)}" for key in keys[1:])
    return f"coalesce({', '.join([f'{struct}.{quote_name(keys[0])}', *others])})"
