"""The parts of benchmarks/gpu.sh: `python benchmarks/gpu_parts.py PART --out OUT --work WORK [--small]`.

A part writes its rows of the table to OUT/PART.json. `prepare` writes the model and the training data to WORK; `table`
prints the rows of all parts and writes them to OUT/table.md. With --small everything is tiny. Most parts only start
other processes, so modules that load PyTorch are imported in the functions that need them.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

HERE = Path(__file__).parent
STEPS = 20
TIMED = (7, 12)  # the same steps that benchmarks/train.py times

Row = dict[str, Any]


class Place(NamedTuple):
    """The folders of results and of prepared files, and whether everything is tiny."""

    out: Path
    work: Path
    small: bool

    @property
    def shape(self) -> str:
        """The model's shape, by its name in train.SHAPES."""
        return "tiny" if self.small else "large"


def main() -> None:
    """Run a part and write its rows atomically."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["prepare", *PARTS, "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    place = Place(options.out, options.work, options.small)
    if options.part == "table":
        print(write_table(place.out), end="")
        return
    rows = prepare(place) if options.part == "prepare" else PARTS[options.part](place)
    folder = place.work if options.part == "prepare" else place.out
    temporary = folder / f".{options.part}.json"
    temporary.write_text(json.dumps(rows, indent=1), "utf-8")
    temporary.rename(folder / f"{options.part}.json")
    sys.stdout.flush()
    os._exit(0)  # as a training process does, because threads of libraries may keep running


def prepare(place: Place) -> list[Row]:
    """Write the model, a copy of it without dropout, the job, and its first batches as texts for other libraries."""
    import train
    from made_corpus import write_corpus

    shutil.rmtree(place.work)
    place.work.mkdir()
    write_corpus(place.work / "made", queries=60 if place.small else 400)
    train.prepare(
        place.work, argparse.Namespace(tasks="mixed", shape=place.shape, precision="bf16", pairs=place.work / "made")
    )
    still = Path(shutil.copytree(place.work / "model", place.work / "still", copy_function=os.link))
    config = json.loads((still / "config.json").read_text("utf-8"))
    (still / "config.json").unlink()  # a hard link to the original's: replace it, don't write through it
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config), "utf-8")
    return []


def run_encode(place: Place) -> list[Row]:
    """Measure encoding with Conan and sentence-transformers: tokens per second, and share of the matrix rate."""
    import encode
    import torch
    from conan_embedding.pipeline.encoder.encoder import load_encoder
    from conan_embedding.schemas.settings import EncoderSettings
    from train import SHAPES

    texts, bert = texts_to_encode(place), str(place.work / "bert")
    ours = load_encoder(EncoderSettings(model=bert, pooling="mean"))
    theirs = encode.peer(bert, ours.model.dtype)
    rate = encode.matrix_rate(ours.device, ours.model.dtype, *((512, 3) if place.small else ()))
    encode.encode(ours, texts[: len(texts) // 20])
    tenth = texts[: len(texts) // 10]
    size = min(encode.BATCH_SIZES, key=lambda size: encode.timed(lambda: encode.encode_theirs(theirs, tenth, size)))
    turns = [
        (
            encode.timed(lambda: encode.encode(ours, texts)),
            encode.timed(lambda: encode.encode_theirs(theirs, texts, size)),
        )
        for _ in range(3)
    ]
    seconds = [statistics.median(each) for each in zip(*turns, strict=True)]
    lengths = [len(ids) for ids in ours.tokenizer(texts, truncation=True, max_length=encode.LENGTH)["input_ids"]]
    speeds = [sum(lengths) / each for each in seconds]
    shares = [encode.forward_operations(SHAPES[place.shape], lengths) / each / rate for each in seconds]
    kind = str(ours.model.dtype).removeprefix("torch.")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return [
        row(f"matrix product, {kind}, {device}", rate / 1e12, "TFLOP/s"),
        row(f"encode, {kind}; sentence-transformers, batches of {size}", speeds[0], "tokens/s", speeds[1]),
        row("encode, share of the matrix rate", shares[0], "", shares[1]),
    ]


def run_train(place: Place) -> list[Row]:
    """Measure training steps of both tasks, compared with a plain loop over sentence-transformers' losses."""
    updates = json.loads((place.work / "updates.json").read_text("utf-8"))
    import train

    lengths = updates["lengths"][train.STEPS :]
    tokens = sum(map(sum, lengths)) / len(lengths)
    ours = training_run(place, "bf16")["seconds"]
    command = [sys.executable, HERE / "peers" / "train.py", "sentence_transformers", place.work]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    name = f"train, bf16, ZeRO 1, {tokens:,.0f} tokens per step; a loop over sentence-transformers' losses"
    rows = [
        row(name, tokens / ours, "tokens/s", tokens / theirs["seconds"]),
        row("train, first loss without dropout, difference", abs(theirs["loss"] / updates["loss"] - 1), ""),
    ]
    if (place.out / "encode.json").exists():
        rate = 1e12 * json.loads((place.out / "encode.json").read_text("utf-8"))[0]["value"]
        whole = train.step_operations(place.shape, lengths) / rate
        rows.append(row("train, share of the matrix rate", whole / ours, "", whole / theirs["seconds"]))
    return rows


