"""Conan's filter against datatrove's and data-juicer's on the same rows and one core: rows and megabytes a second.

Run: `python benchmarks/filter.py [--corpus CORPUS] [--peers PYTHON]`. The rows are those of the corpus's ingest or,
without one, made up from the demo's world, which repeats itself more than real texts do. The peers are no dependencies:
`pip install datatrove py-data-juicer aiohttp` in an environment of their own, whose interpreter is PYTHON (data-juicer
installs more when it is first imported). One that is not there is reported as not installed.

The tools take turns, three times after a first one that warms up (for Conan: compiles the kernels, or loads them from
Numba's cache). A turn is as many passes over the rows as fill half a second. Given is the median of the CPU seconds a
pass, which a busy machine disturbs less than wall time. Megabytes are 10⁶ bytes of UTF-8 of query and positive; the
peers get both as one text.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

os.environ["POLARS_MAX_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import polars as pl
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.demo.world import draw, passage, query
from conan_embedding.pipeline.filter.personal_data import mask_personal_data
from conan_embedding.pipeline.filter.rules import RULES, Rule, judge, select_rules, strip_title
from conan_embedding.pipeline.filter.stage import filter_shard, read_groups, read_rulebook
from conan_embedding.pipeline.filter.text_counts import profile
from conan_embedding.schemas.pairs import PAIR, REJECTED_AT_INGEST
from conan_embedding.schemas.settings import FilterSettings

RUNS, TURN = 3, 0.5  # seconds
DOCUMENTS, DOCUMENT_CHARACTERS = 3_000, (500, 4_000)
PAIRS, PAIR_CHARACTERS = 65_536, (20, 100)  # a full row group, which is what the stage judges at a time
WORDS = 36_000
PEERS = {
    "datatrove": "datatrove, three filters",
    "data-juicer": "data-juicer, plain loop",
    "data-juicer-engine": "data-juicer, its engine",
}

Measure = Callable[[], float]
"""One turn; returns the CPU seconds of a pass over the rows."""


def main() -> None:
    """Measure on documents and on short pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a corpus folder whose ingest/ gives the rows")
    parser.add_argument("--peers", default=sys.executable, help="a Python interpreter that has the peers")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"one core of {_processor()}; CPU seconds, median of {RUNS} turns")
    if options.corpus is None:
        inputs = {"documents": _made_up_documents(), "short pairs": _made_up_pairs()}
    else:
        inputs = _from_corpus(options.corpus)
    for name, frame in inputs.items():
        _compare(name, frame, options.peers)
    _print_costs(inputs)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "this machine")


# Rows: all have the columns of schemas.pairs.PAIR and are judged as pairs for pre-training, so that every rule applies.


def _from_corpus(corpus: Path) -> dict[str, pl.DataFrame]:
    """Documents, by the length of their positive, and short pairs, by the length of both sides, drawn from ingest."""
    rows = pl.scan_parquet(corpus / "ingest" / "*.parquet").with_columns(_names_as_text(), task=pl.lit("pretrain"))
    length = pl.col("positive").str.len_chars()
    drawn = {}
    for name, wanted, number in (
        ("documents", length.is_between(*DOCUMENT_CHARACTERS), DOCUMENTS),
        ("short pairs", (length + pl.col("query").str.len_chars()).is_between(*PAIR_CHARACTERS), PAIRS),
    ):
        found = rows.filter(wanted).collect()
        drawn[name] = found.sample(min(number, found.height), seed=0, shuffle=True)
    return drawn


def _names_as_text() -> pl.Expr:
    return pl.col("source", "category", "format").cast(pl.String)


def _made_up_documents() -> pl.DataFrame:
    """Ten passages under a title."""
    rng = Random(0)
    styles = ("news", "web", "paper", "answer", "social")
    return _as_pairs(
        (query(rng, draw(rng), "title"), "\n".join(passage(rng, draw(rng), rng.choice(styles)) for _ in range(10)))
        for _ in range(DOCUMENTS)
    )


def _made_up_pairs() -> pl.DataFrame:
    """Questions with an answer."""
    rng = Random(0)
    facts = iter(partial(draw, rng), None)
    pairs = ((query(rng, fact, "question"), passage(rng, fact, "answer")) for fact in facts)
    return _as_pairs(islice((pair for pair in pairs if len("".join(pair)) <= PAIR_CHARACTERS[1]), PAIRS))


