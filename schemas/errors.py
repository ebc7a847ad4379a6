"""Errors that the project foresees: the command line prints their message and no traceback."""


class ConanError(Exception):
    """Base of all foreseen errors. The message says what is wrong, where, and what to do."""


class CorpusError(ConanError):
    """A corpus that can't be worked on as asked."""


class RecipeError(ConanError):
    """A recipe that can't be used: the message names the file, the line, and what was expected."""
