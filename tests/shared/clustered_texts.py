"""Texts and their clusters: those that dedup finds, and those of brute force over sets of shingle strings."""

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conan_embedding.pipeline.dedup.clusters import Clusters, Pairs, find_clusters, find_row_starts
from conan_embedding.pipeline.dedup.lsh import choose_bands, hash_bands
from conan_embedding.pipeline.dedup.minhash import signatures, text_hashes
from conan_embedding.pipeline.engine.calls import Engine

ONE = Engine(workers=1)
HAN = [chr(0x4E00 + i) for i in range(3000)]
BANDS, ROWS = choose_bands(0.92, 0.7)
Bands = Sequence[Sequence[int]] | np.ndarray


def shingles(text: str) -> set[str]:
    width = 3 if len(text) < 50 else 5
    return {text[i : i + width] for i in range(max(len(text) - width + 1, 1))} - {""}


def similarity(left: str, right: str) -> float:
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b) if a | b else 0.0


def edited(text: str, share: float, dice: random.Random) -> str:
    """Return the text with a share of its characters replaced, doubled or dropped."""
    letters = list(text)
    for place in dice.sample(range(len(letters)), int(share * len(letters))):
        letters[place] = dice.choice([dice.choice(HAN), letters[place] * 2, ""])
    return "".join(letters)


def corpus(shortest: int, longest: int, originals: int, edits: float = 0.08) -> list[str]:
    """Make random Chinese texts, each with up to four edited copies, and shuffle them."""
    dice = random.Random(7)
    texts = []
    for _ in range(originals):
        texts.append("".join(dice.choices(HAN, k=dice.randint(shortest, longest))))
        texts += [edited(texts[-1], dice.uniform(0, edits), dice) for _ in range(dice.randint(0, 4))]
    dice.shuffle(texts)
    return texts


def alike_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """List all pairs of rows with this similarity or more, found by the shingles that they share."""
    holders = defaultdict(list)
    sets = [shingles(text) for text in texts]
    for row, mine in enumerate(sets):
        for shingle in mine:
            holders[shingle].append(row)
    shared = {pair for rows in holders.values() for pair in itertools.combinations(rows, 2)}
    return sorted((a, b) for a, b in shared if len(sets[a] & sets[b]) >= threshold * len(sets[a] | sets[b]))


def components(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the smallest row of each row's component."""
    graph = nx.Graph(edges)
    graph.add_nodes_from(range(n))
    smallest = {row: min(rows) for rows in nx.connected_components(graph) for row in rows}
    return [smallest[row] for row in range(n)]


def signed(work: Path, texts: Sequence[str], bands: Bands | None = None, shards: int = 1) -> Pairs:
    """Write texts as the positives of filtered shards, and their signatures.

    `bands` replaces the band hashes, one list per band. If there are several shards, the first and the last are empty.
    """
    work.mkdir(parents=True, exist_ok=True)
    column = pa.array(texts, pa.large_string())
    hashes = hash_bands(signatures(column), BANDS, ROWS).T if bands is None else np.array(bands, np.uint64)
    columns = {f"positive_band_{band:02}": each for band, each in enumerate(hashes)}
    table = pa.table({"positive_hash": text_hashes(column), **columns})
    cuts = np.linspace(0, len(texts), shards + 1).astype(int)
    if shards > 1:
        cuts[1], cuts[-2] = 0, len(texts)
    filtered, own = [], []
    for number, (start, stop) in enumerate(itertools.pairwise(cuts.tolist())):
        filtered.append(work / f"filtered_{number}.parquet")
        own.append(work / f"signed_{number}.parquet")
        pq.write_table(pa.table({"positive": column[start:stop]}), filtered[-1], row_group_size=1000)
        pq.write_table(table[start:stop], own[-1])
    return Pairs(tuple(filtered), tuple(own), find_row_starts(filtered), work)


def found(
    pairs: Pairs,
    bands: int = BANDS,
    threshold: float = 0.7,
    similar: Sequence[bool] | None = None,
    engine: Engine = ONE,
) -> Clusters:
    alike = np.ones(pairs.rows, np.bool_) if similar is None else np.array(similar)
    return find_clusters(pairs, "positive", alike, bands, threshold, engine)


def labels(result: Clusters) -> list[int]:
    """Return the smallest row of each row's cluster."""
    _, first, inverse = np.unique(np.load(result.ids), return_index=True, return_inverse=True)
    return first[inverse].tolist()


def together(work: Path, texts: Sequence[str], threshold: float = 0.7) -> list[int]:
    """Return the clusters of texts that are all in one bucket."""
    return labels(found(signed(work, texts, [[9 << 40] * len(texts)]), 1, threshold))
