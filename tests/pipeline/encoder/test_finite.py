"""Vectors that are not finite are refused, with their number and texts."""

import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline.encoder import finite
from conan_embedding.pipeline.encoder.finite import check_finite
from conan_embedding.pipeline.encoder.model_folder import ModelError


def test_what_is_not_finite_is_counted_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "BLOCK", 3)
    vectors, texts = np.ones((8, 2), np.float32), pl.Series([f"文{number}" for number in range(7)] + ["长" * 50])
    check_finite("m", vectors.__getitem__, texts, "passages")
    check_finite("m", vectors[:0].__getitem__, texts[:0], "passages")
    vectors[7, 1] = np.nan
    with pytest.raises(
        ModelError, match=rf"^m: the vectors of 1 of 8 passages have NaN or infinite numbers: {'长' * 40};"
    ):
        check_finite("m", vectors.__getitem__, texts, "passages")
    vectors[2:5, 0] = -np.inf
    with pytest.raises(
        ModelError, match="of 4 of 8 queries have NaN or infinite numbers: 文2; 文3; 文4 …; the model's"
    ):
        check_finite("m", vectors.__getitem__, texts, "queries")
