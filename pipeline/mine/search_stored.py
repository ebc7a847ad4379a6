"""Search among stored vectors, on this machine or, block by block, on the nodes of a cluster.

A node writes the keys of the best passages of a block for all queries to a file; the process that started the search
merges the files as they come. Vectors, rules and keys lie in files that all share, and are mapped piece by piece.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..corpus.atomic import clear_temporaries, replacing
from ..encoder.vector_cache import StoredVectors
from ..engine.calls import Call, Engine
from ..engine.stage import StageError, run_calls
from .search import (
    FLAT_LIMIT,
    NONE,
    PASSAGES,
    QUERIES,
    Best,
    Integers,
    Rows,
    Rules,
    block_edges,
    blocks_of,
    default_index,
    find_keys,
    map_keys,
    rank,
    search,
)

COMPARED = 65_536
"""Chosen here: passages that a call compares with all queries. At width 1024, a core takes some 3 ms for each query, of
which 8 × `top_k` bytes come back."""


def search_stored(
    corpus: Path,
    queries: StoredVectors,
    passages: StoredVectors,
    rules: Rules,
    top_k: int,
    engine: Engine,
    name: str,
    *,
    index: str | None = None,
    block: int = FLAT_LIMIT,
) -> Iterator[Best]:
    """Do what `search` does, on the engine's cluster if it has one; `name` is that of the progress.

    A node without a GPU searches one block at a time with all its cores, a node with GPUs one on each. The best are the
    same as on one machine, whatever the number of nodes.

    Raises:
        ClusterError: the engine's Ray cluster can't be used.
        StageError: a block could not be searched.
    """

    def progress(done: int, total: int) -> None:
        engine.progress(name, done, total, len(queries) * done // total)

    if engine.address is None:
        yield from search(
            queries.take, passages.take, rules, top_k, index, block=block, folder=corpus, progress=progress
        )
        return
    with _work_folder(corpus) as work:
        arrays = _save(work, queries, passages, rules)
        calls: list[Call] = []
        for start, end in divide_passages(len(passages), index, block):
            keys, used = work / f"keys-{start}", set(passages.places[start:end].tolist())
            of_block = [each if number in used else Path() for number, each in enumerate(passages.files)]
            calls.append((str(keys), (keys, arrays, queries.files, of_block, top_k, index, (start, end), block)))

        def found() -> Iterator[Path]:
            outcomes = run_calls(search_block, calls, replace(engine, one_a_device=True))
            for done, (file, error) in enumerate(outcomes, start=1):
                if error or not Path(file).exists():
                    raise StageError(f"{file}: {error or 'written on a node that does not share this folder'}")
                yield Path(file)
                progress(done, len(calls))

        yield from merge_keys(work / "best", found(), len(queries), top_k)


def search_block(
    file: Path,
    arrays: dict[str, Path],
    query_files: list[Path],
    passage_files: list[Path],
    top_k: int,
    index: str | None,
    edges: Sequence[int],
    block: int,
) -> None:
    """Search the passages between two edges for all queries; write the keys of the best to a file in the work folder.

    `arrays` are the files that `_save` has written. In `passage_files`, those that have none of these are left out.
    """
    queries, passages = (
        StoredVectors(files, *(_load(arrays[f"{side}_{name}"]) for name in ("places", "rows")))
        for side, files in (("query", query_files), ("passage", passage_files))
    )
    rules = Rules(*(_load(arrays[name]) for name in Rules._fields))
    write_keys(file, queries.take, passages.take, rules, top_k, index, edges, block)


def write_keys(
    file: Path,
    queries: Rows,
    passages: Rows,
    rules: Rules,
    top_k: int,
    index: str | None,
    edges: Sequence[int],
    block: int = FLAT_LIMIT,
) -> None:
    """Search the passages between two edges for all queries; write the keys of the best, int64 [queries, top_k]."""
    with replacing(file) as temporary, temporary.open("wb") as written:
        for keys in find_keys(queries, passages, rules, top_k, index, edges, block, file.parent):
            keys.tofile(written)


def merge_keys(best: Path, files: Iterable[Path], queries: int, top_k: int) -> Iterator[Best]:
    """Yield the best of all parts of the passages, QUERIES queries at a time.

    `files` are those of `write_keys`; each is deleted once it has been merged into the file `best`.
    """
    with best.open("wb") as file:
        file.truncate(8 * queries * top_k)
    for asked in blocks_of(0, queries, QUERIES):
        map_keys(best, asked, top_k)[:] = NONE
    for part in files:
        for asked in blocks_of(0, queries, QUERIES):
            merge(map_keys(best, asked, top_k), map_keys(part, asked, top_k))
        part.unlink()
    for asked in blocks_of(0, queries, QUERIES):
        yield rank(map_keys(best, asked, top_k))


def merge(best: Integers, more: Integers) -> None:
    """Keep the greatest keys of both in each row of `best`: int64 [queries, top_k] each, in any order."""
    top_k = best.shape[1]
    best[:] = np.partition(np.concatenate([best, more], axis=1), top_k, axis=1)[:, top_k:]


def divide_passages(passages: int, index: str | None, block: int = FLAT_LIMIT) -> list[tuple[int, int]]:
    """Return the edges of the parts that are searched one by one: those of indexes, or such as change no score."""
    if (index or default_index(passages, block)) != "Flat":
        return list(pairwise(block_edges(passages, block)))
    size = max(1, min(COMPARED, block) // PASSAGES) * PASSAGES
    return list(pairwise([*range(0, passages, size), passages]))


@contextmanager
def _work_folder(corpus: Path) -> Iterator[Path]:
    """Make a folder in the corpus for the block; delete it, and what killed runs have left."""
    clear_temporaries(corpus, "search")
    folder = corpus / f".search.{os.getpid()}.tmp"
    folder.mkdir()
    try:
        yield folder
    finally:
        clear_temporaries(corpus, "search")


def _save(work: Path, queries: StoredVectors, passages: StoredVectors, rules: Rules) -> dict[str, Path]:
    """Write what each call needs of all queries and passages; return the files."""
    arrays = rules._asdict()
    for side, stored in (("query", queries), ("passage", passages)):
        arrays |= {f"{side}_places": stored.places, f"{side}_rows": stored.rows}
    files = {name: work / f"{name}.npy" for name in arrays}
    for name, array in arrays.items():
        np.save(files[name], array)
    return files


def _load(file: Path) -> np.ndarray:
    """Map what `_save` has written; in a copy that may be changed, as the kernels are compiled for such arrays."""
    return np.asarray(np.load(file, mmap_mode="c"))
