"""Kinds of files for fuzz_readers: how to write each, and how much of it must be readable after damage."""

import bz2
import csv
import gzip
import importlib.util
import io
import json
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pyarrow as pa
import zstandard

sys.path.append(str(Path(__file__).parents[2] / "shared"))  # pytest has it already
import document_files

Pair = tuple[str, str]


@dataclass(frozen=True)
class Format:
    """A kind of file: how to write and read it, and how much of it must be readable after damage."""

    ending: str
    write: Callable[[list[Pair]], list[bytes]]
    """Returns the bytes before the first record, then those of each record, then those after the last."""
    source: dict[str, Any]
    pack: Callable[[list[bytes]], bytes] = b"".join
    unpacked: Callable[[bytes, int, bytes], int] = lambda file, damage, damaged: damage
    """Returns how many decompressed bytes must be read: from the good file, the damage's offset, the damaged file."""
    records: int = 40


def pairs(rng: Random, count: int) -> list[Pair]:
    """Return distinct Chinese questions and answers."""
    words = [chr(rng.randrange(0x4E00, 0x9F00)) for _ in range(300)]
    words = [word for word in words if _is_common(word)]
    return [
        (
            f"提問{number}：{''.join(rng.choices(words, k=rng.randrange(3, 15)))}？",
            f"{''.join(rng.choices([*words, ' ', '，', 'a'], k=rng.randrange(10, 30)))}。{number}",
        )
        for number in range(count)
    ]


def _is_common(word: str) -> bool:
    return bool(word.encode("big5", "ignore"))


# Good files


def _lines(record: Callable[[Pair], Any], encoding: str = "utf-8") -> Callable[[list[Pair]], list[bytes]]:
    def write(good: list[Pair]) -> list[bytes]:
        lines = [f"{json.dumps(record(pair), ensure_ascii=False)}\n".encode(encoding) for pair in good]
        return [b"\xff\xfe" if encoding == "utf-16-le" else b"", *lines, b""]

    return write


def _array(separator: str, indent: int | None = None) -> Callable[[list[Pair]], list[bytes]]:
    """Return a writer of arrays; an element ends before its comma."""

    def write(good: list[Pair]) -> list[bytes]:
        elements = [json.dumps(_record(pair), ensure_ascii=False, indent=indent) for pair in good]
        space = separator.lstrip(",")
        separators = [f"[{space}", *[separator] * (len(elements) - 1)]
        return [b"", *[(before + one).encode() for before, one in zip(separators, elements, strict=True)], b"\n]\n"]

    return write


def _record(pair: Pair) -> dict[str, Any]:
    return {"query": pair[0], "positive": pair[1], "more": {"n": [1, None]}}


def _document(good: list[Pair]) -> list[bytes]:
    return [json.dumps({"items": [_record(pair) for pair in good]}, ensure_ascii=False, indent=1).encode()]


def _csv(good: list[Pair]) -> list[bytes]:
    def line(*fields: str) -> bytes:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(fields)
        return buffer.getvalue().encode()

    rows = [line(query, positive.replace(" ", '"').replace("a", ",\n")) for query, positive in good]
    return [line("query", "positive"), *rows, b""]


def _tsv(good: list[Pair]) -> list[bytes]:
    return [b"query\tpositive\n", *(f"{query}\t{positive}\n".encode() for query, positive in good), b""]


def _text(good: list[Pair]) -> list[bytes]:
    return [b"", *(f"{query}|{positive}\n".encode() for query, positive in good), b""]


def _markdown(good: list[Pair]) -> list[bytes]:
    return ["".join(f"# {query}\n\n{positive}\n\n" for query, positive in good).encode()]


def _parquet(good: list[Pair]) -> list[bytes]:
    buffer = io.BytesIO()
    pl.DataFrame(good, ["query", "positive"], orient="row").write_parquet(buffer, row_group_size=10)
    return [buffer.getvalue()]


def _arrow(good: list[Pair]) -> list[bytes]:
    """Write Arrow's stream; a record ends where its batch does."""
    schema = pa.schema({"query": pa.string(), "positive": pa.string()})
    sink = io.BytesIO()
    parts, before = [], 0

    def take_written() -> bytes:
        nonlocal before
        part = sink.getvalue()[before:]
        before += len(part)
        return part

    with pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(good), 10):
            batch = [dict(zip(schema.names, pair, strict=True)) for pair in good[start : start + 10]]
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
            parts += [take_written(), *[b""] * (len(batch) - 1)]
    return [b"", *parts, take_written()]


def _page(pair: Pair) -> bytes:
    body = f"<html><head><title>{pair[0]}</title></head><body><article><p>{pair[1] * 4}</p></article></body></html>"
    return body.encode()


def _docx(good: list[Pair]) -> list[bytes]:
    body = [document_files.paragraph(query, "1") + document_files.paragraph(positive) for query, positive in good]
    return [document_files.docx(*body, styles=[("1", "heading 1", "", "0")])]


def _pdf(good: list[Pair]) -> list[bytes]:
    pages = [document_files.text(20, 80, query, 14) + document_files.text(20, 120, text, 9) for query, text in good]
    return [document_files.pdf(*pages)]


def _warc(good: list[Pair]) -> list[bytes]:
    parts = []
    for pair in good:
        http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + _page(pair)
        head = (
            "WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:1>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
            "WARC-Target-URI: http://example.com/\r\nContent-Type: application/http; msgtype=response\r\n"
            f"Content-Length: {len(http)}\r\n\r\n"
        )
        parts.append(head.encode() + http + b"\r\n\r\n")
    return [b"", *parts, b""]


