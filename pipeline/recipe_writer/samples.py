"""Read the first records of a file as `conan ingest` would, after finding the reader and the options that fit it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import polars as pl

from ...schemas.source_settings import Source
from ..ingest.files import FileError, FileSplit
from ..ingest.problems import PLACE
from ..ingest.readers import find_reader, open_sandbox, read_split
from ..ingest.text_encodings import read_blocks
from .found_files import DOCUMENT, FoundFile, strip_packing
from .tables import NoTableError, find_table

RECORDS = 1000
"""Chosen here: records of a file that are looked at."""
_KEYS = 200
"""Chosen here, as ingest's MOST_FIELDS: a document with more keys than this has data for keys."""
_WORD = 10
"""Chosen here: lines of fewer characters than this are words or names, such as a vocabulary, rather than texts."""
_DECLARED = re.compile(r"declare it with `encoding: ([\w-]+)`")
_BY_ENDING = {".parquet": "parquet", ".pq": "parquet", ".arrow": "hf", ".warc": "warc"}


@dataclass(frozen=True)
class Sample:
    """The first records of a file, and the keys of a source that make a reader read them."""

    read: str
    records: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    encoding: str | None = None


def look_at(file: FoundFile) -> Sample:
    """Read the first records of a file.

    Raises:
        MissingExtraError: an extra is missing that reads such files.
        FileError: nothing in it can be read as records, with the reason.
    """
    name = strip_packing(file.path)
    ending = name.suffix.lower()
    if ending in DOCUMENT:
        return _read_sample(file, "documents")
    if ending in _BY_ENDING:
        return _read_sample(file, _BY_ENDING[ending])
    text, encoding = _read_text(file.uri)
    begin = text.lstrip("\ufeff \r\n\t")[:1]
    if not begin:
        raise FileError("empty", "nothing but white space")
    if begin in "{[" and (ending.startswith(".json") or ending == ".ndjson" or _is_json(text)):
        read = "jsonl" if _has_a_record_on_each_line(text, ending) else "json"
        return _check_document(_read_sample(file, read, encoding=encoding))
    try:
        read, options = find_table(text, ending)
    except NoTableError:
        if ending in (".csv", ".tsv"):
            raise FileError("columns", "no delimiter divides its lines into equally many fields") from None
        sample = _read_sample(file, "text", encoding=encoding)
        lengths = sorted(len(record["line"]) for record in sample.records)
        if lengths[len(lengths) // 2] < _WORD:
            raise FileError(
                "words", f"lines of about {lengths[len(lengths) // 2]} characters: words or names"
            ) from None
        return sample
    return _read_sample(file, read, options, encoding)


def _read_text(uri: str, declared: str | None = None) -> tuple[str, str | None]:
    """Return the beginning of a file as text, and its encoding if that has to be declared."""
    try:
        block = next(read_blocks(FileSplit(uri), declared), None)
        return block.text.decode(errors="replace") if block else "", declared
    except FileError as error:
        if declared is None and (found := _DECLARED.search(error.detail)):
            return _read_text(uri, found[1])
        raise


def _is_json(text: str) -> bool:
    """Whether a text begins as a JSON object or array does, and not as prose in brackets."""
    return bool(re.match(r"\s*(?:\{\s*\"|\[\s*[\[{\"])", text))


def _has_a_record_on_each_line(text: str, ending: str) -> bool:
    lines = [line for line in islice(text.split("\n"), 20) if line.strip()]
    whole = [_parses(line) for line in lines[:2]]
    return all(whole) and (len(whole) > 1 or ending != ".json")


def _parses(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except ValueError:
        return False


def _check_document(sample: Sample) -> Sample:
    if len(sample.records) == 1 and len(sample.records[0]) > _KEYS:
        raise FileError("document", "one document with data for keys: `options: {whole: true}` and SQL can read it")
    return sample


def _read_sample(
    file: FoundFile, read: str, options: dict[str, Any] | None = None, encoding: str | None = None
) -> Sample:
    chosen = dict(options or {})
    if read in ("csv", "tsv"):
        chosen.setdefault("header", True)  # or the reader would doubt it, as no SQL names its columns yet
    source = Source.model_validate(
        {"name": "sample", "files": "", "read": read, "options": chosen, "encoding": encoding}
    )
    records: list[dict[str, Any]] = []
    rejects, reason = 0, "no record in it"
    with open_sandbox() as connection:
        for frame, problems in islice(read_split(connection, source, FileSplit(file.uri)), 3):
            spread = frame.gather_every(max(1, frame.height // RECORDS))  # files are often sorted by class
            records += _list_records(spread.head(RECORDS - len(records)), find_reader(source).is_json)
            if problems.height and not rejects:
                reason = f"{problems['reason'][0]}, {problems['detail'][0]}"
            rejects += problems.height
            if len(records) >= RECORDS:
                break
    if not records or rejects > len(records):
        raise FileError("no_record", reason)
    return Sample(read, records, options or {}, encoding)


def _list_records(frame: pl.DataFrame, is_json: bool) -> Iterator[dict[str, Any]]:
    if not is_json:
        yield from frame.select(pl.exclude(PLACE)).iter_rows(named=True)
        return
    for text in frame["text"]:
        value = json.loads(text)
        yield value if isinstance(value, dict) else {"json": value}
