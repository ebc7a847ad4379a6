"""What `conan --help` and shell completion say, and that neither loads a library."""

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conan_embedding.cli import app
from typer.main import get_command
from typer.testing import CliRunner

COMMANDS = [
    "init", "run", "check", "demo", "ingest", "filter", "dedup", "synthesize", "score", "convert", "mine", "judge",
    "train", "evaluate", "export", "push", "sql", "report", "sample", "doctor",
]  # fmt: skip
PANELS = ["Everything at once", "Data stages", "Training", "Inspection"]
HEAVY = ["torch", "ray", "faiss", "deepspeed", "transformers", "polars", "duckdb", "pydantic"]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(command: str | None) -> None:
    result = CliRunner().invoke(app, [command, "--help"] if command else ["--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
    if command is None:
        assert re.findall(r"^╭─ (.+?) ─", result.output, re.M) == ["Options", *PANELS]
        assert re.findall(r"^│ ([a-z]+) ", result.output, re.M) == COMMANDS
    else:
        assert f"\n conan {command} " in result.output  # an example, on a line of its own


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_valid_commands_and_fit_a_terminal(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("worker-1 slots=8", "utf-8")
    group = get_command(app)
    heading, *examples = group.commands[command].epilog.splitlines()
    assert heading == ("Example:" if len(examples) == 1 else "Examples:") and examples
    for example in examples:
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("conan", command)
        group.commands[command].make_context(command, arguments)  # raises UsageError
        assert len(example) <= 78
    assert list(tmp_path.iterdir()) == [tmp_path / "hosts"]


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"conan {version('conan-embedding')}\n")


def test_completion_for_bash_names_the_commands(tmp_path: Path) -> None:
    home = os.environ | {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",  # --install-completion then takes the shell's name
    }
    subprocess.run(["conan", "--install-completion", "bash"], env=home, capture_output=True, check=True)
    assert "/.bash_completions/conan.sh" in (tmp_path / ".bashrc").read_text("utf-8")

    def complete(*words: str) -> list[str]:
        script = (
            f"source {tmp_path}/.bash_completions/conan.sh; COMP_WORDS=({shlex.join(words)}); "
            f'COMP_CWORD={len(words) - 1}; _conan_completion conan; printf "%s\n" "${{COMPREPLY[@]}}"'
        )
        shell = subprocess.run(["bash", "--norc", "-c", script], env=home, capture_output=True, text=True, check=True)
        assert shell.stderr == ""
        return shell.stdout.splitlines()

    assert complete("conan", "") == COMMANDS
    assert complete("conan", "ev") == ["evaluate"]
    assert complete("conan", "train", "--st") == ["--stage"]
    assert complete("conan", "filter", "corpus", "--engine", "") == ["local", "ray"]


def test_help_imports_nothing_heavy() -> None:
    script = f"""
import sys
sys.argv = ["conan", "--help"]
from conan_embedding.cli import main
try:
    main()
except SystemExit:
    print("loaded:", [name for name in {HEAVY} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("loaded: []\n")
