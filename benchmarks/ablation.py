"""The ablation of the paper's Table 4 at a small scale: with and without DHNM, with and without CBB.

Run: `python benchmarks/ablation.py --corpus CORPUS --folder RESULTS [--steps 500] [--seeds 0 1 2] [--arms ARM …]
[--half validation] [--set learning_rate=1e-4]`. CORPUS was made by `conan run`; its converted data, pools, evaluation
sets and pre-trained model are used. RESULTS keeps the runs, so a second call continues where the first ended. To
parallelise, start calls with different `--arms`, then one with all of them. The plot is written there as figure2.svg
(requires matplotlib).

All arms start from the same model and take the same number of steps through the same sequence of examples. Without CBB,
each step trains one task, drawn at random, with RETRIEVAL queries or SENTENCES sentence pairs; with CBB, each step has
half as many of both. About QUERIES queries are sampled from SOURCES, few enough that each is drawn several times; their
pools are those of the whole corpus. DHNM checks every CHECK_EVERY steps. All other settings are the recipe's, except
LEARNING_RATE and those given with `--set`. The questions of each evaluation set are split in two by a hash. Settings
were chosen on the validation half; results are reported on the test half.

Results are mean and standard deviation over seeds. In brackets is the share of SAMPLES paired bootstrap samples of the
questions in which an arm beats the first one, with each question's metric averaged over seeds.

The plot reproduces the paper's Figure 2, standard against dynamic hard negative mining: the mean cosine of all queries
with their positives and with their negatives by step; and the same for the query whose negatives were replaced most
often, under the weights of each checkpoint.
"""

import argparse
import json
import shutil
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import yaml
from conan_embedding.pipeline.corpus.folder import shards
from conan_embedding.pipeline.corpus.pools import stored_fingerprint
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.schemas.recipe import load
from conan_embedding.schemas.settings import EncoderSettings
from conan_embedding.schemas.training import TRAINING
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.evaluation.evaluation_sets import EvaluationSet, part, read_sets
from conan_embedding.trainer.job import Job, make_job
from conan_embedding.trainer.launch.launcher import run_job
from scipy.stats import spearmanr

ARMS = {"vanilla": (True, False), "CBB": (False, False), "DHNM": (True, True), "CBB + DHNM": (False, True)}
"""For each arm: whether tasks alternate (no CBB), and whether negatives are replaced (DHNM)."""
SOURCES = {"retrieval": ["cmrc2018", "stsb_zh_triples"], "pretrain": ["xwlb", "lctt", "cmrc2018_title"]}
"""Without csl_title: its titles are also classification examples, so they have many positives, and all candidates must
score below the lowest of them."""
QUERIES, RETRIEVAL, SENTENCES, CHECK_EVERY, SAMPLES = 1_600, 32, 64, 50, 2_000
LEARNING_RATE = 1e-4
STANDARD, DYNAMIC = "CBB", "CBB + DHNM"
"""The two arms in Figure 2."""
SMOOTHED = 20
"""Number of steps in the moving average of its curves."""

Floats = npt.NDArray[np.float64]


class Run(NamedTuple):
    """A finished run."""

    job: Job
    log: list[dict[str, Any]]


