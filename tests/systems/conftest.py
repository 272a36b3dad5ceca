"""Small systems and random batches for the tests of systems."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pose.config_loading import load
from pose.data.batch import Batch
from pose.skeleton import LSP14, Skeleton
from pose.systems import create
from pose.systems.base import System

TWO_HEADED_TINY = {"hidden": [48, 32], "coordinate_hidden": [48, 32], "dropout": 0.0}
TINY: dict[str, dict[str, Any]] = {
    "baseline1": {"input_size": 32, "channels": [8, 16], **TWO_HEADED_TINY},
    "baseline2": {"input_size": 32, "channels": [8, 16, 16], **TWO_HEADED_TINY},
    "alexnet": {"input_size": 67, "channels": [16, 24, 24, 24, 24], "stride": 2, **TWO_HEADED_TINY},
    "vgg19": {"input_size": 32, "channels": [8, 12, 16, 24, 24], **TWO_HEADED_TINY},
    "vgg16_regressor": {"input_size": 32, "channels": [8, 12, 16, 24, 24], "hidden": 48, "dropout": 0.0},
}


@pytest.fixture
def tiny() -> Callable[..., System]:
    """tiny(name, skeleton=LSP14, **changes): the system at a size that trains in seconds, always the same weights."""

    def make(name: str, skeleton: Skeleton = LSP14, **changes: Any) -> System:
        whole = load().systems[name]
        params = type(whole).model_validate({**whole.model_dump(), **TINY[name], **changes})
        torch.manual_seed(0)
        return create(name, params, skeleton)

    return make


@pytest.fixture
def random_batch() -> Callable[..., Batch]:
    """random_batch(system, people): noise images with joints anywhere; about a fifth of them not labelled."""

    def make(system: System, people: int = 4, seed: int = 1) -> Batch:
        (width, height), joints = system.params.input_size, system.skeleton.size
        size = torch.tensor([float(width), float(height)])
        g = torch.Generator().manual_seed(seed)
        labelled = torch.rand(people, joints, generator=g) > 0.2
        keypoints = torch.rand(people, joints, 2, generator=g) * size
        return Batch(
            images=torch.randn(people, 3, height, width, generator=g),
            keypoints=torch.where(labelled[..., None], keypoints, torch.nan),
            labelled=labelled,
            presence=labelled.float(),
            to_original=torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).repeat(people, 1, 1),
            sample=torch.arange(people),
            image_ids=torch.arange(people),
            image_sizes=size.repeat(people, 1),
            boxes=torch.tensor([0.0, 0, width, height]).repeat(people, 1),
        )

    return make
