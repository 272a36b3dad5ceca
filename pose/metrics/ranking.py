"""Average precision of ranked detections, for any resampling of the images.

COCO's definition: precision is interpolated (the best at any recall as high or higher) and averaged over 101 recalls.
An image drawn twice weighs twice, which is what COCO's figure of a dataset with that image in it twice would be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pose.errors import DataError
from pose.metrics import bootstrap
from pose.metrics.matching import Matches
from pose.metrics.truth import Truth

RECALLS = np.linspace(0.0, 1.0, 101)
CELLS = 4_000_000
"""Resamples x detections held in memory at once."""


@dataclass(frozen=True)
class Ranking:
    """D detections in I images, most confident first, judged at T thresholds."""

    image: np.ndarray
    """[D] int64, position of the detection's image."""
    right: np.ndarray
    """[D, T] bool."""
    ignored: np.ndarray
    """[D, T] bool: counts neither way."""
    wanted: np.ndarray
    """[I] int64: people to be found in each image."""

    @property
    def once(self) -> np.ndarray:
        """[1, I]: every image drawn once."""
        return np.ones((1, len(self.wanted)), np.int32)

    def at(self, thresholds: slice) -> Ranking:
        """The same at some of the thresholds."""
        return replace(self, right=self.right[:, thresholds], ignored=self.ignored[:, thresholds])

    def precision(self, counts: np.ndarray) -> np.ndarray:
        """[R] average precision, mean over thresholds, for draws [R, I]; NaN where nobody is to be found."""
        step = max(1, CELLS // max(1, len(self.image)))
        parts = [self._precision(counts[start : start + step]) for start in range(0, len(counts), step)]
        return np.concatenate(parts)

    def recall(self, counts: np.ndarray) -> np.ndarray:
        """[R] share of the wanted that were found, mean over thresholds, for draws [R, I]; NaN as above."""
        right = np.zeros((len(self.wanted), self.right.shape[1]))
        np.add.at(right, self.image, self.right & ~self.ignored)
        wanted = np.broadcast_to(self.wanted[:, None], right.shape)
        return bootstrap.resampled(counts, right, wanted)

    def _precision(self, counts: np.ndarray) -> np.ndarray:
        total = (counts @ self.wanted).astype(np.float64)
        weights = counts[:, self.image].astype(np.float64)
        values = np.stack([self._at_threshold(t, weights, total) for t in range(self.right.shape[1])], axis=1)
        return np.where(total > 0, values.mean(axis=1), np.nan)

    def _at_threshold(self, t: int, weights: np.ndarray, total: np.ndarray) -> np.ndarray:
        counted = ~self.ignored[:, t]
        right = self.right[counted, t]
        weights = weights[:, counted]
        # Between right detections precision only falls, so these are all that interpolation can choose from.
        found = np.cumsum(weights[:, right], axis=1)
        taken = np.cumsum(weights, axis=1)[:, right]
        best = np.maximum.accumulate((found / (taken + np.spacing(1)))[:, ::-1], axis=1)[:, ::-1]
        padded = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
        result = np.zeros(len(weights))
        for r in np.flatnonzero(total > 0):
            result[r] = padded[r, np.searchsorted(found[r] / total[r], RECALLS, side="left")].mean()
        return result


def ranked(matches: Matches, truth: Truth) -> Ranking:
    """The detections of all images in one order; ties keep the images' order, as in COCO's."""
    order = np.argsort(-matches.scores, kind="stable")
    return Ranking(
        image=matches.image[order],
        right=matches.right[order],
        ignored=matches.ignored[order],
        wanted=np.bincount(truth.image[matches.wanted], minlength=len(truth.image_ids)),
    )


def paired(a: Ranking, b: Ranking, resamples: int, confidence: float, seed: int = 0) -> tuple[float, float, float]:
    """(a - b, low, high) of two systems' average precision on the same images, both seeing the same draws.

    Raises DataError where the images differ or who is to be found in them.
    """
    if not np.array_equal(a.wanted, b.wanted):
        raise DataError(
            f"a paired comparison needs the same people on both sides; one has {a.wanted.sum()} in {len(a.wanted)} "
            f"images, the other {b.wanted.sum()} in {len(b.wanted)}. Evaluate both on the same split"
        )
    counts = bootstrap.draw_counts(len(a.wanted), resamples, seed)
    difference = float(a.precision(a.once)[0] - b.precision(b.once)[0])
    return difference, *bootstrap.percentiles(a.precision(counts) - b.precision(counts), confidence)
