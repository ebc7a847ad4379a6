"""Refuse vectors with NaN or infinite numbers, which rank and compare as nothing does and would pass in silence."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl

from .model_folder import ModelError

BLOCK = 16_384
"""Chosen here: vectors in memory at a time."""
_SHOWN, _LENGTH = 3, 40
"""Chosen here: texts in the message, and characters of each."""


def check_finite(
    place: str,
    vectors: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]],
    texts: pl.Series,
    kind: str,
) -> None:
    """Check the vectors of some texts; `vectors` returns those at n places, [n, D].

    Raises:
        ModelError: some are not finite; the message begins with `place` and has their number, and texts of this `kind`.
    """
    blocks = (np.arange(start, min(start + BLOCK, len(texts))) for start in range(0, len(texts), BLOCK))
    wrong = [block[~np.isfinite(vectors(block)).all(axis=1)] for block in blocks]
    if found := np.concatenate([np.zeros(0, np.int64), *wrong]).tolist():
        some = "; ".join(text[:_LENGTH] for text in texts.gather(found[:_SHOWN]))
        raise ModelError(
            f"{place}: the vectors of {len(found):,} of {len(texts):,} {kind} have NaN or infinite numbers: {some}"
            f"{' …' if len(found) > _SHOWN else ''}; the model's weights are damaged, or these texts overflow it: take "
            "another model, or leave the texts out"
        )
