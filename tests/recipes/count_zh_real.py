"""Count the rows of the real data a second time, in plain Python, and compare with what `conan ingest` made of them.

Run: `python tests/recipes/count_zh_real.py DATA CORPUS [--sources] [--stages]`. DATA is the folder that
recipes/zh-real.yaml names as `root`, CORPUS a corpus ingested with that recipe.

`sources` says again, without SQL and without a line of Conan's, which rows the files of each source hold, which of them
`where` leaves out, and which have no query or no positive and so must be rejected. Not only the numbers must agree but
the pairs, as a multiset of (query, positive, label), each text as its Han characters alone (`fold`): what Conan's
normalisation leaves as it is. Files that no source reads are listed. Exit code 1 if anything differs.

A file that several sources read counts for each of them, a source that reads two folders has a line of its own.
"""

import argparse
import html
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import yaml
from zh_real_rows import HAN, KEPT, LEFT_OUT, Data, Row, evaluation_sets, sources

UNREAD = {
    "sohu_match_bge/examples/data/README.md": "describes the other files",
    "thucnews_titles/THUCNews/data/class.txt": "the names of the classes, which are in the recipe",
    "vocab_clue_roberta/baselines/models/roberta/resources/vocab.txt": "the tokens of the bootstrap's model, no pairs",
}
"""Files that no source reads, and why that is right."""

STAGES = ("ingest", "filter", "dedup", "score", "convert")
MARKUP = r"(?s)<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>|</?[a-zA-Z][a-zA-Z0-9]*(\s[^<>]*)?/?>"


class Account(NamedTuple):
    """A source, the folders of DATA that it reads, and the expected and actual number of rows per outcome."""

    name: str
    folders: str
    left_out: int
    expected: Counter[str]
    found: Counter[str]
    other_pairs: int  # expected and not there, or there and not expected, whichever are more

    @property
    def equal(self) -> bool:
        """Whether rows, rejects by reason and pairs are the same."""
        return self.expected == self.found and not self.other_pairs


Group = tuple[str, Sequence[Account]]
"""A line of a table: folders, and the sources that read them."""


def fold(text: str) -> str:
    """Reduce a text to what no normalisation changes: its Han characters, or if it has none, its letters and digits."""
    bare = re.sub(MARKUP, "", unicodedata.normalize("NFC", html.unescape(text)))
    return re.sub(f"[^{HAN}]+", "", bare) or "".join(filter(str.isalnum, bare.casefold()))


def folded(query: str, positive: str, label: float | None) -> int:
    """A pair as a number, which is another in the next run."""
    return hash((fold(query), fold(positive), None if label is None else round(label, 3)))


def judged(rows: Iterable[Row]) -> tuple[Counter[str], Counter[int]]:
    """How many rows must meet which end, and the pairs that must be kept."""
    ends, kept = Counter[str](), Counter[int]()
    for row in rows:
        if isinstance(row, str):
            ends[row] += 1
        elif row.query is None or row.positive is None:
            ends["no_query" if row.query is None else "no_positive"] += 1
        else:
            ends[KEPT] += 1
            kept[folded(row.query, row.positive, row.label)] += 1
    return ends, kept


def rows_of(shard: Path, *columns: str) -> list[dict[str, Any]]:
    """Some columns of a shard."""
    rows: list[dict[str, Any]] = pq.read_table(shard, columns=list(columns)).to_pylist()
    return rows


def counted(stage: Path) -> dict[str, Counter[str]]:
    """How many rows of each source met which end in a stage; what convert made of several pairs counts as many."""
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    for shard in stage.rglob("part-*.parquet"):
        if shard.parent.name == "rejected":
            for row in rows_of(shard, "source", "reason"):
                ends[row["source"]][row["reason"]] += 1
        else:
            for row in rows_of(shard, "source", *(["pair_ids"] if stage.name == "convert" else [])):
                ends[row["source"]][KEPT] += len(row.get("pair_ids", [1]))
    return ends


def accounts_of(data: Data, group: Mapping[str, Iterator[Row]], stage: Path, mark: str = "") -> list[Account]:
    """The accounts of a group of sources, in the folder of whose stage they are ingested."""
    found, pairs_found = counted(stage), defaultdict[str, Counter[int]](Counter)
    for shard in stage.glob("part-*.parquet"):
        for row in rows_of(shard, "source", "query", "positive", "label"):
            pairs_found[row.pop("source")][folded(**row)] += 1
    accounts, read_before = [], data.read
    for name, rows in group.items():
        data.read = set()
        ends, kept = judged(rows)
        folders = " + ".join(sorted({file.partition("/")[0] for file in data.read}))
        other = max((kept - pairs_found[name]).total(), (pairs_found[name] - kept).total())
        accounts.append(Account(name + mark, folders, ends.pop(LEFT_OUT, 0), ends, found[name], other))
        read_before |= data.read
    data.read = read_before
    return accounts


