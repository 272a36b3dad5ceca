"""Nightly training, evaluation and promotion of 2D human pose estimators."""
