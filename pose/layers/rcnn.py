"""Faster and Keypoint R-CNN from torchvision's building blocks, with losses in any mode and decoding that exports.

The parameters have torchvision's names and shapes, so that its state_dicts fit. What happens between the layers is
ours: torchvision answers with losses or with detections according to the mode, takes crowds for background, and finds
joints in a loop over people.

Sources: Ren et al. 2015 (Faster R-CNN), Lin et al. 2017 (feature pyramids), He et al. 2017 (Mask R-CNN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import clip_boxes_to_image

from pose.found import Found
from pose.layers.keypoint_maps import confidences, keypoint_loss, peaks
from pose.layers.regions import Target, match, pool, sample, survivors

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors."""
GROUPS = 32
SMOOTH = 1 / 9
"""Where the smooth L1 loss on box offsets turns linear."""
BOX_CELLS, JOINT_CELLS = 7, 14
"""Side of the features pooled from a box, for its class and for its joints."""
LEAST_SIDE = 1e-2
"""Pixels; detections thinner than this are none."""
PROPOSAL_OVERLAP = 0.7
"""IoU above which the worse of two proposals of one level is suppressed."""


@dataclass(frozen=True)
class Limits:
    """How many boxes are looked at, and which detections are kept."""

    proposals_train: int
    proposals_test: int
    """Per level before suppression, and again over all levels after it."""
    sampled_anchors: int
    sampled_proposals: int
    """Per image, for the losses."""
    detections: int
    """Most people in one image."""
    score_floor: float
    overlap: float
    """IoU above which the worse of two detections is suppressed."""


@dataclass(frozen=True)
class Detected(Found):
    """People whose keypoints, confidences and logits are zeros without a keypoint head."""

    logits: Tensor
    """[R, K], the maps' values at the peaks."""


class Proposer(nn.Module):
    """Holds the proposal head under torchvision's name, `rpn`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = RPNHead(channels, len(RATIOS))


class Heads(nn.Module):
    """Holds what looks at boxes under torchvision's name, `roi_heads`. Classes: background, person."""

    def __init__(self, channels: int, box_hidden: int, keypoint_channels: Sequence[int], joints: int) -> None:
        super().__init__()
        self.box_head = TwoMLPHead(channels * BOX_CELLS**2, box_hidden)
        self.box_predictor = FastRCNNPredictor(box_hidden, 2)
        if keypoint_channels:
            self.keypoint_head = KeypointRCNNHeads(channels, tuple(keypoint_channels))
            self.keypoint_predictor = KeypointRCNNPredictor(keypoint_channels[-1], joints)