def run_precision(place: Place) -> list[Row]:
    """Compare the losses in bf16 with those in fp32."""
    half = training_run(place, "still", dropout=False)
    whole = training_run(place, "still-fp32", dropout=False, precision="fp32")
    return [row(f"bf16 against fp32, largest loss difference in {STEPS} steps", apart(half, whole), "")]


def run_zero(place: Place) -> list[Row]:
    """Compare losses and memory of ZeRO 1, 2 and 3; if small, on two processes."""
    ranks = 2 if place.small else 1
    names = {1: "zero-1" if place.small else "bf16", 2: "zero-2", 3: "zero-3"}
    runs = {stage: training_run(place, name, ranks, zero_stage=stage) for stage, name in names.items()}
    rows = [row(f"ZeRO {n}, peak memory; ZeRO 1", run["peak"], "MB", runs[1]["peak"]) for n, run in runs.items()]
    return rows + [row(f"ZeRO {n} against 1, largest loss difference", apart(runs[n], runs[1]), "") for n in (2, 3)]


def run_syncs(place: Place) -> list[Row]:
    """Count how often the host waits in a step that does not log, by whose code, and in three steps, by profiler."""
    import host_syncs
    from torch.profiler import ProfilerActivity, profile

    job = write_job(place, "syncs")
    found = host_syncs.count_syncs(job, 4, rank_environment(0, 1, free_port()))[4]
    for (owner, where), times in found.items():
        print(f"{owner}: {times} at {where}")
    owners = Counter({"Conan": 0, "DeepSpeed": 0, "other": 0})
    for (owner, _), times in found.items():
        owners[owner] += times
    profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def before(step: int) -> None:
        if step == 4:
            profiler.start()

    def after(step: int) -> None:
        if step == 6:
            profiler.stop()

    host_syncs.train_steps(job, 6, before, after)
    calls = Counter(
        (event.name, event.cpu_parent.name if event.cpu_parent else "Python")
        for event in profiler.events()
        if "Synchronize" in event.name or "Memcpy DtoH" in event.name or event.name == "aten::_local_scalar_dense"
    )
    for (name, cause), times in calls.most_common():
        print(f"{name} in {cause}: {times} in 3 steps")
    return [
        *(row(f"host waits per step, {owner}", times, "") for owner, times in owners.items()),
        *(row(f"profiler: {name} in {cause}", times / 3, "per step") for (name, cause), times in calls.most_common(5)),
    ]


def run_gradcache(place: Place) -> list[Row]:
    """Measure the peak memory of a step with and without GradCache."""
    import torch
    from gradcache import measure

    rows = []
    tokens, chunk, counts = (16, 256, [64]) if place.small else (32, 16_384, [64, 4_096])
    for negatives in counts:
        name = f"peak memory, {negatives:,} negatives of {tokens} tokens, GradCache; without"
        cached = measure(negatives, tokens, chunk)["peak"]
        try:
            rows.append(row(name, cached, "MB", measure(negatives, tokens, None)["peak"]))
        except torch.OutOfMemoryError:
            rows.append(row(f"{name} runs out of memory", cached, "MB"))
    return rows


def run_tests(place: Place) -> list[Row]:
    """Run the tests that need a GPU; report how many passed."""
    folder = HERE.parent / "tests"
    files = [file for file in sorted(folder.rglob("test_*.py")) if "mark.gpu" in file.read_text("utf-8")]
    report = place.work / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--junit-xml", report, *files]
    done = subprocess.run(command, cwd=folder.parent)
    counts = next(ElementTree.parse(report).iter("testsuite")).attrib
    failed, skipped = (int(counts["failures"]) + int(counts["errors"])), int(counts["skipped"])
    if failed or done.returncode:
        raise RuntimeError(f"{failed} tests failed")
    return [row(f"tests marked gpu, passed ({skipped} skipped)", int(counts["tests"]) - skipped, "")]


