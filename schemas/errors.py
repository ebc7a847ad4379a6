"""Foreseen errors. The command line prints their message without a traceback."""


class ConanError(Exception):
    """Base of all foreseen errors. The message says what is wrong, where, and what to do about it."""


class CorpusError(ConanError):
    """A corpus that does not allow what was asked for."""


class RecipeError(ConanError):
    """A recipe with a mistake. The message names the file, the line and what was expected."""


class MissingExtraError(ConanError):
    """An optional dependency (an extra of this project) that is needed but not installed.

    Args:
        asked: What needs the extra, as the subject of the message: `an ONNX file`, `simplify: true`.
        extra: Name of the extra in pyproject.toml.
    """

    def __init__(self, asked: str, extra: str) -> None:
        super().__init__(asked, extra)  # both, so that the error can be pickled

    @property
    def command(self) -> str:
        """The command that installs the extra."""
        return f"pip install 'conan-embedding[{self.args[1]}]'"

    def __str__(self) -> str:
        asked, extra = self.args
        return f"{asked} needs the extra {extra}: {self.command}"
