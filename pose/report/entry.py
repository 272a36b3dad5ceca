"""Entry: what the report is told about one architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pose.evaluation import Evaluation
from pose.people import People

Crop = tuple[Image.Image, np.ndarray]
"""A stored RGB crop, and the [2, 3] map from original pixels to its own."""


@dataclass(frozen=True)
class Entry:
    """One architecture of a run. What a failed one never came to have stays None."""

    name: str
    title: str
    failure: str | None = None
    """Why it has no result, in the error's own words."""
    evaluation: Evaluation | None = None
    predictions: People | None = None
    truth: People | None = None
    """The same people in the same order as predictions."""
    crop: Callable[[int], Crop] | None = None
    """Row of the split to its picture."""
    history: Sequence[Mapping[str, Any]] = ()
    """One record per epoch, as in history.jsonl."""
    training_seconds: float | None = None
    images_per_second: float | None = None
    """Of training."""
    parameters: int | None = None
    model_bytes: int | None = None
    """Of the exported ONNX file."""
    latency_ms: float | None = None
    """One image, this machine."""
    throughput: float | None = None
    """Images a second in batches of 16, this machine."""
    version: str | None = None
    """Registered model version, as model/number."""
    champion_of: str | None = None
    """The dataset's registered model that this version is now the champion of, if it is."""
    promoted: bool | None = None
    """Whether this version became its architecture's champion in this run; None where promotion did not look at it."""
    reason: str = ""
    """Why it was promoted, or why not."""
    reused: bool = False
    """The training was found finished and taken over."""
    lineage: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    """Reproduces this one."""


def ranked(entries: Sequence[Entry], metric: str) -> list[Entry]:
    """Evaluated entries, best first by a metric of which more is better."""
    evaluated = [entry for entry in entries if entry.evaluation is not None]
    return sorted(evaluated, key=lambda entry: _score(entry, metric), reverse=True)


def _score(entry: Entry, metric: str) -> float:
    value = entry.evaluation.metrics.get(metric, np.nan) if entry.evaluation else np.nan
    return -np.inf if np.isnan(value) else value
