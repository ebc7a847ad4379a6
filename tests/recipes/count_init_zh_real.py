"""Score the recipe that `conan init` writes for the real data against recipes/zh-real.yaml, source by source.

Run: `python tests/recipes/count_init_zh_real.py DATA [--recipe FILE]`. DATA is the folder that recipes/zh-real.yaml
names as `root`; the recipe is written for it, or FILE is one that was written before.

A source is right if the source (or evaluation set) that reads most of its files has the same reader, takes query and
positive from the same columns, and has the same format and task. Columns of tables without a header, which either
recipe names as it likes, are compared by their places; what the SQL does with a column (a regular
expression, a cast) is not compared. Prints a table, and the number of right sources. Exit code 1 if fewer than 24 are.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from conan_embedding.pipeline.ingest.splits import list_source_files
from conan_embedding.pipeline.recipe_writer.draft import draft_recipe
from conan_embedding.schemas.recipe import load
from conan_embedding.schemas.source_settings import Source

BY_HAND = Path(__file__).parents[2] / "recipes" / "zh-real.yaml"
SQL_WORDS = {"CASE", "WHEN", "THEN", "NOT", "IN", "END", "FOR", "IF", "turn"}
WANTED = 24
"""Sources that must be right without an edit."""


def files_of(source: Source) -> set[str]:
    """The files that a source reads."""
    return {file.path for file in list_source_files(source, source.files).files}


def columns_of(source: Source, sql: str) -> set[str]:
    """Columns that an expression takes, without what holds them: `v.title` is `title`; by place without a header."""
    bare = re.sub(r"E?'(?:[^']|'')*'|\[[^\[\]]*\] *(?=,)|::\w+", "", sql)
    names = {name.split(".")[-1] for name in re.findall(r"(?<![\w.])[^\W\d][\w.]*(?![\w(])", bare)} - SQL_WORDS
    named = source.options.columns or []
    return {f"column {named.index(name) + 1}" if name in named else name for name in names}


def differences(wanted: Source, found: Source) -> list[str]:
    """List the keys in which two sources of the same files differ."""
    faults = []
    for key in ("read", "format", "task"):
        if getattr(wanted, key) != getattr(found, key):
            faults.append(f"{key} {getattr(found, key)}, not {getattr(wanted, key)}")
    for side in ("query", "positive"):
        right, guessed = (sorted(columns_of(one, getattr(one, side))) for one in (wanted, found))
        if right != guessed:
            faults.append(f"{side} from {', '.join(guessed)}, not {', '.join(right)}")
    return faults


def compare(wanted: Sequence[Source], found: Sequence[Source]) -> list[tuple[str, str, list[str]]]:
    """For each wanted source: its name, that of the found one which reads most of its files, and what differs."""
    files = {source.name: files_of(source) for source in found}
    rows = []
    for source in wanted:
        own = files_of(source)
        nearest = max(found, key=lambda one: len(own & files[one.name]))
        if own & files[nearest.name]:
            rows.append((source.name, nearest.name, differences(source, nearest)))
        else:
            rows.append((source.name, "–", ["not placed"]))
    return rows


def main() -> int:
    """Write, compare, print; 1 if too few sources are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the raw data")
    parser.add_argument("--recipe", type=Path, help="a recipe that `conan init` wrote for it")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        recipe = options.recipe or Path(folder) / "recipe.yaml"
        if not options.recipe:
            draft_recipe(str(options.data), recipe)
        found = load(recipe)
    wanted = load(BY_HAND, [f"variables.root={options.data}"])
    everything = [*found.sources, *found.evaluation]
    rights = {}
    for section in ("sources", "evaluation"):
        rows = compare(getattr(wanted, section), everything)
        rights[section] = sum(not faults for *_, faults in rows)
        print(f"| {section} | of `conan init` | |\n|---|---|---|")
        for name, nearest, faults in rows:
            print(f"| {name} | {nearest} | {'; '.join(faults) or 'right'} |")
        print(f"\n{rights[section]} of {len(rows)} {section} right.\n")
    return int(rights["sources"] < WANTED)


if __name__ == "__main__":
    sys.exit(main())
