"""Compare Conan's dedup with other tools on one core, from Parquet to the survivors on disk: speed, memory, quality.

Run: `python benchmarks/dedup.py [--documents FOLDER] [--peers PYTHON]`, with FOLDER as in dedup_quality.py. The other
tools are not dependencies. Install them in a separate environment, whose interpreter is PYTHON:
`pip install datasketch rensa daft text-dedup 'datatrove[io]' tokenizers py-data-juicer 'xxhash<4'` (datatrove needs
tokenizers and an older xxhash, but does not declare them). Tools that are missing or fail are reported. The benchmark
takes twenty minutes.

The texts are documents of up to 1,000 characters (about 100 MB) and 1.1 million short texts of 20 to 60 characters,
deduplicated with `dedup.on: positive`. As there are not enough real texts, the rest is composed from them, the same
each time: documents from sentences of different documents, up to 1,000 characters, and short texts from three clauses
of different sentences. A fifth of all rows are edited copies (as in dedup_quality.py) and one in twenty is an exact
copy, each within 500 rows of its original.

Each tool runs in a process of its own, after a warm-up on 200 rows that loads its libraries. For Conan, the whole stage
is timed, `dedup(corpus, recipe, Engine(workers=1))`, on a corpus with nothing but filtered shards, and the median of
three runs is given. The other tools do less: they get normalised texts (NFKC, lower case, no punctuation), which Conan
has to compute itself, they write nothing about rejected texts, and tools that work on words get characters separated by
spaces. Slow tools get only the first rows, as the table shows. For all tools, megabytes are 10⁶ bytes of UTF-8 of the
texts in the shards, and MB/s is per CPU second (user and system, all threads), which a busy machine affects less than
wall time. Memory is the peak resident set size.

Recall and precision are those of the clusters of a sample, as explained in dedup_quality.py. Finally, Conan runs on 1,
2, 4 and 8 times as many rows (medians of three runs), and the exponent with which its time grows is given (1 is
linear): a least-squares fit of log time on log rows.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ["POLARS_MAX_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAYON_NUM_THREADS"] = os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import polars as pl
from conan_embedding.pipeline.dedup.minhash import SHINGLING
from conan_embedding.pipeline.dedup.stage import dedup
from conan_embedding.pipeline.engine.calls import Engine
from dedup_quality import (
    KINDS,
    RECIPE,
    Quality,
    edited,
    judge,
    match_keys,
    of_length,
    read_clusters,
    read_texts,
    sample,
    sentences,
    similar_pairs,
    whole_texts,
    write_corpus,
)

RUNS = 3
ROWS = {"long": 40_000, "short": 1_100_000}
SMALLEST = {"long": 20_000, "short": 275_000}
"""Rows of the smallest of the four sizes that show how time grows."""
TIMES = (1, 2, 4, 8)
NGRAM = {"long": SHINGLING.ngram, "short": SHINGLING.short_ngram}
WARM_UP = 200  # rows
COPIES, EXACT_COPIES, WITHIN = 0.2, 0.05, 500
PEERS = {
    "datasketch": 4,
    "datatrove": 4,
    "text-dedup": 4,
    "data-juicer": 4,
    "daft": 25,
    "rensa": 25,
    "numpy-rensa": 1_000,
}
"""The most megabytes that each tool gets."""


class Figures(NamedTuple):
    """The cost of a run: wall time and CPU time in seconds, and peak resident memory in bytes."""

    seconds: float
    cpu: float
    peak: int


class Sample(NamedTuple):
    """The sample for recall and precision: texts, and the true pairs of similar texts among them."""

    texts: pl.Series
    truth: pl.DataFrame


def main() -> None:
    """Compare all tools on both kinds of texts; then measure how Conan's time grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, help="a folder of shards, or a Parquet file, of query and positive")
    parser.add_argument("--peers", default=sys.executable, help="a Python interpreter with the other tools installed")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    source = read_texts(options.documents)
    for kind in KINDS:
        texts = many_texts(source, kind, max(ROWS[kind], TIMES[-1] * SMALLEST[kind]))
        drawn = sample(source, kind)
        compare(kind, texts.head(ROWS[kind]), Sample(drawn, similar_pairs(match_keys(drawn))), options.peers)
        print_growth(texts, SMALLEST[kind])


