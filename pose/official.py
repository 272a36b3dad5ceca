"""Weights that others trained and released, taken over into a system of ours."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pose.config import SystemParams
from pose.errors import TrainingError
from pose.layers.pickled_tensors import read_state
from pose.skeleton import Skeleton
from pose.systems import create
from pose.systems.base import System


def taken_over(name: str, params: SystemParams, skeleton: Skeleton, file: Path) -> System:
    """A system in evaluation mode with a release's weights, answering as the release does.

    Raises ConfigError for a system without a release, TrainingError for a file that cannot be read or misfits.
    """
    system = create(name, params, skeleton)
    system.load_official(read_release(file))
    system.network.eval()
    return system


def read_release(file: Path) -> Mapping[str, Any]:
    """What a safetensors file or a torch checkpoint holds; nothing that stands in it is executed.

    Of a checkpoint that pickles whole modules the tensors are taken. Raises TrainingError for other files.
    """
    if not file.is_file():
        raise TrainingError(f"there is no file {file} with weights")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise TrainingError(f"{file} cannot be read as safetensors weights: {error}") from error
    except (pickle.UnpicklingError, RuntimeError):
        # Not tensors alone: whole modules, or no checkpoint at all, which the careful reader tells apart.
        return read_state(file)
    if not isinstance(saved, Mapping):
        raise TrainingError(
            f"{file} holds a {type(saved).__name__}; a state_dict was expected, or one within a dictionary"
        )
    return saved
