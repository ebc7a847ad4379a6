"""Conan: curate text pairs, mine negatives, train embedding models."""

import gc

__version__ = "0.1.0"


def collect_garbage_seldom() -> None:
    """For a process of Conan's own: importing torch and its like makes a million objects, and all of them stay.

    Python looks for garbage after every 700, which is a fifth of the time that such a process takes to start.
    """
    gc.set_threshold(10_000)  # chosen here: more gains no more
