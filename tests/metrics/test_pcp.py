from __future__ import annotations

import math

import numpy as np
import pytest

from pose.metrics import pcp
from pose.skeleton import LSP14


def loop(predictions, truth, combine):
    found, scored = np.zeros((len(truth), 10)), np.zeros((len(truth), 10))
    for n in range(len(truth)):
        for p, (_, a, b) in enumerate(LSP14.pcp_limbs):
            i, j = LSP14.joints.index(a), LSP14.joints.index(b)
            length = math.dist(truth.keypoints[n, i].astype(float), truth.keypoints[n, j].astype(float))
            if not truth.scores[n, i] or not truth.scores[n, j] or length == 0:
                continue
            scored[n, p] = 1
            errors = [
                math.dist(predictions.keypoints[n, end].astype(float), truth.keypoints[n, end].astype(float))
                for end in (i, j)
            ]
            found[n, p] = combine(errors) <= 0.5 * length
    return found, scored


@pytest.mark.parametrize(("measure", "combine"), [(pcp.strict, max), (pcp.loose, lambda e: sum(e) / 2)])
def test_agrees_with_plain_loops(pair, measure, combine):
    predictions, truth = pair
    found, scored = measure(predictions, truth, LSP14)
    expected_found, expected_scored = loop(predictions, truth, combine)
    np.testing.assert_array_equal(found, expected_found)
    np.testing.assert_array_equal(scored, expected_scored)
    assert 0 < found.sum() < scored.sum() < scored.size


def test_strict_is_never_looser_than_loose(pair):
    strict, loose = (measure(*pair, LSP14)[0] for measure in (pcp.strict, pcp.loose))
    assert (strict <= loose).all()
    assert strict.sum() < loose.sum()


def test_a_limb_without_length_is_not_scored(pair):
    _, scored = pcp.strict(*pair, LSP14)
    torso = [limb for limb, _, _ in LSP14.pcp_limbs].index("torso")
    assert scored[1].tolist() == [float(p != torso) for p in range(10)]
