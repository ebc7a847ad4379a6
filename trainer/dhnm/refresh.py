"""Refreshing negatives with the current weights: reorder a query's candidates (rerank) or rebuild all pools (remine).

Both use the method, margin, depth and index of the `conan mine` run that made the pools; `write_mined` stores what they
need with the training data. The caller passes a function that encodes texts. The ranks share the work.

FAISS and Numba are imported where they are used: importing takes a second, and runs with static pools need neither.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from ...pipeline.corpus.atomic import replacing, write_text
from ...pipeline.corpus.pools import as_lists, open_pools
from ...pipeline.encoder.encoder import Vectors, encode_after
from ...pipeline.encoder.prompts import list_prompts
from ...schemas.settings import MineSettings
from ..data.batches import Integers, window_passages
from ..data.mapped_table import ROWS, MappedTable, write_records
from ..data.training_tables import POOLS, FinetuneData, pools_file, read_finetune, with_pools
from ..loss.collectives import all_gather_with_grad, broadcast_from_rank0, world
from ..model.embedding_model import EmbeddingModel, encoder_of
from .windows import Windows

TOGETHER = 64
"""Chosen here: queries whose candidates are encoded together, about 6,400 candidates."""

Side = Literal["query", "passage"]
Encode = Callable[[pa.Array, Side, pa.Array], Vectors]
"""Encodes queries or passages, given their sources, with the current weights into unit vectors, float32 [n, D]."""
Rows = Callable[[Integers], Vectors]
"""Returns the vectors with the given n row numbers, float32 [n, D]."""


def vectors_of(
    model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, texts: pa.Array, side: Side, sources: pa.Array
) -> Vectors:
    """Encode queries or passages with a model in training, dropout off: unit vectors, float32 [n, D]."""
    model.eval()
    prompts = list_prompts(model.prompts, side, pl.Series(sources, dtype=pl.String))
    vectors = encode_after(encoder_of(model, tokenizer), prompts, pl.Series(texts, dtype=pl.String))
    model.train()
    return vectors


def write_mined(folder: Path, corpus: Path) -> None:
    """Store, with a run's data, the settings that the pools were mined with and each query's positives and clusters.

    Its clusters are those of whatever is never its negative: its positives, its own text, what a judge set aside.
    """
    from ...pipeline.mine.search import default_index
    from ...pipeline.mine.texts import find_own_texts

    query_ids = read_finetune(folder).query_ids
    with open_pools(corpus) as connection:
        connection.register("asked", pa.table({"query_id": query_ids, "row": np.arange(len(query_ids))}))
        find_own_texts(connection)
        connection.execute(
            "CREATE TEMP VIEW members AS "
            "SELECT passage_id, unnest(coalesce(cluster_ids, [cluster_id])) AS cluster FROM passages;"
            "CREATE TEMP VIEW answers AS SELECT row, passage_id FROM positives JOIN asked USING (query_id);"
            "CREATE TEMP VIEW never AS FROM answers "
            "UNION ALL SELECT row, passage_id FROM decisions JOIN asked USING (query_id) "
            "UNION ALL SELECT row, passage_id FROM own_texts JOIN asked USING (query_id);"
        )
        run = connection.sql("SELECT method, margin, top_k, index FROM runs").pl().row(0, named=True)
        (passages,) = connection.execute("SELECT count(*) FROM passages").fetchall()[0]
        positives = connection.sql("FROM answers ORDER BY ALL").pl()
        members = connection.sql("FROM members ORDER BY ALL").pl()
        own = connection.sql(
            "SELECT DISTINCT row, cluster FROM never JOIN members USING (passage_id) ORDER BY ALL"
        ).pl()
    if run["index"] == default_index(passages):
        run["index"] = None
    write_text(folder / "mined.json", MineSettings(**run).model_dump_json())
    np.savez(
        folder / "mined.npz",
        owner=positives["row"].to_numpy(),
        passage=positives["passage_id"].to_numpy(),
        own_starts=np.searchsorted(own["row"].to_numpy(), np.arange(len(query_ids) + 1)),
        own=own["cluster"].to_numpy(),
        member_starts=np.searchsorted(members["passage_id"].to_numpy(), np.arange(passages + 1)),
        members=members["cluster"].to_numpy(),
    )


def read_mined(folder: Path) -> MineSettings:
    """Read the settings that the pools were mined with."""
    return MineSettings.model_validate_json((folder / "mined.json").read_text("utf-8"))


def rerank(
    data: FinetuneData,
    windows: Windows,
    rows: Integers,
    n: int,
    mined: MineSettings,
    encode: Encode,
    device: torch.device | str = "cpu",
) -> Integers:
    """Return the n hardest candidates of each query under the current weights: passage ids [len(rows), n], best first.

    The positive-aware filter that the pools were mined with is applied to the current scores. The passages of a query's
    current window are left out, as they have just been found easy; a later replacement may use them again. A row is -1
    if fewer than n candidates are left. Every rank must call this with the same rows; each does a share of the work and
    gets the whole result, which is exchanged over `device`.
    """
    rank, world_size = world()
    own = rows[rank::world_size]
    found = np.full((len(own), n), -1)
    for start in range(0, len(own), TOGETHER):
        block = slice(start, start + TOGETHER)
        found[block] = _hardest(data, windows, own[block], n, mined, encode)
    order = np.concatenate([np.arange(len(rows))[each::world_size] for each in range(world_size)])
    restored = np.empty((len(rows), n), np.int64)
    restored[order] = all_gather_with_grad(torch.from_numpy(found).to(device)).cpu().numpy()
    return restored


def _hardest(
    data: FinetuneData, windows: Windows, rows: Integers, n: int, mined: MineSettings, encode: Encode
) -> Integers:
    """Do the work of `rerank` for a block of queries."""
    from ...pipeline.mine.methods import ceilings, skipped_ranks

    taken = data.queries.take(rows)
    pools = data.pools.take(rows)["pool"].combine_chunks()
    candidates, owner = pools.flatten().to_numpy(), pools.value_parent_indices().to_numpy()
    passages, place = np.unique(candidates, return_inverse=True)
    positives = taken["positives"].combine_chunks()
    asking = positives.value_parent_indices().to_numpy()
    asked_by, searched = _whole(taken["source"]), data.passages.take(passages)
    of_queries = encode(_whole(taken["query"]), "query", asked_by)
    texts = pa.concat_arrays([positives.flatten(), _whole(searched["text"])])
    sources = pa.concat_arrays([asked_by.take(pa.array(asking)), _whole(searched["source"])])
    of_positives, of_passages = np.split(encode(texts, "passage", sources), [len(asking)])

    positive_scores = np.einsum("nd,nd->n", of_queries[asking], of_positives)
    scores = np.einsum("nd,nd->n", of_queries[owner], of_passages[place])
    allowed = np.flatnonzero(scores < ceilings(asking, positive_scores, len(rows), mined)[owner])
    best_first = allowed[np.lexsort((allowed, -scores[allowed], owner[allowed]))]  # ties keep their order in the pool
    best_first = best_first[_ranks(owner[best_first]) >= skipped_ranks(mined)]
    in_use, sizes = window_passages(data, windows, rows)
    passage_count = len(data.passages)
    used = np.repeat(np.arange(len(rows)), sizes) * passage_count + in_use
    best_first = best_first[~np.isin(owner[best_first] * passage_count + candidates[best_first], used)]
    ranks = _ranks(owner[best_first])
    found = np.full((len(rows), n), -1)
    first = ranks < n
    found[owner[best_first][first], ranks[first]] = candidates[best_first][first]
    found[found[:, -1] < 0] = -1
    return found


def remine(
    folder: Path, data: FinetuneData, step: int, mined: MineSettings, encode: Encode, keep: int = 0
) -> FinetuneData:
    """Rebuild every pool with the current weights, in a file that is written atomically; return data with new pools.

    The ranks encode all queries and passages, divided by the batches of their files, into vectors in the run's data
    folder. Each then searches a share of the passages as `conan mine` does, under the same rules, and rank 0 merges
    what they find. The ranks poll for each other's files instead of waiting at a barrier, which would time out on large
    data. Earlier pools are deleted, except those of step `keep`, the last checkpoint, which a killed run resumes from.
    """
    rank, world_size = world()
    file, vectors = pools_file(folder, step), folder / "vectors"
    sides: dict[Side, tuple[MappedTable, str]] = {
        "query": (data.queries, "query"),
        "passage": (data.passages, "text"),
    }
    if rank == 0:  # remove vectors of a killed run: the number of ranks may have been different
        file.unlink(missing_ok=True)
        shutil.rmtree(vectors, ignore_errors=True)
        for side in sides:
            (vectors / side).mkdir(parents=True)
    broadcast_from_rank0(None)  # the other ranks wait here until the folders exist
    for side, (records, column) in sides.items():
        for number, batch in enumerate(records):
            if number % world_size == rank:
                with replacing(_part(vectors / side, number)) as temporary, temporary.open("wb") as part:
                    np.save(part, encode(batch[column], side, batch["source"]))
    threads = torch.get_num_threads()
    pools = _searched(folder, data, mined)
    if rank == 0:
        with replacing(file) as temporary:
            write_records(temporary, POOLS, pools)
        shutil.rmtree(vectors)
        for earlier in set(folder.glob("pools-*.arrow")) - {file, pools_file(folder, keep)}:
            earlier.unlink()
    torch.set_num_threads(threads)  # Numba changes OpenMP's number of threads, on which rounding depends
    _wait_for(file)
    return with_pools(data, file)


def _searched(folder: Path, data: FinetuneData, mined: MineSettings) -> Iterator[pa.RecordBatch]:
    """Search this rank's share of the passages; return the pools of all queries, in their order, for rank 0 to write.

    FAISS takes all GPUs of a machine, so where it sees any, rank 0 searches alone. A rank without a share must not look
    for the vectors, which rank 0 deletes in the end.
    """
    import faiss

    from ...pipeline.mine.methods import ceilings, skipped_ranks
    from ...pipeline.mine.search import Rules, pair_cosines
    from ...pipeline.mine.search_stored import divide_passages, merge_keys, write_keys

    rank, world_size = world()
    parts = divide_passages(len(data.passages), mined.index)
    files = {part: folder / "vectors" / f"keys-{part[0]}" for part in parts}
    own = [part for number, part in enumerate(parts) if rank == (0 if faiss.get_num_gpus() else number % world_size)]
    if rank != 0 and not own:
        return iter(())
    for side, records in (("query", data.queries), ("passage", data.passages)):
        for number in range(-(-len(records) // ROWS)):
            _wait_for(_part(folder / "vectors" / side, number))
    queries, passages = (_vectors(folder / "vectors" / side) for side in ("query", "passage"))
    with np.load(folder / "mined.npz") as arrays:
        known = dict(arrays)
    owner, passage = known["owner"], known["passage"]
    ceiling = ceilings(owner, pair_cosines(queries, owner, passages, passage), len(data.query_ids), mined)
    rules = Rules(ceiling, *(known[name] for name in ("own_starts", "own", "member_starts", "members")))
    shift = skipped_ranks(mined)
    depth = mined.top_k + shift
    for part in own:
        write_keys(files[part], queries, passages, rules, depth, mined.index, part)

    def pools() -> Iterator[pa.RecordBatch]:
        for best in merge_keys(folder / "vectors" / "best", map(_wait_for, files.values()), len(data.query_ids), depth):
            ids = best.ids[:, shift:]
            yield pa.record_batch({"pool": as_lists(ids[ids >= 0], (ids >= 0).sum(axis=1))})

    return pools()


def _vectors(folder: Path) -> Rows:
    """Return a function that reads vectors from the mapped parts in a folder."""
    parts = [np.load(file, mmap_mode="r") for file in sorted(folder.glob("part-*.npy"))]

    def take(rows: Integers) -> Vectors:
        of_parts, places = np.divmod(rows, ROWS)
        found = np.empty((len(rows), parts[0].shape[1]), np.float32)
        for part in np.unique(of_parts).tolist():
            here = of_parts == part
            found[here] = parts[part][places[here]]
        return found

    return take


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.npy"


def _wait_for(file: Path) -> Path:
    while not file.exists():
        time.sleep(0.1)
    return file


def _ranks(owner: Integers) -> Integers:
    """Return the place of each value within its group; `owner` names the groups and is sorted."""
    return np.arange(len(owner)) - np.searchsorted(owner, owner)
