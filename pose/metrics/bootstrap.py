"""Bootstrap over images: what would the figure be on another test set of the same kind?

Images are drawn with replacement, all people of an image together. Every metric is a ratio of sums over images (or a
mean of such ratios), so a resample is a vector of how often each image was drawn and all resamples are one matrix
product. Intervals are percentile intervals; resamples in which a denominator is zero have no value and are left out.
"""

from __future__ import annotations

import numpy as np

from pose.errors import DataError


def draw_counts(images: int, resamples: int, seed: int) -> np.ndarray:
    """[R, I] int32: how often each image is drawn in each resample; every row sums to I."""
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = generator.integers(images, size=(resamples, images))
    cells = drawn + images * np.arange(resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=resamples * images).reshape(resamples, images).astype(np.int32)


def value(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """The metric of [I] or [I, C] sums: the mean over columns of summed numerator over summed denominator.

    NaN where a denominator is zero.
    """
    once = np.ones((1, len(numerator)))
    return float(resampled(once, numerator, denominator)[0])


def resampled(counts: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """[R] the metric in each resample; counts [R, I], sums [I] or [I, C]."""
    return ratios(counts, numerator.reshape(len(numerator), -1), denominator.reshape(len(denominator), -1)).mean(axis=1)


def ratios(counts: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """[R, C] each column's ratio in each resample; NaN where its denominator is zero."""
    counts = counts.astype(np.float64)
    above, below = counts @ numerator, counts @ denominator
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Low and high end of the central share `confidence` of [R] values; NaN if no resample has a value."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def interval(
    numerator: np.ndarray, denominator: np.ndarray, resamples: int, confidence: float, seed: int = 0
) -> tuple[float, float]:
    """Low and high end of the metric's interval; sums [I] or [I, C] per image."""
    counts = draw_counts(len(numerator), resamples, seed)
    return percentiles(resampled(counts, numerator, denominator), confidence)


def paired(
    a_numerator: np.ndarray,
    a_denominator: np.ndarray,
    b_numerator: np.ndarray,
    b_denominator: np.ndarray,
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(a - b, low, high) of two systems on the same images: both see the same draws, so what is hard for both cancels.

    Row i of all four arrays must be the same image. Raises DataError if their lengths differ.
    """
    if len(a_numerator) != len(b_numerator):
        raise DataError(
            f"a paired comparison needs the same images on both sides; one side has {len(a_numerator)}, "
            f"the other {len(b_numerator)}. Evaluate both on the same split"
        )
    counts = draw_counts(len(a_numerator), resamples, seed)
    difference = value(a_numerator, a_denominator) - value(b_numerator, b_denominator)
    drawn = resampled(counts, a_numerator, a_denominator) - resampled(counts, b_numerator, b_denominator)
    return difference, *percentiles(drawn, confidence)
