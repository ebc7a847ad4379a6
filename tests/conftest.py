"""What tests of the command line share."""

import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def conan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; gives its exit code, standard output and standard error."""
    from conan_embedding.cli import main

    monkeypatch.setenv("CONAN_DEBUG", "")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["conan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run