# Texts.


def many_texts(source: pl.Series, kind: str, rows: int) -> pl.Series:
    """Return `rows` texts of a kind, including edited and exact copies, in an order such that any head is a sample."""
    wanted = round(rows * (1 - COPIES - EXACT_COPIES))
    parts = [whole_texts(source, kind)]
    if kind == "short":
        parts.append(of_length(sentences(source), kind))
    rounds = 0
    while sum(len(part) for part in parts) < wanted:
        parts.append(mixed(source, kind, rounds))
        rounds += 1
    originals = pl.concat(parts).head(wanted).sample(fraction=1, shuffle=True, seed=0)
    return _with_copies(originals, kind, rows)


def mixed(source: pl.Series, kind: str, seed: int) -> pl.Series:
    """Compose new texts from all sentences (long texts) or all clauses (short texts), shuffled by `seed`."""
    pieces = sentences(source)
    if kind == "short":
        pieces = pieces.str.extract_all("[^，,、]+[，,、]?").explode().drop_nulls()
        pieces = pieces.filter(pieces.str.len_chars().is_between(6, 20)).unique(maintain_order=True)
    shuffled = pieces.sample(fraction=1, shuffle=True, seed=seed).alias("piece").to_frame()
    place = pl.row_index() // 3 if kind == "short" else pl.col("piece").str.len_chars().cum_sum() // KINDS[kind][1]
    grouped = shuffled.group_by(place.alias("place"), maintain_order=True).agg(pl.col("piece").str.join())
    return of_length(grouped["piece"].str.slice(0, KINDS[kind][1]).rename("text"), kind)


def _with_copies(originals: pl.Series, kind: str, rows: int) -> pl.Series:
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(originals))[: rows - len(originals)]
    exact = round(EXACT_COPIES * rows)
    copied = originals.gather(chosen)
    copies = pl.Series("text", [*copied.head(exact), *edited(copied.slice(exact), kind)])
    places = np.concatenate([np.arange(len(originals)), chosen + rng.integers(1, WITHIN, len(chosen))])
    return pl.concat([originals, copies]).gather(np.argsort(places, kind="stable"))


# Tools.


def compare(kind: str, texts: pl.Series, judged: Sample, interpreter: str) -> None:
    """Run all tools and print a line for each."""
    print(f"\n{kind}; recall and precision on {len(judged.texts):,} texts")
    print(
        f"{'':12}{'rows':>10}{'MB':>7}{'wall s':>9}{'CPU s':>9}{'MB/s':>8}{'peak MB':>9}{'speed-up':>10}"
        f"{'recall':>9}{'at 0.8':>8}{'precision':>11}"
    )
    ours = measure(texts, RUNS)
    speed = _megabytes(texts) / ours.cpu
    _print_line("Conan", texts, ours, "", judge(clusters(judged.texts), judged.truth))
    for tool, most in PEERS.items():
        part = texts.filter(texts.str.len_bytes().cum_sum() <= most * 1e6)
        try:
            figures, _ = run_peer(interpreter, tool, part, NGRAM[kind])
            _, found = run_peer(interpreter, tool, judged.texts, NGRAM[kind])
        except RuntimeError as error:
            print(f"{tool:12}{error}")
            continue
        times = speed / (_megabytes(part) / figures.cpu)
        _print_line(tool, part, figures, f"{times:.1f} ×", judge(found, judged.truth))


