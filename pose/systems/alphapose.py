"""RMPE / AlphaPose: a spatial transformer before a pose network and its inverse after it, so that a badly placed box
costs little; trained on boxes as detectors place them, with a frozen twin that tells the transformer what centred is.

image - transformer theta - pose network - inverse of theta - maps of the image as it came
                          \\ frozen pose network - maps of the transformed image, in training alone

Source: Fang, Xie, Tai & Lu, RMPE: Regional Multi-Person Pose Estimation, ICCV 2017; the released AlphaPose for the
pose network (FastPose), its recipe and the constants of pose NMS. The release itself has no transformer, no twin and
no pose-guided proposals, and neither says how the twin's loss is weighed. Deviations: theta is bounded, so that its
inverse exists (pose.layers.spatial_transformer); the twin is a copy of the pose network as it stands when a phase
with that loss begins, and its weights are buffers.

Phase `pose` trains the pose network alone, on true boxes; the transformer still is the identity. Phase `rmpe` trains
both, on boxes moved by pose-guided proposals (pose.decoding.proposals). Whole-image views have no boxes to move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pose.config import ROOT, Count, PhaseParams, Positive, RecipeParams, Strict, SystemParams
from pose.data import views
from pose.data.batch import Batch
from pose.decoding import pose_nms_fit
from pose.decoding.dark import dark
from pose.decoding.peaks import highest, mass, quarter
from pose.decoding.proposals import Offsets, match, shift_edges
from pose.decoding.settling import BY_POSE_NMS, EVERYONE, Settling, by_fitted
from pose.errors import ConfigError, DataError
from pose.layers import heatmaps
from pose.layers.fastpose import FastPose
from pose.layers.resnet import STRIDE, Depth, ResNet, load_imagenet_resnet
from pose.layers.spatial_transformer import Localisation, identity, invert, warp
from pose.layers.twin import Twin
from pose.people import People
from pose.systems.base import Card, Joints, System
from pose.systems.simple_baseline import CONFIDENT_RADIUS, blur_side

SEED = 0
"""Of the starts of k-means."""
OF_THE_RUN = "detector"
"""In place of a file: the boxes of the person detector that the same run of train-all trains first."""


class AlphaPoseRecipe(RecipeParams):
    """How maps are trained and read."""

    loss: Literal["squared_error", "cross_entropy"] = Field(description="squared_error: the release's")
    decode: Literal["quarter", "dark"] = Field(description="from the highest cell on, in pose.decoding")


class TrunkParams(Strict):
    """A ResNet."""

    depth: Depth
    width: Annotated[int, Field(ge=4)] = Field(default=64, description="channels of its first layer")


class ProposalParams(Strict):
    """Boxes as a detector places them, for training."""

    phases: list[str] = Field(min_length=1, description="phases in which boxes are moved")
    atoms: Count = Field(description="kinds of poses")
    components: Count = Field(description="Gaussians per atom")
    detections: str | None = Field(
        default=None,
        description="COCO results of a detector on the training split; `detector`: of that of the same run of "
        "train-all; null: the released code's Gaussians",
    )


class AlphaPoseParams(SystemParams):
    """Sizes of RMPE."""

    test_time = frozenset({"flip_test"})

    paths: ClassVar[dict[str, set[str]]] = {"proposals": {"detections"}}
    recipes: dict[str, AlphaPoseRecipe]  # type: ignore[assignment]
    pose: TrunkParams
    localisation: TrunkParams
    upsampling: list[Count] = Field(min_length=1, max_length=4, description="channels of each, after the first shuffle")
    sigma: Positive = Field(description="of the target Gaussians, in cells")
    flip_test: bool = Field(description="average over the mirrored image when evaluating")
    proposals: ProposalParams | None = Field(description="null: boxes stay where they are")
    nms: Literal["released", "fitted"] = Field(
        default="released", description="numbers of pose NMS; fitted: to the training split, after the training"
    )
    fit_images: Count = Field(default=60, description="images of the training split that they are fitted to")

    @property
    def chosen(self) -> AlphaPoseRecipe:
        """The recipe that `recipe` names."""
        return self.recipes[self.recipe]

    @property
    def files(self) -> tuple[Path, ...]:
        """`initial`, and the detections that proposals are fitted to. ConfigError where there is no such file, or not
        yet.
        """
        if self.proposals is None or self.proposals.detections is None:
            return super().files
        if self.awaits:
            raise ConfigError(
                f"systems.alphapose.proposals.detections is {OF_THE_RUN!r}: boxes of the person detector that the same "
                f"run of train-all trains, and here is none. Train with train-all, or name a file of detections on the "
                f"training split, such as train-all leaves in the folder `detections` of its storage"
            )
        path = ROOT / self.proposals.detections
        if not path.is_file():
            raise ConfigError(f"systems.alphapose.proposals.detections is {path}; there is no such file")
        return (*super().files, path)

    @property
    def awaits(self) -> str | None:
        """Where proposals are fitted to the boxes of the run's own detector."""
        asked = self.proposals is not None and self.proposals.detections == OF_THE_RUN
        return "proposals.detections" if asked else None

    def with_boxes(self, path: Path | None) -> Self:
        """Proposals that are fitted to this file; None: the released code's Gaussians."""
        assert self.proposals is not None
        given = self.proposals.model_copy(update={"detections": None if path is None else str(path)})
        return self.model_copy(update={"proposals": given})

    @property
    def map_size(self) -> tuple[int, int]:
        """Width and height of the maps in cells."""
        width, height = self.input_size
        factor = 2 ** (1 + len(self.upsampling))
        return width // STRIDE * factor, height // STRIDE * factor

    @model_validator(mode="after")
    def _fits(self) -> AlphaPoseParams:
        if any(side % STRIDE for side in self.input_size):
            raise ConfigError(
                f"systems.alphapose.input_size is {self.input_size}; the trunk halves it five times, so both sides "
                f"have to be multiples of {STRIDE}"
            )
        known = {phase.name for recipe in self.recipes.values() for phase in recipe.phases}
        strange = set(self.proposals.phases) - known if self.proposals else set()
        if strange:
            raise ConfigError(
                f"systems.alphapose.proposals.phases names {', '.join(sorted(strange))}; the recipes have "
                f"{', '.join(sorted(known))}"
            )
        return self


