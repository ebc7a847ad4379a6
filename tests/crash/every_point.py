"""Every point of a stage at which a crash differs from another, each on a corpus of its own, followed by one run.

    python tests/crash/every_point.py filter --fault death --workers 2

Two runs for each point: about a second with one worker, some seconds with two.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "shared"))

import forks
from corpora import STAGES, WITH_WORKERS, Unbroken, check_full_disk, faults, lines, run_unbroken, state


def points_of(unbroken: Unbroken, stage: str, fault: str, workers: int, folder: Path) -> list[str]:
    """All points that an unbroken run meets."""
    corpus, points = folder / "corpus", folder / "points"
    unbroken.before(stage, corpus)
    points.unlink(missing_ok=True)
    again = unbroken.command(stage, corpus, workers=workers)
    assert forks.run(again, folder / "output", faults(fault, corpus, points, each=True, wanted=[])) == 0
    return lines(points)


def try_point(unbroken: Unbroken, stage: str, fault: str, workers: int, point: str, folder: Path) -> None:
    """Fail there, run again, compare."""
    corpus, points, output = folder / "corpus", folder / "points", folder / "output"
    unbroken.before(stage, corpus)
    points.unlink(missing_ok=True)
    again = unbroken.command(stage, corpus, workers=workers)
    code = forks.run(again, output, faults(fault, corpus, points, each=True, wanted=[point]))
    assert lines(points) == [point]
    points.with_suffix(".full").unlink(missing_ok=True)
    if fault == "full":
        check_full_disk(code, output.read_text("utf-8"), corpus)
    else:
        assert code in {"kill": (-9,), "death": (9, 0) if workers > 1 else (9,)}[fault], output.read_text("utf-8")
    assert code == 0 or forks.run(again, output) == 0, output.read_text("utf-8")
    assert state(corpus) == unbroken.states[stage]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stages", nargs="*", default=STAGES, metavar="STAGE", help="default: all")
    parser.add_argument("--fault", choices=("death", "kill", "full"), default="death")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unbroken = run_unbroken(folder / "unbroken")
        for stage in arguments.stages:
            workers = arguments.workers if stage in WITH_WORKERS else 1
            every = points_of(unbroken, stage, arguments.fault, workers, folder)
            for point in every:
                try:
                    try_point(unbroken, stage, arguments.fault, workers, point, folder)
                except AssertionError as error:
                    failures += 1
                    print(f"{stage}, {arguments.fault}, {point}: {str(error)[:2000]}")
            print(f"{stage}: {len(every)} points, {arguments.fault}, {workers} workers", flush=True)
    raise SystemExit(failures > 0)


if __name__ == "__main__":
    main()
