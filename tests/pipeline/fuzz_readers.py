"""Files with random damage: none crashes a reader or holds it up, or costs a good record that precedes the damage.

    python tests/pipeline/fuzz_readers.py --files 10000 --format jsonl --format csv

tries so many files of each format (of all, where none is named) and ends with 1 where one failed. A file is told by its
format and its number, so `--first NUMBER --files 1` makes the same one again.
"""

import argparse
import bz2
import csv
import faulthandler
import gzip
import importlib.util
import io
import json
import lzma
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import zstandard
from conan_embedding.pipeline import readers
from conan_embedding.pipeline.files import Stretch, list_files
from conan_embedding.pipeline.projection import project, unfit
from conan_embedding.schemas.settings import Source

SECONDS = 10.0
"""Of a processor, that a file may take."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class Format:
    """A kind of file: how it is written and read, and how much of it must be read when it is damaged somewhere."""

    ending: str
    write: Callable[[list[Pair]], list[bytes]]
    """What stands before the first record, then each record's bytes, then what stands after the last."""
    source: dict[str, Any]
    pack: Callable[[list[bytes]], bytes] = b"".join
    unpacked: Callable[[bytes, int, bytes], int] = lambda file, damage, damaged: damage
    """How many bytes before the damage of a good file must be read, unpacked; the damaged file is there to see."""
    records: int = 40


@dataclass
class Tally:
    """What came of the files of a format."""

    files: int = 0
    rows: int = 0
    problems: int = 0
    slowest: float = 0.0
    slowest_file: int = 0
    required: int = 0
    """Good records before the damage."""


def pairs(rng: Random, count: int) -> list[Pair]:
    """Chinese questions and answers; each is there once."""
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
    """An array's element ends before its comma."""

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
    """Arrow's stream; a record ends where its batch does."""
    schema = pa.schema({"query": pa.string(), "positive": pa.string()})
    sink = io.BytesIO()
    parts, before = [], 0

    def written() -> bytes:
        nonlocal before
        part = sink.getvalue()[before:]
        before += len(part)
        return part

    with pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(good), 10):
            batch = [dict(zip(schema.names, pair, strict=True)) for pair in good[start : start + 10]]
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
            parts += [written(), *[b""] * (len(batch) - 1)]
    return [b"", *parts, written()]


def _page(pair: Pair) -> bytes:
    body = f"<html><head><title>{pair[0]}</title></head><body><article><p>{pair[1] * 4}</p></article></body></html>"
    return body.encode()


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


# Compression: tens of records a stream, so that there are whole ones before the damage


def _streams(compress: Callable[[bytes], bytes]) -> Callable[[list[bytes]], bytes]:
    return lambda parts: b"".join(compress(b"".join(parts[start : start + 10])) for start in range(0, len(parts), 10))