class AlphaPose(System):
    """RMPE. Outputs {"maps": [B, K, h, w], "theta": [B, 2, 3]} and, where the twin is asked, "parallel"."""

    Params = AlphaPoseParams
    loss_terms: ClassVar[tuple[str, ...]] = ("maps", "parallel")
    card: ClassVar[Card] = Card(
        title="RMPE / AlphaPose",
        source="Fang, Xie, Tai & Lu, ICCV 2017; pose network and constants of the released AlphaPose",
        published=(
            "MPII multi-person 76.7 mAP (paper), 82.1 (release); COCO val2017 AP of the released FastPose-50 with "
            "YOLOv3-SPP boxes 72.0"
        ),
        licence="our own code under this project's licence; nothing of the release, which is for non-commercial use",
        fitted="the numbers of pose NMS that were fitted to the training split, and the OKS AP there before and after",
    )

    def __init__(self, params: AlphaPoseParams, skeleton: Any) -> None:
        super().__init__(params, skeleton)
        self._asks_twin = self._moves_boxes = False

    def build(self) -> nn.Module:
        """[B, 3, H, W] to the outputs named in the class."""
        return Symmetric(self.params, self.skeleton.mirror.tolist())

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        """transformer: what finds theta; pose: the pose network. The twin has no parameters."""
        network = self._symmetric
        return {"transformer": [network.localisation], "pose": [network.pose]}

    @property
    def _symmetric(self) -> Symmetric:
        assert isinstance(self.network, Symmetric)
        return self.network

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Takes torchvision's ResNet of the pose network's depth, whose width has to be 64. TrainingError otherwise."""
        load_imagenet_resnet(self._symmetric.pose.trunk, state)

    # ------------------------------------------------------------ phases

    def begin_phase(self, phase: PhaseParams, batches: Callable[[], Iterator[Batch]] | None) -> None:
        """Copies the pose network into its twin where the phase weighs it, and learns how boxes are missed."""
        p, network = self.params, self._symmetric
        self._asks_twin = "parallel" in phase.losses
        self._moves_boxes = p.proposals is not None and phase.name in p.proposals.phases
        network.straight = "transformer" not in phase.train and network.localisation.fresh
        if batches is None:
            return
        if self._asks_twin:
            network.twin.follow(network.pose)
        if self._moves_boxes and p.proposals.detections is not None:
            network.learn(self._offsets(p.files[-1], batches()))

    def _offsets(self, detections: Path, batches: Iterator[Batch]) -> Offsets:
        """The mixtures of the detector whose results on the training split these are."""
        from pose.data.detections import read

        parts = [
            (batch.keypoints.cpu(), batch.labelled.cpu(), batch.boxes.cpu(), batch.image_ids.cpu()) for batch in batches
        ]
        poses, labelled, boxes, images = (torch.cat(column) for column in zip(*parts, strict=True))
        found = read(detections, images.unique().tolist())
        offsets, people = match(boxes, images, torch.as_tensor(found.boxes), torch.as_tensor(found.image_ids))
        atoms, components = self.params.proposals.atoms, self.params.proposals.components
        try:
            return Offsets.fit(poses, labelled, offsets, people, self.skeleton, atoms, components, SEED)
        except DataError as error:
            raise DataError(f"proposals cannot be fitted to {detections}: {error}") from None

    def prepare(self, batch: Batch) -> Batch:
        """As usual; where the phase wants proposals, training samples are seen through boxes drawn from them.

        Half bodies are not: there the transformer learns to centre the half that is seen.
        """
        if batch.augment is None or not self._moves_boxes:
            return super().prepare(batch)
        drawn = self._symmetric.offsets.draw(batch.keypoints, batch.labelled, self.skeleton)
        moved = shift_edges(batch.boxes, drawn)
        ready = super().prepare(replace(batch, boxes=moved))
        whole = (ready.boxes == moved).all(dim=1)
        return replace(ready, boxes=torch.where(whole[:, None], batch.boxes, ready.boxes))

    def forward(self, network: nn.Module, batch: Batch) -> Any:
        """The twin is asked in phases that weigh it."""
        return network(batch.images, parallel=self._asks_twin)

    # ------------------------------------------------------------ pose NMS

    @property
    def fits(self) -> bool:
        """The numbers of pose NMS, where params ask for it."""
        return self.params.nms == "fitted"

    @torch.no_grad()
    def fit(self, batches: Callable[[], Iterator[Batch]], quality: Callable[[People], float]) -> dict[str, Any]:
        """The numbers of pose NMS for people seen in boxes drawn as a detector places them; see pose_nms_fit.

        Where whole images are seen instead of boxes nobody is found twice, and the released numbers stay.
        """
        everyone = batches()
        first = next(everyone)
        if first.view == "image":
            return {"images": 0, "pose nms": pose_nms_fit.fitted(EVERYONE)}
        detector = pose_nms_fit.drawn(self._symmetric.offsets, self.skeleton)
        numbers, said = pose_nms_fit.fit(
            chain([first], everyone), self.params.fit_images, detector, self._poses, quality
        )
        self._symmetric.nms.copy_(torch.tensor(list(pose_nms_fit.fitted(numbers).values()), dtype=torch.float64))
        return said

    def _poses(self, batch: Batch, boxes: Tensor) -> People:
        """Those of the batch's people seen through boxes xyxy [B, 4]."""
        ready = super().prepare(replace(batch, boxes=boxes))
        return self.decode(self.forward(self.network, ready), ready)

    @property
    def settling(self) -> Settling:
        """Pose NMS, with the released numbers or the fitted ones."""
        if not self.fits:
            return BY_POSE_NMS
        numbers = dict(zip(pose_nms_fit.FITTED, self._symmetric.nms.tolist(), strict=True))
        return by_fitted(replace(EVERYONE, **numbers))

    # ------------------------------------------------------------ losses

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """maps: towards the joints as they are; parallel: the twin's towards them centred, 0 where it was not asked."""
        parallel = outputs["maps"].new_zeros(())
        if "parallel" in outputs:
            parallel = self._distance(outputs["parallel"], self.centred(batch), batch.labelled)
        return {"maps": self._distance(outputs["maps"], batch.keypoints, batch.labelled), "parallel": parallel}

    def _distance(self, maps: Tensor, keypoints: Tensor, labelled: Tensor) -> Tensor:
        """The recipe's loss of maps [B, K, h, w] for joints [B, K, 2] in input pixels."""
        p = self.params
        if p.chosen.loss == "cross_entropy":
            return heatmaps.cross_entropy(maps, keypoints, labelled, p.sigma, p.input_size)
        target, weight = heatmaps.targets(keypoints, labelled, p.map_size, p.sigma, p.input_size)
        return heatmaps.mean_squared_error(maps, target, weight)

    def centred(self, batch: Batch) -> Tensor:
        """[B, K, 2] input pixels: where the joints would be, were the true box, or that of the half body that is seen,
        as turned as it is, in the middle of the input and as large as `padding` has it.
        """
        p = self.params
        to_input = views.inverse(batch.to_original.double())
        corners = batch.boxes.double().unflatten(1, (2, 2))
        middle = views.apply(to_input, corners.mean(dim=1, keepdim=True))
        # A turn keeps the length of what the linear part makes of a box's sides.
        sides = torch.linalg.vector_norm(to_input[:, :, :2], dim=1) * (corners[:, 1] - corners[:, 0])
        size = sides.new_tensor(p.input_size)
        scale = (size / (p.padding * sides)).amin(dim=1)[:, None, None]
        return ((batch.keypoints.double() - middle) * scale + size / 2).float()

    def targets_preview(self, batch: Batch) -> Tensor:
        """[B, h, w] in [0, 1], the highest of the joints' target maps."""
        p = self.params
        return heatmaps.targets(batch.keypoints, batch.labelled, p.map_size, p.sigma, p.input_size)[0].amax(dim=1)

    # ------------------------------------------------------------ reading

    def joints(self, outputs: Any) -> Joints:
        """Peaks in input pixels. A joint's score and presence are the height of its Gaussian or, of a probability,
        how much of it lies about the highest cell.
        """
        p = self.params
        maps = self._read(outputs)
        positions, scores = dark(maps, blur_side(p.sigma)) if p.chosen.decode == "dark" else quarter(maps)
        if p.chosen.loss == "cross_entropy":
            scores = mass(maps, highest(maps)[0], math.ceil(CONFIDENT_RADIUS * p.sigma))
        scores = scores.clamp(0, 1)
        return Joints(heatmaps.to_pixels(positions, p.map_size, p.input_size, official=False), scores, scores)

    def belief_maps(self, outputs: Any) -> Tensor:
        """[B, K, h, w], about a Gaussian of height 1 where a joint is sure: for people to look at."""
        maps = self._read(outputs)
        # A Gaussian of height 1 sums to this over the cells.
        return maps * (2 * math.pi * self.params.sigma**2) if self.params.chosen.loss == "cross_entropy" else maps

    def _read(self, outputs: Any) -> Tensor:
        """[B, K, h, w] float32, Gaussians or probabilities over the cells."""
        maps = outputs["maps"].float()
        if self.params.chosen.loss == "squared_error":
            return maps
        return maps.flatten(2).softmax(dim=2).unflatten(2, maps.shape[2:])


