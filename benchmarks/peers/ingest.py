"""The readers that benchmarks/ingest.py compares `conan ingest` with. Runs without Conan, in their environment.

Run by benchmarks/ingest.py as `python ingest.py TOOL FILE FOLDER PROCESSES`; writes the pairs below FOLDER and prints
their number. Each gives query, positive and meta of FILE's records, and checks nothing else.
"""

import sys
from pathlib import Path
from typing import Any


def duckdb(file: str, folder: Path, processes: int) -> int:
    """Copy JSON to Parquet by SQL, with as many threads as the others have processes."""
    import duckdb

    connection = duckdb.connect(config={"threads": processes})
    records = f"read_json('{file}', format = 'newline_delimited')"
    select = f"SELECT title AS query, text AS positive, to_json({{'url': url}}) AS meta FROM {records}"
    connection.execute(f"COPY ({select}) TO '{folder}/pairs.parquet' (FORMAT parquet, COMPRESSION zstd)")
    return int(connection.execute(f"SELECT count(*) FROM '{folder}/pairs.parquet'").fetchone()[0])


def _make_pairs(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
    return {
        "query": batch["title"],
        "positive": batch["text"],
        "meta": [{"url": url} for url in batch["url"]],
    }


def datasets(file: str, folder: Path, processes: int) -> int:
    """Load the file, which becomes Arrow in the cache, then map it in batches, which writes Arrow again."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    loaded = load_dataset("json", data_files=file, split="train", cache_dir=str(folder))
    return len(loaded.map(_make_pairs, batched=True, remove_columns=["title", "text", "url"], num_proc=processes))


def datatrove(file: str, folder: Path, processes: int) -> int:
    """Read documents and write them as Parquet in zstd; a task reads whole files, so one file takes one process."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import ParquetWriter

    path = Path(file)
    reader = JsonlReader(str(path.parent), glob_pattern=path.name, text_key="text", compression=None)
    writer = ParquetWriter(str(folder / "pairs"), compression="zstd")
    stats = LocalPipelineExecutor([reader, writer], logging_dir=str(folder / "logs")).run()
    return int(stats.stats[0].stats["documents"].total)


TOOLS = {"duckdb": duckdb, "datasets": datasets, "datatrove": datatrove}

if __name__ == "__main__":
    print(TOOLS[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
