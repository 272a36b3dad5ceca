"""Weights that are there already, of releases or of ours, taken over into a system: to use, or to begin with."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pose.config import ROOT, TORCHVISIONS, RecipeParams, SystemParams
from pose.errors import ConfigError, PoseError, TrainingError
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
    ConfigError where the system has no use for them or would read other answers than they were trained to give,
    TrainingError where they misfit; both name the key.
    """
    params: SystemParams = system.params
    if params.initial is None:
        return
    say(f"{name} begins with the weights of {params.initial}")
    own = {key: tensor.clone() for key, tensor in system.network.state_dict().items() if key in system.constants}
    try:
        _begin(name, system, params.initial)
    except PoseError as error:
        raise type(error)(f"systems.{name}.initial is {params.initial}: {error}") from error
    # Weights that are taken as they are mean what they meant; a training is what its params say.
    if not params.chosen.idle:
        system.network.load_state_dict(own, strict=False)


def _begin(name: str, system: System, initial: str) -> None:
    params: SystemParams = system.params
    file = params.initial_file
    if file is not None and (ROOT / initial).is_dir():
        from pose.inference.weights import told  # which imports what exports

        theirs, read_with = told(file.parent)
        if theirs == name and params.chosen.idle:
            _require_same_reading(read_with, params)
        restore(system, file)
        return
    state = read_release(file) if file is not None else downloaded(initial)
    if any(key.startswith(CLASSIFIERS) for key in state):
        if params.chosen.idle:
            raise ConfigError("these are an image classifier's, which trains a trunk alone; give some phase epochs")
        system.load_trunk(state)
        return
    system.begin_with(state)
    _require_same_reading(system.params, params)


def _require_same_reading(theirs: SystemParams, ours: SystemParams) -> None:
    """What recipes of one system say beyond the engine's numbers is how its answers are meant."""
    engine = RecipeParams.model_fields
    before, now = ({k: v for k, v in vars(p.chosen).items() if k not in engine} for p in (theirs, ours))
    wanted = ", ".join(f"{key}: {value}" for key, value in before.items() if now[key] != value)
    if wanted:
        raise ConfigError(f"they were trained and are read with {wanted}; recipe {ours.recipe!r} says otherwise")


def downloaded(name: str) -> Mapping[str, Any]:
    """torchvision's weights of this name, from torch's cache or the network; then their digest is checked.

    Raises ConfigError for a name that torchvision does not have, TrainingError where they cannot be had.
    """
    import torchvision
    from torch.hub import get_dir

    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, KeyError):
        raise ConfigError(f"torchvision {torchvision.__version__} has no weights of this name") from None
    file = f"{get_dir()}/checkpoints/{weights.url.rsplit('/', 1)[-1]}"
    try:
        with redirect_stdout(sys.stderr):  # where torch says that it downloads
            return weights.get_state_dict(check_hash=True, map_location="cpu", weights_only=True, progress=False)
    except (EOFError, pickle.UnpicklingError):
        raise TrainingError(f"{file} holds no weights; remove it, and they are downloaded again") from None
    except (OSError, RuntimeError) as error:
        raise TrainingError(f"they could not be had ({error}). Without a network, put them into {file}") from error


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
