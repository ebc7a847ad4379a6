"""The corpus folder: shards that are their own manifest, committed whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...schemas.footer import FOOTER_KEY, Footer
from ...schemas.recipe import Recipe, RecipeError, dump, load

ROW_GROUP = 65_536
"""Rows of a row group at most (DESIGN §3)."""
GROUP_BYTES = 32 << 20
"""Ours: bytes of text with which a row group is full, however few its rows: stages hold a group in memory."""

STAGES = ("ingest", "filter", "dedup", "score", "convert")
FOLDERS = ("ingest", "filter", "dedup", "score", "convert/pretrain", "convert/retrieval", "convert/sts")
"""Where shards lie, in the order of the work."""

_INCOMPLETE = ".incomplete"
_PART = re.compile(r"part-\d+\.parquet")


class CorpusError(RuntimeError):
    """A corpus that can't be worked on as asked: says why and what to do."""


def shards(corpus: Path, folder: str) -> list[Path]:
    """The shards of a finished stage, in order.

    Raises:
        CorpusError: the stage was not run, or was interrupted.
    """
    check_place(corpus)
    stage = "ingest" if folder == "evaluation" else folder.partition("/")[0]
    if (corpus / folder / _INCOMPLETE).exists():
        raise CorpusError(f"{corpus / folder}: `conan {stage}` was interrupted; run it again first")
    found = committed(corpus, folder)
    if not found and folder.startswith("convert/") and (corpus / folder).is_dir():
        raise CorpusError(
            f"{corpus / folder}: no pair became such a record, as the tasks of the sources say; train or mine on "
            "others, as with `mine: {queries: [pretrain], passages: [pretrain]}`"
        )
    if not found:
        raise CorpusError(f"{corpus / folder}: no shards; run `conan {stage} {corpus}` first")
    return found


def committed(corpus: Path, folder: str) -> list[Path]:
    """The shards that are there, whether or not their stage is finished."""
    return _parts(corpus / folder)


def _parts(folder: Path) -> list[Path]:
    """Shards or rejects; not what a synchronising program has made of one, `part-00000 (conflicted copy).parquet`."""
    return sorted(file for file in folder.glob("part-*.parquet") if _PART.fullmatch(file.name))


def check_place(corpus: Path) -> None:
    """Raise CorpusError where a corpus lies in a folder whose name DuckDB and Polars take for a pattern."""
    if found := sorted(set("*?[") & set(str(corpus.resolve()))):
        raise CorpusError(f"{corpus.resolve()}: a corpus can't lie below a folder with {found[0]} in its name; move it")


def is_begun(corpus: Path, folder: str) -> bool:
    """Whether a stage has left shards there, or the mark of one that was interrupted."""
    return bool(committed(corpus, folder)) or (corpus / folder / _INCOMPLETE).exists()


def rejects(shard: Path) -> Path:
    """Where the rejects of a shard lie."""
    return shard.parent / "rejected" / shard.name


def read_footer(shard: Path) -> Footer:
    """A shard's own manifest. Raises CorpusError where the file is none of ours."""
    try:
        metadata = pq.read_metadata(shard).metadata or {}
        return Footer.model_validate_json(metadata[FOOTER_KEY])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise CorpusError(f"{shard}: not a shard of Conan ({error}); remove it and run the stage again") from error


def fingerprint(*parts: Any) -> str:
    """A 128-bit hash (hex) of anything JSON can say, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


class _HashingFile:
    """A file that hashes what is written, so that a shard's content is known when it is whole."""

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = path.open("wb")
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        self.file.flush()

    @property
    def closed(self) -> bool:
        return self.file.closed

    def close(self) -> None:
        """Parquet closes its sink; the writer below still has to fsync it."""


