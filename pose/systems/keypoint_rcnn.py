"""Keypoint R-CNN: Faster R-CNN with a map per joint in every detected box, for any number of joints.

... RoIAlign 14x14 - [conv3 512]x8 - deconv4 K, to 28x28 - bilinear to 56x56 - softmax over all cells of a joint

Source: He et al., ICCV 2017 (Mask R-CNN, section 5), as torchvision builds it. What goes wrong elsewhere with other
joints than COCO's 17 (losses of 0 or NaN, pytorch/vision issue 2125, detectron2 issues 3475 and 3480) comes from heads,
flips and visibilities that are made for 17; here the skeleton decides all of them, boxes whose person has no labelled
joint are left out of the keypoint loss, and a batch without any has loss 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from pose.config import Count, SystemParams
from pose.systems.base import Card
from pose.systems.person_detector import PersonDetector, RcnnParams


class KeypointRcnnParams(RcnnParams):
    """Sizes of Keypoint R-CNN."""

    keypoint_channels: list[Count] = Field(min_length=1, description="of the keypoint head's convolutions")


class KeypointRcnn(PersonDetector):
    """People and their joints in one network. Scores are the probability around each joint's peak."""

    finds_joints = True
    Params: ClassVar[type[SystemParams]] = KeypointRcnnParams
    loss_terms: ClassVar[tuple[str, ...]] = (*PersonDetector.loss_terms, "keypoints")
    card: ClassVar[Card] = Card(
        title="Keypoint R-CNN",
        source="He et al., ICCV 2017; torchvision's keypointrcnn_resnet50_fpn",
        published="COCO val2017 keypoint AP 65.0, box AP 54.6 (torchvision's release COCO_V1)",
        licence="our own code under this project's licence on torchvision's modules (BSD-3); data sets have their own",
    )

    @property
    def keypoint_channels(self) -> Sequence[int]:
        """Of the convolutions of the keypoint head."""
        return self.params.keypoint_channels
