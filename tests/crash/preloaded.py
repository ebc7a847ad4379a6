"""What the fork server imports once, so that a command starts in hundredths of a second."""

import commands
import rich.progress
import transformers
from conan_embedding import cli, run
from conan_embedding.pipeline import catalog, convert, dedup, encoder, ingest, mine, scanners, score
from conan_embedding.pipeline.filter import filter_pairs
from numba import njit

imported = [
    *(cli, run, catalog, convert, dedup, encoder, ingest, mine, scanners, score, filter_pairs),
    *(commands, rich.progress, transformers.BertModel, transformers.BertTokenizerFast),
]
njit(lambda number: number + 1)(1)  # Numba loads its own types at the first call
