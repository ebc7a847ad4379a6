"""Read files with random damage: no reader crashes, hangs, or loses a good record that precedes the damage.

    python tests/pipeline/ingest/fuzz_readers.py --files 10000 --format jsonl --format csv

tries that many files of each format named (by default, of all), and exits with 1 if one fails. A file depends only on
its format and number, so `--first NUMBER --files 1` makes the same one again.
"""

import argparse
import faulthandler
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import duckdb
import polars as pl
from conan_embedding.pipeline.ingest import readers
from conan_embedding.pipeline.ingest.columns import decide_columns
from conan_embedding.pipeline.ingest.files import FileSplit
from conan_embedding.pipeline.ingest.listing import list_files
from conan_embedding.pipeline.ingest.projector import Projector
from conan_embedding.schemas.source_settings import Source
from fuzz_formats import FORMATS, Format, Pair, pairs

SECONDS = 10.0
"""Processor time that one file may take."""


@dataclass
class Tally:
    """The results of reading the files of a format."""

    files: int = 0
    rows: int = 0
    problems: int = 0
    slowest: float = 0.0
    slowest_file: int = 0
    required: int = 0
    """Good records before the damage."""


# Damage

_PIECES = (
    *(b'"', b"'", b"[", b"]", b"{", b"}", b",", b":", b"\t", b"\\", b"\\u", b"\\ud83d", b"\0", b"\n", b"\r", b"\r\n"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff", b"\xe4\xbd", b"\xed\xa0\x80", b"null", b"1e999", b"-", b"#"),
    *(b"[" * 300, b'{"a":' * 300, b'"' * 9, b"\n" * 9, b"\0" * 9),
)


def damage(rng: Random, data: bytes) -> bytes:
    """Return the data with one to three faults."""
    start = rng.randrange(len(data))
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = _fault(rng, data, rng.randrange(start, max(start + 1, len(data))))
    return data


def _fault(rng: Random, data: bytes, at: int) -> bytes:
    end = at + rng.choice((1, 2, 10, rng.randrange(1, 200)))
    before, split, after = data[:at], data[at:end], data[end:]
    match rng.randrange(8):
        case 0:  # flip a bit
            return before + bytes(byte ^ 1 << rng.randrange(8) for byte in split[:1]) + split[1:] + after
        case 1:  # delete
            return before + after
        case 2:  # insert
            return before + rng.choice(_PIECES) + split + after
        case 3:  # cut off
            return before
        case 4:  # repeat
            return before + split * 2 + after
        case 5:  # exchange
            other = after[: len(split)]
            return before + other + split + after[len(other) :]
        case 6:  # overwrite with random bytes
            return before + rng.randbytes(rng.randrange(1, 20)) + after
        case _:  # overwrite with bytes from elsewhere
            begin = rng.randrange(len(data))
            return before + data[begin : begin + len(split)] + after


# Reading


def try_file(connection: duckdb.DuckDBPyConnection, name: str, number: int, folder: Path, tally: Tally) -> list[str]:
    """Damage a file and read it; return what went wrong."""
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
    except BaseException as error:  # a panic in Rust is not an Exception
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
    lines = _lines_of(damaged) if name == "text" else None  # a line of JSON may hold several records, or a part of one
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
    """Return the pairs, and the numbers of rows and problems, as ingest would get them."""
    found: set[Pair] = set()
    rows = rejected = 0
    splits = [FileSplit(file.path) for file in list_files([str(path)]).files]
    source = decide_columns(source, splits).source
    with Projector(source) as projector:
        for frame, unread in readers.read_batches(connection, source, splits):
            projected = projector.project(frame)
            if projected.pairs.height:
                found.update(projected.pairs.select("query", "positive").iter_rows())
            rows += projected.pairs.height
            problems = pl.concat([unread, projected.problems])
            rejected += problems.height
            assert problems["reason"].null_count() == problems["file"].null_count() == 0
    return found, rows, rejected


def _common(one: bytes, other: bytes) -> int:
    """Return the length of the beginning that two files share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _ends(parts: list[bytes]) -> Iterator[int]:
    """Yield where each record ends; nothing for files that are read whole or not at all."""
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
    """Whether so much of a file is undecodable that it is mistaken for another encoding."""
    if kind.pack != b"".join or kind.source["read"] in ("hf", "warc"):
        return False
    text = damaged.decode(kind.source.get("encoding", "utf-8"), "replace")
    foreign = sum(character > "\x7f" for character in text)
    return text.count("\ufffd") > 0.1 * foreign or damaged.startswith((b"\xff\xfe", b"\xfe\xff")) != (
        kind.source.get("encoding") == "utf-16"
    )


_WHITE = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def _lines_of(damaged: bytes) -> int | None:
    """Count the lines of UTF-8 that are not blank; None if that can't be known."""
    text = damaged.decode("utf-8", "replace")
    if damaged.startswith((b"\xff\xfe", b"\xfe\xff")) or ("\n" not in text and "\r" in text):
        return None
    return sum(line.removeprefix("\ufeff").strip(_WHITE) != "" for line in text.split("\n"))


def fuzz(name: str, numbers: range, report: Callable[[int, str], None]) -> Tally:
    """Try the files with these numbers of a format, and call `report` with each fault."""
    tally = Tally()
    with readers.open_sandbox() as connection, tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            for fault in try_file(connection, name, number, Path(folder), tally):
                report(number, fault)
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

        def report(number: int, fault: str, name: str = name, faults: list[int] = faults) -> None:
            faults.append(number)
            if len(faults) <= 10:
                print(f"{name} {number}: {fault}", flush=True)

        began = time.process_time()
        tally = fuzz(name, range(arguments.first, arguments.first + arguments.files), report)
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
