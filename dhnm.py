"""Dynamic hard negative mining for your own training loops.

All negatives of a query together (Conan-embedding, arXiv 2408.15710, §2.2):

    state = start(pool_sizes, n, provided_counts)
    state = observe(state, query_rows, mean_scores)  # every step
    state = advance(state, no_longer_hard(state), pool_sizes, n)  # every 100 steps

Each negative on its own (Conan-embedding-v2, arXiv 2509.12892, eq. 6); the arrays are changed in place:

    state = start_negatives(pool_sizes, n, provided_counts)
    observe_negatives(state, query_rows, scores)  # every step
    advance_negatives(state, query_rows, easy_negatives(state, query_rows), pool_sizes)  # every step
"""

from .trainer.dhnm.negatives import (
    Negatives,
    advance_negatives,
    easy_negatives,
    observe_negatives,
    start_negatives,
)
from .trainer.dhnm.windows import Windows, advance, no_longer_hard, observe, start

__all__ = [
    "Negatives",
    "Windows",
    "advance",
    "advance_negatives",
    "easy_negatives",
    "no_longer_hard",
    "observe",
    "observe_negatives",
    "start",
    "start_negatives",
]
