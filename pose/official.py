"""Weights that are there already, of releases or of ours, taken over into a system: to use, or to begin with."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pose.config import TORCHVISIONS, SystemParams
from pose.errors import ConfigError, TrainingError
from pose.layers.pickled_tensors import read_state
from pose.progress import say
from pose.skeleton import Skeleton
from pose.systems import create, restore
from pose.systems.base import System

CLASSIFIERS = ("fc.", "classifier.")
"""What the weights begin with that make an image classifier of a trunk: in torchvision's ResNets, in its VGGs."""


def taken_over(name: str, params: SystemParams, skeleton: Skeleton, weights: str) -> System:
    """A system in evaluation mode with a release's weights, answering as the release does.

    weights: a file, or the name of torchvision's. Raises ConfigError for a system without a release, TrainingError for
    weights that cannot be had or misfit.
    """
    system = create(name, params, skeleton)
    named = TORCHVISIONS.fullmatch(weights)
    system.load_official(downloaded(weights) if named else read_release(Path(weights)))
    system.network.eval()
    return system


def begin(name: str, system: System) -> None:
    """Gives a fresh system the weights that its params call `initial`, if any: the first of a training.

    An image classifier's go into the trunk, those of our own folders and of releases into the whole network. Raises
    ConfigError where the system has no use for them or they go with other params, TrainingError where they misfit.
    """
    params: SystemParams = system.params
    if params.initial is None:
        return
    file = params.initial_file
    say(f"{name} begins with the weights of {params.initial}")
    if file is not None and file.name == "model.safetensors":
        restore(system, file)
        return
    state = read_release(file) if file is not None else downloaded(params.initial)
    if any(key.startswith(CLASSIFIERS) for key in state):
        system.load_trunk(state)
        return
    system.load_official(state)
    if system.params != params:
        theirs, ours = (p.model_dump()["recipes"][p.recipe] for p in (system.params, params))
        wanted = ", ".join(f"{key}: {theirs[key]}" for key in theirs if theirs[key] != ours[key])
        raise ConfigError(
            f"systems.{name}.initial is {params.initial}, a release that is trained and read with {wanted}; recipe "
            f"{params.recipe!r} says otherwise. Choose a recipe that agrees"
        )


def downloaded(name: str) -> Mapping[str, Any]:
    """torchvision's weights of this name, from torch's cache or the network; their digest is checked on the way.

    Raises ConfigError for a name that torchvision does not have, TrainingError where they cannot be had.
    """
    import torchvision
    from torch.hub import get_dir

    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, KeyError):
        raise ConfigError(f"torchvision {torchvision.__version__} has no weights of the name {name}") from None
    try:
        return weights.get_state_dict(check_hash=True, map_location="cpu", weights_only=True, progress=False)
    except (OSError, RuntimeError) as error:
        raise TrainingError(
            f"the weights {name} could not be had ({error}). Without a network, put {weights.url.rsplit('/', 1)[-1]} "
            f"into {get_dir()}/checkpoints"
        ) from error


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