def main() -> None:
    """Train the arms that are not trained yet, print the table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus made by `conan run`")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the runs and the plot")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=list(ARMS), metavar="ARM")
    parser.add_argument("--half", choices=["test", "validation"], default="test")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a fine-tuning setting")
    options = parser.parse_args()
    runs = {(arm, seed): train(arm, seed, options) for seed in options.seeds for arm in options.arms}
    show(runs, halves(read_sets([options.corpus / "evaluation"]), options.half))
    if {STANDARD, DYNAMIC} <= {*options.arms} and not options.set:
        draw(runs[STANDARD, options.seeds[0]], runs[DYNAMIC, options.seeds[0]], options.folder / "figure2.svg")


def show(runs: dict[tuple[str, int], Run], sets: list[EvaluationSet]) -> None:
    """Print the table, and DHNM's counts."""
    arms, seeds = (list(dict.fromkeys(names)) for names in zip(*runs, strict=True))
    start = judged(runs[arms[0], seeds[0]].job.model, sets)
    found = {run: judged(runs[run].job.model_folder, sets) for run in runs}
    print(f"{len(seeds)} seeds; test sets: " + ", ".join(f"{one.name} {one.frame.height}" for one in sets))
    print(f"{'':12}" + "".join(f"{one.name:>28}" for one in sets) + f"{'mean':>10}")
    first = [headline(one, [start[one.name]]) for one in sets]
    print(f"{'before':12}" + "".join(f"{value:18.4f}{'':10}" for value in first) + f"{np.mean(first):10.4f}")
    for arm in arms:
        cells, values = [], np.array([[headline(one, [found[arm, seed][one.name]]) for seed in seeds] for one in sets])
        for one, each in zip(sets, values, strict=True):
            better = wins(one, *([found[name, seed][one.name] for seed in seeds] for name in (arm, arms[0])))
            cells.append(f"{spread(each)} ({better:5.1%})")
        print(f"{arm:12}" + "".join(f"{cell:>28}" for cell in cells) + f"   {spread(values.mean(axis=0))}")
    for arm, seed in runs:
        if counted := counts(runs[arm, seed]):
            print(f"{arm}, seed {seed}:", ", ".join(f"{name} {count}" for name, count in counted.items()))


def train(arm: str, seed: int, options: argparse.Namespace) -> Run:
    """Train an arm unless it has been trained. It has a corpus of its own, because training writes to the pools."""
    recipe = load(options.corpus / "recipe.yaml").finetune
    assert recipe is not None
    alternate_tasks, mines = ARMS[arm]
    settings = recipe.model_dump() | {
        "model": str((options.corpus / "train" / recipe.model / "model").resolve()),
        "alternate_tasks": alternate_tasks,
        "retrieval_batch": RETRIEVAL if alternate_tasks else RETRIEVAL // 2,
        "sts_batch": SENTENCES if alternate_tasks else SENTENCES // 2,
        "learning_rate": LEARNING_RATE,
        "seed": seed,
        "steps": options.steps,
        "mixing": {"power": 1.0},
        "log_every": 1,
        "checkpoint_every": CHECK_EVERY,
        "keep_checkpoints": options.steps if seed == options.seeds[0] and arm in (STANDARD, DYNAMIC) else 1,
    }
    settings["hard_negative_mining"] |= {"enabled": mines, "check_every": CHECK_EVERY}
    for change in options.set:
        name, _, value = change.partition("=")
        *outer, inner = name.split(".")
        place = settings[outer[0]] if outer else settings
        place[inner] = yaml.safe_load(value)
    corpus = options.folder / " ".join([f"{options.steps} {arm} {seed}", *options.set])
    if not (corpus / "pools.duckdb").exists():
        draw_queries(options.corpus, corpus)
    finetune = FinetuneSettings.model_validate(settings)
    found = {kind: shards(corpus, f"convert/{kind}") for kind in [*finetune.queries, "sts"]}
    job = make_job(corpus, "finetune", finetune.model, finetune, found, stored_fingerprint(corpus))
    run_job(job, 1)
    return Run(job, [json.loads(line) for line in (job.folder / "log.jsonl").read_text("utf-8").splitlines()])


