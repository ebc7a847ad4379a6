"""Tables in memory-mapped files: written once as a stream, then mapped by all ranks of a machine, which share pages.

A file is uncompressed Arrow IPC in batches of ROWS rows, so the batch of a row follows from its number and the row is
read in place. For records with a source, `write_sources` adds two files: NAME.rows, the row numbers sorted by source
(mapped too), and NAME.json, the sources' names, categories and sizes.
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...pipeline.corpus.atomic import commit
from .mixing import Sources

ROWS = 4096


class MappedTable:
    """The columns of a file that `write_records` wrote, none of it held in memory. Several threads may read it.

    Columns in `leave_out` are not read: reading a row takes time for each column, even if its values are not used.
    """

    def __init__(self, file: Path, leave_out: Collection[str] = ()) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self._columns = [name for name in self._reader.schema.names if name not in leave_out]
        self._schema = pa.schema([self._reader.schema.field(name) for name in self._columns])

    def __len__(self) -> int:
        whole = self._reader.num_record_batches - 1
        return 0 if whole < 0 else whole * ROWS + len(self._batch(whole))

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows in batches. Only the values that the caller uses are read from the file."""
        return (self._batch(number) for number in range(self._reader.num_record_batches))

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Copy the given rows into a table, in the given order; a row may be given more than once."""
        order = np.argsort(rows, kind="stable")
        batches, places = np.divmod(rows[order], ROWS)
        numbers, starts = np.unique(batches, return_index=True)
        taken = [
            self._batch(number).take(pa.array(own))
            for number, own in zip(numbers.tolist(), np.split(places, starts[1:]), strict=len(rows) > 0)
        ]
        return pa.Table.from_batches(taken, self._schema).take(pa.array(np.argsort(order)))

    def _batch(self, number: int) -> pa.RecordBatch:
        return self._reader.get_batch(number).select(self._columns)


def write_records(file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write the columns of `schema` to a file, batch by batch."""
    with file.open("wb") as sink:
        with pa.ipc.new_file(sink, schema) as writer:
            for table in _of_whole_batches(batches, schema):
                writer.write_table(table)
        sink.flush()
        os.fsync(sink.fileno())


def write_sources(file: Path) -> None:
    """Sort the rows of a file by source (a counting sort, one batch at a time) and write NAME.rows and NAME.json.

    The file must have the columns `source` and `category`. A source with several categories gets the first by name.
    """
    records = MappedTable(file)
    sizes: Counter[str] = Counter()
    categories: dict[str, str] = {}
    for batch in records:
        groups = pa.Table.from_batches([batch]).group_by(["source", "category"]).aggregate([([], "count_all")])
        for source, category, size in zip(*(column.to_pylist() for column in groups.columns), strict=True):
            sizes[source] += size
            categories[source] = min(category, categories.get(source, category))
    names = sorted(sizes)
    counts = [sizes[name] for name in names]
    known = {"names": names, "categories": [categories[name] for name in names], "sizes": counts}
    file.with_suffix(".json").write_text(json.dumps(known, ensure_ascii=False), "utf-8")

    with file.with_suffix(".rows").open("wb+") as sorted_rows:
        sorted_rows.truncate(8 * len(records))
        rows = np.memmap(sorted_rows, np.int64) if len(records) else np.zeros(0, np.int64)
        filled = np.cumsum(counts, dtype=np.int64) - counts  # where each source's next row number is written
        for number, batch in enumerate(records):
            source = pc.index_in(batch["source"], pa.array(names, pa.large_string())).to_numpy()
            order, own = np.argsort(source, kind="stable"), np.bincount(source, minlength=len(names))
            starts = np.cumsum(own) - own
            rows[np.repeat(filled - starts, own) + np.arange(len(batch))] = number * ROWS + order
            filled += own
        os.fsync(sorted_rows.fileno())


def read_sources(file: Path) -> Sources:
    """Open what `write_sources` wrote for a file; the row numbers are mapped, not read."""
    known = json.loads(file.with_suffix(".json").read_text("utf-8"))
    rows = file.with_suffix(".rows")
    return Sources(**known, rows=np.memmap(rows, np.int64, "r") if known["sizes"] else np.zeros(0, np.int64))


def _of_whole_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the same rows as tables of a single chunk with ROWS rows; the last may have fewer."""
    waiting = schema.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).select(schema.names).cast(schema)])
        while len(waiting) >= ROWS:
            yield waiting[:ROWS].combine_chunks()
            waiting = waiting[ROWS:]
    if len(waiting):
        yield waiting.combine_chunks()


def build_once(folder: Path, make: Callable[[Path], None], rank: int) -> None:
    """Have rank 0 build a folder atomically, unless it exists; the other ranks wait until it does.

    They poll instead of waiting at a barrier, which would time out while a large folder is built.
    """
    if rank == 0 and not folder.exists():
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        make(temporary)
        commit(temporary, folder)
    while not folder.exists():
        time.sleep(0.1)
