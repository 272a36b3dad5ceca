"""Joint sets: names, limbs, mirror pairs, the segments that metrics normalise by, OKS sigmas.

A skeleton is data. Whatever depends on the number or the order of joints reads it from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pose.errors import ConfigError


@dataclass(frozen=True)
class Skeleton:
    """K named joints. Left and right are the person's own."""

    name: str
    joints: tuple[str, ...]
    limbs: tuple[tuple[str, str], ...]
    """What is drawn, and what the audit holds to a plausible length."""
    mirror_pairs: tuple[tuple[str, str], ...]
    pcp_limbs: tuple[tuple[str, str, str], ...]
    """(limb, joint, joint) that PCP scores."""
    torso: tuple[str, str]
    """The two joints whose distance is the torso length of PCK: left shoulder, right hip."""
    head: tuple[str, str] | None
    """The two joints of the head segment, or None where the joint set has none."""
    oks_sigmas: tuple[float, ...] | None
    """Per-joint OKS constants, or None where no published ones exist. They are part of a figure's protocol."""

    @property
    def size(self) -> int:
        """K, the number of joints."""
        return len(self.joints)

    def index(self, joint: str) -> int:
        """Position of a joint's name. Raises ConfigError for a name this skeleton lacks."""
        try:
            return self.joints.index(joint)
        except ValueError:
            raise ConfigError(f"skeleton {self.name} has no joint {joint!r}; it has {', '.join(self.joints)}") from None

    @cached_property
    def limb_indices(self) -> np.ndarray:
        """[L, 2] int64, the joints at either end of each limb."""
        return np.array([[self.index(a), self.index(b)] for a, b in self.limbs], dtype=np.int64)

    @cached_property
    def pcp_indices(self) -> np.ndarray:
        """[P, 2] int64, the joints at either end of each PCP limb."""
        return np.array([[self.index(a), self.index(b)] for _, a, b in self.pcp_limbs], dtype=np.int64)

    @cached_property
    def mirror(self) -> np.ndarray:
        """[K] int64: joint k of a mirrored image is joint mirror[k] of the original."""
        order = np.arange(self.size)
        for left, right in self.mirror_pairs:
            i, j = self.index(left), self.index(right)
            order[i], order[j] = j, i
        return order


LSP14 = Skeleton(
    name="lsp14",
    joints=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
        "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
        "neck", "head_top",
    ),
    limbs=(
        ("right_ankle", "right_knee"), ("right_knee", "right_hip"),
        ("left_ankle", "left_knee"), ("left_knee", "left_hip"),
        ("right_hip", "left_hip"),
        ("right_wrist", "right_elbow"), ("right_elbow", "right_shoulder"),
        ("left_wrist", "left_elbow"), ("left_elbow", "left_shoulder"),
        ("right_shoulder", "neck"), ("left_shoulder", "neck"),
        ("right_shoulder", "right_hip"), ("left_shoulder", "left_hip"),
        ("neck", "head_top"),
    ),
    mirror_pairs=(
        ("left_ankle", "right_ankle"), ("left_knee", "right_knee"), ("left_hip", "right_hip"),
        ("left_wrist", "right_wrist"), ("left_elbow", "right_elbow"), ("left_shoulder", "right_shoulder"),
    ),
    pcp_limbs=(
        ("right_lower_leg", "right_ankle", "right_knee"), ("right_upper_leg", "right_knee", "right_hip"),
        ("left_upper_leg", "left_hip", "left_knee"), ("left_lower_leg", "left_knee", "left_ankle"),
        ("right_forearm", "right_wrist", "right_elbow"), ("right_upper_arm", "right_elbow", "right_shoulder"),
        ("left_upper_arm", "left_shoulder", "left_elbow"), ("left_forearm", "left_elbow", "left_wrist"),
        ("head", "neck", "head_top"),
        ("torso", "left_shoulder", "right_hip"),
    ),
    torso=("left_shoulder", "right_hip"),
    head=("neck", "head_top"),
    # Twelve are COCO's (standard deviations over redundant annotations, cocodataset.org/#keypoints-eval). COCO has
    # neither neck nor head top: 0.079, as in the evaluation of CrowdPose (Li et al., CVPR 2019), the benchmark with
    # these same fourteen joints, whose authors gave both the shoulders' value rather than measuring one.
    oks_sigmas=(
        0.089, 0.087, 0.107, 0.107, 0.087, 0.089,
        0.062, 0.072, 0.079, 0.079, 0.072, 0.062,
        0.079, 0.079,
    ),
)  # fmt: skip

