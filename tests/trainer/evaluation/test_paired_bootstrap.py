"""The paired bootstrap against SciPy's, the normal distribution, and by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conan_embedding.trainer.evaluation import paired_bootstrap as module
from conan_embedding.trainer.evaluation.metrics import METRICS
from conan_embedding.trainer.evaluation.paired_bootstrap import RESAMPLES, bound, resample, resample_mean
from scipy.stats import bootstrap, norm


def scipys(data: tuple[Any, ...], statistic: Callable[..., Any], times: int, **more: Any) -> Any:
    """SciPy's interval whose ends are the one-sided bounds with 95 %."""
    given = {"paired": True, "method": "percentile", "confidence_level": 0.9, "n_resamples": times, "rng": 7}
    return bootstrap(data, statistic, **(given | more)).confidence_interval


def test_a_mean_has_scipys_interval_and_that_of_the_normal_distribution() -> None:
    random = np.random.default_rng(1)
    model, baseline = random.normal(0.70, 0.2, 400), random.normal(0.71, 0.2, 400)
    found = bound(resample_mean(model - baseline), -0.005)
    error = np.std(model - baseline) / np.sqrt(400)
    theirs = scipys((model, baseline), lambda a, b, axis: (a - b).mean(axis=axis), RESAMPLES, vectorized=True)
    assert [found.low, found.high] == pytest.approx([theirs.low, theirs.high], abs=0.1 * error)
    mean = (model - baseline).mean()
    assert [found.low, found.high] == pytest.approx(norm.ppf([0.05, 0.95], mean, error), abs=0.1 * error)
    assert found.p == pytest.approx(norm.sf(-0.005, mean, error), abs=0.015)


def test_spearmans_correlation_has_scipys_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECOMPUTED", 400)
    random = np.random.default_rng(2)
    labels = random.integers(0, 6, 150).astype(float)
    model, baseline = labels + random.normal(0, 2, 150), labels + random.normal(0, 1, 150)
    compute: Any = METRICS["spearman"].compute

    def difference(rows: Any) -> float:
        return compute(model[rows], labels[rows]) - compute(baseline[rows], labels[rows])

    found = bound(resample(difference, 150), 0.0)
    theirs = scipys((np.arange(150),), difference, 400, paired=False, vectorized=False)
    width = theirs.high - theirs.low
    assert [found.low, found.high] == pytest.approx([theirs.low, theirs.high], abs=0.12 * width)
    assert found.high < 0
    assert found.p == 0


@pytest.mark.parametrize("at_once", [1, 7, 1 << 22])
def test_resamples_do_not_depend_on_how_they_are_drawn(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    differences = np.array([0.5, -0.25, 0.0])
    expected = differences[np.random.default_rng(0).integers(3, size=(40, 3))].mean(axis=1)
    monkeypatch.setattr(module, "RESAMPLES", 40)
    monkeypatch.setattr(module, "_DRAWN_AT_ONCE", at_once)
    assert resample_mean(differences).tolist() == expected.tolist()


def test_resamples_without_a_value_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECOMPUTED", 100)
    with_first = sum(0 in np.random.default_rng(0).integers(4, size=(100, 4))[row] for row in range(100))
    assert len(resample(lambda rows: 1.0 if 0 in rows else np.nan, 4)) == with_first < 100


def test_no_difference_is_no_loss() -> None:
    assert bound(resample_mean(np.zeros(9)), -0.0) == (0, 0, 1)
    assert bound(np.array([-3.0, -2, -1, 0, 1]), -1).p == 0.6
