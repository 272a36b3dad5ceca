"""The pose systems by name, and how to make one and give it trained weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from pose.config import SystemParams
from pose.errors import ConfigError, TrainingError
from pose.layers.weights import load_strictly
from pose.skeleton import Skeleton
from pose.systems.alexnet import AlexNet
from pose.systems.alphapose import AlphaPose
from pose.systems.base import System
from pose.systems.baseline1 import Baseline1
from pose.systems.baseline2 import Baseline2
from pose.systems.cpm import Cpm
from pose.systems.deepcut import DeepCut
from pose.systems.deeppose import DeepPose
from pose.systems.kapao import Kapao
from pose.systems.keypoint_rcnn import KeypointRcnn
from pose.systems.openpose import OpenPose
from pose.systems.person_detector import PersonDetector
from pose.systems.simple_baseline import SimpleBaseline
from pose.systems.vgg16_regressor import Vgg16Regressor
from pose.systems.vgg19 import Vgg19

SYSTEMS: dict[str, type[System]] = {
    "baseline1": Baseline1,
    "baseline2": Baseline2,
    "alexnet": AlexNet,
    "vgg19": Vgg19,
    "vgg16_regressor": Vgg16Regressor,
    "cpm": Cpm,
    "deeppose": DeepPose,
    "simple_baseline": SimpleBaseline,
    "person_detector": PersonDetector,
    "keypoint_rcnn": KeypointRcnn,
    "kapao": Kapao,
    "alphapose": AlphaPose,
    "openpose": OpenPose,
    "deepcut": DeepCut,
}


DETECTOR = "person_detector"
"""In whose boxes systems of single people are evaluated, and to whose boxes some are fitted, in one run."""


def create(name: str, params: SystemParams, skeleton: Skeleton) -> System:
    """A system with fresh weights, drawn from torch's global generator.

    Under `with torch.device("meta")` nothing is allocated, which is enough to count parameters and MACs.
    Raises ConfigError for an unknown name, and for a phase that trains a group or weighs a loss it does not have.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"unknown architecture {name!r}; known are {', '.join(SYSTEMS)}")
    system = SYSTEMS[name](params, skeleton)
    _check_phases(name, system)
    return system


def restore(system: System, weights: Path) -> System:
    """The same system with the weights of a safetensors file, in eval mode.

    Raises TrainingError for a missing or broken file, and for tensors that are missing, left over or wrongly shaped.
    """
    try:
        state = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{weights} cannot be read as safetensors weights: {error}") from error
    load_strictly(system.network, state, str(weights))
    system.network.eval()
    return system


def _check_phases(name: str, system: System) -> None:
    params: SystemParams = system.params
    for i, phase in enumerate(params.chosen.phases):
        for key, found, known in (("train", phase.train, system.groups), ("losses", phase.losses, system.loss_terms)):
            for word in found:
                if word not in known:
                    path = f"systems.{name}.recipes.{params.recipe}.phases[{i}].{key}"
                    raise ConfigError(f"{path} names {word!r}; {name} has {', '.join(known)}")
