"""A plugin: a module outside the package with a reader of lines `question=>answer`, and a recipe that names it."""

import os
from pathlib import Path

import polars as pl
from conan_embedding.pipeline.corpus import folder as folders

MODULE = """\
import os
from collections.abc import Iterator

import duckdb
import polars as pl
from conan_embedding.pipeline.ingest.files import FileSplit
from conan_embedding.pipeline.ingest.problems import Frames, fitting
from conan_embedding.pipeline.ingest.readers import READERS, Reader
from conan_embedding.pipeline.ingest.records import lines
from conan_embedding.pipeline.ingest.text_encodings import read_blocks
from conan_embedding.pipeline.ingest.text_reader import split_lines
from conan_embedding.schemas.source_settings import Source


def read_arrows(split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection) -> Iterator[Frames]:
    for frame in lines(read_blocks(split, source.encoding), split.name):
        good, bad = fitting(frame)
        question, answer = (pl.col("text").str.split("=>").list.get(side, null_on_oob=True) for side in (0, 1))
        yield good.select("_file", "_line", question=question, answer=answer, process=os.getpid()), bad


READERS.register("arrows", Reader(read_arrows, split=split_lines))
"""

PAIRS = [("长城有多长", "一万里"), ("感冒怎么办", "多喝水")]


def write_plugin(folder: Path) -> None:
    """Write the module `arrow_readers`."""
    (folder / "arrow_readers.py").write_text(MODULE, "utf-8")


def write_plugin_recipe(folder: Path, section: str = "sources") -> Path:
    """Write a recipe with a source for each of PAIRS; each file also has a line without an answer."""
    lines = ["plugins: [arrow_readers]", f"{section}:"]
    for number, (question, answer) in enumerate(PAIRS):
        (folder / f"{number}.txt").write_text(f"{question}=>{answer}\n\n没有回答\n", "utf-8")
        lines += [f"  - name: s{number}", f"    files: {folder}/{number}.txt", "    read: arrows"]
        lines += ["    query: question", "    positive: answer", "    meta: \"{'process': process}\""]
    (folder / "recipe.yaml").write_text("\n".join(lines), "utf-8")
    return folder / "recipe.yaml"


def read_corpus(corpus: Path) -> tuple[list[tuple[str, str]], list[tuple[int, str]], set[int]]:
    """Return the pairs in such a recipe's corpus, the rejected lines with reasons, and the reading processes."""
    shards = folders.shards(corpus, "ingest")
    pairs = pl.concat(pl.read_parquet(shard) for shard in shards)
    rejects = pl.concat(pl.read_parquet(folders.rejects(shard)) for shard in shards)
    processes = pairs["meta"].str.json_path_match("$.process").cast(pl.Int64)
    return pairs.select("query", "positive").rows(), rejects.select("line", "reason").rows(), set(processes)


def python_path(*folders: Path) -> dict[str, str]:
    """Return the environment for a process that also imports modules from these folders."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])}
