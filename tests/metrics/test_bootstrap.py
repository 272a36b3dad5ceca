from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.stats

from pose.errors import DataError
from pose.metrics import bootstrap


def test_every_resample_draws_as_many_images_as_there_are():
    counts = bootstrap.draw_counts(50, 4000, seed=3)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean() == pytest.approx(1)
    # Multinomial: each count has variance (1 - 1/I), neighbours have covariance -1/I.
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.02)
    assert np.cov(counts[:, 0], counts[:, 1])[0, 1] == pytest.approx(-1 / 50, abs=0.05)


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, 2000)
    low, high = bootstrap.interval(values, np.ones(2000), 4000, 0.95)
    margin = scipy.stats.norm.ppf(0.975) * values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
    assert high == pytest.approx(values.mean() + margin, abs=0.1 * margin)


def test_interval_of_a_ratio_agrees_with_scipy():
    generator = np.random.default_rng(2)
    denominator = generator.integers(1, 15, 300).astype(float)
    numerator = generator.binomial(denominator.astype(int), generator.beta(2, 3, 300)).astype(float)
    expected = scipy.stats.bootstrap(
        (numerator, denominator),
        lambda above, below, axis: above.sum(axis=axis) / below.sum(axis=axis),
        paired=True, n_resamples=4000, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    low, high = bootstrap.interval(numerator, denominator, 4000, 0.95)
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.06 * width)
    assert high == pytest.approx(expected.high, abs=0.06 * width)


def test_columns_are_averaged_after_their_ratios():
    numerator, denominator = np.array([[3.0, 1.0], [1.0, 0.0]]), np.array([[4.0, 1.0], [4.0, 1.0]])
    assert bootstrap.value(numerator, denominator) == pytest.approx((4 / 8 + 1 / 2) / 2)
    counts = np.array([[2, 0], [0, 2]])
    np.testing.assert_allclose(bootstrap.resampled(counts, numerator, denominator), [(3 / 4 + 1) / 2, 1 / 8])


def test_no_denominator_no_value():
    assert np.isnan(bootstrap.value(np.zeros(3), np.zeros(3)))
    assert np.isnan(bootstrap.interval(np.zeros(3), np.zeros(3), 10, 0.9)).all()
    # Resamples without the one image that counts are left out, not taken as zero.
    assert bootstrap.interval(np.array([1.0, 0.0]), np.array([2.0, 0.0]), 200, 0.9) == (0.5, 0.5)


def test_paired_difference_has_the_sign_of_the_better_and_swaps():
    generator = np.random.default_rng(4)
    ones = np.ones(400)
    hard = generator.normal(0, 1, 400)
    a, b = hard + 0.3 + generator.normal(0, 0.1, 400), hard + generator.normal(0, 0.1, 400)
    difference, low, high = bootstrap.paired(a, ones, b, ones, 1000, 0.95)
    assert difference == pytest.approx((a - b).mean())
    assert 0.25 < low < difference < high < 0.35
    swapped = bootstrap.paired(b, ones, a, ones, 1000, 0.95)
    assert swapped == pytest.approx((-difference, -high, -low))
    # What is hard for both cancels: each alone has an interval far wider than the pair's.
    alone = bootstrap.interval(a, ones, 1000, 0.95)
    assert alone[1] - alone[0] > 5 * (high - low)


def test_paired_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(6)
    ones, covered = np.ones(120), 0
    for trial in range(300):
        hard = generator.random(120)
        a = (generator.random(120) < 0.3 + 0.6 * hard).astype(float)
        b = (generator.random(120) < 0.2 + 0.6 * hard).astype(float)
        _, low, high = bootstrap.paired(a, ones, b, ones, 300, 0.9, seed=trial)
        covered += low <= 0.1 <= high
    # Binomial(300, 0.9) is within 0.85 to 0.95 but once in 200 times; the seeds are fixed.
    assert 0.85 <= covered / 300 <= 0.95


def test_paired_refuses_different_images():
    with pytest.raises(DataError, match="3, the other 4"):
        bootstrap.paired(np.ones(3), np.ones(3), np.ones(4), np.ones(4), 10, 0.9)


def test_a_thousand_resamples_of_a_test_split_are_quick():
    numerator, denominator = np.random.default_rng(0).random((1350, 2)), np.ones((1350, 2))
    start = time.process_time()
    bootstrap.interval(numerator, denominator, 1000, 0.95)
    assert time.process_time() - start < 2
