"""Imports of the fork server, made once, so that commands and training processes start in hundredths of a second."""

import gc
import multiprocessing
from functools import cache

import datasketch
import deepspeed.module_inject.auto_ep_layer
import deepspeed.runtime.zero.muon.muon_optimizer
import faiss
import forks
import numpy as np
import pandas
import pyarrow.dataset
import rich.progress
import setuptools
import torch._inductor.compile_fx
import transformers
import typer
from conan_embedding import cli
from conan_embedding import workflow as run
from conan_embedding.pipeline.convert import stage as convert
from conan_embedding.pipeline.corpus import catalog, lock
from conan_embedding.pipeline.dedup import stage as dedup
from conan_embedding.pipeline.encoder import encoder
from conan_embedding.pipeline.engine import local
from conan_embedding.pipeline.filter import text_counts
from conan_embedding.pipeline.filter.stage import filter_pairs
from conan_embedding.pipeline.ingest import scanners
from conan_embedding.pipeline.ingest import stage as ingest
from conan_embedding.pipeline.mine import stage as mine
from conan_embedding.pipeline.score import stage as score
from conan_embedding.pipeline.text import match_key
from conan_embedding.trainer import train
from conan_embedding.trainer.evaluation import evaluate
from numba import njit
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

imported = [
    *(cli, run, catalog, lock, local, convert, dedup, encoder, ingest, mine, scanners, score, filter_pairs),
    *(forks, pyarrow.dataset, rich.progress, transformers.BertModel, transformers.BertTokenizerFast),
    *(evaluate, datasketch, faiss, pandas, setuptools, torch, train),
    deepspeed,  # which imports some of these while it runs
]
njit(lambda number: number + 1)(1)  # Numba loads its own types at the first call

typer.main.get_command = cache(typer.main.get_command)
typer.main.get_command(cli.app)  # every command builds this from all commands' signatures

assert deepspeed.ops.__compatible_ops__  # found with a compiler, which every training process would start

get_checkpoint_conversion_mapping("bert")  # a thousand regular expressions, compiled when the first model is read

# Polars makes these tables, and once it has run in a server, forks of that server don't work: use another process.
key_tables = [multiprocessing.RawArray("I", match_key.TABLED) for _ in range(2)]
class_table = multiprocessing.RawArray("B", text_counts._CODE_POINTS)


def make_tables() -> None:
    for shared, table in zip(key_tables, (match_key._table, match_key.folding_table), strict=True):
        np.copyto(np.frombuffer(shared, "u4"), table())
    np.copyto(np.frombuffer(class_table, "u1"), text_counts._classes())


maker = multiprocessing.get_context("fork").Process(target=make_tables)
maker.start()
maker.join()
assert maker.exitcode == 0
match_key._table, match_key.folding_table = (lambda table=table: np.frombuffer(table, "u4") for table in key_tables)
text_counts._classes = lambda: np.frombuffer(class_table, "u1")

gc.freeze()  # else a collection in a fork copies every page that it looks at