def run_compile(place: Place) -> list[Row]:
    """Measure torch.compile: the speed-up, and the differences in vectors and losses."""
    import encode
    import numpy as np
    from conan_embedding.pipeline.encoder.encoder import load_encoder
    from conan_embedding.schemas.settings import EncoderSettings

    texts, vectors, speeds = texts_to_encode(place), [], []
    for compiles in (False, True):
        encoder = load_encoder(EncoderSettings(model=str(place.work / "bert"), pooling="mean", compile=compiles))
        vectors.append(encode.encode(encoder, texts))
        speeds.append(len(texts) / min(encode.timed(partial(encode.encode, encoder, texts)) for _ in range(2)))
    rows = [
        row("encode, compiled; not compiled", speeds[1], "texts/s", speeds[0]),
        row("encode, compiled, largest vector difference", float(np.abs(vectors[0] - vectors[1]).max()), ""),
    ]
    print(*rows, sep="\n")  # keep them in the log in case training takes too long
    plain = training_run(place, "still", dropout=False)
    compiled = training_run(place, "still-compiled", dropout=False, compile=True)
    return [
        *rows,
        row("train, compiled; not compiled", 1 / compiled["seconds"], "steps/s", 1 / plain["seconds"]),
        row("train, compiled, largest loss difference", apart(compiled, plain), ""),
    ]


PARTS: dict[str, Callable[[Place], list[Row]]] = {
    each.__name__.removeprefix("run_"): each
    for each in (run_encode, run_train, run_precision, run_zero, run_syncs, run_gradcache, run_tests, run_compile)
}


def row(name: str, value: float, unit: str, peer: float | None = None) -> Row:
    """Return a row of the table. If there is a peer, `name` says what it is after a semicolon."""
    return {"name": name, "value": value, "unit": unit, "peer": peer, "ratio": value / peer if peer else None}


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest relative difference between the losses of two runs."""
    return max(abs(a / b - 1) for a, b in zip(one["losses"], other["losses"], strict=True))


def texts_to_encode(place: Place) -> list[str]:
    """Generate texts with the lengths of passages."""
    import numpy as np
    from made_corpus import make_texts

    return make_texts(np.random.default_rng(1), 60 if place.small else 8_000, 220)


def write_job(place: Place, name: str, dropout: bool = True, **changes: Any) -> Any:
    """Write and return a copy of the prepared job with another name and changed settings."""
    from conan_embedding.trainer.job import Job

    job = Job.model_validate_json((place.work / "job.json").read_text("utf-8"))
    settings = job.settings.model_copy(update={"steps": STEPS + 1, "log_every": 10 * STEPS, **changes})
    model = place.work / ("model" if dropout else "still")
    job = job.model_copy(update={"name": name, "settings": settings, "model": str(model)})
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    job.file.write_text(job.model_dump_json(), "utf-8")
    return job


def training_run(place: Place, name: str, ranks: int = 1, dropout: bool = True, **changes: Any) -> dict[str, Any]:
    """Return what training_run.py measures for the job with changed settings, kept in a file for other parts.

    Turn dropout off to compare losses, because runs that compute differently draw different dropout masks.
    """
    file = place.out / f"run-{name}.json"
    if not file.exists():
        job, port = write_job(place, name, dropout, **changes), free_port()
        command = [sys.executable, HERE / "training_run.py", "--job", job.file, "--steps", f"{STEPS}"]
        command += ["--timed", *map(str, TIMED)]
        processes = [
            subprocess.Popen(command, env={**os.environ, **rank_environment(rank, ranks, port)}, stdout=subprocess.PIPE)
            for rank in range(ranks)
        ]
        outputs = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise RuntimeError(f"the training run {name} failed, see above")
        file.write_bytes(outputs[0].splitlines()[-1])
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return the environment variables that torchrun would set."""
    common = {"WORLD_SIZE": f"{ranks}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    return common | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}


def free_port() -> int:
    """Find a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def write_table(out: Path) -> str:
    """Write all rows so far as a Markdown table, with the last line of the error of each part that failed."""
    lines = ["| part | value | unit | peer | ratio |", "|---|---:|---|---:|---:|"]
    for part in PARTS:
        if (out / f"{part}.json").exists():
            for each in json.loads((out / f"{part}.json").read_text("utf-8")):
                cells = [each["name"], shown(each["value"]), each["unit"], shown(each["peer"]), shown(each["ratio"])]
                lines.append(f"| {' | '.join(cells)} |")
        elif (out / f"{part}.error").exists():
            error = (out / f"{part}.error").read_text("utf-8").strip().splitlines()
            lines.append(f"| {part} failed: {error[-1].replace('|', '/') if error else ''} | | | | |")
    table = "\n".join(lines) + "\n"
    (out / "table.md").write_text(table, "utf-8")
    return table


def shown(value: float | None) -> str:
    """Format a number with three significant digits, or as an integer if it is large."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
