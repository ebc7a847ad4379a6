"""The steps of the Dockerfile without Docker: its files in a folder, its commands in a virtual environment.

    python tests/shared/dockerfile.py FOLDER [ARG=VALUE …]

installs everything into FOLDER, which must be new, from the package index (gigabytes), and shows the help of `conan`.
Commands that need root (apt-get) are named and left out.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

PACKAGE = Path(__file__).parents[2]


def build(folder: Path, arguments: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """Follow the Dockerfile in a folder that takes the place of `/`, with values for its ARGs.

    Returns the command of its ENTRYPOINT.

    Raises:
        subprocess.CalledProcessError: a command fails.
    """
    context, home, place = folder / "context", folder / "venv", folder
    copy_context(context)
    values = dict(arguments)
    for instruction, argument in instructions():
        if instruction == "ARG":
            name, _, default = argument.partition("=")
            values.setdefault(name, default)
        elif instruction == "FROM":
            if not home.exists():
                venv.create(home, with_pip=True)
        elif instruction == "WORKDIR":
            place = folder / argument.strip("/")
            place.mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY" and argument == ". .":
            shutil.copytree(context, place, dirs_exist_ok=True)
        elif instruction == "COPY":
            shutil.copy(context / argument.split()[0], place)
        elif instruction == "RUN" and "apt-get" in argument:
            print("not run:", argument)
        elif instruction == "RUN":
            path = {"PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"}
            subprocess.run(
                ["sh", "-ec", argument], cwd=place, env={**os.environ, **environment, **values, **path}, check=True
            )
        elif instruction == "ENTRYPOINT":
            program, *rest = json.loads(argument)
            return [str(home / "bin" / program), *rest]
        else:
            raise ValueError(f"nothing here follows {instruction}")
    raise ValueError("the Dockerfile has no ENTRYPOINT")


def instructions() -> Iterator[tuple[str, str]]:
    """Read the Dockerfile: instructions and their arguments, each on one line."""
    text = re.sub(r"^#.*\n", "", (PACKAGE / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        instruction, _, argument = line.partition(" ")
        yield instruction, " ".join(argument.split())


def copy_context(folder: Path) -> None:
    """Copy what .dockerignore lets through: names at the top, or `**/NAME` anywhere; the last pattern decides."""
    patterns = [
        line for line in (PACKAGE / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")
    ]

    def is_left_out(path: Path) -> bool:
        left_out = False
        for pattern in patterns:
            name = path.name if pattern.startswith("**/") else path.parts[0]
            if fnmatch(name, pattern.removeprefix("!").removeprefix("**/")):
                left_out = not pattern.startswith("!")
        return left_out

    def ignore(place: str, names: list[str]) -> list[str]:
        return [name for name in names if is_left_out((Path(place) / name).relative_to(PACKAGE))]

    shutil.copytree(PACKAGE, folder, ignore=ignore)


if __name__ == "__main__":
    program = build(Path(sys.argv[1]).resolve(), dict(each.split("=", 1) for each in sys.argv[2:]), {})
    subprocess.run([*program, "--help"], check=True)
