from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pose.errors import ConfigError, DataError
from pose.metrics import pck
from pose.skeleton import COCO17, LSP14


def loop(predictions, truth, unit_of):
    """Errors by plain loops; `unit_of(n)` gives the (x, y) units of person n, or None."""
    errors = np.full(truth.scores.shape, np.nan)
    for n in range(len(truth)):
        unit = unit_of(n)
        if unit is None:
            continue
        for k in range(truth.scores.shape[1]):
            if truth.scores[n, k] > 0:
                dx = (float(predictions.keypoints[n, k, 0]) - float(truth.keypoints[n, k, 0])) / unit[0]
                dy = (float(predictions.keypoints[n, k, 1]) - float(truth.keypoints[n, k, 1])) / unit[1]
                errors[n, k] = math.sqrt(dx * dx + dy * dy)
    return errors


def segment_unit(truth, first, second):
    def unit_of(n):
        a, b = LSP14.joints.index(first), LSP14.joints.index(second)
        if not (truth.scores[n, a] and truth.scores[n, b]):
            return None
        length = math.dist(truth.keypoints[n, a].astype(float), truth.keypoints[n, b].astype(float))
        return (length, length) if length else None

    return unit_of


def test_image_errors_are_distances_in_the_squashed_square(pair):
    predictions, truth = pair
    expected = loop(predictions, truth, lambda n: truth.image_sizes[n].astype(float))
    np.testing.assert_allclose(pck.image_errors(predictions, truth), expected, rtol=1e-12)
    assert np.isnan(expected).any()


@pytest.mark.parametrize(
    ("measure", "ends"),
    [(pck.torso_errors, ("left_shoulder", "right_hip")), (pck.head_errors, ("neck", "head_top"))],
)
def test_segment_errors_need_both_ends_and_a_length(pair, measure, ends):
    predictions, truth = pair
    expected = loop(predictions, truth, segment_unit(truth, *ends))
    np.testing.assert_allclose(measure(predictions, truth, LSP14), expected, rtol=1e-12)
    assert np.isnan(pck.torso_errors(predictions, truth, LSP14)[1]).all()


def test_hits_curve_and_area_agree_with_counting(pair):
    predictions, truth = pair
    errors = pck.torso_errors(predictions, truth, LSP14)
    listed = [error for error in errors.ravel().tolist() if not math.isnan(error)]
    counted = [sum(error <= t for error in listed) / len(listed) for t in pck.TORSO_GRID.tolist()]
    np.testing.assert_allclose(pck.curve(errors, pck.TORSO_GRID), counted, rtol=1e-12)
    found, scored = pck.hits(errors, pck.TORSO_THRESHOLD)
    assert found.sum() / scored.sum() == pytest.approx(counted[20])
    numerator, denominator = pck.area(errors, pck.TORSO_GRID)
    assert numerator.sum() / denominator.sum() == pytest.approx(np.trapezoid(counted, pck.TORSO_GRID) / 0.5)
    assert denominator.sum() == len(listed)


def test_a_joint_exactly_on_the_threshold_is_hit():
    found, _ = pck.hits(np.array([[0.2, np.nextafter(0.2, 1), np.nan]]), 0.2)
    assert found.tolist() == [[1, 0, 0]]


def test_a_missing_prediction_is_a_miss_and_not_left_out(pair):
    predictions, truth = pair
    gone = replace(predictions, keypoints=np.full_like(predictions.keypoints, np.nan))
    found, scored = pck.hits(pck.image_errors(gone, truth), 1.0)
    assert found.sum() == 0
    assert scored.sum() == (truth.scores > 0).sum()
    numerator, denominator = pck.area(pck.image_errors(gone, truth), pck.IMAGE_GRID)
    assert numerator.sum() == 0
    assert denominator.sum() == scored.sum()


def test_mean_squared_error_is_over_visible_coordinates(pair):
    predictions, truth = pair
    squares = []
    for n, k in np.argwhere(truth.presence > 0):
        difference = (predictions.keypoints[n, k].astype(float) - truth.keypoints[n, k]) / truth.image_sizes[n]
        squares += (difference**2).tolist()
    numerator, denominator = pck.squared_unit_errors(predictions, truth)
    assert numerator.sum() / denominator.sum() == pytest.approx(np.mean(squares))
    assert denominator.sum() == len(squares)


def test_a_curve_without_labels_is_not_a_number():
    assert np.isnan(pck.curve(np.full((3, 14), np.nan), pck.IMAGE_GRID)).all()


def test_other_people_and_other_orders_are_refused(pair):
    predictions, truth = pair
    with pytest.raises(DataError, match="59, 14"):
        pck.image_errors(predictions.select(np.arange(59)), truth)
    with pytest.raises(DataError, match="order of the split"):
        pck.image_errors(predictions.select(np.arange(60)[::-1]), truth)


def test_no_head_segment_no_pckh(pair):
    predictions, truth = pair
    with pytest.raises(ConfigError, match="coco17"):
        pck.head_errors(predictions, truth, COCO17)


def test_head_box_errors_are_shares_of_six_tenths_of_its_diagonal(pair):
    predictions, truth = pair
    boxes = np.tile([5.0, 6.0, 35.0, 46.0], (len(truth), 1))  # a diagonal of 50 px
    boxes[2] = 7.0  # of no extent
    expected = loop(predictions, truth, lambda n: None if n == 2 else (30.0, 30.0))
    np.testing.assert_allclose(pck.head_box_errors(predictions, truth, boxes), expected, rtol=1e-12)