class Rcnn(nn.Module):
    """[B, 3, H, W] normalised float to what is dense in the images, as a dict; with targets also their `losses`.

    features: [B, C, h, w] by level. objectness [B, A], deltas [B, A, 4], anchors [A, 4] px: lists over the levels.
    """

    def __init__(
        self, backbone: BackboneWithFPN, heads: Heads, anchor_sizes: Sequence[int], limits: Limits, joints: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = Proposer(backbone.out_channels)
        self.roi_heads = heads
        self.limits = limits
        self.joints = joints
        self.anchor_generator = AnchorGenerator(tuple((size,) for size in anchor_sizes), (RATIOS,) * len(anchor_sizes))
        self.anchor_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    @property
    def finds_joints(self) -> bool:
        """Whether there is a keypoint head."""
        return hasattr(self.roi_heads, "keypoint_head")

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> dict[str, Any]:
        """See the class."""
        features = self.backbone(images)
        objectness, deltas = self.rpn.head(list(features.values()))
        dense: dict[str, Any] = {
            "features": dict(features),
            "objectness": [level.permute(0, 2, 3, 1).flatten(1).float() for level in objectness],
            "deltas": [level.permute(0, 2, 3, 1).reshape(len(level), -1, 4).float() for level in deltas],
            "anchors": self._anchors(images, list(features.values())),
        }
        if targets is not None:
            dense["losses"] = self.losses(dense, targets, self.limits.proposals_train)
        return dense

    def _anchors(self, images: Tensor, levels: list[Tensor]) -> list[Tensor]:
        grids = [list(level.shape[-2:]) for level in levels]
        strides = [[images.shape[-2] // grid[0], images.shape[-1] // grid[1]] for grid in grids]
        self.anchor_generator.set_cell_anchors(torch.float32, images.device)
        return self.anchor_generator.grid_anchors(grids, strides)

    # ------------------------------------------------------------ losses

    def losses(self, dense: dict[str, Any], targets: Sequence[Target], proposals: int) -> dict[str, Tensor]:
        """Scalars objectness, rpn_box, classifier, box and, with a keypoint head, keypoints; 0 where nothing is known.

        proposals: at most so many per image.
        """
        losses = self._proposal_losses(dense, targets)
        rois, people, labels = [], [], []
        for boxes, target in zip(self.proposals(dense, proposals), targets, strict=True):
            boxes = torch.cat([boxes, target.boxes])
            person, label = match(boxes, target, 0.5, 0.5, rescue=False)
            rows = torch.cat(sample(label, self.limits.sampled_proposals, 0.25))
            rois.append(boxes[rows])
            people.append(person[rows])
            labels.append(label[rows])
        logits, deltas = self._boxes(dense, rois)
        label = torch.cat(labels)
        size = max(1, len(label))
        losses["classifier"] = F.cross_entropy(logits, label, reduction="sum") / size
        rois = [boxes[label > 0] for boxes, label in zip(rois, labels, strict=True)]
        people = [person[label > 0] for person, label in zip(people, labels, strict=True)]
        truth = [target.boxes[person] for person, target in zip(people, targets, strict=True)]
        offsets = self.box_coder.encode_single(torch.cat(truth), torch.cat(rois))
        losses["box"] = F.smooth_l1_loss(deltas[label > 0], offsets, beta=SMOOTH, reduction="sum") / size
        if self.finds_joints:
            losses["keypoints"] = self._keypoint_loss(dense, rois, people, targets)
        return losses

    def _proposal_losses(self, dense: dict[str, Any], targets: Sequence[Target]) -> dict[str, Tensor]:
        anchors = torch.cat(dense["anchors"])
        objectness, deltas = torch.cat(dense["objectness"], dim=1), torch.cat(dense["deltas"], dim=1)
        logits, labels, found, wanted = [], [], [], []
        for image, target in enumerate(targets):
            person, label = match(anchors, target, 0.3, 0.7, rescue=True)
            positive, negative = sample(label, self.limits.sampled_anchors, 0.5)
            rows = torch.cat([positive, negative])
            logits.append(objectness[image, rows])
            labels.append(label[rows].float())
            found.append(deltas[image, positive])
            wanted.append(self.anchor_coder.encode_single(target.boxes[person[positive]], anchors[positive]))
        label = torch.cat(labels)
        size = max(1, len(label))
        return {
            "objectness": F.binary_cross_entropy_with_logits(torch.cat(logits), label, reduction="sum") / size,
            "rpn_box": F.smooth_l1_loss(torch.cat(found), torch.cat(wanted), beta=SMOOTH, reduction="sum") / size,
        }

    def _keypoint_loss(
        self, dense: dict[str, Any], rois: list[Tensor], people: list[Tensor], targets: Sequence[Target]
    ) -> Tensor:
        """Of the boxes whose person has labelled joints; the others have nothing to teach and are not computed."""
        taught = [target.labelled[person].any(dim=1) for target, person in zip(targets, people, strict=True)]
        rois = [boxes[rows] for boxes, rows in zip(rois, taught, strict=True)]
        people = [person[rows] for person, rows in zip(people, taught, strict=True)]
        keypoints = torch.cat([target.keypoints[person] for target, person in zip(targets, people, strict=True)])
        labelled = torch.cat([target.labelled[person] for target, person in zip(targets, people, strict=True)])
        return keypoint_loss(self._maps(dense, rois), torch.cat(rois), keypoints, labelled)

    def _boxes(self, dense: dict[str, Any], rois: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [R, 2] of background and person, and the person's box offsets [R, 4], as float32."""
        pooled = pool(dense["features"], rois, BOX_CELLS, self._size(dense))
        logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits.float(), deltas[:, 4:].float()

    def _maps(self, dense: dict[str, Any], rois: list[Tensor]) -> Tensor:
        """[R, K, 56, 56] logits."""
        pooled = pool(dense["features"], rois, JOINT_CELLS, self._size(dense))
        return self.roi_heads.keypoint_predictor(self.roi_heads.keypoint_head(pooled)).float()

    # ------------------------------------------------------------ detections

    @torch.no_grad()
    def proposals(self, dense: dict[str, Any], count: int) -> list[Tensor]:
        """Per image at most `count` boxes [P, 4], the likeliest after suppression within each level."""
        images, size = len(dense["objectness"][0]), self._size(dense)
        boxes, scores = [], []
        for objectness, deltas, anchors in zip(dense["objectness"], dense["deltas"], dense["anchors"], strict=True):
            score, best = objectness.sigmoid().topk(min(count, objectness.shape[1]), dim=1)
            deltas = deltas.gather(1, best[..., None].expand(-1, -1, 4))
            box = self.anchor_coder.decode_single(deltas.flatten(0, 1), anchors[best].flatten(0, 1))
            box = clip_boxes_to_image(box.unflatten(0, (images, -1)), size)
            kept = torch.zeros_like(score, dtype=torch.bool)
            for i in range(images):
                kept[i, survivors(box[i], score[i], PROPOSAL_OVERLAP)] = True
            kept &= (box[..., 2:] - box[..., :2] > LEAST_SIDE).all(dim=2)
            boxes.append(box)
            scores.append(torch.where(kept, score, -1.0))
        box, score = torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
        score, best = score.topk(min(count, score.shape[1]), dim=1)
        return [box[i, best[i][score[i] >= 0]] for i in range(images)]

    def detect(self, dense: dict[str, Any]) -> Detected:
        """The people in the images. Pure tensor code; exports for a single image."""
        proposals = self.proposals(dense, self.limits.proposals_test)
        logits, deltas = self._boxes(dense, proposals)
        boxes = clip_boxes_to_image(self.box_coder.decode_single(deltas, torch.cat(proposals)), self._size(dense))
        scores = logits.softmax(dim=1)[:, 1]
        counts = [rows.shape[0] for rows in proposals]
        parts = zip(boxes.split(counts), scores.split(counts), strict=True) if len(counts) > 1 else [(boxes, scores)]
        chosen = [self._choose(*part) for part in parts]
        image = torch.cat([torch.full_like(scores, i, dtype=torch.int64) for i, (_, scores) in enumerate(chosen)])
        keypoints, certain, values = self._joints(dense, [boxes for boxes, _ in chosen])
        boxes, scores = torch.cat([boxes for boxes, _ in chosen]), torch.cat([scores for _, scores in chosen])
        return Detected(image, boxes, scores, keypoints, certain, values)

    def _choose(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The detections of one image, [D, 4] and [D]."""
        kept = (scores > self.limits.score_floor) & (boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(dim=1)
        boxes, scores = boxes[kept], scores[kept]
        best = survivors(boxes, scores, self.limits.overlap)[: self.limits.detections]
        return boxes[best], scores[best]

    def _joints(self, dense: dict[str, Any], boxes: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Keypoints [R, K, 2] px, confidences and logits [R, K] of the people in these boxes."""
        everyone = torch.cat(boxes)
        if not self.finds_joints:
            zeros = everyone.new_zeros(everyone.shape[0], self.joints)
            return everyone.new_zeros(everyone.shape[0], self.joints, 2), zeros, zeros
        maps = self._maps(dense, boxes)
        height, width = self._size(dense)
        if torch.compiler.is_exporting():
            keypoints, values = peaks(maps, everyone, (width, height))
        else:
            keypoints, values = _peaks_one_by_one(maps, everyone)
        return keypoints, confidences(maps, everyone, keypoints), values

    def _size(self, dense: dict[str, Any]) -> tuple[int, int]:
        """Height and width of the input."""
        height, width = dense["features"]["0"].shape[-2:]
        return 4 * height, 4 * width


def _peaks_one_by_one(maps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """`peaks` without the cost of the largest possible box for each of them."""
    limits = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).ceil().int().tolist()
    found = [peaks(maps[i : i + 1], boxes[i : i + 1], tuple(limit)) for i, limit in enumerate(limits)]
    nobody = (maps.new_zeros(0, maps.shape[1], 2), maps.new_zeros(0, maps.shape[1]))
    points, values = zip(nobody, *found, strict=True)
    return torch.cat(points), torch.cat(values)


def pyramid(depth: int, norm: str, channels: int) -> BackboneWithFPN:
    """A ResNet with the pyramid's four levels and a fifth, coarser one. norm: batch or group."""
    layer = nn.BatchNorm2d if norm == "batch" else _group_norm
    trunk = getattr(resnet, f"resnet{depth}")(weights=None, norm_layer=layer)
    levels = {f"layer{number}": str(number - 1) for number in (1, 2, 3, 4)}
    base = trunk.inplanes // 8
    return BackboneWithFPN(trunk, levels, [base * 2**i for i in range(4)], channels)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)
