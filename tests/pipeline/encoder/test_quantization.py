"""Quantised vectors against those of sentence-transformers, byte by byte."""

import numpy as np
import pytest
from conan_embedding.pipeline.encoder.quantization import (
    CALIBRATION,
    binarize,
    bytes_per_vector,
    calibrate,
    calibration_rows,
    dequantize_int8,
    quantize_int8,
)
from sentence_transformers.util import quantization as reference

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(500, 12)).astype(np.float32)
VECTORS[:, 3] = 0.25  # a dimension without a range


def test_bytes_are_those_of_sentence_transformers() -> None:
    ranges = calibrate(VECTORS[:300])
    assert ranges.dtype == np.float32
    assert ranges.tolist() == reference._get_quantization_ranges(VECTORS, "int8", VECTORS[:300]).tolist()
    levels = quantize_int8(VECTORS, ranges)
    expected = reference.quantize_embeddings(VECTORS, "int8", ranges)
    assert (levels.dtype, levels.tobytes()) == (expected.dtype, expected.tobytes())
    assert {levels.min(), levels.max()} == {-128, 127}  # of the last 200, some lie beyond the ranges
    restored = reference._dequantize_embeddings(levels, "int8", ranges)
    assert dequantize_int8(levels, ranges) == pytest.approx(restored, abs=1e-6)
    assert dequantize_int8(levels, ranges).dtype == np.float32


def test_bits_are_those_of_sentence_transformers() -> None:
    vectors = np.r_[VECTORS, np.zeros((1, 12), np.float32)]
    bits = np.unpackbits(reference.quantize_embeddings(vectors, "ubinary"), axis=1)[:, :12]
    signs = binarize(vectors)
    assert signs.tolist() == (2.0 * bits - 1).tolist()
    assert (12 - signs[:1] @ signs.T).tolist() == [(2 * (bits[0] != bits).sum(axis=1)).tolist()]


def test_a_byte_or_a_bit_for_each_dimension() -> None:
    sizes = [bytes_per_vector(12, precision) for precision in ("float32", "int8", "binary")]
    assert sizes == [48, 12, 2]
    assert sizes[1:] == [reference.quantize_embeddings(VECTORS, kind).shape[1] for kind in ("int8", "ubinary")]


def test_calibration_takes_rows_evenly() -> None:
    assert calibration_rows(3).tolist() == [0, 1, 2]
    rows = calibration_rows(4 * CALIBRATION + 2)
    assert len(rows) == CALIBRATION
    assert set(np.diff(rows)) == {4, 5}
    assert (rows[0], rows[-1]) == (0, 4 * CALIBRATION - 3)
