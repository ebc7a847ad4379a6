"""A page whose blocks fail, or whose output is not what comes, is found out."""

import re
from pathlib import Path

import pytest
from page_blocks import RUN, compare, read_blocks, read_commands
from page_runs import run_page


def wrong(markdown: str, folder: Path) -> list[str]:
    return run_page([block for block in read_blocks(markdown, "page.md") if block.language in RUN], folder)


@pytest.mark.parametrize(
    ("shown", "came", "numbers_vary"),
    [
        ("in  3\nout 2\n", "in  3\nout 2  \n", False),
        ("dedup (6.4 s)\n", "dedup (12 s)\n", False),
        ("in …\n…\nlast\n", "in 3\nmore\nand more\nlast\n", False),
        ("first\n…\n", "first\n", False),
        ("│ 1,411 │ 0.88 │\n", "│   300 │ -1.5e-3 │\n", True),
        ("┏━━━━┓\n┃ 12 ┃\n", "┏━━━┓\n┃ 3 ┃\n", True),
    ],
)
def test_output_fits(shown: str, came: str, numbers_vary: bool) -> None:
    assert compare(shown, came, numbers_vary) == ""


@pytest.mark.parametrize(
    ("shown", "came", "numbers_vary"),
    [
        ("out 2\n", "out 3\n", False),
        ("out 2\n", "out 2\nmore\n", False),
        ("refusal 2\n", "refused 2\n", True),
        ("one … two\n", "one\ntwo\n", False),
    ],
)
def test_output_does_not_fit(shown: str, came: str, numbers_vary: bool) -> None:
    assert compare(shown, came, numbers_vary).startswith("--- shown\n+++ came\n")


def test_a_command_continues_after_a_backslash_and_in_lines_of_its_own() -> None:
    first, second = read_commands("$ conan sql \\\n    corpus 'SELECT 1\n> FROM a'\nshown\n$ true\n")
    assert (first.text, first.output) == ("conan sql \\\n    corpus 'SELECT 1\nFROM a'", "shown\n")
    assert (second.text, second.output) == ("true", "")


@pytest.mark.parametrize(
    ("markdown", "problem"),
    [
        ("```bash\ntrue\n```\n", "page.md:1: bash is not one of sh, "),
        ("\n```\n$ conan\n```\n", "page.md:2: commands with their output are a `console` block"),
        ("```sh\ntrue\n", "page.md:1: the block has no end"),
    ],
)
def test_blocks_that_nobody_would_run_are_errors(markdown: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_blocks(markdown, "page.md")


def test_marks_belong_to_the_next_block_alone() -> None:
    block = "```sh\ntrue\n```\n"
    markdown = f"<!-- not run: a GPU -->\n{block}\n{block}\n<!-- numbers vary -->\ntext\n{block}"
    blocks = read_blocks(markdown, "page.md")
    assert [(block.reason, block.numbers_vary) for block in blocks] == [("a GPU", False), (None, False), (None, False)]


def test_a_page_runs_in_one_shell_and_one_python(tmp_path: Path) -> None:
    markdown = """
```sh
name=conan
mkdir -p inner
cd inner
```
```console
$ echo $name; pwd
conan
…/inner
```
```python
value = 1
```
```python
assert value == 1
```
```console
$ conan --help | grep -c '│ dedup'
1
$ conan ingest nowhere
error: nowhere: no recipe.yaml …
$ python -c 'print(1)'
1
```
```yaml
sources:
  - {name: qa, files: "${root}/*.jsonl", read: jsonl}
```
```yaml
- {name: qa, files: a.jsonl, read: jsonl}
```
"""
    assert wrong(markdown, tmp_path) == []


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("```sh\nfalse\ntrue\n```", "page.md:1: exit code 1"),
        ("```sh\nexit 3\n```", "page.md:1: exit code 3"),
        ("```console\n$ echo 1\n2\n$ echo 3\n4\n```", "page.md:1: \\$ echo 3\n"),
        ("```console\n$ conan ingest nowhere\n```", "page.md:1: exit code 2 of \\$ conan ingest nowhere\nerror: "),
        ("```python\n1 / 0\n```", "page.md:1: Traceback .*\n.*line 1, in <module>\nZeroDivisionError"),
        ("```python\nimport os\nos._exit(1)\n```", "page.md:1: Python ended"),
        ("```yaml\nfilter: {ruls: {}}\n```", "did you mean `rules`"),
    ],
)
def test_a_block_that_fails_is_named(block: str, problem: str, tmp_path: Path) -> None:
    problems = wrong(block + "\n", tmp_path)
    assert any(re.search(problem, each, re.DOTALL) for each in problems), problems