def draw_queries(corpus: Path, folder: Path) -> None:
    """Write a corpus with a sample of the queries, all sentence pairs and all pools."""
    parts = {kind: pl.read_parquet(corpus / "convert" / kind / "part-*.parquet") for kind in SOURCES}
    parts = {kind: each.filter(pl.col("source").cast(pl.String).is_in(SOURCES[kind])) for kind, each in parts.items()}
    share = QUERIES / sum(each.height for each in parts.values())
    for kind, each in parts.items():
        chosen = each.sample(fraction=share, seed=0).to_arrow()
        shard = folder / "convert" / kind / "part-00000.parquet"
        with ShardWriter(shard, TRAINING[kind], None, stage="convert", version=1, fingerprint=str(QUERIES)) as writer:
            writer.received(len(chosen))
            writer.keep(chosen)
    sentences = folder / "convert" / "sts"
    if not sentences.exists():
        sentences.symlink_to((corpus / "convert" / "sts").resolve())
    shutil.copy(corpus / "pools.duckdb", folder)


def counts(run: Run) -> Counter[str]:
    """Return DHNM's counts: flagged and replaced summed over the run, the others as of the last check."""
    found: Counter[str] = Counter()
    for entry in run.log:
        for name, count in entry.get("mining", {}).items():
            found[name] = count + (found[name] if name in ("flagged", "replaced") else 0)
    return found


def halves(sets: list[EvaluationSet], half: str) -> list[EvaluationSet]:
    """Return the sets with the questions of one half; classification sets are left out."""
    kept = []
    for one in sets:
        if one.task != "classification":
            column = "query" if one.task == "retrieval" else "text_a"
            of_test = [zlib.crc32(text.encode()) % 2 == 0 for text in one.frame[column]]
            kept.append(part(one, one.frame.filter(pl.Series(of_test) == (half == "test"))))
    return kept


def judged(model: str | Path, sets: list[EvaluationSet]) -> dict[str, pl.DataFrame]:
    """Evaluate a model; return one row per question, by set."""
    from conan_embedding.pipeline.encoder.encoder import dimension, load_encoder
    from conan_embedding.trainer.evaluation.evaluate import judge

    encoder = load_encoder(EncoderSettings(model=str(model), max_length=128))
    return {one.name: judge(encoder, one, [dimension(encoder)])[0].results for one in sets}


def headline(one: EvaluationSet, results: list[pl.DataFrame], rows: npt.NDArray[np.int64] | None = None) -> float:
    """Average each question's result over runs, then return nDCG@10 or Spearman over all questions or `rows`."""
    column = "ndcg_10" if one.task == "retrieval" else "score"
    values: Floats = np.mean([each[column].to_numpy() for each in results], axis=0)
    rows = np.arange(len(values)) if rows is None else rows
    if one.task == "retrieval":
        return float(values[rows].mean())
    return float(spearmanr(values[rows], one.frame["label"].to_numpy()[rows]).statistic)


def wins(one: EvaluationSet, arm: list[pl.DataFrame], vanilla: list[pl.DataFrame]) -> float:
    """Return the share of bootstrap samples of the questions in which `arm` beats `vanilla`."""
    generator = np.random.default_rng(0)
    samples = generator.integers(one.frame.height, size=(SAMPLES, one.frame.height))
    return float(np.mean([headline(one, arm, rows) > headline(one, vanilla, rows) for rows in samples]))


def spread(values: Floats) -> str:
    """Format mean and standard deviation."""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}"


