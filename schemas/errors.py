"""Errors that the project foresees: the command line prints their message and no traceback."""


class ConanError(Exception):
    """Base of all foreseen errors. The message says what is wrong, where, and what to do."""


class CorpusError(ConanError):
    """A corpus that can't be worked on as asked."""


class RecipeError(ConanError):
    """A recipe that can't be used: the message names the file, the line, and what was expected."""


class MissingExtraError(ConanError):
    """An extra of this project that was asked for, but is not installed.

    Args:
        asked: What was asked for, as the subject of the message: `an ONNX file`, `simplify: true`.
        extra: The extra's name in pyproject.toml.
    """

    def __init__(self, asked: str, extra: str) -> None:
        super().__init__(asked, extra)  # both, or the error could not be pickled

    def __str__(self) -> str:
        asked, extra = self.args
        return f"{asked} needs the extra {extra}: pip install 'conan-embedding[{extra}]'"
