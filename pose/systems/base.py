"""What an architecture must be, and all that the engine knows of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pose.config import PhaseParams, SystemParams
from pose.data import augment, scenes
from pose.data.batch import Batch
from pose.decoding.settling import BY_OKS, Settling
from pose.errors import ConfigError
from pose.people import People
from pose.skeleton import Skeleton


@dataclass(frozen=True)
class Card:
    """Where a system comes from, for `pose systems` and model cards."""

    title: str
    source: str
    published: str
    """The figures its source reports, with their protocol."""
    licence: str
    graph_lacks: str = ""
    """What `decode` does beyond an exported graph. Where it is something, a bundle's pictures go through the network
    itself, so that what is predicted is what was evaluated."""
    fitted: str = ""
    """What fitted.json holds, of a system that fits something after its training."""


@dataclass(frozen=True)
class Joints:
    """What a person-view network says of the one person in each crop."""

    keypoints: Tensor
    """[B, K, 2] float32, pixels of the network's input."""
    scores: Tensor
    """[B, K] in [0, 1], confidence in the position."""
    presence: Tensor
    """[B, K] in [0, 1], probability that the joint is visible."""


class System(ABC):
    """One pose system: network, targets and loss, decoding."""

    view: ClassVar[Literal["person", "scene"]] = "person"
    finds_joints: ClassVar[bool] = True
    """False for a detector: its people are boxes alone."""
    preview: ClassVar[str] = "targets"
    """What `targets_preview`, where a system has it, shows in `pose data preview`."""
    card: ClassVar[Card]
    Params: ClassVar[type[SystemParams]]

    def __init__(self, params: Any, skeleton: Skeleton) -> None:
        self.params = params
        self.skeleton = skeleton
        self.network: nn.Module = self.build()

    @abstractmethod
    def build(self) -> nn.Module:
        """The network: [B, 3, H, W] normalised float in, its own outputs out."""

    @property
    @abstractmethod
    def groups(self) -> dict[str, list[nn.Module]]:
        """Parameter groups by name, together the whole network; phases say which of them train."""

    loss_terms: ClassVar[tuple[str, ...]]
    """Names that `loss` returns, for phases to weigh."""

    constants: ClassVar[tuple[str, ...]] = ()
    """Keys of the network's tensors that follow from params, also where a training begins with other weights."""

    @property
    def settling(self) -> Settling:
        """Of a person view: how its poses in boxes become people."""
        return BY_OKS

    @property
    def suppression(self) -> str:
        """How detections of one person are thinned out: a few words for protocols."""
        return self.settling.name

    def load_official(self, state: Mapping[str, Any]) -> None:
        """Takes the weights of the system's official release, whole. ConfigError where there is none that fits ours."""
        raise ConfigError(f"{self.card.title} has no official release whose weights this program could take over")

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Takes a torchvision image classifier's weights into the trunk. ConfigError for a system without one."""
        raise ConfigError(f"{self.card.title} has no trunk that torchvision's image classifiers have, too")

    def begin_with(self, state: Mapping[str, Any]) -> None:
        """Takes a release's weights as the first of a training: the system's own, whole, where it says nothing else."""
        self.load_official(state)

    def begin_phase(self, phase: PhaseParams, batches: Callable[[], Iterator[Any]] | None) -> None:  # noqa: B027
        """Called on every rank before a phase's first step, the network in evaluation mode with its weights so far.

        `batches` gives the training split once, in order, unaugmented and not yet prepared, for statistics that the
        phase needs; they belong into buffers of the network, which checkpoints keep. It is None where a training is
        resumed within the phase: the buffers are there again. Nothing to do by default.
        """

    @property
    def fits(self) -> bool:
        """Whether the trained network waits for `fit` before it is evaluated."""
        return False

    def fit(self, batches: Callable[[], Iterator[Any]], quality: Callable[[People], float]) -> dict[str, Any]:
        """After the training, in evaluation mode: what needs the finished network and the training split, into buffers
        of the network. `batches` as in begin_phase; `quality` is the OKS AP of people in the images they are of.
        Returns what there is to say of it, as fitted.json will have it. Only for systems that say `fits`.
        """
        raise NotImplementedError(f"{type(self).__name__} has nothing to fit after its training")

    # A batch is a Batch where `view` is "person", a SceneBatch where it is "scene"; a system names its own.

    def prepare(self, batch: Any) -> Any:
        """The batch as the network sees it, made on the batch's device; see `finish` of pose.data.augment, scenes."""
        if self.view == "scene":
            return scenes.finish(batch, self.params.input_size, self.skeleton)
        return augment.finish(batch, self.params.input_size, self.skeleton, self.params.padding)

    def forward(self, network: nn.Module, batch: Any) -> Any:
        """The outputs for a prepared batch; `network` is this system's own, perhaps wrapped for several ranks."""
        return network(batch.images)

    @abstractmethod
    def loss(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """Scalar loss terms by name; targets are built from the batch on its device."""

    @abstractmethod
    def joints(self, outputs: Any) -> Joints:
        """Decoding in pure tensor code, so that an exported graph can hold it."""

    def decode(self, outputs: Any, batch: Any) -> People:
        """One person per crop, or, scene by scene, those that are found; in pixels of the original image."""
        joints = self.joints(outputs)
        return to_people(joints, batch)


def to_people(joints: Joints, batch: Batch) -> People:
    """Maps joints from input pixels [B, K, 2] back to original images. The person score is the mean joint score."""
    affine = batch.to_original
    original = joints.keypoints.float() @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]

    def array(tensor: Tensor, dtype: type = np.float32) -> np.ndarray:
        return tensor.detach().cpu().numpy().astype(dtype)

    return People(
        image_ids=array(batch.image_ids, np.int64),
        image_sizes=array(batch.image_sizes),
        keypoints=array(original),
        scores=array(joints.scores.float()),
        presence=array(joints.presence.float()),
        boxes=array(batch.boxes),
        person_scores=array(joints.scores.float().mean(dim=1)),
    )


def parameter_count(network: nn.Module) -> int:
    """Trainable numbers of a network; buffers do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_accumulates(system: System) -> int:
    """MACs of one forward pass of one image, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    width, height = system.params.input_size
    system.network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        system.network(torch.zeros(1, 3, height, width))
    return counter.get_total_flops() // 2
