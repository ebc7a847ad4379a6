"""The foreseen errors and their words."""

import pickle
import re
import tomllib
from pathlib import Path

import pytest
from conan_embedding.schemas.errors import ConanError, MissingExtraError

ROOT = Path(__file__).parents[2]


def test_a_missing_extra_says_what_was_asked_for_and_what_to_install() -> None:
    error = MissingExtraError("an ONNX file", "onnx")
    assert str(error) == "an ONNX file needs the extra onnx: pip install 'conan-embedding[onnx]'"
    assert isinstance(error, ConanError)


def test_it_comes_whole_out_of_another_process() -> None:
    error = MissingExtraError("the engine ray", "ray")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("room", ["pipeline", "trainer"])
def test_nobody_else_words_it_and_every_extra_named_exists(room: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = set()
    for file in (ROOT / room).rglob("*.py"):
        text = file.read_text("utf-8")
        assert "conan-embedding[" not in text, f"{file}: raise MissingExtraError instead"
        named |= set(re.findall(r'raise MissingExtraError\([^\n]*"([^"]*)"\)', text))
    assert named and named <= extras.keys()