def _print_line(tool: str, texts: pl.Series, took: Figures, times: str, quality: Quality) -> None:
    megabytes = _megabytes(texts)
    print(
        f"{tool:12}{len(texts):>10,}{megabytes:>7.1f}{took.seconds:>9.2f}{took.cpu:>9.2f}{megabytes / took.cpu:>8.2f}"
        f"{took.peak / 1e6:>9,.0f}{times:>10}"
        f"{quality.recall:>9.3f}{quality.recall_at_08:>8.3f}{quality.precision:>11.3f}",
        flush=True,
    )


def _megabytes(texts: pl.Series) -> float:
    return float(texts.str.len_bytes().sum()) / 1e6


def measure(texts: pl.Series, runs: int) -> Figures:
    """Run the stage on these texts in a process of its own; return medians over `runs`, each on a fresh corpus."""
    with (
        tempfile.TemporaryDirectory() as place,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
    ):
        corpus, warm_up = Path(place, "corpus"), Path(place, "warm-up")
        write_corpus(corpus, texts)
        write_corpus(warm_up, texts.head(WARM_UP))
        process.submit(_take_turn, warm_up).result()
        turns = []
        for _ in range(runs):
            turns.append(process.submit(_take_turn, corpus).result())
            for made in corpus.iterdir():
                if made.name != "filter":
                    shutil.rmtree(made) if made.is_dir() else made.unlink()
    return Figures(
        statistics.median(turn.seconds for turn in turns),
        statistics.median(turn.cpu for turn in turns),
        max(turn.peak for turn in turns),
    )


def _take_turn(corpus: Path) -> Figures:
    started, used = time.monotonic(), _cpu_seconds()
    dedup(corpus, RECIPE, Engine(workers=1))
    seconds, cpu = time.monotonic() - started, _cpu_seconds() - used
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))  # getrusage would include the parent's peak
    return Figures(seconds, cpu, 1024 * int(peak.split()[1]))


def _cpu_seconds() -> float:
    """Return user and system time, including that of finished children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def clusters(texts: pl.Series) -> np.ndarray:
    """Return Conan's cluster of each text."""
    with tempfile.TemporaryDirectory() as place:
        write_corpus(Path(place), texts)
        dedup(Path(place), RECIPE, Engine(workers=1))
        return read_clusters(Path(place))


def run_peer(interpreter: str, tool: str, texts: pl.Series, ngram: int) -> tuple[Figures, np.ndarray]:
    """Run another tool in a process of its own; return its cost and its clusters.

    Raises RuntimeError with the last line of its error output if it fails.
    """
    script = Path(__file__).parent / "peers" / "dedup.py"
    with tempfile.TemporaryDirectory() as place:
        file, out = Path(place, "texts.parquet"), Path(place, "out")
        given = pl.DataFrame({"text": match_keys(texts)}).select(pl.row_index("row").cast(pl.Int64), "text")
        given.with_columns(spaced=pl.col("text").str.replace_all("(?s)(.)", "${1} ")).write_parquet(file)
        ended = subprocess.run(
            [interpreter, script, tool, file, out, str(ngram)], capture_output=True, text=True, cwd=place
        )
        if ended.returncode:
            raise RuntimeError((ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[-1])
        answer = json.loads(ended.stdout)
        return Figures(answer["seconds"], answer["cpu"], answer["peak"]), np.load(answer["clusters"])


# How time grows.


def print_growth(texts: pl.Series, smallest: int) -> None:
    """Measure Conan on growing numbers of rows, each in a process of its own."""
    rows = [times * smallest for times in TIMES]
    took = [measure(texts.head(number), RUNS) for number in rows]
    exponent = np.polyfit(np.log(rows), np.log([each.cpu for each in took]), 1)[0]
    for number, each in zip(rows, took, strict=True):
        print(f"  {number:>10,} rows: {each.cpu:7.2f} s of CPU time, {each.peak / 1e6:,.0f} MB")
    print(f"  time grows with the number of rows to the power of {exponent:.3f}")


if __name__ == "__main__":
    main()
