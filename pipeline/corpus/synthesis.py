"""What `conan synthesize` has written, CORPUS/synthesize/answers: shards with rejects, as those of any stage."""

from collections.abc import Collection
from pathlib import Path

from .folder import committed, read_footer
from .sql import quote

ANSWERS = "synthesize/answers"
"""The folder of the shards. Each belongs to one source, which its footer's notes name."""

REQUESTS = "synthesize/requests"
"""The folder of what has been paid for: a file of answers for each source, to which lines are only ever added."""

META = (
    "{'model': model, 'prompt': prompt, 'seed': seed, 'pair_id': pair_id, 'kind': kind, 'language': language, "
    "'persona': persona, 'rank': rank, 'grade': grade}"
)
"""SQL for the `meta` of a pair. `pair_id` is that of the passage."""


def list_answers(corpus: Path, source: str) -> list[Path]:
    """List the shards of a source."""
    return [shard for shard in committed(corpus, ANSWERS) if read_footer(shard).notes["source"] == source]


def leave_out(sources: Collection[str]) -> str:
    """Build the SQL condition that a row is of none of these sources."""
    return f"CAST(source AS VARCHAR) NOT IN ({', '.join(map(quote, sources))})" if sources else "true"
