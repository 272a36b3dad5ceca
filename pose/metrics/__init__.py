"""Metrics over People: each gives a numerator and a denominator per image, so that images can be resampled."""