class _ParquetFile:
    """One Parquet file under a temporary name, in full row groups; `commit` gives it its own."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str = "zstd") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.schema = path, schema
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.sink = _HashingFile(self.temporary)
        self.writer = pq.ParquetWriter(self.sink, schema, compression=compression, use_dictionary=compression != "none")
        self.pending: list[pa.Table] = []
        self.sizes = np.zeros(0, np.int64)  # bytes of each pending row

    def write(self, table: pa.Table) -> None:
        table = table.select(self.schema.names).cast(self.schema)
        self.pending.append(table)
        self.sizes = np.concatenate([self.sizes, _row_bytes(table)])
        while rows := self._full_group():
            self._write_group(rows)

    def _full_group(self) -> int:
        """How many pending rows make a full group; 0 where they make none."""
        rows = min(ROW_GROUP, int(np.searchsorted(np.cumsum(self.sizes), GROUP_BYTES)) + 1)
        return rows if rows <= len(self.sizes) else 0

    def _write_group(self, rows: int) -> None:
        whole = pa.concat_tables(self.pending)
        # One chunk and one dictionary for each group, so that equal rows are equal bytes however they arrived.
        group = _with_fresh_dictionaries(whole.slice(0, rows).combine_chunks())
        self.writer.write_table(group, row_group_size=ROW_GROUP)
        self.pending, self.sizes = [whole.slice(rows)], self.sizes[rows:]

    def close(self, footer: Footer | None) -> None:
        """Write what is pending, the footer (its content hash filled in), and make the file durable."""
        if len(self.sizes):
            self._write_group(len(self.sizes))
        if footer is not None:
            footer = footer.model_copy(update={"content": self.sink.hash.hexdigest()})
            self.writer.add_key_value_metadata({FOOTER_KEY: footer.model_dump_json().encode()})
        self.writer.close()
        self.sink.file.flush()
        os.fsync(self.sink.file.fileno())
        self.sink.file.close()

    def commit(self) -> None:
        commit(self.temporary, self.path)

    def discard(self) -> None:
        """Leave nothing behind, on a full disk too; after `commit` there is nothing to leave."""
        self.temporary.unlink(missing_ok=True)
        # Closed in any case: a disk has its room back when nobody holds the file.
        with suppress(OSError):
            if self.writer.is_open:
                self.writer.close()
        with suppress(OSError):
            self.sink.file.close()


def commit(temporary: Path, path: Path) -> None:
    """Give a whole, fsynced file or folder its name: after this it is there, before it is not."""
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _row_bytes(table: pa.Table) -> npt.NDArray[np.int64]:
    """Bytes of text in each row, int64 [rows]."""
    sizes = np.zeros(table.num_rows, np.int64)
    for column in table.itercolumns():
        if pa.types.is_string(column.type):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy()
        elif pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
            texts = pc.fill_null(pc.binary_length(pc.list_flatten(column)), 0).to_numpy()
            rows = pc.list_parent_indices(column).to_numpy()
            sizes += np.bincount(rows, weights=texts, minlength=table.num_rows).astype(np.int64)
    return sizes


def _with_fresh_dictionaries(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(index).cast(field.type.value_type).combine_chunks().dictionary_encode()
            table = table.set_column(index, field, column.cast(field.type))
    return table


class ShardWriter:
    """Writes a shard and its rejects (none, where their schema is None); both appear when the block ends well, neither
    when it raises.

    The rejects are committed first: the shard is the sign that both are there. Raises ValueError (and commits
    nothing) unless rows in = rows out + rejected.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        rejected: pa.Schema | None,
        *,
        stage: str,
        version: int,
        fingerprint: str,
        compression: str = "zstd",
    ) -> None:
        self.stage, self.version, self.fingerprint = stage, version, fingerprint
        self.started = time.monotonic()
        self.rows_in = 0
        self.rows_out = 0
        self.reasons: Counter[str] = Counter()
        self.notes: dict[str, Any] = {}
        self._out = _ParquetFile(path, schema, compression)
        try:
            self._rejected = None if rejected is None else _ParquetFile(rejects(path), rejected)
        except OSError:  # no room for one more file
            self._out.discard()
            raise

    def received(self, rows: int) -> None:
        """Count rows that came in."""
        self.rows_in += rows

    def keep(self, table: pa.Table, rows: int | None = None) -> None:
        """Write rows out; `rows` is how many that came in they stand for, where it is another number."""
        self._out.write(table)
        self.rows_out += table.num_rows if rows is None else rows

    def reject(self, table: pa.Table) -> None:
        """Write rows with `reason` and `detail`."""
        assert self._rejected is not None, f"{self.stage} has no rejects"
        self._rejected.write(table)
        counts = table.column("reason").value_counts().to_pylist()
        self.reasons.update({count["values"]: count["counts"] for count in counts})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                footer = Footer(
                    stage=self.stage,
                    version=self.version,
                    fingerprint=self.fingerprint,
                    content="",
                    rows_in=self.rows_in,
                    rows_out=self.rows_out,
                    rejected=dict(sorted(self.reasons.items())),
                    seconds=round(time.monotonic() - self.started, 3),
                    notes=self.notes,
                )
                footer.check()
                if self._rejected:
                    self._rejected.close(None)
                self._out.close(footer)
                # So that at no moment a shard of before stands beside the rejects of this one.
                self._out.path.unlink(missing_ok=True)
                if self._rejected:
                    self._rejected.commit()
                self._out.commit()
        finally:
            if self._rejected:
                self._rejected.discard()
            self._out.discard()


def read_batches(shard: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a shard, one at a time."""
    with pq.ParquetFile(shard) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)


def begin(corpus: Path, folder: str) -> None:
    """Mark a stage's folder as being written and clear what a killed run left half-written."""
    check_place(corpus)
    place = corpus / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / _INCOMPLETE).touch()
    _clear_temporaries(place)
    _clear_temporaries(place / "rejected")


def finish(corpus: Path, folder: str, keep: set[str]) -> None:
    """Remove shards of an earlier shape and what killed workers left, then the mark: the folder is whole now."""
    _clear_temporaries(corpus / folder)
    _clear_temporaries(corpus / folder / "rejected")
    for shard in [*committed(corpus, folder), *_parts(corpus / folder / "rejected")]:
        if shard.name not in keep:
            shard.unlink()
    (corpus / folder / _INCOMPLETE).unlink(missing_ok=True)


def _clear_temporaries(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of a file; where DuckDB had no memory left, that is a folder, too."""
    for leftover in folder.glob(f".{name}.*.tmp*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def save_recipe(corpus: Path, recipe: Recipe) -> None:
    """Keep the recipe in the corpus, defaults filled in."""
    corpus.mkdir(parents=True, exist_ok=True)
    write_text(corpus / "recipe.yaml", dump(recipe))


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under, which gets its own when the block ends well; nothing stays when it raises.

    What killed runs left goes, too: one process at a time may replace a file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _clear_temporaries(path.parent, path.name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        commit(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        _clear_temporaries(path.parent, path.name)


def load_recipe(corpus: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe kept in a corpus."""
    path = corpus / "recipe.yaml"
    if not path.exists():
        raise RecipeError(f"{corpus}: no recipe.yaml here; run `conan ingest {corpus} --recipe FILE` first")
    return load(path, overrides)


def keep_settings(corpus: Path, overrides: Sequence[str]) -> None:
    """Make overrides part of the recipe that a corpus keeps, if it keeps one."""
    if overrides and (corpus / "recipe.yaml").exists():
        save_recipe(corpus, load_recipe(corpus, overrides))