COCO17 = Skeleton(
    name="coco17",
    joints=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear",
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
        "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    limbs=(
        ("left_ankle", "left_knee"), ("left_knee", "left_hip"),
        ("right_ankle", "right_knee"), ("right_knee", "right_hip"),
        ("left_hip", "right_hip"), ("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"),
        ("left_shoulder", "right_shoulder"),
        ("left_shoulder", "left_elbow"), ("right_shoulder", "right_elbow"),
        ("left_elbow", "left_wrist"), ("right_elbow", "right_wrist"),
        ("left_eye", "right_eye"), ("nose", "left_eye"), ("nose", "right_eye"),
        ("left_eye", "left_ear"), ("right_eye", "right_ear"),
        ("left_ear", "left_shoulder"), ("right_ear", "right_shoulder"),
    ),
    mirror_pairs=(
        ("left_eye", "right_eye"), ("left_ear", "right_ear"), ("left_shoulder", "right_shoulder"),
        ("left_elbow", "right_elbow"), ("left_wrist", "right_wrist"), ("left_hip", "right_hip"),
        ("left_knee", "right_knee"), ("left_ankle", "right_ankle"),
    ),
    pcp_limbs=(
        ("right_lower_leg", "right_ankle", "right_knee"), ("right_upper_leg", "right_knee", "right_hip"),
        ("left_upper_leg", "left_hip", "left_knee"), ("left_lower_leg", "left_knee", "left_ankle"),
        ("right_forearm", "right_wrist", "right_elbow"), ("right_upper_arm", "right_elbow", "right_shoulder"),
        ("left_upper_arm", "left_shoulder", "left_elbow"), ("left_forearm", "left_elbow", "left_wrist"),
        ("torso", "left_shoulder", "right_hip"),
    ),
    torso=("left_shoulder", "right_hip"),
    head=None,
    oks_sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062,
        0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
    ),
)  # fmt: skip

OPENPOSE18 = Skeleton(
    name="openpose18",
    joints=(
        "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
        "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
        "right_eye", "left_eye", "right_ear", "left_ear",
    ),
    # In the order and direction of the channels of the published networks.
    limbs=(
        ("neck", "right_hip"), ("right_hip", "right_knee"), ("right_knee", "right_ankle"),
        ("neck", "left_hip"), ("left_hip", "left_knee"), ("left_knee", "left_ankle"),
        ("neck", "right_shoulder"), ("right_shoulder", "right_elbow"), ("right_elbow", "right_wrist"),
        ("right_shoulder", "right_ear"),
        ("neck", "left_shoulder"), ("left_shoulder", "left_elbow"), ("left_elbow", "left_wrist"),
        ("left_shoulder", "left_ear"),
        ("neck", "nose"), ("nose", "right_eye"), ("nose", "left_eye"),
        ("right_eye", "right_ear"), ("left_eye", "left_ear"),
    ),
    mirror_pairs=COCO17.mirror_pairs,
    pcp_limbs=COCO17.pcp_limbs,
    torso=("left_shoulder", "right_hip"),
    head=None,
    # COCO's, and for the neck, the middle of the shoulders, the shoulders' own.
    oks_sigmas=(
        0.026, 0.079, 0.079, 0.072, 0.062, 0.079, 0.072, 0.062,
        0.107, 0.087, 0.089, 0.107, 0.087, 0.089,
        0.025, 0.025, 0.035, 0.035,
    ),
)  # fmt: skip

SKELETONS: dict[str, Skeleton] = {skeleton.name: skeleton for skeleton in (LSP14, COCO17, OPENPOSE18)}


def skeleton_named(name: str) -> Skeleton:
    """The skeleton of that name. Raises ConfigError, listing the known ones."""
    if name not in SKELETONS:
        raise ConfigError(f"unknown skeleton {name!r}; known are {', '.join(SKELETONS)}")
    return SKELETONS[name]
