"""Random vectors and rules to search with, and the same search by NumPy; vectors in files as the cache stores them."""

from pathlib import Path

import numpy as np
from conan_embedding.pipeline.encoder.vector_cache import StoredVectors
from conan_embedding.pipeline.mine.search import Best, Rules

Vectors = np.ndarray


def unit(dice: np.random.Generator, count: int, width: int) -> Vectors:
    vectors = dice.standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def drawn_rules(dice: np.random.Generator, queries: int, passages: int, clusters: int, ceiling: Vectors) -> Rules:
    """Give each query none to three clusters, each passage one or two."""
    own, member = dice.integers(0, 4, queries), dice.integers(1, 3, passages)
    starts = [np.concatenate([[0], np.cumsum(counts)]) for counts in (own, member)]
    return Rules(
        ceiling.astype(np.float32),
        starts[0],
        dice.integers(0, clusters, own.sum()),
        starts[1],
        dice.integers(0, clusters, member.sum()),
    )


def brute_force(queries: Vectors, passages: Vectors, rules: Rules, top_k: int) -> Best:
    scores = queries @ passages.T
    clusters = 1 + max(rules.own.max(initial=0), rules.members.max(initial=0))
    own = np.zeros((len(queries), clusters), np.float32)
    own[np.repeat(np.arange(len(queries)), np.diff(rules.own_starts)), rules.own] = 1
    members = np.zeros((len(passages), clusters), np.float32)
    members[np.repeat(np.arange(len(passages)), np.diff(rules.member_starts)), rules.members] = 1
    dropped = (own @ members.T > 0) | (scores >= rules.ceiling[:, None])
    scores = np.where(dropped, -np.inf, scores)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    found = np.take_along_axis(scores, ids, axis=1)
    return Best(np.where(found > -np.inf, ids, -1), found)


def store(folder: Path, name: str, vectors: Vectors) -> StoredVectors:
    """Write vectors to two files, in another order."""
    order = np.random.default_rng(0).permutation(len(vectors))
    half = len(vectors) // 2
    files, rows = [], np.empty(len(vectors), np.int32)
    for number, part in enumerate((order[:half], order[half:])):
        files.append(folder / f"{name}-{number}.npy")
        np.save(files[-1], vectors[part])
        rows[part] = np.arange(len(part))
    places = np.ones(len(vectors), np.int32)
    places[order[:half]] = 0
    return StoredVectors(files, places, rows)
