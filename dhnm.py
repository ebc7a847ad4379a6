"""Dynamic hard negative mining for your own training loops (Conan-embedding, arXiv 2408.15710, §2.2).

state = start(pool_sizes, n, provided_counts)
state = observe(state, query_rows, mean_scores)  # every step
state = advance(state, no_longer_hard(state), pool_sizes, n)  # every 100 steps
"""

from .trainer.dhnm.windows import Windows, advance, no_longer_hard, observe, start

__all__ = ["Windows", "advance", "no_longer_hard", "observe", "start"]
