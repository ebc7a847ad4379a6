"""The fenced blocks of a page, and whether the output that it shows is what came.

docs/contributing.md says how to write them.
"""

import re
from dataclasses import dataclass
from difflib import unified_diff

RUN = ("sh", "console", "python", "yaml")
SHOWN = ("", "json", "pyi", "js", "text")
"""Languages of blocks that are run or checked, and of those that are only looked at."""

FENCE = re.compile(r"( *)```(\w*)")
MARK = re.compile(r" *<!-- (?:not run: (?P<reason>.+)|(?P<vary>numbers vary)) -->")
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?|\d+")


@dataclass(frozen=True)
class Block:
    """One block: `place` is its file and line, `reason` why it is not run, if it is not."""

    place: str
    language: str
    text: str
    reason: str | None = None
    numbers_vary: bool = False


@dataclass(frozen=True)
class Command:
    """A command of a console block, and the output that the page shows for it."""

    text: str
    output: str


def read_blocks(markdown: str, page: str) -> list[Block]:
    """Find the fenced blocks of a page, in order.

    Raises:
        ValueError: a fence has no end or an unknown language, or looks like a console block but has another one.
    """
    blocks, lines = [], iter(enumerate(markdown.splitlines(), 1))
    reason, vary = None, False
    for number, line in lines:
        if mark := MARK.fullmatch(line):
            reason, vary = mark["reason"] or reason, vary or mark["vary"] is not None
        elif fence := FENCE.match(line):
            indent, language = fence.groups()
            body = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                body.append(inner.removeprefix(indent))
            else:
                raise ValueError(f"{page}:{number}: the block has no end")
            if language not in RUN + SHOWN:
                raise ValueError(f"{page}:{number}: {language} is not one of {', '.join(filter(None, RUN + SHOWN))}")
            text = "\n".join(body) + "\n"
            if language not in RUN and re.search(r"^\$ ", text, re.MULTILINE):
                raise ValueError(f"{page}:{number}: commands with their output are a `console` block")
            blocks.append(Block(f"{page}:{number}", language, text, reason, vary))
            reason, vary = None, False
        elif line.strip():
            reason, vary = None, False
    return blocks


def read_commands(text: str) -> list[Command]:
    """Split a console block into commands; one continues after a backslash and in lines that begin with `> `."""
    commands: list[Command] = []
    for line in text.splitlines():
        last = commands[-1] if commands else None
        if line.startswith("$ "):
            commands.append(Command(line[2:], ""))
        elif last is None:
            raise ValueError(f"a console block begins with a command, not with {line!r}")
        elif not last.output and (line.startswith("> ") or last.text.endswith("\\")):
            commands[-1] = Command(f"{last.text}\n{line.removeprefix('> ')}", "")
        else:
            commands[-1] = Command(last.text, f"{last.output}{line}\n")
    return commands


def compare(shown: str, came: str, numbers_vary: bool) -> str:
    """Compare the output that a page shows with what came: empty if it fits, else a diff."""
    wanted, found = _plain(shown, numbers_vary), _plain(came, numbers_vary)
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in wanted.splitlines()
    )
    if re.fullmatch(pattern, found):
        return ""
    return "\n".join(unified_diff(wanted.splitlines(), found.splitlines(), "shown", "came", lineterm="", n=2))


def _plain(text: str, numbers_vary: bool) -> str:
    """Drop what may differ: spaces at the end of a line, seconds, and with `numbers_vary` numbers and widths."""
    text = re.sub(r"\d[\d.]* s\b", "0 s", text)
    if numbers_vary:
        text = re.sub(r" +", " ", re.sub(r"([━─])\1+", r"\1", NUMBER.sub("0", text)))
    return "".join(f"{line.rstrip()}\n" for line in text.strip("\n").splitlines())