def total(ends: Iterable[Counter[str]]) -> Counter[str]:
    """Counts added up."""
    return sum(ends, Counter[str]())


def reasons(ends: Counter[str]) -> str:
    """Rejects by reason, the most frequent first."""
    by_rows = sorted(ends.items(), key=lambda end: (-end[1], end[0]))
    return ", ".join(f"{reason} {rows:,}" for reason, rows in by_rows if rows and reason != KEPT) or "–"


def show(header: Sequence[str], rows: Iterable[Sequence[str | int]]) -> None:
    """Print a table in Markdown."""
    for cells in (header, ["---"] * len(header), *rows):
        print("|", " | ".join(cell if isinstance(cell, str) else f"{cell:,}" for cell in cells), "|")
    print()


def show_ingest(groups: Iterable[Group]) -> None:
    """A line for each group of sources: what was counted here, and what ingest made of it."""
    rows: list[list[str | int]] = []
    for folder, group in groups:
        expected, found = total(one.expected for one in group), total(one.found for one in group)
        rejected, due = reasons(found), reasons(expected)
        rejected += f" (expected: {due})" if due != rejected else ""
        left_out, other_pairs = sum(one.left_out for one in group), sum(one.other_pairs for one in group)
        names, equal = ", ".join(one.name for one in group) or "–", all(one.equal for one in group)
        figures = (left_out, expected.total(), found[KEPT], rejected, other_pairs)
        rows.append([folder, names, *figures, "yes" if equal else "NO"])
    header = "folder", "sources", "left out by `where`", "rows found", "ingested", "rejected", "other pairs", "equal"
    show(header, rows)


def show_stages(corpus: Path, groups: Iterable[Group]) -> bool:
    """A line for each group of sources: the rejects of each stage; returns whether every row found is one, or left."""
    ends = {stage: counts for stage in STAGES if (counts := counted(corpus / stage))}
    last = list(ends)[-1]
    rows: list[list[str | int]] = []
    for folder, group in groups:
        met = {stage: total(counts[one.name] for one in group) for stage, counts in ends.items()}
        found, left = total(one.expected for one in group).total(), met[last][KEPT]
        rejected = sum(counts.total() - counts[KEPT] for counts in met.values())
        adds_up = "yes" if found == left + rejected else "NO"
        rows.append([folder, found, *(reasons(counts) for counts in met.values()), left, adds_up])
    show(("folder", "rows found", *(f"rejected by {stage}" for stage in ends), f"left after {last}", "adds up"), rows)
    return all(row[-1] == "yes" for row in rows)


def show_unread(data: Data) -> bool:
    """A line for each file that no source reads; returns whether all of them are known."""
    files = {path.relative_to(data.root).as_posix() for path in data.root.glob("[!.]*/**/*") if path.is_file()}
    unread = sorted(files - data.read)
    show(("not read", "why"), [(file, UNREAD.get(file, "NOT KNOWN: no source names it")) for file in unread])
    return set(unread) <= set(UNREAD)


def main() -> int:
    """Count, compare, print; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the raw data")
    parser.add_argument("corpus", type=Path, help="a corpus that recipes/zh-real.yaml was ingested into")
    parser.add_argument("--sources", action="store_true", help="a line for each source as well")
    parser.add_argument(
        "--stages", action="store_true", help="the rejects of every stage as well, without the evaluation sets"
    )
    options = parser.parse_args()

    data, corpus = Data(options.data), options.corpus
    training = accounts_of(data, sources(data), corpus / "ingest")
    accounts = training + accounts_of(data, evaluation_sets(data), corpus / "evaluation", " (evaluation)")
    folders = sorted({one.folders for one in accounts} | {path.name for path in data.root.iterdir() if path.is_dir()})

    show_ingest((folder, [one for one in accounts if one.folders == folder]) for folder in folders)
    if options.sources:
        show_ingest((one.folders, [one]) for one in accounts)
    faults = [one.name for one in accounts if not one.equal]
    if options.stages:
        by_folder = ((folder, [one for one in training if one.folders == folder]) for folder in folders)
        faults += [] if show_stages(corpus, by_folder) else ["the stages"]
    faults += [] if show_unread(data) else ["the files"]
    recipe = yaml.safe_load((corpus / "recipe.yaml").read_text("utf-8"))
    named = {source["name"] for source in recipe["sources"] + recipe["evaluation"]}
    faults += [f"{name}, not counted here" for name in sorted(named - {*sources(data), *evaluation_sets(data)})]
    found, kept = total(one.expected for one in accounts), total(one.found for one in accounts)
    print(f"{found.total():,} rows found, {kept[KEPT]:,} ingested, {reasons(kept)} rejected.")
    print(f"Different: {'; '.join(faults)}." if faults else "All equal.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