def _zipped(parts: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.jsonl", b"".join(parts))
    return buffer.getvalue()


def _whole_streams(start: Callable[[], Any]) -> Callable[[bytes, int, bytes], int]:
    """The streams that end before the damage."""

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
    """What zlib makes of all but the last half kilobyte, which it may be given together with the damage."""
    return len(zlib.decompressobj(31).decompress(file[: max(0, damage - 512)]))


def _before_in_zip(file: bytes, damage: int, damaged: bytes) -> int:
    """The same, where the archive's directory is whole: without it nothing can be found."""
    try:
        with zipfile.ZipFile(io.BytesIO(damaged)) as archive:
            (member,) = archive.infolist()
            archive.open(member).close()
    except BaseException as error:  # a panic in Rust is no Exception
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
PAGES = {"query": "title", "positive": "text"}
if all(map(importlib.util.find_spec, ("trafilatura", "warcio"))):
    FORMATS["html"] = Format(".html", lambda good: [_page(good[0])], PAGES | {"read": "html"}, records=1)
    FORMATS["warc"] = Format(".warc", _warc, PAGES | {"read": "warc"}, records=8)


# Damage

_PIECES = (
    *(b'"', b"'", b"[", b"]", b"{", b"}", b",", b":", b"\t", b"\\", b"\\u", b"\\ud83d", b"\0", b"\n", b"\r", b"\r\n"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff", b"\xe4\xbd", b"\xed\xa0\x80", b"null", b"1e999", b"-", b"#"),
    *(b"[" * 300, b'{"a":' * 300, b'"' * 9, b"\n" * 9, b"\0" * 9),
)


def damage(rng: Random, data: bytes) -> bytes:
    """The data with one to three faults."""
    start = rng.randrange(len(data))
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = _fault(rng, data, rng.randrange(start, max(start + 1, len(data))))
    return data


def _fault(rng: Random, data: bytes, at: int) -> bytes:
    end = at + rng.choice((1, 2, 10, rng.randrange(1, 200)))
    before, stretch, after = data[:at], data[at:end], data[end:]
    match rng.randrange(8):
        case 0:  # flip a bit
            return before + bytes(byte ^ 1 << rng.randrange(8) for byte in stretch[:1]) + stretch[1:] + after
        case 1:  # delete
            return before + after
        case 2:  # insert
            return before + rng.choice(_PIECES) + stretch + after
        case 3:  # cut off
            return before
        case 4:  # repeat
            return before + stretch * 2 + after
        case 5:  # exchange
            other = after[: len(stretch)]
            return before + other + stretch + after[len(other) :]
        case 6:  # overwrite with what cannot be foreseen
            return before + rng.randbytes(rng.randrange(1, 20)) + after
        case _:  # overwrite with what stands elsewhere
            begin = rng.randrange(len(data))
            return before + data[begin : begin + len(stretch)] + after


# Reading


def try_file(connection: duckdb.DuckDBPyConnection, name: str, number: int, folder: Path, tally: Tally) -> list[str]:
    """Damage a file and read it; returns what is wrong with that."""
    kind = FORMATS[name]
    rng = Random(f"{name} {number}")
    good = pairs(rng, kind.records)
    parts = kind.write(good)
    whole = kind.pack(parts)
    damaged = damage(rng, whole)
    path = folder / f"{name}{kind.ending}"
    path.write_bytes(damaged)
    source = Source.model_validate({"name": "fuzz", "files": "*", **kind.source})

    began = time.process_time()
    try:
        found, rows, problems = _read(connection, source, path)
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return [traceback.format_exc()]
    seconds = time.process_time() - began
    tally.files += 1
    tally.rows += rows
    tally.problems += problems
    if seconds > tally.slowest:
        tally.slowest, tally.slowest_file = seconds, number

    faults = [f"took {seconds:.1f} s"] if seconds > SECONDS else []
    if rows + problems == 0 and damaged.strip():
        faults.append("neither a row nor a problem")
    lines = _lines_of(damaged) if name in ("jsonl", "text") else None
    if lines is not None and rows + problems != lines:
        faults.append(f"{lines} lines, but {rows} rows and {problems} problems")
    intact = kind.unpacked(whole, _common(whole, damaged), damaged)
    if not _is_another_encoding(damaged, kind):
        required = [pair for pair, end in zip(_read_as(kind, good), _ends(parts), strict=False) if end <= intact]
        tally.required += len(required)
        lost = [pair for pair in required if pair not in found]
        faults += [f"lost {len(lost)} of {len(required)} good records, such as {lost[0]}"] if lost else []
    return faults


def _read(connection: duckdb.DuckDBPyConnection, source: Source, path: Path) -> tuple[set[Pair], int, int]:
    """Pairs, and how many rows and problems there were, as ingest has them."""
    found: set[Pair] = set()
    rows = rejected = 0
    for problems in readers.read(connection, source, [Stretch(file.path) for file in list_files([str(path)])]):
        try:
            projected = project(connection, source)
            kept, bad = projected.pairs, projected.problems
        except (duckdb.Error, readers.SourceError, UnicodeDecodeError) as error:
            kept, bad = pl.DataFrame({"query": [], "positive": []}), unfit(connection, source, error)
        found.update(kept.select("query", "positive").iter_rows())
        rows += kept.height
        rejected += problems.height + bad.height
        assert problems["reason"].null_count() == problems["file"].null_count() == 0
    return found, rows, rejected


def _common(one: bytes, other: bytes) -> int:
    """How many bytes two files begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _ends(parts: list[bytes]) -> Iterator[int]:
    """Where each record ends; none, where a file is read whole or not at all."""
    end = len(parts[0])
    for part in parts[1:-1]:
        end += len(part)
        yield end


def _read_as(kind: Format, good: list[Pair]) -> list[Pair]:
    if kind.source["read"] == "csv":
        return [(query, positive.replace(" ", '"').replace("a", ",\n")) for query, positive in good]
    if kind.source["read"] == "warc":
        return [(query, " ".join((positive * 4).split())) for query, positive in good]
    return good


def _is_another_encoding(damaged: bytes, kind: Format) -> bool:
    """Whether so much of a file can't be decoded that it is taken for one in another encoding."""
    if kind.pack != b"".join or kind.source["read"] in ("hf", "warc"):
        return False
    text = damaged.decode(kind.source.get("encoding", "utf-8"), "replace")
    foreign = sum(character > "\x7f" for character in text)
    return text.count("\ufffd") > 0.1 * foreign or damaged.startswith((b"\xff\xfe", b"\xfe\xff")) != (
        kind.source.get("encoding") == "utf-16"
    )


_WHITE = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def _lines_of(damaged: bytes) -> int | None:
    """Lines of UTF-8 that hold something; none, where it can't be said."""
    text = damaged.decode("utf-8", "replace")
    if damaged.startswith((b"\xff\xfe", b"\xfe\xff")) or ("\n" not in text and "\r" in text):
        return None
    return sum(line.removeprefix("\ufeff").strip(_WHITE) != "" for line in text.split("\n"))


def fuzz(name: str, numbers: range, told: Callable[[int, str], None]) -> Tally:
    """Try the files of a format with these numbers; `told` is called with each fault."""
    tally = Tally()
    with readers.sandbox() as connection, tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            for fault in try_file(connection, name, number, Path(folder), tally):
                told(number, fault)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--format", action="append", choices=FORMATS)
    arguments = parser.parse_args()
    faulthandler.enable()
    failed = 0
    for name in arguments.format or FORMATS:
        faults: list[int] = []

        def told(number: int, fault: str, name: str = name, faults: list[int] = faults) -> None:
            faults.append(number)
            if len(faults) <= 10:
                print(f"{name} {number}: {fault}", flush=True)

        began = time.process_time()
        tally = fuzz(name, range(arguments.first, arguments.first + arguments.files), told)
        failed += len(faults)
        print(
            f"{name}: {tally.files} files, {len(faults)} faults; {tally.rows} rows, {tally.problems} problems, "
            f"{tally.required} good records before the damage; {time.process_time() - began:.0f} s, "
            f"slowest {tally.slowest:.2f} s (file {tally.slowest_file})",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