def _as_pairs(texts: Iterator[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(list(texts), schema=["query", "positive"], orient="row").select(
        pl.row_index("pair_id").cast(pl.String).str.zfill(32),
        pl.lit("made_up").alias("source"),
        pl.lit("web_page").alias("category"),
        pl.lit("title_content").alias("format"),
        pl.lit("pretrain").alias("task"),
        "query",
        "positive",
        pl.lit([], pl.List(pl.String)).alias("negatives"),
        pl.lit(None, pl.Float32).alias("label"),
        pl.lit("{}").alias("meta"),
    )


def _megabytes(frame: pl.DataFrame) -> float:
    return float(frame.select(pl.sum_horizontal(pl.col("query", "positive").str.len_bytes()).sum()).item()) / 1e6


# Tools: each a function that passes over the rows once and says how long it took.


def _compare(name: str, frame: pl.DataFrame, interpreter: str) -> None:
    """Let all tools take turns; print what each does in a second and how many times that Conan does."""
    megabytes = _megabytes(frame)
    size = f"{frame.height:,} rows, {megabytes:.1f} MB, {1e6 * megabytes / frame.height:,.0f} bytes a row"
    print(f"\n{name}: {size}", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        texts = folder / "texts.json"
        texts.write_text(
            json.dumps(frame.select(pl.concat_str("query", "positive", separator="\n")).to_series().to_list())
        )
        tools: dict[str, Measure] = {
            "Conan, all rules": partial(_mean, partial(_filter, frame, RULES.values())),
            f"Conan, and {WORDS:,} words": partial(_mean, partial(_filter, frame, select_rules({}, _words()))),
            "Conan, shard to shard": partial(_mean, _shard_to_shard(frame, folder)),
        }
        missing = []
        for peer, title in PEERS.items():
            try:
                tools[title] = stack.enter_context(_peer(interpreter, peer, texts))
            except ModuleNotFoundError as error:
                missing.append(f"  {title:26} not installed: {error}")
        seconds = _in_turn(tools)
    ours = seconds["Conan, all rules"]
    for title, taken in seconds.items():
        speed = f"  {title:26}{frame.height / taken:>10,.0f} rows/s{megabytes / taken:>9.2f} MB/s"
        print(speed + ("" if title.startswith("Conan") else f"   Conan is {taken / ours:.1f} times as fast"))
    print("\n".join(missing), end="\n" if missing else "")


def _in_turn(tools: dict[str, Measure]) -> dict[str, float]:
    """The median seconds of each tool, after a turn that does not count."""
    turns = [{name: measure() for name, measure in tools.items()} for _ in range(1 + RUNS)]
    return {name: statistics.median(turn[name] for turn in turns[1:]) for name in tools}


def _turn(work: Callable[[], object]) -> list[float]:
    """The CPU seconds of each pass of a turn."""
    seconds: list[float] = []
    while sum(seconds) < TURN:
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return seconds


def _mean(work: Callable[[], object]) -> float:
    return statistics.mean(_turn(work))


def _filter(frame: pl.DataFrame, rules: Collection[Rule]) -> pl.DataFrame:
    """What the stage does with a row group: mask, cut titles, judge."""
    masked, _ = mask_personal_data(frame)
    return judge(strip_title(masked), rules)


def _shard_to_shard(frame: pl.DataFrame, corpus: Path) -> Callable[[], None]:
    """The stage itself: Parquet in, the kept and the rejected in Parquet out."""
    shard = corpus / "ingest" / "part-00000.parquet"
    writer = ShardWriter(shard, PAIR, REJECTED_AT_INGEST, stage="ingest", version=1, fingerprint="benchmark")
    with writer:
        writer.received(frame.height)
        writer.keep(frame.to_arrow())
    book = read_rulebook(corpus, FilterSettings(), [read_groups(shard)])
    return partial(filter_shard, shard, book, "benchmark", corpus / "filter" / shard.name)


def _words() -> list[str]:
    """Words of two to four of the 3,500 or so commonest Han characters, which are those of GB 2312's first level."""
    level = [bytes((row, cell)).decode("gb2312", "ignore") for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF)]
    common, rng = [character for character in level if character], Random(0)
    words: set[str] = set()
    while len(words) < WORDS:
        words.add("".join(rng.choices(common, k=rng.randint(2, 4))))
    return sorted(words)


@contextmanager
def _peer(interpreter: str, tool: str, texts: Path) -> Iterator[Measure]:
    """A peer in a process of its own on the same core. Raises ModuleNotFoundError where it can't be imported."""
    script = Path(__file__).parent / "peers" / "filter.py"
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            [interpreter, script, tool, texts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            bufsize=1,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def answer() -> str:
            line = answers.readline()
            if not line:
                complaints.seek(0)
                said = complaints.read().strip()
                last = said.rpartition("\n")[2]
                raise ModuleNotFoundError(last) if last.startswith("ModuleNotFoundError") else RuntimeError(said)
            return line

        def measure() -> float:
            requests.write("\n")
            return float(answer())

        answer()
        yield measure
        requests.close()


# The cost of each rule.


def _print_costs(inputs: dict[str, pl.DataFrame]) -> None:
    """Microseconds a row of each step, and of each rule alone above a rule that costs next to nothing."""
    nothing = RULES["empty_side"]
    words = select_rules({}, _words())[-1]
    costs: dict[str, list[float]] = {}
    for frame in inputs.values():

        def cost(work: Callable[[], object], rows: int = frame.height) -> float:
            return 1e6 * min(_turn(work)) / rows

        base = cost(partial(judge, frame, [nothing]))
        costs.setdefault("masks", []).append(cost(partial(mask_personal_data, frame)))
        costs.setdefault("titles cut", []).append(cost(partial(strip_title, frame)))
        costs.setdefault("counts of both sides", []).append(cost(partial(_counts, frame)))
        for rule in (*RULES.values(), words):
            costs.setdefault(rule.name, []).append(max(0.0, cost(partial(judge, frame, [rule])) - base))
    print(f"\n{'microseconds a row':28}" + "".join(f"{name:>14}" for name in inputs))
    for name, values in costs.items():
        print(f"  {name:26}" + "".join(f"{value:>14.2f}" for value in values))


def _counts(frame: pl.DataFrame) -> None:
    """What most rules are quotients of, counted once for all of them."""
    for side in ("query", "positive"):
        profile(frame[side])


if __name__ == "__main__":
    main()