def _chat(pair: Pair) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]}


# Compression: tens of records per stream, so that there are whole streams before the damage


def _streams(compress: Callable[[bytes], bytes]) -> Callable[[list[bytes]], bytes]:
    return lambda parts: b"".join(compress(b"".join(parts[start : start + 10])) for start in range(0, len(parts), 10))


def _zipped(parts: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.jsonl", b"".join(parts))
    return buffer.getvalue()


def _whole_streams(start: Callable[[], Any]) -> Callable[[bytes, int, bytes], int]:
    """Return a function that measures the streams which end before the damage."""

    def unpacked(file: bytes, damage: int, damaged: bytes) -> int:
        size, rest = 0, file[:damage]
        while rest:
            stream = start()
            found = len(stream.decompress(rest))
            if not stream.eof:
                return size
            size, rest = size + found, stream.unused_data
        return size

    return unpacked


def _before_in_gzip(file: bytes, damage: int, damaged: bytes) -> int:
    """Measure what zlib decodes before the damage, less half a kilobyte that it may get in one call with it."""
    return len(zlib.decompressobj(31).decompress(file[: max(0, damage - 512)]))


def _before_in_zip(file: bytes, damage: int, damaged: bytes) -> int:
    """Do the same if the archive's directory is intact; without it no member can be found."""
    try:
        with zipfile.ZipFile(io.BytesIO(damaged)) as archive:
            (member,) = archive.infolist()
            archive.open(member).close()
    except BaseException as error:  # a panic in Rust is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return 0
    if member.header_offset or member.flag_bits or member.filename != "inside.jsonl":
        return 0
    start = 30 + len(member.filename)
    unpacked = zlib.decompressobj(-15).decompress(file[start : max(start, damage - 512)])
    return min(max(0, len(unpacked) - 4096), member.file_size)


QUESTION = {"query": "query", "positive": "positive"}
LINES = {"read": "jsonl", **QUESTION}

FORMATS: dict[str, Format] = {
    "jsonl": Format(".jsonl", _lines(_record), LINES),
    "jsonl-gb18030": Format(".jsonl", _lines(_record, "gb18030"), LINES | {"encoding": "gb18030"}),
    "jsonl-big5": Format(".jsonl", _lines(_record, "big5"), LINES | {"encoding": "big5"}),
    "jsonl-utf-16": Format(".jsonl", _lines(_record, "utf-16-le"), LINES | {"encoding": "utf-16"}),
    "array": Format(".json", _array(","), {"read": "json"}),
    "array-of-lines": Format(".json", _array(",\n"), {"read": "json"}),
    "array-pretty": Format(".json", _array(",\n ", indent=1), {"read": "json"}),
    "document": Format(".json", _document, {"read": "json", "select": "unnest(items, recursive := true)"}),
    "csv": Format(".csv", _csv, {"read": "csv"}),
    "tsv": Format(".tsv", _tsv, {"read": "tsv"}),
    "text": Format(
        ".txt",
        _text,
        {"read": "text", "query": "split_part(line, '|', 1)", "positive": "split_part(line, '|', 2)"},
    ),
    "markdown": Format(".md", _markdown, {"read": "markdown"}),
    "parquet": Format(".parquet", _parquet, {"read": "parquet"}),
    "alpaca": Format(".jsonl", _lines(lambda p: {"instruction": p[0], "output": p[1]}), {"read": "alpaca"}),
    "sharegpt": Format(".jsonl", _lines(_chat), {"read": "sharegpt"}),
    "squad": Format(
        ".jsonl", _lines(lambda p: {"context_text": p[1], "qas": [{"query_text": p[0]}]}), {"read": "squad"}
    ),
    "triples": Format(".jsonl", _lines(lambda p: {"query": p[0], "pos": [p[1]], "neg": []}), {"read": "triples"}),
    "gz": Format(".jsonl.gz", _lines(_record), LINES, lambda parts: gzip.compress(b"".join(parts)), _before_in_gzip),
    "zst": Format(
        ".jsonl.zst",
        _lines(_record),
        LINES,
        _streams(zstandard.compress),
        _whole_streams(lambda: zstandard.ZstdDecompressor().decompressobj()),
    ),
    "xz": Format(".jsonl.xz", _lines(_record), LINES, _streams(lzma.compress), _whole_streams(lzma.LZMADecompressor)),
    "bz2": Format(".jsonl.bz2", _lines(_record), LINES, _streams(bz2.compress), _whole_streams(bz2.BZ2Decompressor)),
    "zip": Format(".zip", _lines(_record), LINES, _zipped, _before_in_zip),
    "hf": Format(".arrow", _arrow, {"read": "hf"}),
}
if all(map(importlib.util.find_spec, ("markitdown", "pdfplumber"))):
    # One unit of the file format: nothing before the damage can be asked for.
    for _ending, _write in ((".docx", _docx), (".pdf", _pdf)):
        FORMATS[_ending[1:]] = Format(_ending, _write, {"read": "documents"}, unpacked=lambda *_: 0, records=2)
PAGES = {"query": "title", "positive": "text"}
if all(map(importlib.util.find_spec, ("trafilatura", "warcio"))):
    FORMATS["html"] = Format(".html", lambda good: [_page(good[0])], PAGES | {"read": "html"}, records=1)
    FORMATS["warc"] = Format(".warc", _warc, PAGES | {"read": "warc"}, records=8)
