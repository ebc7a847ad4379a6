"""Tables in files: written once, as their rows stream, then mapped by every rank of a machine, which share the pages.

A file is Arrow IPC, uncompressed, in batches of ROWS rows: so the batch of a row is known, and a row is read where it
lies. Where records have a source, a file beside theirs has their rows sorted by it, mapped too, and another its name.
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
    """Columns of a file that `write_records` wrote, no row of them in memory. May be read by several threads.

    Those without `leave_out`: each column takes its time, also where it is not looked at.
    """

    def __init__(self, file: Path, leave_out: Collection[str] = ()) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self._columns = [name for name in self._reader.schema.names if name not in leave_out]
        self._schema = pa.schema([self._reader.schema.field(name) for name in self._columns])

    def __len__(self) -> int:
        whole = self._reader.num_record_batches - 1
        return 0 if whole < 0 else whole * ROWS + len(self._batch(whole))

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """All rows in batches; of a batch, what is looked at is read."""
        return (self._batch(number) for number in range(self._reader.num_record_batches))

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """The records of these rows, in their order, copied; a row may come twice."""
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
    """Write the columns of `schema` as they come."""
    with file.open("wb") as sink:
        with pa.ipc.new_file(sink, schema) as writer:
            for table in _of_whole_batches(batches, schema):
                writer.write_table(table)
        sink.flush()
        os.fsync(sink.fileno())


def write_sources(file: Path) -> None:
    """Sort the rows of a file with `source` and `category` by source: a counting sort, a batch at a time."""
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
        filled = np.cumsum(counts, dtype=np.int64) - counts  # up to where each source's stretch is written
        for number, batch in enumerate(records):
            source = pc.index_in(batch["source"], pa.array(names, pa.large_string())).to_numpy()
            order, own = np.argsort(source, kind="stable"), np.bincount(source, minlength=len(names))
            starts = np.cumsum(own) - own
            rows[np.repeat(filled - starts, own) + np.arange(len(batch))] = number * ROWS + order
            filled += own
        os.fsync(sorted_rows.fileno())


def read_sources(file: Path) -> Sources:
    """What `write_sources` found in a file; the rows are mapped, not read."""
    known = json.loads(file.with_suffix(".json").read_text("utf-8"))
    rows = file.with_suffix(".rows")
    return Sources(**known, rows=np.memmap(rows, np.int64, "r") if known["sizes"] else np.zeros(0, np.int64))


def _of_whole_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of one chunk and ROWS rows; the last may have fewer."""
    waiting = schema.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).select(schema.names).cast(schema)])
        while len(waiting) >= ROWS:
            yield waiting[:ROWS].combine_chunks()
            waiting = waiting[ROWS:]
    if len(waiting):
        yield waiting.combine_chunks()


def build_once(folder: Path, make: Callable[[Path], None], rank: int) -> None:
    """Have rank 0 make a folder, whole or not at all, unless it is there; the other ranks wait for it.

    They look for it rather than meet at a barrier, which would give up on them where the data is large.
    """
    if rank == 0 and not folder.exists():
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        make(temporary)
        commit(temporary, folder)
    while not folder.exists():
        time.sleep(0.1)
