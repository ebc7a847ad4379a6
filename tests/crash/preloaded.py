"""What the fork server imports once, so that a command starts in hundredths of a second."""

import gc
import multiprocessing

import commands
import numpy as np
import pyarrow.dataset
import rich.progress
import transformers
from conan_embedding import cli, run
from conan_embedding.pipeline import catalog, convert, dedup, encoder, ingest, keys, mine, scanners, score
from conan_embedding.pipeline.filter import filter_pairs
from numba import njit

imported = [
    *(cli, run, catalog, convert, dedup, encoder, ingest, mine, scanners, score, filter_pairs),
    *(commands, pyarrow.dataset, rich.progress, transformers.BertModel, transformers.BertTokenizerFast),
]
njit(lambda number: number + 1)(1)  # Numba loads its own types at the first call

# Polars makes this table, and a server in which it has run has no forks that work: another process does it.
table = multiprocessing.RawArray("I", keys._TABLED)
maker = multiprocessing.get_context("fork").Process(target=lambda: np.copyto(np.frombuffer(table, "u4"), keys._table()))
maker.start()
maker.join()
assert maker.exitcode == 0
keys._table = lambda: np.frombuffer(table, "u4")

gc.freeze()  # else a collection in a fork copies every page that it looks at
