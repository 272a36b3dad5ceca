"""A trained network as torch code, from a bundle or a training folder: for evaluation, export and further work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pose.bundle import describe, require_model
from pose.config import CropParams, SystemParams
from pose.config_loading import retuned
from pose.errors import ConfigError, TrainingError
from pose.export import Deployed, not_finite
from pose.skeleton import skeleton_named
from pose.systems import SYSTEMS, create, restore
from pose.systems.base import System

WEIGHTS = "model.safetensors"
FITTED, FACTS = "fitted", "fitted.json"
"""Folder in a training folder, with the weights and what was fitted after the training (pose.fitting)."""


@dataclass(frozen=True)
class Trained:
    """A system in eval mode with its trained weights, and the view it was trained on."""

    name: str
    """Of the system, as params.yaml has it."""
    system: System
    crop: CropParams
    weights: Path


def trained(folder: Path, overrides: Sequence[str] = ()) -> Trained:
    """Reads a bundle (model.json) or a finished training folder (spec.json).

    overrides: `systems.NAME.key=value` of what the model can be given anew. Raises ConfigError for others, for a folder
    that is neither or of an unknown system, ExportError for a description that is none, TrainingError for a training
    that has not finished and for weights that are not numbers.
    """
    require_model(folder)
    if (folder / "model.json").is_file():
        facts = describe(folder)
        name = facts["system"]
        system = create(name, retuned(name, _params(folder, facts), overrides), facts["skeleton"])
        found = Trained(name, restore(system, folder / WEIGHTS), facts["crop"], folder / WEIGHTS)
    else:
        found = _from_training(folder, overrides)
    _require_finite(found)
    return found


def _require_finite(found: Trained) -> None:
    """A detector's suppression drops what is no number, so that broken weights would find nobody and say nothing."""
    if broken := not_finite(found.system.network):
        raise TrainingError(
            f"{found.weights}: {len(broken)} of the weights of {found.name} hold values that are not numbers, "
            f"the first {broken[0]}; take an earlier model, or train again with a lower learning rate or clip_norm set"
        )


def told(folder: Path) -> tuple[str, SystemParams]:
    """The system of a bundle or training folder, finished or not, and its params. Raises as `trained` does."""
    from pose.training.spec import TrainingSpec

    require_model(folder)
    if (folder / "model.json").is_file():
        facts = describe(folder)
        return facts["system"], _params(folder, facts)
    spec = TrainingSpec.load(folder / "spec.json")
    return spec.system, spec.system_params


def _params(folder: Path, facts: Mapping[str, Any]) -> SystemParams:
    """Of a bundle, of what its model.json says."""
    if facts["system"] not in SYSTEMS:
        raise ConfigError(
            f"{folder} holds a model of the system {facts['system']!r}, whose network this version does not have; "
            f"it has {', '.join(SYSTEMS)}"
        )
    return SYSTEMS[facts["system"]].Params.model_validate(facts["params"])


def _from_training(folder: Path, overrides: Sequence[str]) -> Trained:
    from pose.data.shards import describe
    from pose.training.spec import TrainingSpec

    if not (folder / WEIGHTS).is_file():
        raise TrainingError(
            f"the training in {folder} has not finished: there is no {WEIGHTS}. Run `pose train` again."
        )
    spec = TrainingSpec.load(folder / "spec.json")
    info = describe(spec.data)
    params = retuned(spec.system, spec.system_params, overrides)
    system = create(spec.system, params, skeleton_named(info.skeleton))
    weights = folder / FITTED / WEIGHTS if system.fits else folder / WEIGHTS
    if system.fits and not weights.with_name(FACTS).is_file():
        raise TrainingError(
            f"{spec.system} in {folder} is trained, but what it fits to the training split afterwards is missing: "
            f"there is no {weights.with_name(FACTS)}. Run `pose train` again."
        )
    return Trained(spec.system, restore(system, weights), info.crop, weights)


def network_of(system: System) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The system as a function of uint8 pictures, with the interface of an exported graph (predictor.Network)."""
    deployed = Deployed(system).eval()

    @torch.inference_mode()
    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keypoints, scores, presence = deployed(torch.from_numpy(images))
        return keypoints.numpy(), scores.numpy(), presence.numpy()

    return run