class Symmetric(nn.Module):
    """[B, 3, H, W] to {"maps": [B, K, h, w], "theta": [B, 2, 3]}; `parallel` adds the twin's maps of the transformed
    image. Buffers hold the proposals.
    """

    mirror: Tensor
    atoms: Tensor
    weights: Tensor
    means: Tensor
    factors: Tensor
    nms: Tensor

    def __init__(self, params: AlphaPoseParams, mirror: list[int]) -> None:
        super().__init__()
        self.flip_test = params.flip_test
        self.straight = False
        """Leave the transformer out: it is the identity and stays it."""
        trunk = ResNet(params.localisation.depth, params.localisation.width)
        self.localisation = Localisation(trunk, trunk.channels)
        self.pose = FastPose(params.pose.depth, params.pose.width, params.upsampling, len(mirror))
        self.twin = Twin(self.pose)
        self.register_buffer("mirror", torch.tensor(mirror), persistent=False)
        kinds = params.proposals or ProposalParams(phases=["none"], atoms=1, components=1)
        released = Offsets.released(kinds.atoms, kinds.components, len(mirror))
        for name in ("atoms", "weights", "means", "factors"):
            self.register_buffer(name, getattr(released, name))
        if params.nms == "fitted":
            self.register_buffer("nms", torch.tensor(list(pose_nms_fit.fitted(EVERYONE).values()), dtype=torch.float64))

    @property
    def offsets(self) -> Offsets:
        """How boxes are missed."""
        return Offsets(self.atoms, self.weights, self.means, self.factors)

    def learn(self, offsets: Offsets) -> None:
        """Keeps them in the buffers."""
        for name in ("atoms", "weights", "means", "factors"):
            getattr(self, name).copy_(getattr(offsets, name))

    def forward(self, images: Tensor, parallel: bool = False) -> dict[str, Tensor]:
        """See the class. The mirrored image has its say in evaluation alone."""
        outputs = self._once(images, parallel)
        trains = self.localisation.training or self.pose.training
        if self.flip_test and not trains:
            mirrored = self._once(images.flip(3), parallel=False)["maps"].flip(3)[:, self.mirror]
            outputs["maps"] = (outputs["maps"] + mirrored) / 2
        return outputs

    def _once(self, images: Tensor, parallel: bool) -> dict[str, Tensor]:
        if self.straight:
            theta = identity(images.float()).expand(len(images), 2, 3)
            maps = self.pose(images)
            return {"maps": maps, "theta": theta} | ({"parallel": self.twin(images)} if parallel else {})
        theta = self.localisation(images)
        seen = warp(images, theta)
        outputs = {"maps": warp(self.pose(seen), invert(theta)), "theta": theta}
        return outputs | ({"parallel": self.twin(seen)} if parallel else {})
