from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pose.metrics import presence


def average_precision_by_thresholds(scores, positive):
    """Sum over thresholds, from high to low, of recall gained times precision, each counted anew."""
    total, last = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        recall = sum(taken) / sum(positive)
        total += (recall - last) * sum(taken) / len(taken)
        last = recall
    return total


def test_accuracy_and_recalls_agree_with_counting(pair):
    predictions, truth = pair
    outcomes = [
        (bool(truth.presence[n, k]), bool(predictions.presence[n, k] > 0.5))
        for n in range(len(truth))
        for k in range(14)
    ]
    right, all_flags = presence.accuracy(predictions, truth)
    assert right.sum() == sum(actual == said for actual, said in outcomes)
    assert all_flags.sum() == len(outcomes)
    rate = np.linspace(0.3, 0.9, 14, dtype=np.float32)
    outcomes = [
        (bool(truth.presence[n, k]), bool(predictions.presence[n, k] >= rate[k]))
        for n in range(len(truth))
        for k in range(14)
    ]
    recognised, of_class = (part.sum(axis=(0, 1)) for part in presence.recalls(predictions, truth, rate))
    assert recognised.tolist() == [outcomes.count((True, True)), outcomes.count((False, False))]
    assert of_class.tolist() == [sum(a for a, _ in outcomes), sum(not a for a, _ in outcomes)]


def test_constant_answers_have_balanced_accuracy_one_half_and_the_absent_share(pair):
    _, truth = pair
    constant = replace(truth, presence=np.ones_like(truth.presence))
    recognised, of_class = (part.sum(axis=(0, 1)) for part in presence.recalls(constant, truth, np.full(14, 0.88)))
    assert (recognised / of_class).tolist() == [1, 0]
    scores, absent = presence.absent_ranking(constant, truth)
    assert presence.average_precision(scores.ravel(), absent.ravel())[0] == pytest.approx(absent.mean())


def test_average_precision_in_closed_form():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    # Precision at the three positives: 1/1, 2/3, 3/5.
    positive = np.array([True, False, True, False, True])
    assert presence.average_precision(scores, positive)[0] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # All in one tie: precision is the base rate, whatever the order.
    assert presence.average_precision(np.zeros(5), positive)[0] == pytest.approx(3 / 5)
    assert np.isnan(presence.average_precision(scores, np.zeros(5, bool))[0])


def test_average_precision_with_ties_agrees_with_thresholds(pair):
    scores, absent = (part.ravel() for part in presence.absent_ranking(*pair))
    assert len(set(scores.tolist())) < 20
    expected = average_precision_by_thresholds(scores.tolist(), absent.tolist())
    assert presence.average_precision(scores, absent)[0] == pytest.approx(expected)


def test_weights_count_like_repeated_items(pair):
    scores, absent = (part.ravel() for part in presence.absent_ranking(*pair))
    weights = np.random.default_rng(1).integers(0, 4, (5, len(scores))).astype(np.int32)
    expected = [presence.average_precision(np.repeat(scores, row), np.repeat(absent, row))[0] for row in weights]
    np.testing.assert_allclose(presence.average_precision(scores, absent, weights), expected)