def draw(standard: Run, dynamic: Run, file: Path) -> None:
    """Draw Figure 2: the scores of all queries from the logs, and of one query from the checkpoints."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ablation"
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    runs = {"standard": (standard, "#b8860b"), "dynamic": (dynamic, "#1f5fa8")}
    for name, (run, colour) in runs.items():
        for score, style in (("positive", "--"), ("negative", "-")):
            curve = [entry[f"{score}_score"] for entry in run.log if "loss" in entry]
            mean = np.convolve(curve, np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")
            left.plot(np.arange(len(mean)) + SMOOTHED, mean, style, color=colour, label=f"{score}, {name}")
    left.set(title="all queries: mean cosine", xlabel="step")
    query = most_replaced(dynamic)
    if query is not None:
        for name, (run, colour) in runs.items():
            for score, style in (("positive", "--"), ("negative", "-")):
                followed = follow(run, query)
                right.plot(followed["step"], followed[score], style, color=colour, label=f"{score}, {name}")
        for step, _ in replaced(dynamic, query):
            right.axvline(step, color="#1f5fa8", alpha=0.3, linewidth=1)
        right.set(title="one query, its negatives replaced at the lines", xlabel="step")
    for picture in (left, right):
        picture.grid(alpha=0.3)
        picture.legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})  # without a date, the same data gives the same file
    print(f"plot written to {file}")


def most_replaced(run: Run) -> int | None:
    """Return the query whose negatives were replaced most often, the one with the smallest id in a tie.

    Queries that started with negatives from the data are left out, because `follow` reads negatives only from pools.
    """
    records = pl.concat([pl.read_parquet(shard) for shard in run.job.shards["retrieval"]])
    given = records.filter(pl.col("negatives").list.len() > 0)["query"].to_list()
    with duckdb.connect(str(run.job.corpus / "pools.duckdb"), read_only=True) as connection:
        found = connection.execute(
            "SELECT query_id FROM replacements JOIN queries USING (query_id) WHERE NOT list_contains(?, text) "
            "GROUP BY query_id ORDER BY count(*) DESC, query_id LIMIT 1",
            [given],
        ).fetchone()
    return None if found is None else int(found[0])


def replaced(run: Run, query: int) -> list[tuple[int, int]]:
    """Return the step of each replacement of a query's negatives, and the first rank of the new window."""
    with duckdb.connect(str(run.job.corpus / "pools.duckdb"), read_only=True) as connection:
        sql = "SELECT step, lo FROM replacements WHERE query_id = ? ORDER BY step"
        return connection.execute(sql, [query]).fetchall()


def follow(run: Run, query: int) -> pl.DataFrame:
    """Return a query's mean cosines with its positives and its current negatives, at the start and each checkpoint."""
    import torch
    from conan_embedding.trainer.dhnm.refresh import vectors_of
    from conan_embedding.trainer.model.embedding_model import load as load_model

    with duckdb.connect(str(run.job.corpus / "pools.duckdb"), read_only=True) as connection:

        def texts(sql: str, *more: int) -> list[str]:
            return [text for (text,) in connection.execute(sql, [query, *more]).fetchall()]

        asked = texts("SELECT text FROM queries WHERE query_id = ?")
        positives = texts("SELECT text FROM positives JOIN passages USING (passage_id) WHERE query_id = ?")
        ranked = (
            "SELECT unnest(passage_ids) AS passage_id, generate_subscripts(passage_ids, 1) - 1 AS rank FROM candidates"
        )
        ranked = f"SELECT text FROM ({ranked} WHERE query_id = ?) JOIN passages USING (passage_id)"
        settings = run.job.settings
        assert isinstance(settings, FinetuneSettings)
        wanted = settings.negatives
        windows = {
            lo: texts(f"{ranked} WHERE rank >= ? AND rank < ? ORDER BY rank", lo, lo + wanted)
            for lo in (0, *(lo for _, lo in replaced(run, query)))
        }
    model, tokenizer = load_model(run.job.model, None, None, run.job.settings.max_length)
    rows = []
    for place in [None, *run.job.checkpoints]:
        step = 0 if place is None else int(place.name.removeprefix("step-"))
        if place is not None:
            saved = torch.load(place / "mp_rank_00_model_states.pt", weights_only=False)
            model.load_state_dict(saved["module"])
        lo = max([0, *(lo for at, lo in replaced(run, query) if at < step)])
        query, passages = (
            vectors_of(model, tokenizer, pa.array(each), side, pa.array([""] * len(each)))
            for side, each in (("query", asked), ("passage", positives + windows[lo]))
        )
        scores = passages @ query[0]
        rows.append(
            {"step": step, "positive": scores[: len(positives)].mean(), "negative": scores[len(positives) :].mean()}
        )
    return pl.DataFrame(rows)


if __name__ == "__main__":
    main()
